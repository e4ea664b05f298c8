/* Loops over the rows of a batch for which torch takes many operations.

   Everything here is also done without: `_native.py` says when this is used, and tests compare
   both. Addresses are those of contiguous tensors on the CPU; who calls has looked at types and
   shapes, what is in them is looked at here. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(_MSC_VER)
#define restrict __restrict
#endif

/* Compiled for several generations of processors, of which the loader takes the best. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

/* Rows of large tables come from far: they are asked for so many rows before they are needed. */
#define AHEAD 12
#define CACHE_LINE 64
#if defined(__GNUC__)
#define FETCH(address) __builtin_prefetch(address)
#else
#define FETCH(address) ((void)(address))
#endif

static inline void fetch_row(const void *row, int64_t bytes) {
    for (int64_t byte = 0; byte < bytes; byte += CACHE_LINE) FETCH((const char *)row + byte);
}

/* Digits of numbers that are sorted, in bits. */
#define DIGIT 11
#define LANES 16

static int bits_of(uint64_t number) {
    int bits = 0;
    while (number >> bits && bits < 63) bits++;
    return bits;
}

/* Sorts numbers below 2**bits, each beside its place, by one digit after the other. */
static uint64_t *sorted(uint64_t *pairs, uint64_t *other, int64_t n, int bits, int place_bits,
                        int64_t *counts) {
    const int passes = bits ? (bits + DIGIT - 1) / DIGIT : 1;
    const int digit_bits = (bits + passes - 1) / passes;
    const uint64_t mask = ((uint64_t)1 << digit_bits) - 1;
    for (int pass = 0; pass < passes; pass++) {
        const int shift = place_bits + pass * digit_bits;
        int64_t start = 0;
        memset(counts, 0, sizeof(*counts) << digit_bits);
        for (int64_t i = 0; i < n; i++) counts[pairs[i] >> shift & mask]++;
        for (uint64_t digit = 0; digit <= mask; digit++) {
            const int64_t count = counts[digit];
            counts[digit] = start;
            start += count;
        }
        for (int64_t i = 0; i < n; i++) other[counts[pairs[i] >> shift & mask]++] = pairs[i];
        uint64_t *swapped = pairs;
        pairs = other;
        other = swapped;
    }
    return pairs;
}

PyDoc_STRVAR(distinct_doc,
             "Sort the rows of a batch, and find the distinct ones of each table.\n\n"
             "Gives how many there are in each table, then how many beyond all.");

