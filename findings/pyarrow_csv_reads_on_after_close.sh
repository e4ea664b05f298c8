#!/usr/bin/env bash
# A CSV stream of pyarrow reads on from the file object that it was given when it has been closed: what
# another thread is reading ends after `close()` has returned, and further reads begin, until the
# blocks to be read ahead are there. Whoever closes the file object next closes it under that thread;
# a plain file's descriptor may then be that of a file that is opened meanwhile, which loses what is
# read. Taking a first batch for a look at the columns and leaving the rest is enough. Seen with pyarrow
# 26.0.1; the file object here sleeps for 0.3 seconds in each read, and ends after twelve blocks.
#
#     one batch of 100 rows was taken, then the reader was closed: a read was under way: True
#     reads that have begun since: more than 2
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet pyarrow==26.0.1

venv/bin/python - <<'EOF'
import io
import time

import pyarrow
from pyarrow import csv


class Slow(io.RawIOBase):
    def __init__(self):
        self.begun = self.ended = 0

    def readable(self):
        return True

    def readinto(self, buffer):
        self.begun += 1
        time.sleep(0.3)
        rows = b"1,2\n" * 100 if self.begun <= 12 else b""
        buffer[: len(rows)] = rows
        self.ended += 1
        return len(rows)


file = Slow()
options = csv.ReadOptions(block_size=400, column_names=["a", "b"])
reader = csv.open_csv(pyarrow.PythonFile(file, mode="r"), read_options=options)
rows = len(reader.read_next_batch())
reader.close()
begun, under_way = file.begun, file.begun > file.ended
# Until all has been read that is read at all.
time.sleep(5.0)
assert file.begun == file.ended
since = file.begun - begun
print(
    f"one batch of {rows} rows was taken, then the reader was closed: a read was under way: "
    f"{under_way}"
)
print(f"reads that have begun since: {'more than 2' if since > 2 else since}")
assert (rows, under_way) == (100, True)
assert since > 2
EOF
