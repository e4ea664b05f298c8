from __future__ import annotations

from pathlib import Path
from threading import Event, Thread
from typing import Any

from optuna_nis.data.files import TableFiles
from optuna_nis.data.paths import table_file
from optuna_nis.data.text_file import _Bytes


class _Slow:
    """A file of which a read takes until it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go = Event(), Event()
        self.calls: list[str] = []

    def read(self, size: int) -> bytes:
        self.begun.set()
        self.let_go.wait(10)
        self.calls.append("read")
        return b"1,2\n"

    def close(self) -> None:
        self.calls.append("closed")


def test_what_another_thread_reads_is_read_before_a_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n")
    slow, source = _Slow(), _Bytes(table_file(path))
    source.read(100)
    source._source.close()
    source._source = slow
    found: list[Any] = []
    reading = Thread(target=lambda: found.append(source.read(100)))
    closing = Thread(target=source.close)
    reading.start()
    assert slow.begun.wait(10)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    slow.let_go.set()
    for thread in (reading, closing):
        thread.join(10)
    assert slow.calls == ["read", "closed"]
    assert found == [b"1,2\n"]


def test_batches_that_are_left_take_nothing_from_those_of_the_next_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "1,2\n" * 500)
    files = TableFiles(path)
    for _ in range(50):
        next(iter(files.batches(["a"], rows=100)))
        assert sum(map(len, files.batches(["a", "b"], rows=100))) == 500
