#!/usr/bin/env bash
# DuckDB 2.0.1 writes HUGEINT to Parquet as double, without a word, so ids above 2**53 merge. The sum
# of a BIGINT column is a HUGEINT. BIGINT itself, or a cast to DECIMAL(38, 0) or text, is kept.
#
#     written: HUGEINT [9007199254740992, 9007199254740993]
#     read: DOUBLE [9007199254740992.0, 9007199254740992.0]
#     as BIGINT: BIGINT [9007199254740992, 9007199254740993]
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet duckdb==2.0.1

venv/bin/python - <<'EOF'
import duckdb

database = duckdb.connect()
database.execute(
    "create table ids as select (9007199254740992 + range)::hugeint as id from range(2)"
)


def show(query):
    """The column's type and values."""
    relation = database.sql(query)
    return str(relation.types[0]), [row[0] for row in relation.fetchall()]


database.execute("copy ids to 'huge.parquet' (format parquet)")
database.execute("copy (select id::bigint as id from ids) to 'big.parquet' (format parquet)")
written = show("select id from ids order by id")
read = show("select id from 'huge.parquet' order by id")
big = show("select id from 'big.parquet' order by id")
for name, (kind, values) in {"written": written, "read": read, "as BIGINT": big}.items():
    print(f"{name}: {kind} {values}")
assert written[0] == "HUGEINT" and len(set(written[1])) == 2, written
assert read[0] == "DOUBLE" and len(set(read[1])) == 1, read
assert big == ("BIGINT", written[1]), big
EOF
