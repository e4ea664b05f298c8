from __future__ import annotations

import bz2
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
import gzip
from itertools import pairwise
import lzma
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import pandas as pd
import pyarrow as pa
from pyarrow import parquet
import pytest

from optuna_nis.data import column_names, read_table, text_file
from optuna_nis.data.files import TableFiles, file_digest
from optuna_nis.data.paths import check_path

Rows = list[tuple[str | None, ...]]
NAMES = ["user", "item", "when"]
ROWS: Rows = [("ann", "7", "2024-01-31"), ("bob", None, "x"), (None, "007", "a;b"), ("", " ", "-")]


def rows_of(table: TableFiles, columns: Sequence[str] | None = None) -> list[tuple[Any, ...]]:
    batches = table.batches(table.names if columns is None else columns)
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


def plain(rows: Rows) -> Rows:
    return [tuple(cell or None for cell in row) for row in rows]


def as_text(rows: Rows, separator: str, names: Sequence[str] | None = NAMES) -> bytes:
    frame = pd.DataFrame(rows, columns=NAMES)
    header: Any = False if names is None else list(names)
    return frame.to_csv(index=False, sep=separator, header=header).encode()


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def write(path: Path, rows: Rows = ROWS, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        columns = {name: [row[at] for row in rows] for at, name in enumerate(NAMES)}
        parquet.write_table(pa.table(columns, pa.schema([(n, pa.string()) for n in NAMES])), path)
        return path
    separator = options.pop("separator", "," if ".csv" in path.name else "\t")
    text = as_text(rows, separator, **options)
    path.write_bytes(COMPRESSED.get(path.suffix, bytes)(text))
    return path


def write_columns(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    return path


FORMATS = [
    *(f"rows{kind}{suffix}" for kind in (".csv", ".tsv") for suffix in COMPRESSED),
    *("rows.inter", "rows.user.gz", "rows.item", "rows.parquet", "ROWS.CSV"),
]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_cells(name: str, tmp_path: Path) -> None:
    typed = [f"{each}:token" for each in NAMES]
    atomic = any(kind in name for kind in (".inter", ".user", ".item"))
    path = write(tmp_path / name, **({"names": typed} if atomic else {}))
    if name == "ROWS.CSV":
        path.write_bytes(as_text(ROWS, ","))

    table = TableFiles(path)

    assert table.names == NAMES
    assert table.name == name
    assert table.described == f"file {name!r}"
    assert table.kind == ("typed" if name == "rows.parquet" else "text")
    assert table.is_text("user") == (table.kind == "text")
    assert rows_of(table) == plain(ROWS)
    assert rows_of(table, ["when", "user"]) == [(row[2], row[0]) for row in plain(ROWS)]


CELLS = st.one_of(
    st.sampled_from(["NA", "007", "7", "", None, " x", 'a"b', "a,b", "a\tb", "a\nb", "a\r\nb"]),
    st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=3),
)
SOME_ROWS = st.lists(st.tuples(CELLS, CELLS, st.just("-")), min_size=1, max_size=8)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(rows=SOME_ROWS, cuts=st.sets(st.integers(0, 8), max_size=4), block=st.integers(0, 40))
def test_any_cut_into_parts_gives_the_same_cells(
    rows: Rows, cuts: set[int], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    places = sorted({0, len(rows), *(cut for cut in cuts if cut <= len(rows))})
    parts = [rows[start:stop] for start, stop in pairwise(places)]
    longest = max(len(as_text([row], ",")) for row in rows)
    for kind in (".csv", ".tsv", ".parquet", ".csv.gz"):
        for number, part in enumerate(parts):
            write(folder / kind / f"part-{number}{kind}", part)
        with pytest.MonkeyPatch.context() as patch:
            # Blocks hold a row and a header at least; here, little more.
            patch.setattr(text_file, "_BLOCK", 2 * longest + 64 + block)
            assert rows_of(TableFiles(folder / kind)) == plain(rows)
            batches = list(TableFiles(folder / kind).batches(["item"], rows=2))
        assert max(map(len, batches)) <= 2


def test_text_is_read_as_pandas_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for text in (
        b'\xef\xbb\xbfa,b\r\n1,x"y\r\n2,"x"y\r\n3,"x""y"\r\n',
        b"\n  \na,b\r\n1,2\n   \n\n3,",
        b"a,b\r1,2\r3,4",
        b'a,a,,b\n"1\n2",3,4," "\n',
        b'"a\nb",c\n1,2\n',
        b'a\n""\n1\n\n2\n',
        b"a,b\n",
    ):
        path.write_bytes(text)
        wanted = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
        table = TableFiles(path)
        assert table.names == list(wanted.columns)
        assert rows_of(table) == [
            tuple(None if pd.isna(cell) else cell for cell in row)
            for row in wanted.itertuples(index=False)
        ]


def test_a_folder_as_spark_writes_it(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write(tmp_path / f"part-{number}.snappy.parquet", [(f"user {number}", "1", "x")])
    for name in ("_SUCCESS", ".part-1.snappy.parquet.crc", "_temporary/0/part-3.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("nothing")
    (tmp_path / "part-4.parquet").touch()

    for path in (tmp_path, tmp_path / "part-*", str(tmp_path) + "/*"):
        table = TableFiles(path)
        assert [row[0] for row in rows_of(table)] == ["user 1", "user 2", "user 10"]
        assert table.described == f"table {Path(path).name!r}"
    assert [each.name for each in TableFiles(tmp_path).files] == [
        f"part-{number}.snappy.parquet" for number in (1, 2, 10)
    ]


def test_parts_of_text_have_a_header_each(tmp_path: Path) -> None:
    write(tmp_path / "part-0.csv", ROWS[:1])
    path = tmp_path / "part-1.csv"
    path.write_text("when,item,user\nx,,bob\n")
    write(tmp_path / "part-2.csv.gz", [])

    assert rows_of(TableFiles(tmp_path)) == plain(ROWS[:2])


def test_compressed_parts_without_anything_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "part-0.csv.gz").write_bytes(gzip.compress(b""))
    write(tmp_path / "part-1.csv.gz")

    assert rows_of(TableFiles(tmp_path)) == plain(ROWS)
    with pytest.raises(ValueError, match=r"part-0.csv.gz' cannot be read: No columns"):
        TableFiles(tmp_path / "part-0.csv.gz")


def test_folders_that_are_links(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "part-0.csv")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "day=3").symlink_to(tmp_path / "elsewhere")

    assert rows_of(TableFiles(tmp_path / "logs"), ["day"]) == [("3",)] * len(ROWS)


def test_files_of_a_list_stay_in_its_order(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.csv", [(name, "1", "x")]) for name in "bca"]

    assert [row[0] for row in rows_of(TableFiles(paths))] == ["b", "c", "a"]
    with pytest.raises(ValueError, match=r"`path` must name each file once, got '.*b\.csv' twice"):
        TableFiles([*paths, tmp_path / "." / "b.csv"])


def test_hive_folders_are_columns(tmp_path: Path) -> None:
    for kind, values in ((".csv", ["9", "10", None]), (".parquet", [9, 10, None])):
        root = tmp_path / kind
        for day in ("10", "9", "__HIVE_DEFAULT_PARTITION__"):
            for city in ("New%20York", "Oslo"):
                write(root / f"day={day}" / f"city={city}" / f"part-0{kind}", ROWS[:1])
        table = TableFiles(root)
        assert table.names == [*NAMES, "day", "city"]
        cities = [(day, city) for day in values for city in ("New York", "Oslo")]
        assert rows_of(table, ["day", "city"]) == cities
        assert rows_of(table, ["user", "day"])[0] == ("ann", values[0])
        for path in (root / "day=9", root / "day=9" / "*", root / "day=9/city=Oslo/part-0*"):
            assert set(rows_of(TableFiles(path), ["day"])) == {(values[0],)}


@pytest.mark.parametrize(
    ("folders", "values"),
    [
        (["01234", "1234"], ["01234", "1234"]),
        (["1", "2.5"], [1.0, 2.5]),
        (["2024-01-31", "2024-02-01"], [datetime(2024, 1, 31), datetime(2024, 2, 1)]),
        (["true", "false"], [False, True]),
        (["", "7"], [None, 7]),
        ([""], [None]),
        (["1", str(2**64)], ["1", str(2**64)]),
    ],
    ids=str,
)
def test_hive_folders_of_parquet_lose_nothing(
    folders: list[str], values: list[Any], tmp_path: Path
) -> None:
    for folder in folders:
        write(tmp_path / f"x={folder}" / "part.parquet", ROWS[:1])

    table = TableFiles(tmp_path)

    assert [row[0] for row in rows_of(table, ["x"])] == values
    assert not table.is_text("x")
    assert set(read_table(tmp_path)["x"].dropna()) == {each for each in values if each is not None}


def test_a_column_of_the_file_is_not_that_of_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "user=eve" / "day=3" / "part.csv", ROWS[:1])

    table = TableFiles(tmp_path)

    assert table.names == [*NAMES, "day"]
    assert rows_of(table, ["user", "day"]) == [("ann", "3")]


@pytest.mark.parametrize("name", ["part.csv", "part.parquet"])
def test_copies_are_of_no_two_parts(name: str, tmp_path: Path) -> None:
    train, valid, test = (tmp_path / folder / name for folder in ("train", "valid", "test"))
    rows = 100 * ROWS
    write(train, rows)
    write(valid, rows[:90])
    write(test, rows[::-1])
    assert len(TableFiles.of_parts([train, valid, test])) == 3
    for copied in (train, valid):
        test.write_bytes(copied.read_bytes())
        with pytest.raises(ValueError, match="Each part must have rows of its own") as error:
            TableFiles.of_parts([train, valid, test])
        assert f"{str(copied)!r} in one and {str(test)!r}, a copy" in str(error.value)
    # Two of one part are no mistake of ours, and single rows may be the same by chance.
    write(test, rows[::-1])
    assert len(TableFiles.of_parts([[train, valid], test])) == 2
    for few in (1, 0) if name.endswith(".csv") else (0,):
        write(valid, ROWS[:few])
        write(test, ROWS[:few])
        assert len(TableFiles.of_parts([train, valid, test])) == 3


def test_copies_in_folders_of_other_values_are_other_rows(tmp_path: Path) -> None:
    parts = [tmp_path / part / f"day={day}" for day, part in enumerate(("train", "test"))]
    for folder in parts:
        write(folder / "part.csv")
    assert len(TableFiles.of_parts([tmp_path / "train", tmp_path / "test"])) == 2


def test_text_without_a_header(tmp_path: Path) -> None:
    for name in ("train.txt", "part-00000", "train.tsv", "train.data.gz"):
        path = tmp_path / name
        text = as_text(ROWS, "\t", names=None)
        path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
        table = TableFiles(path, names=NAMES, separator="\t")
        assert rows_of(table) == plain(ROWS)
        assert table.without_header() == ""
    assert read_table(path, ["item"], names=NAMES, separator="\t")["item"].tolist()[2] == "007"
    assert column_names(path, names=NAMES, separator="\t") == NAMES
    with pytest.raises(ValueError, match=r"`names` must name each of its 3 columns, got 2: 'a'"):
        TableFiles(path, names=["a", "b"], separator="\t")
    headed = write(tmp_path / "headed.csv")
    with pytest.raises(ValueError, match=r"headed.csv' .* has the `names` already: leave them"):
        TableFiles(headed, names=NAMES)


def test_other_separators(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", separator=";")

    assert rows_of(TableFiles(path, separator=";")) == plain(ROWS)
    assert read_table(path, separator=";")["item"].isna().sum() == 1


def test_atomic_files_of_recbole(tmp_path: Path) -> None:
    path = tmp_path / "ml.inter"
    path.write_text("user_id:token\thist:token_seq\tprice:float\tv:float_seq\tx\na\tb c\t1\t\t2\n")

    table = TableFiles(path)

    assert table.names == ["user_id", "hist", "price", "v", "x"]
    assert table.separators == {"hist": " ", "v": " "}
    assert table.numeric == ["price"]
    assert rows_of(table) == [("a", "b c", "1", None, "2")]
    batch = next(table.batches(["hist:token_seq", "user_id"]))
    assert batch.to_pylist() == [{"hist:token_seq": "b c", "user_id": "a"}]
    assert read_table(path, ["price:float"]).to_dict("list") == {"price:float": [1]}
    path.write_text("x:token\tx:float\n1\t2\n")
    with pytest.raises(ValueError, match=r"ml.inter' has the column 'x' twice"):
        TableFiles(path)


def test_a_name_of_several_columns_names_none(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text("y,shop,,ware,shop,\n1,a,x,b,c,z\n")

    assert read_table(path, ["y", "ware"]).to_dict("list") == {"y": [1], "ware": ["b"]}
    for names in (["shop"], ["y", "shop"]):
        with pytest.raises(ValueError, match=r"clicks.csv' has the column 'shop' twice"):
            read_table(path, names)
    own = ["y", "s1", "a", "ware", "s2", "b"]
    path.write_text("1,a,x,b,c,z\n")
    assert read_table(path, ["s2"], names=own).to_dict("list") == {"s2": ["c"]}


def test_libsvm(tmp_path: Path) -> None:
    path = tmp_path / "train.libsvm"
    path.write_text("# made\n\n # by hand\n+1 12:1  507:1.0\t\n\n-1\n1 3:1e0 # the last\n")

    table = TableFiles(path)

    assert table.names == ["label", "features"]
    assert table.separators == {"features": None}
    assert (table.is_text("label"), table.is_text("features")) == (True, False)
    assert rows_of(table) == [("1", [12, 507]), ("-1", []), ("1", [3])]
    frame = read_table(path)
    assert frame["label"].tolist() == [1, -1, 1]
    assert [list(bag) for bag in frame["features"]] == [[12, 507], [], [3]]


def test_libsvm_with_queries(tmp_path: Path) -> None:
    path = tmp_path / "train.svm"
    path.write_text("1 qid:7 12:1\n0 qid:8\n")
    assert rows_of(TableFiles(path), ["features", "qid"]) == [([12], "7"), ([], "8")]
    path.write_text("1 qid:7 12:1\n0 12:1\n")
    with pytest.raises(ValueError, match=r"train.svm' .* row 2, '0 12:1', has no `qid`"):
        rows_of(TableFiles(path))


@pytest.mark.parametrize("item", ["507:0.5", "507", "1:507:1", "-1:1", "a:1", "507:0", ":1", "1:"])
def test_libsvm_with_other_values_is_refused(item: str, tmp_path: Path) -> None:
    path = tmp_path / "train.libfm"
    path.write_text(f"1 12:1\n#\n0 12:1 {item}\n1\n")

    with pytest.raises(ValueError, match=rf"libfm' .* row 3, '.*{item}', has features that"):
        rows_of(TableFiles(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n\n3\n4,5\n", "row 3 has 1 instead of 2 cells: '3'"),
        ("a,b\n1,2\n3,4,5\n", "row 3 has 3 instead of 2 cells: '3,4,5'"),
        ('a,b\n"1\n2",2\n3\n', "row 3 has 1 instead of 2 cells: '3'"),
        ("a,b\n" + "1,2\n" * 200 + "3\n", "row 202 has 1 instead of 2 cells: '3'"),
        ('a,b\n1,2\n1,"a\n', "a quote in row 3 has no end"),
        ('a,b\n1,2\n1,"a', "a quote in row 3 has no end"),
        ('a,b\n1,2\n"1,2\n', "a quote in row 3 has no end"),
        ('a,b\n1,2\n1,"', "a quote in row 3 has no end"),
        ('a,b\n1,2\n1,"' + "x\n" * 200, "a row after row 2 has more than 0 MiB; perhaps a quote"),
        (
            "a,b\n1,2\n" * 20 + "1,\udcff\n",
            "row 41 has in the column 'b' what is no text in UTF-8",
        ),
    ],
)
@pytest.mark.parametrize("columns", [["a"], ["a", "b"]], ids=str)
def test_what_is_wrong_is_told_with_its_row(
    content: str, message: str, columns: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_file, "_BLOCK", 128)
    path = tmp_path / "rows.csv"
    path.write_bytes(content.encode(errors="surrogateescape"))
    if "no text" in message and columns == ["a"]:
        return

    with pytest.raises(ValueError, match=f"rows.csv' cannot be read: {message}"):
        rows_of(TableFiles(path), columns)


def test_a_header_in_another_encoding_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("größe,b\n1,2\n".encode("latin-1"))

    for names in (None, ["a", "b"]):
        with pytest.raises(ValueError, match=r"rows.csv' cannot be read: row 1 has what is no te"):
            TableFiles(path, names=names)


def test_the_broken_part_is_named(tmp_path: Path) -> None:
    write(tmp_path / "part-0.csv")
    (tmp_path / "part-1.csv").write_text("user,item,when\n1,2\n")

    with pytest.raises(ValueError, match=r"part-1.csv' cannot be read: row 2 has 2 instead of 3"):
        rows_of(TableFiles(tmp_path))


def test_parts_must_have_the_same_columns(tmp_path: Path) -> None:
    for kind in (".csv", ".parquet"):
        first, second = tmp_path / f"a{kind}", tmp_path / f"b{kind}"
        for path, names in ((first, ["x", "y"]), (second, ["x", "z"])):
            frame = pd.DataFrame([[1, 2]], columns=names)
            frame.to_csv(path, index=False) if kind == ".csv" else frame.to_parquet(path)
        with pytest.raises(
            ValueError,
            match=r"b\.\w+' has no column 'y' and has the column 'z' too, unlike",
        ):
            TableFiles([first, second])
    write(tmp_path / "logs" / "part.csv")
    write(tmp_path / "logs" / "day=3" / "part.csv")
    with pytest.raises(ValueError, match=r"has the column 'day' too|has no column 'day'"):
        TableFiles(tmp_path / "logs")


def test_a_part_without_a_header_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("label,user,hash\n1,ann,7b4723c4\n")
    (tmp_path / "b.csv").write_text("1,ann,7b4723c4\n0,bob,80e26c9b\n")

    with pytest.raises(ValueError, match=r"b.csv' has no column 'label', .* looks like values"):
        TableFiles(tmp_path)


ONE, TWO = datetime(2024, 1, 31), datetime(2024, 2, 1, 12)


@pytest.mark.parametrize(
    ("first", "second", "kind", "cells"),
    [
        (pa.array([1], pa.int32()), pa.array([2**60]), pa.int64(), [1, 2**60]),
        (pa.array([1], pa.uint8()), pa.array([2], pa.uint64()), pa.uint64(), [1, 2]),
        (pa.array([1]), pa.array([None, 2.5]), pa.float64(), [1.0, None, 2.5]),
        (pa.array([0.1], pa.float32()), pa.array([0.1]), pa.float64(), [0.1, 0.1]),
        (pa.nulls(1), pa.array([1]), pa.int64(), [None, 1]),
        (pa.array(["a"]), pa.array(["b", ""], pa.large_string()), None, ["a", "b", None]),
        (pa.array([b"a"]), pa.array(["b"]).dictionary_encode(), None, ["a", "b"]),
        (
            pa.array([ONE], pa.timestamp("s")),
            pa.array([TWO], pa.timestamp("us")),
            pa.timestamp("us"),
            [ONE, TWO],
        ),
        (pa.array([ONE.date()]), pa.array([TWO]), pa.timestamp("us"), [ONE, TWO]),
        (pa.array([[1]], pa.list_(pa.int32())), pa.array([[2], None]), None, [[1], [2], None]),
        (
            pa.array([Decimal("1.50")]),
            pa.array([Decimal("2.250")]),
            pa.string(),
            ["1.50", "2.250"],
        ),
    ],
    ids=lambda each: str(each.type) if isinstance(each, pa.Array) else "",
)
def test_types_of_one_kind_go_together(
    first: pa.Array, second: pa.Array, kind: Any, cells: list[Any], tmp_path: Path
) -> None:
    write_columns(tmp_path / "a.parquet", x=first)
    write_columns(tmp_path / "b.parquet", x=second)

    table = TableFiles(tmp_path)

    assert [row[0] for row in rows_of(table)] == cells
    assert kind is None or table.schema(["x"]).field("x").type == kind
    assert {batch.schema == table.schema(["x"]) for batch in table.batches(["x"])} == {True}
    other = TableFiles([tmp_path / "b.parquet", tmp_path / "a.parquet"])
    assert other.schema(["x"]) == table.schema(["x"])
    assert table.is_text("x") == pa.types.is_decimal(first.type)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (pa.array([1]), pa.array(["a"]), r"got int64 in '.*a\.parquet' and string in '.*b\.parq"),
        (pa.array([True]), pa.array([1]), "got bool in .* and int64 in"),
        (pa.array([ONE]), pa.array([ONE], pa.timestamp("us", "UTC")), "got timestamp"),
        (pa.array([[1]]), pa.array([1]), "got list"),
        (pa.array([[1]]), pa.array([["a"]]), "got list"),
        (pa.array([Decimal("1.5")]), pa.array(["1.5"]), "got decimal128.* and string"),
        (pa.array([Decimal("1.5")]), pa.array([1]), "got decimal128.* and int64"),
    ],
    ids=lambda each: str(each.type) if isinstance(each, pa.Array) else "",
)
def test_types_of_several_kinds_are_refused(
    first: pa.Array, second: pa.Array, message: str, tmp_path: Path
) -> None:
    write_columns(tmp_path / "a.parquet", x=first)
    write_columns(tmp_path / "b.parquet", x=second)

    with pytest.raises(ValueError, match=f"The column 'x' must be of one kind .*, {message}"):
        TableFiles(tmp_path)


def test_numbers_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    write_columns(tmp_path / "a.parquet", x=pa.array([2**60 + 1]))
    write_columns(tmp_path / "b.parquet", x=pa.array([2.5]))

    with pytest.raises(ValueError, match=r"a.parquet' cannot be read: .*'x'.*1152921504606846977"):
        rows_of(TableFiles(tmp_path))


def test_bytes_are_text_if_all_of_them_are(tmp_path: Path) -> None:
    write_columns(tmp_path / "a.parquet", x=pa.array([b"a", b""]), y=pa.array([b"a", b""]))
    write_columns(tmp_path / "b.parquet", x=pa.array([b"b", None]), y=pa.array([b"\xff", None]))

    table = TableFiles(tmp_path)

    assert rows_of(table, ["x"]) == [("a",), (None,), ("b",), (None,)]
    assert rows_of(table, ["y", "x"])[2] == (b"\xff", "b")
    assert rows_of(table, ["y"]) == [(b"a",), (b"",), (b"\xff",), (None,)]


def test_parts_have_the_same_types(tmp_path: Path) -> None:
    folders = [tmp_path / "train" / "day=01", tmp_path / "test" / "day=10"]
    write_columns(
        folders[0] / "a.parquet",
        x=pa.array([1], pa.int32()),
        y=pa.array([b"a"]),
        z=pa.array([1.5]),
    )
    write_columns(folders[1] / "a.parquet", y=pa.array([b"\xff"]), x=pa.array([2**40]))

    train, test = TableFiles.of_parts([tmp_path / "train", tmp_path / "test"])

    columns = ["x", "y", "day"]
    assert train.schema(columns) == test.schema(columns)
    assert rows_of(train, columns) == [(1, b"a", "01")]
    assert rows_of(test, columns) == [(2**40, b"\xff", "10")]
    assert rows_of(train, ["z"]) == [(1.5,)]
    write_columns(folders[1] / "a.parquet", x=pa.array(["a"]))
    with pytest.raises(ValueError, match=r"'x' .* got int32 in .*train.* and string in .*test"):
        TableFiles.of_parts([tmp_path / "train", tmp_path / "test"])
    text = write(tmp_path / "text.csv")
    with pytest.raises(ValueError, match=r"must be text, or all be Parquet, got .*train.*text.c"):
        TableFiles.of_parts([tmp_path / "train", text])
    other = write(tmp_path / "other.csv", ROWS[::-1])
    assert [each.kind for each in TableFiles.of_parts([text, other])] == ["text", "text"]


def test_batches_of_parquet_are_pieces_of_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"x": range(1000), "y": range(1000)}), path)

    batches = list(TableFiles(path).batches(["y"], rows=300))

    assert [len(batch) for batch in batches] == [300, 300, 300, 100]
    assert batches[-1].column(0)[-1].as_py() == 999


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_file, "_BLOCK", 1 << 14)
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + "0123456789,0123456789\n" * 100_000)
    before = pa.total_allocated_bytes()

    most = max(pa.total_allocated_bytes() for _ in TableFiles(path).batches(["a", "b"]))

    assert most - before < path.stat().st_size / 2


