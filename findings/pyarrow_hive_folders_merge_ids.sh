#!/usr/bin/env bash
# A column of text that pyarrow 26.0.1 writes as hive folders (`zip=01234`) comes back as a
# dictionary of int32 if every value looks like a number: "01234" and "1234" are then the same id.
# The dictionary has 1234 twice, which pandas 3.1.1 refuses. Another value that is no number, and all
# stay text; a schema for the partitioning keeps them text too.
#
#     written: ['01234', '1234']
#     read: [1234, 1234] dictionary<values=int32, indices=int32, ordered=0>
#     pandas: Categorical categories must be unique
#     with a schema: ['01234', '1234']
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet pyarrow==26.0.1 pandas==3.1.1

venv/bin/python - <<'EOF'
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

written = ["01234", "1234"]
table = pa.table({"zip": written, "clicks": [1, 2]})
pq.write_to_dataset(table, "clicks", partition_cols=["zip"])

read = pq.read_table("clicks").column("zip")
print("written:", written)
print("read:", read.to_pylist(), read.type)
try:
    pandas = str(pd.read_parquet("clicks")["zip"].tolist())
except ValueError as error:
    pandas = str(error)
print("pandas:", pandas)
text = ds.partitioning(pa.schema([("zip", pa.string())]), flavor="hive")
kept = sorted(pq.read_table("clicks", partitioning=text).column("zip").to_pylist())
print("with a schema:", kept)

pq.write_to_dataset(
    pa.table({"zip": [*written, "K1A"], "clicks": [1, 2, 3]}), "more", partition_cols=["zip"]
)
more = sorted(pq.read_table("more").column("zip").to_pylist())
assert read.to_pylist() == [1234, 1234] and read.type == pa.dictionary(pa.int32(), pa.int32())
assert pandas == "Categorical categories must be unique", pandas
assert kept == written, kept
assert more == [*written, "K1A"], more
EOF
