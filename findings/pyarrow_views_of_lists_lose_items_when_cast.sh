#!/usr/bin/env bash
# Casting an array of list views to lists loses items with pyarrow 26.0.1, without an error: all
# of the last row, and of rows before an empty one once chunks have been combined. The views
# themselves are right, and so are the lists that are made of them as Python objects.
#
#     views: [[1, 2], [], [3]]
#     cast to lists: [[1, 2], [], []]
#     combined, then cast: [[], [1, 2], []]
#     by way of Python: [[1, 2], [], [3]]
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet pyarrow==26.0.1

venv/bin/python - <<'EOF'
import pyarrow as pa

rows = [[1, 2], [], [3]]
views, lists = pa.array(rows, pa.list_view(pa.int64())), pa.list_(pa.int64())
combined = pa.chunked_array([views]).combine_chunks()
cast, both = views.cast(lists).to_pylist(), combined.cast(lists).to_pylist()
copied = pa.array(views.to_pylist(), lists).to_pylist()
print("views:", views.to_pylist())
print("cast to lists:", cast)
print("combined, then cast:", both)
print("by way of Python:", copied)

assert views.to_pylist() == combined.to_pylist() == copied == rows
assert cast == [[1, 2], [], []], cast
assert both == [[], [1, 2], []], both
EOF
