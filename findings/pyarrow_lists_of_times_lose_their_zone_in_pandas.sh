#!/usr/bin/env bash
# A column of times with a zone keeps it in pandas; a column of lists of such times becomes arrays
# of datetime64 without one, in UTC (pyarrow 26.0.1, pandas 3.1.1). A value looked up by its time
# is then another one than in a column that is no list. `to_pylist` keeps the zone of both.
#
#     a column: 2001-09-09 03:46:40+02:00
#     a list: 2001-09-09T01:46:40.000000 datetime64[us]
#     the same time: False
#     by to_pylist: 2001-09-09 03:46:40+02:00
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet pyarrow==26.0.1 pandas==3.1.1

venv/bin/python - <<'EOF'
import pandas as pd
import pyarrow as pa

kind = pa.timestamp("us", "Europe/Berlin")
table = pa.table({"one": pa.array([10**15], kind), "all": pa.array([[10**15]], pa.list_(kind))})
frame = table.to_pandas()
one, item = frame["one"][0], frame["all"][0][0]
print("a column:", one)
print("a list:", item, item.dtype)
print("the same time:", pd.Timestamp(item) == one)
print("by to_pylist:", table["all"].to_pylist()[0][0])

assert str(one) == "2001-09-09 03:46:40+02:00", one
assert str(item.dtype) == "datetime64[us]" and pd.Timestamp(item).tz is None
assert pd.Timestamp(item) != one
assert table["all"].to_pylist()[0][0] == one
EOF
