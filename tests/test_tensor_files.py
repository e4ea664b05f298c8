"""What cannot be written says why."""

from __future__ import annotations

import builtins
import errno
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from optuna_nis._tensor_files import write


class _Full:
    """A file on a disk that is full after some bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = 100_000

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *args: object) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written: int = self._file.write(data)
        return written

    def flush(self) -> None:
        self._file.flush()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    values = {"rows": torch.randn(9, 3), "name": "user"}
    write(values, tmp_path / "values.pt")
    found = torch.load(tmp_path / "values.pt", weights_only=True)
    assert torch.equal(found["rows"], values["rows"])
    assert found["name"] == "user"


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    path = tmp_path / "values.pt"
    plain = builtins.open

    def opened(*args: Any, **options: Any) -> Any:
        return _Full(plain(*args, **options))

    with (
        mock.patch("builtins.open", opened),
        pytest.raises(OSError, match="No space left on device") as told,
    ):
        write({"rows": torch.randn(1000, 300)}, path)
    assert told.value.errno == errno.ENOSPC
    assert told.value.filename == str(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
@pytest.mark.parametrize("size", [1, 1_000_000])
def test_a_disk_that_is_full_when_a_file_is_closed_is_told_too(size: int) -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write({"rows": torch.randn(size)}, "/dev/full")


def test_what_cannot_be_written_at_all_stays_as_torch_says_it(tmp_path: Path) -> None:
    with pytest.raises((AttributeError, TypeError), match=r"lambda|pickle"):
        write({"rows": lambda: None}, tmp_path / "values.pt")
    with pytest.raises(IsADirectoryError):
        write({}, tmp_path)