def test_stopping_early_closes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    close = text_file._Bytes.close
    monkeypatch.setattr(
        text_file._Bytes, "close", lambda self: (closed.append(self._source), close(self))[1]
    )
    batches = TableFiles(write(tmp_path / "rows.csv")).batches(["user"])
    next(batches)
    closed.clear()

    batches.close()  # type: ignore[attr-defined]

    assert [source.closed for source in closed] == [True]


def test_digests_name_the_content(tmp_path: Path) -> None:
    one = write(tmp_path / "day=1" / "a.csv", ROWS[:2])
    two = write(tmp_path / "day=2" / "a.csv", ROWS[2:])
    moved = tmp_path / "moved"
    for path in (one, two):
        write(moved / path.parent.name / "b.csv").write_bytes(path.read_bytes())

    digest = TableFiles(tmp_path / "day=*").digest()

    assert TableFiles(moved).digest() == digest
    known = {str(path): file_digest(path) for path in (one, two)}
    assert TableFiles(tmp_path / "day=*").digest(lambda path: known[str(path)]) == digest
    others = [
        TableFiles([two, one]),
        TableFiles(one),
        TableFiles(tmp_path / "day=*", names=["a", "b", "c"]),
        TableFiles(tmp_path / "day=*", names=["a", "c", "b"]),
        TableFiles(tmp_path / "day=*", separator=";"),
    ]
    write(tmp_path / "other" / "day=1" / "a.csv", ROWS[:2])
    write(tmp_path / "other" / "day=3" / "a.csv", ROWS[2:])
    others.append(TableFiles(tmp_path / "other"))
    two.write_bytes(two.read_bytes().replace(b"007", b"008"))
    others.append(TableFiles(tmp_path / "day=*"))
    assert len({digest, *(each.digest() for each in others)}) == len(others) + 1