static PyObject *distinct(PyObject *module, PyObject *args) {
    unsigned long long keys_at, order_at, starts_at, rows_at, inverse_at;
    long long n, highest;
    PyObject *sizes;
    (void)module;
    if (!PyArg_ParseTuple(args, "KLLOKKKK", &keys_at, &n, &highest, &sizes, &order_at, &starts_at,
                          &rows_at, &inverse_at))
        return NULL;
    const int64_t *keys = (const int64_t *)(uintptr_t)keys_at;
    int64_t *order = (int64_t *)(uintptr_t)order_at, *starts = (int64_t *)(uintptr_t)starts_at;
    int64_t *rows = (int64_t *)(uintptr_t)rows_at, *inverse = (int64_t *)(uintptr_t)inverse_at;
    const int bits = bits_of((uint64_t)highest), place_bits = bits_of((uint64_t)n);
    if (highest < 0 || n < 0 || bits + place_bits > 63) {
        PyErr_SetString(PyExc_OverflowError, "A row and its place need more than 63 bits.");
        return NULL;
    }
    const Py_ssize_t tables = PyList_Size(sizes);
    if (tables < 0) return NULL;
    uint64_t *pairs = malloc((size_t)(2 * n + 1) * sizeof(*pairs));
    /* Where tables end, and how many rows of each are found, those beyond all at last. */
    int64_t *ends = malloc((size_t)(2 * tables + 2) * sizeof(*ends)), *found = NULL;
    int64_t *counts = malloc(sizeof(*counts) << DIGIT);
    PyObject *result = NULL;
    int wrong = 0;
    if (pairs == NULL || ends == NULL || counts == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    found = ends + tables + 1;
    ends[tables] = INT64_MAX;
    for (Py_ssize_t table = 0; table < tables; table++) {
        const long long size = PyLong_AsLongLong(PyList_GetItem(sizes, table));
        if (size == -1 && PyErr_Occurred()) goto done;
        ends[table] = (table ? ends[table - 1] : 0) + size;
    }
    memset(found, 0, (size_t)(tables + 1) * sizeof(*found));
    Py_BEGIN_ALLOW_THREADS
    for (int64_t i = 0; i < n; i++) {
        const int64_t key = keys[i];
        wrong |= key < 0 || key > highest;
        pairs[i] = (uint64_t)key << place_bits | (uint64_t)i;
    }
    if (!wrong) {
        const uint64_t *in_order = sorted(pairs, pairs + n, n, bits, place_bits, counts);
        const uint64_t mask = ((uint64_t)1 << place_bits) - 1;
        int64_t total = 0, last = -1, table = 0;
        for (int64_t i = 0; i < n; i++) {
            const int64_t key = (int64_t)(in_order[i] >> place_bits);
            const int64_t place = (int64_t)(in_order[i] & mask);
            if (key != last) {
                while (key >= ends[table]) table++;
                found[table]++;
                starts[total] = i;
                rows[total++] = key - (table ? ends[table - 1] : 0);
                last = key;
            }
            order[i] = place;
            inverse[place] = total - 1;
        }
    }
    Py_END_ALLOW_THREADS
    if (wrong) {
        PyErr_Format(PyExc_IndexError, "A row is not between 0 and %lld.", highest);
        goto done;
    }
    result = PyList_New(tables + 1);
    for (Py_ssize_t table = 0; result != NULL && table <= tables; table++) {
        PyObject *number = PyLong_FromLongLong(found[table]);
        if (number == NULL || PyList_SetItem(result, table, number) < 0) {
            Py_DECREF(result);
            result = NULL;
        }
    }
done:
    free(pairs);
    free(ends);
    free(counts);
    return result;
}

/* A copy of row numbers: another thread may write to those of a batch after they were checked. */
static int64_t *copied(unsigned long long rows_at, int64_t n) {
    int64_t *rows = malloc((size_t)(n + 1) * sizeof(*rows));
    if (rows == NULL)
        PyErr_NoMemory();
    else if (n > 0)
        memcpy(rows, (const void *)(uintptr_t)rows_at, (size_t)n * sizeof(*rows));
    return rows;
}

/* The same of a table with so many rows. Raises IndexError. */
static int64_t *copied_below(unsigned long long rows_at, int64_t n, long long size) {
    int64_t *rows = copied(rows_at, n);
    for (int64_t i = 0; rows != NULL && i < n; i++)
        if (rows[i] < 0 || rows[i] >= size) {
            PyErr_Format(PyExc_IndexError, "A row is not between 0 and %lld.", size - 1);
            free(rows);
            return NULL;
        }
    return rows;
}

/* Whether numbers rise, all of them from 0 to below an end. */
static int rise(const int64_t *numbers, int64_t n, int64_t end) {
    int64_t last = -1;
    for (int64_t i = 0; i < n; i++) {
        if (numbers[i] <= last) return 0;
        last = numbers[i];
    }
    return last < end;
}

FOR_EACH_PROCESSOR
static void move_rows(float *restrict weight, float *restrict total, const int64_t *restrict rows,
                      const float *restrict grad, int64_t n, int64_t width, float lr, float eps) {
    for (int64_t i = 0; i < n; i++) {
        if (rows != NULL && i + AHEAD < n) {
            fetch_row(weight + rows[i + AHEAD] * width, width * (int64_t)sizeof(float));
            FETCH(total + rows[i + AHEAD]);
        }
        const int64_t place = rows == NULL ? i : rows[i];
        const float *restrict slope = grad + i * width;
        float *restrict row = weight + place * width;
        float lanes[LANES] = {0}, square = 0;
        int64_t column = 0;
        for (; column + LANES <= width; column += LANES)
            for (int lane = 0; lane < LANES; lane++)
                lanes[lane] += slope[column + lane] * slope[column + lane];
        for (int lane = 0; lane < LANES; lane++) square += lanes[lane];
        for (; column < width; column++) square += slope[column] * slope[column];
        const float sum = total[place] + square / (float)width;
        const float step = -lr / (sqrtf(sum) + eps);
        total[place] = sum;
        for (column = 0; column < width; column++) row[column] += step * slope[column];
    }
}

PyDoc_STRVAR(rowwise_adagrad_doc,
             "Move rows by row-wise Adagrad, without their numbers all of them.\n\n"
             "False, with nothing done, if their numbers do not rise.");

static PyObject *rowwise_adagrad(PyObject *module, PyObject *args) {
    unsigned long long weight_at, total_at, rows_at, grad_at;
    long long size, n, width;
    float lr, eps;
    int done;
    (void)module;
    if (!PyArg_ParseTuple(args, "KKLKKLLff", &weight_at, &total_at, &size, &rows_at, &grad_at, &n,
                          &width, &lr, &eps))
        return NULL;
    int64_t *rows = NULL;
    if (rows_at != 0 && (rows = copied(rows_at, n)) == NULL) return NULL;
    Py_BEGIN_ALLOW_THREADS
    done = rows == NULL || rise(rows, n, size);
    if (done)
        move_rows((float *)(uintptr_t)weight_at, (float *)(uintptr_t)total_at, rows,
                  (const float *)(uintptr_t)grad_at, n, width, lr, eps);
    Py_END_ALLOW_THREADS
    free(rows);
    return PyBool_FromLong(done);
}

/* What a code stands for: as `_rounding.rows_of` works it out, to the bit. */
static float level(int code, int bits, float step) {
    return ((float)code + 0.5f - (float)(1 << (bits - 1))) * step;
}

/* Writes the numbers that the codes of a byte stand for, byte by byte. */
static inline void write_levels(float *restrict out, const uint8_t *restrict bytes, int64_t n,
                                const float *restrict levels, const int codes) {
    for (int64_t i = 0; i < n; i++)
        memcpy(out + i * codes, levels + bytes[i] * codes, (size_t)codes * sizeof(*out));
}

FOR_EACH_PROCESSOR
static void unpack_rows(float *restrict out, const uint8_t *restrict table,
                        const int64_t *restrict rows, int64_t n, int64_t width, int bits,
                        float step) {
    float levels[256 * 4];
    const int codes = 8 / bits;
    const int64_t row_bytes = (width + codes - 1) / codes, whole = width / codes;
    const int64_t rest = width - whole * codes;
    for (int byte = 0; byte < 256; byte++)
        for (int code = 0; code < codes; code++)
            levels[byte * codes + code] =
                level(byte >> code * bits & ((1 << bits) - 1), bits, step);
    for (int64_t i = 0; i < n; i++) {
        if (i + AHEAD < n) fetch_row(table + rows[i + AHEAD] * row_bytes, row_bytes);
        const uint8_t *restrict bytes = table + rows[i] * row_bytes;
        float *restrict row = out + i * width;
        if (codes == 1)
            for (int64_t column = 0; column < width; column++)
                row[column] = level(bytes[column], 8, step);
        else if (codes == 2)
            write_levels(row, bytes, whole, levels, 2);
        else
            write_levels(row, bytes, whole, levels, 4);
        if (rest)
            memcpy(row + whole * codes, levels + bytes[whole] * codes,
                   (size_t)rest * sizeof(*row));
    }
}

PyDoc_STRVAR(unpack_doc, "Write the rows of a table of packed codes. Raises IndexError.");

static PyObject *unpack(PyObject *module, PyObject *args) {
    unsigned long long out_at, table_at, rows_at;
    long long size, n, width;
    int bits;
    float step;
    (void)module;
    if (!PyArg_ParseTuple(args, "KKLKLLif", &out_at, &table_at, &size, &rows_at, &n, &width, &bits,
                          &step))
        return NULL;
    int64_t *rows = copied_below(rows_at, n, size);
    if (rows == NULL) return NULL;
    Py_BEGIN_ALLOW_THREADS
    unpack_rows((float *)(uintptr_t)out_at, (const uint8_t *)(uintptr_t)table_at, rows, n, width,
                bits, step);
    Py_END_ALLOW_THREADS
    free(rows);
    Py_RETURN_NONE;
}

FOR_EACH_PROCESSOR
static void add_each(float *restrict total, const int64_t *restrict rows,
                     const float *restrict values, int64_t n, int64_t width, int64_t stride) {
    for (int64_t i = 0; i < n; i++) {
        const float *restrict value = values + i * stride;
        float *restrict row = total + rows[i] * width;
        for (int64_t column = 0; column < width; column++) row[column] += value[column];
    }
}

PyDoc_STRVAR(add_rows_doc, "Add rows to those of a table, one after the other. Raises IndexError.");

static PyObject *add_rows(PyObject *module, PyObject *args) {
    unsigned long long total_at, rows_at, values_at;
    long long size, n, width, stride;
    (void)module;
    if (!PyArg_ParseTuple(args, "KLKKLLL", &total_at, &size, &rows_at, &values_at, &n, &width,
                          &stride))
        return NULL;
    int64_t *rows = copied_below(rows_at, n, size);
    if (rows == NULL) return NULL;
    Py_BEGIN_ALLOW_THREADS
    add_each((float *)(uintptr_t)total_at, rows, (const float *)(uintptr_t)values_at, n, width,
             stride);
    Py_END_ALLOW_THREADS
    free(rows);
    Py_RETURN_NONE;
}

/* A table of which examples have rows, and which; all in turn where there are no numbers. */
typedef struct {
    float *table;
    int64_t size;
    int64_t *rows;
} column;

/* Reads the tables and the rows of a batch, which are copied. Rows beyond a table are none. */
static column *columns_of(PyObject *parts, int64_t batch, Py_ssize_t *number) {
    *number = PyList_Size(parts);
    if (*number < 0) return NULL;
    column *columns = calloc((size_t)*number + 1, sizeof(*columns));
    int64_t *room = malloc((size_t)(*number * batch + 1) * sizeof(*room));
    if (columns == NULL || room == NULL) {
        PyErr_NoMemory();
        goto failed;
    }
    /* At the end, where it is found again. */
    columns[*number].rows = room;
    for (Py_ssize_t index = 0; index < *number; index++) {
        unsigned long long table_at, rows_at;
        long long size;
        if (!PyArg_ParseTuple(PyList_GetItem(parts, index), "KLK", &table_at, &size, &rows_at))
            goto failed;
        columns[index].table = (float *)(uintptr_t)table_at;
        columns[index].size = size;
        if (rows_at == 0) continue;
        int64_t *rows = columns[index].rows = room + index * batch;
        memcpy(rows, (const void *)(uintptr_t)rows_at, (size_t)batch * sizeof(*rows));
        for (int64_t i = 0; i < batch; i++)
            if (rows[i] < 0) {
                PyErr_SetString(PyExc_IndexError, "A row is below 0.");
                goto failed;
            }
    }
    return columns;
failed:
    free(columns);
    free(room);
    return NULL;
}

static void free_columns(column *columns, Py_ssize_t number) {
    free(columns[number].rows);
    free(columns);
}

/* The row of an example, NULL where it has none. */
static inline float *row_of(const column *own, int64_t example, int64_t width) {
    const int64_t row = own->rows == NULL ? example : own->rows[example];
    return row < own->size ? own->table + row * width : NULL;
}

/* Asks for the row of an example to come: of few tables more examples ahead. */
static inline void fetch_ahead(const column *own, int64_t number, int64_t example, int64_t batch,
                               int64_t width) {
    const int64_t later = example + (number < AHEAD ? AHEAD / number : 1);
    const float *row = later < batch ? row_of(own, later, width) : NULL;
    if (row != NULL) fetch_row(row, width * (int64_t)sizeof(*row));
}

/* Examples one after the other: what they have lies side by side then, and tables are small. */
typedef void (*loop)(const column *columns, int64_t number, float *restrict values, int64_t batch,
                     int64_t width);

FOR_EACH_PROCESSOR
static void gather_each(const column *columns, int64_t number, float *restrict values,
                        int64_t batch, int64_t width) {
    const size_t bytes = (size_t)width * sizeof(*values);
    for (int64_t i = 0; i < batch; i++)
        for (int64_t index = 0; index < number; index++) {
            const float *row = row_of(columns + index, i, width);
            fetch_ahead(columns + index, number, i, batch, width);
            if (row != NULL)
                memcpy(values, row, bytes);
            else
                memset(values, 0, bytes);
            values += width;
        }
}

FOR_EACH_PROCESSOR
static void scatter_each(const column *columns, int64_t number, float *restrict values,
                         int64_t batch, int64_t width) {
    for (int64_t i = 0; i < batch; i++)
        for (int64_t index = 0; index < number; index++) {
            float *restrict row = row_of(columns + index, i, width);
            fetch_ahead(columns + index, number, i, batch, width);
            if (row != NULL)
                for (int64_t place = 0; place < width; place++) row[place] += values[place];
            values += width;
        }
}

static PyObject *side_by_side(PyObject *args, loop run) {
    unsigned long long values_at;
    long long batch, width;
    PyObject *parts;
    Py_ssize_t number;
    if (!PyArg_ParseTuple(args, "OKLL", &parts, &values_at, &batch, &width)) return NULL;
    column *columns = columns_of(parts, batch, &number);
    if (columns == NULL) return NULL;
    Py_BEGIN_ALLOW_THREADS
    run(columns, number, (float *)(uintptr_t)values_at, batch, width);
    Py_END_ALLOW_THREADS
    free_columns(columns, number);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(gather_doc,
             "Write the rows that examples have of some tables, side by side; zeros beyond them.");

static PyObject *gather(PyObject *module, PyObject *args) {
    (void)module;
    return side_by_side(args, gather_each);
}

PyDoc_STRVAR(scatter_doc, "Add what examples have side by side to rows of some tables.");

static PyObject *scatter(PyObject *module, PyObject *args) {
    (void)module;
    return side_by_side(args, scatter_each);
}

/* Rows that are multiplied at a time, while what they are multiplied by stays in registers. */
#define ROWS 4

/* Writes rows times a matrix whose rows are padded to so many columns, a multiple of LANES. */
FOR_EACH_PROCESSOR
static void multiply(float *restrict out, int64_t width, const float *restrict rows, int64_t n,
                     int64_t inner, const float *restrict matrix, int64_t padded) {
    for (int64_t start = 0; start < padded; start += LANES) {
        const int64_t left = width - start;
        const size_t bytes = (size_t)(left < LANES ? left : LANES) * sizeof(*out);
        for (int64_t i = 0; i < n; i += ROWS) {
            /* What is beyond the last row is multiplied with it once more. */
            const float *restrict first = rows + i * inner;
            const float *restrict second = i + 1 < n ? first + inner : first;
            const float *restrict third = i + 2 < n ? second + inner : first;
            const float *restrict fourth = i + 3 < n ? third + inner : first;
            float one[LANES] = {0}, two[LANES] = {0}, three[LANES] = {0}, four[LANES] = {0};
            for (int64_t k = 0; k < inner; k++) {
                const float *restrict factors = matrix + k * padded + start;
                for (int lane = 0; lane < LANES; lane++) {
                    one[lane] += first[k] * factors[lane];
                    two[lane] += second[k] * factors[lane];
                    three[lane] += third[k] * factors[lane];
                    four[lane] += fourth[k] * factors[lane];
                }
            }
            float *restrict place = out + i * width + start;
            memcpy(place, one, bytes);
            if (i + 1 < n) memcpy(place + width, two, bytes);
            if (i + 2 < n) memcpy(place + 2 * width, three, bytes);
            if (i + 3 < n) memcpy(place + 3 * width, four, bytes);
        }
    }
}

/* Adds the product of the transpose of some rows and of other rows to a matrix. */
FOR_EACH_PROCESSOR
static void add_product(float *restrict matrix, const float *restrict left, int64_t height,
                        const float *restrict right, int64_t width, int64_t n) {
    int64_t i = 0;
    for (; i + ROWS <= n; i += ROWS)
        for (int64_t k = 0; k < height; k++) {
            const float *restrict factors = left + i * height + k;
            const float *restrict values = right + i * width;
            for (int64_t column = 0; column < width; column++) {
                float sum = 0;
                for (int row = 0; row < ROWS; row++)
                    sum += factors[row * height] * values[row * width + column];
                matrix[k * width + column] += sum;
            }
        }
    for (; i < n; i++)
        for (int64_t k = 0; k < height; k++)
            for (int64_t column = 0; column < width; column++)
                matrix[k * width + column] += left[i * height + k] * right[i * width + column];
}

static int64_t padded(int64_t width) { return (width + LANES - 1) / LANES * LANES; }

FOR_EACH_PROCESSOR
static void take(float *restrict out, const float *restrict table, const int64_t *restrict rows,
                 int64_t n, int64_t width) {
    const int64_t bytes = width * (int64_t)sizeof(*out);
    for (int64_t i = 0; i < n; i++) {
        if (i + AHEAD < n) fetch_row(table + rows[i + AHEAD] * width, bytes);
        memcpy(out + i * width, table + rows[i] * width, (size_t)bytes);
    }
}

PyDoc_STRVAR(take_rows_doc,
             "Copy rows of tables, and multiply them by a matrix where there is one.\n\n"
             "Raises IndexError.");

static PyObject *take_rows(PyObject *module, PyObject *args) {
    PyObject *parts;
    long long columns;
    (void)module;
    if (!PyArg_ParseTuple(args, "OL", &parts, &columns)) return NULL;
    const Py_ssize_t number = PyList_Size(parts);
    if (number < 0) return NULL;
    for (Py_ssize_t part = 0; part < number; part++) {
        unsigned long long table_at, rows_at, kept_at, matrix_at, out_at;
        long long size, n, width;
        if (!PyArg_ParseTuple(PyList_GetItem(parts, part), "KLKLLKKK", &table_at, &size, &rows_at,
                              &n, &width, &kept_at, &matrix_at, &out_at))
            return NULL;
        int64_t *rows = copied_below(rows_at, n, size);
        if (rows == NULL) return NULL;
        float *matrix = NULL;
        const int64_t stride = padded(columns);
        if (matrix_at != 0) {
            matrix = calloc((size_t)(width * stride + 1), sizeof(*matrix));
            if (matrix == NULL) {
                free(rows);
                return PyErr_NoMemory();
            }
            for (int64_t k = 0; k < width; k++)
                memcpy(matrix + k * stride, (const float *)(uintptr_t)matrix_at + k * columns,
                       (size_t)columns * sizeof(*matrix));
        }
        Py_BEGIN_ALLOW_THREADS
        take((float *)(uintptr_t)kept_at, (const float *)(uintptr_t)table_at, rows, n, width);
        if (matrix != NULL)
            multiply((float *)(uintptr_t)out_at, columns, (const float *)(uintptr_t)kept_at, n,
                     width, matrix, stride);
        Py_END_ALLOW_THREADS
        free(matrix);
        free(rows);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(multiply_back_doc,
             "The gradients of rows that were multiplied by a matrix, and of the matrix.");

static PyObject *multiply_back(PyObject *module, PyObject *args) {
    PyObject *parts;
    long long columns;
    (void)module;
    if (!PyArg_ParseTuple(args, "OL", &parts, &columns)) return NULL;
    const Py_ssize_t number = PyList_Size(parts);
    if (number < 0) return NULL;
    for (Py_ssize_t part = 0; part < number; part++) {
        unsigned long long slopes_at, kept_at, matrix_at, of_rows_at, of_matrix_at;
        long long n, width;
        if (!PyArg_ParseTuple(PyList_GetItem(parts, part), "KLLKKKK", &slopes_at, &n, &width,
                              &kept_at, &matrix_at, &of_rows_at, &of_matrix_at))
            return NULL;
        const float *matrix = (const float *)(uintptr_t)matrix_at;
        const int64_t stride = padded(width);
        float *turned = NULL;
        if (of_rows_at != 0) {
            turned = calloc((size_t)(columns * stride + 1), sizeof(*turned));
            if (turned == NULL) return PyErr_NoMemory();
            for (int64_t k = 0; k < width; k++)
                for (int64_t column = 0; column < columns; column++)
                    turned[column * stride + k] = matrix[k * columns + column];
        }
        Py_BEGIN_ALLOW_THREADS
        if (turned != NULL)
            multiply((float *)(uintptr_t)of_rows_at, width, (const float *)(uintptr_t)slopes_at, n,
                     columns, turned, stride);
        if (of_matrix_at != 0)
            add_product((float *)(uintptr_t)of_matrix_at, (const float *)(uintptr_t)kept_at, width,
                        (const float *)(uintptr_t)slopes_at, columns, n);
        Py_END_ALLOW_THREADS
        free(turned);
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"add_rows", add_rows, METH_VARARGS, add_rows_doc},
    {"distinct", distinct, METH_VARARGS, distinct_doc},
    {"gather", gather, METH_VARARGS, gather_doc},
    {"multiply_back", multiply_back, METH_VARARGS, multiply_back_doc},
    {"rowwise_adagrad", rowwise_adagrad, METH_VARARGS, rowwise_adagrad_doc},
    {"scatter", scatter, METH_VARARGS, scatter_doc},
    {"take_rows", take_rows, METH_VARARGS, take_rows_doc},
    {"unpack", unpack, METH_VARARGS, unpack_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernels", "Loops over the rows of a batch.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
