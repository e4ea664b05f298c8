#!/usr/bin/env bash
# torch.save to the name of a file on a disk that is full raises a RuntimeError about an unexpected
# position in a file of its own making, without a word of the disk and without the OSError as its
# cause. Given the same file opened, unbuffered, it raises the OSError, "No space left on device", as
# Python's own write does. Whoever catches OSError to write elsewhere, or reads the log of a training
# that ended so, is misled by the first. Seen with torch 2.13.0 on /dev/full, a device that is always
# full.
#
#     write: OSError [Errno 28] No space left on device
#     torch.save, by name: RuntimeError, "unexpected pos": True, "space": False, an OSError before: False
#     torch.save, opened: OSError, "unexpected pos": False, "space": True, an OSError before: True
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6

venv/bin/python -W ignore - <<'EOF'
import errno

import torch

rows = torch.randn(1000, 300)
def told(how):
    try:
        how()
    except Exception as error:
        return error
    raise AssertionError("It was written.")


file = open("/dev/full", "wb", buffering=0)
plain = told(lambda: file.write(rows.numpy().tobytes()))
print(f"write: {type(plain).__name__} {plain}")
assert plain.errno == errno.ENOSPC
by_name = told(lambda: torch.save(rows, "/dev/full"))
opened = told(lambda: torch.save(rows, file))
for name, error in (("by name", by_name), ("opened", opened)):
    words = {word: word in str(error) for word in ("unexpected pos", "space")}
    text = ", ".join(f'"{word}": {there}' for word, there in words.items())
    before = isinstance(error.__cause__ or error.__context__, OSError)
    print(f"torch.save, {name}: {type(error).__name__}, {text}, an OSError before: {before}")
    assert isinstance(error, OSError) == (name == "opened"), error
    assert words == {"unexpected pos": name != "opened", "space": name == "opened"}, error
    assert before == (name == "opened"), error
assert opened.errno == errno.ENOSPC
EOF