@pytest.mark.parametrize(
    ("make", "path", "error", "message"),
    [
        ([], "none.csv", FileNotFoundError, "`path` must be a file, got '.*none.csv', which is n"),
        ([], "none*.csv", FileNotFoundError, r"got the pattern '.*none\*\.csv', in which there"),
        (["logs/_SUCCESS"], "logs", FileNotFoundError, "got the folder '.*logs', in which there"),
        (["logs/a.csv", "logs/b.parquet"], "logs", ValueError, "of one format, got .*a.csv.*b.pa"),
        (["logs/a.csv", "logs/notes.json"], "logs", ValueError, "must end in one of .*notes.json"),
        (
            ["logs/a.parquet", "logs/_delta_log/0.json"],
            "logs",
            ValueError,
            "is a Delta table, whose files hold removed rows too",
        ),
    ],
)
def test_paths_that_are_no_table(
    make: list[str], path: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    for name in make:
        write(tmp_path / name)

    with pytest.raises(error, match=message):
        TableFiles(tmp_path / path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": []}, r"`path` must name at least one file, got \[\]"),
        ({"path": "a.xlsx"}, r"`path` must end in one of \.csv, .*, got 'a.xlsx'.*`separator`"),
        ({"path": ["a.csv", "b"]}, r"`path` must end in one of \.csv, .*, got 'b'"),
        ({"path": "a.dat", "separator": "::"}, "`separator` must be the one char.*, got '::'"),
        ({"path": "a.dat", "separator": ""}, "`separator` must be the one character"),
        ({"path": "a.dat", "separator": '"'}, "`separator` must be the one character"),
        ({"path": "a.pq", "separator": ";"}, "`separator` is for text files, got ';' for 'a.pq'"),
    ],
)
def test_paths_are_checked_without_reading(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_path(**arguments)


@pytest.mark.parametrize(
    ("path", "kind"), [(pd.DataFrame({"a.csv": [1]}), "DataFrame"), (3, "int"), ([1], "list")]
)
def test_what_is_no_path(path: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=f"`path` must be a file, .*, got a {kind}") as caught:
        check_path(path)
    assert ("to_parquet" in str(caught.value)) == (kind == "DataFrame")


@pytest.mark.parametrize(
    ("name", "names", "message"),
    [
        ("a.csv", "user,item", "`names` must be a list of names of columns, got 'user,item'"),
        ("a.csv", ["a", "b", ""], "`names` must be a list of names of columns, got"),
        ("a.csv", ["a", "b", "a"], "`names` must name each column once, got 'a' twice"),
        ("a.parquet", ["a"], "`names` is for text files without a header, got 'a.parquet'"),
        ("a.inter", ["a"], "`names` is for text files without a header, got 'a.inter'"),
    ],
)
def test_names_are_checked(name: str, names: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        TableFiles(write(tmp_path / name), names=names)


def test_several_files_become_one_frame(tmp_path: Path) -> None:
    write(tmp_path / "part-0.csv", [("1", "a", "2024-01-31"), (None, "b", "2024-02-01")])
    write(tmp_path / "part-1.csv", [("2", "c", "2024-02-02")])

    frame = read_table(tmp_path)

    assert frame["user"].dropna().tolist() == [1, 2]
    assert frame["when"].tolist()[2] == pd.Timestamp(date(2024, 2, 2))
    write(tmp_path / "part-2.csv", [("007", "c", "x")])
    assert read_table(str(tmp_path / "part-*.csv"))["user"].dropna().tolist() == ["1", "2", "007"]
    with pytest.raises(ValueError, match=r"The table '.*' has no column 'city'; it has 'user'"):
        read_table(tmp_path, ["city"])
