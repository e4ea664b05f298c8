"""Real servers on this machine for tests and benchmarks: PostgreSQL, Redis and a gRPC proxy.

Each is a context manager that starts a server of its own on a free port of the loopback address,
with its files in a new folder, and that removes both at the end. ``make servers`` installs what
they need.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from glob import glob
import os
from pathlib import Path
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from types import TracebackType

_SECONDS_TO_START = 60.0
_PROXY = """
import sys
import optuna
storage = optuna.storages.get_storage(sys.argv[1])
optuna.storages.run_grpc_proxy_server(storage, host="127.0.0.1", port=int(sys.argv[2]))
"""


class Server(ABC):
    """A server process, started by ``with``; it can be stopped and started in between.

    Raises:
        FileNotFoundError: If a program is not installed.
        RuntimeError: If the server does not start.
    """

    url: str
    _user: str | None = None
    _stop_signal = signal.SIGTERM

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(
            prefix="optuna-nis-", ignore_cleanup_errors=True
        )
        self.folder = Path(self._folder.name)
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command(self) -> list[str]:
        """The program that serves, in the foreground."""

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdout=log, stderr=log, cwd=self.folder, user=self._user
            )
        end = time.monotonic() + _SECONDS_TO_START
        while self._process.poll() is None and time.monotonic() < end:
            if self._ready():
                return
            time.sleep(0.05)
        self.stop()
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self) -> None:
        """Stop the server; what it has written stays."""
        if self._process is not None:
            self._process.send_signal(self._stop_signal)
            try:
                self._process.wait(_SECONDS_TO_START)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _ready(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._folder.cleanup()


class PostgreSQL(Server):
    """A PostgreSQL server with one database."""

    # On SIGTERM it would wait for its clients.
    _stop_signal = signal.SIGINT

    def __init__(self) -> None:
        super().__init__()
        self.url = f"postgresql+psycopg://optuna@127.0.0.1:{self.port}/postgres"
        if os.geteuid() == 0:
            # PostgreSQL refuses to be run by root.
            self._user = "nobody"
            shutil.chown(self.folder, self._user)

    def _command(self) -> list[str]:
        data = self.folder / "data"
        if not data.exists():
            subprocess.run(
                [program("initdb"), "-D", data, "-U", "optuna", "-A", "trust", "-N"],
                check=True,
                capture_output=True,
                cwd=self.folder,
                user=self._user,
            )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "max_connections": "200",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [program("postgres"), "-D", str(data), *options]

    def _ready(self) -> bool:
        # The port opens before the server has recovered.
        log = (self.folder / "log").read_text()
        return log.count("ready to accept connections") > log.count("database system is shut down")


class Redis(Server):
    """A Redis server that writes every change to its log."""

    def __init__(self) -> None:
        super().__init__()
        self.url = f"redis://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        settings = {
            "--bind": "127.0.0.1",
            "--port": str(self.port),
            "--dir": str(self.folder),
            "--save": "",
            "--appendonly": "yes",
        }
        return [program("redis-server"), *[part for pair in settings.items() for part in pair]]


class GrpcProxy(Server):
    """Optuna's gRPC proxy in front of a relational database."""

    def __init__(self, storage: str) -> None:
        super().__init__()
        self.url = f"127.0.0.1:{self.port}"
        self._storage = storage

    def _command(self) -> list[str]:
        return [sys.executable, "-c", _PROXY, self._storage, str(self.port)]


def program(name: str) -> str:
    """The path of a server program.

    Raises:
        FileNotFoundError: If it is not installed.
    """
    # Debian keeps the programs of PostgreSQL out of the way.
    folders = [*os.get_exec_path(), *sorted(glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise FileNotFoundError(f"The program {name!r} is not installed: run `make servers`.")
    return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
