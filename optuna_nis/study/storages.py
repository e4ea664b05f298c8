"""Opening any of Optuna's storages by one line of text, with heartbeats on all of them.

Optuna's heartbeats, by which the trials of workers that died are told from those that run, exist
for relational databases only. Here the journal and the gRPC proxy have them too, and on every
storage they cover the moment between a trial's creation and its first heartbeat. Nothing that a
storage holds is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
import json
import time
from typing import Any
from urllib.parse import urlsplit
import warnings

import optuna
from optuna import Study
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import (
    BaseJournalBackend,
    JournalFileBackend,
    JournalRedisBackend,
)
from optuna.trial import FrozenTrial, TrialState
import sqlalchemy.exc

from optuna_nis.study.keys import HEARTBEAT_KEY

StaleTrialCallback = Callable[[Study, FrozenTrial], None]

# SQLite gives up after 5 seconds by default, less than some workers have to wait for each other.
_SQLITE_TIMEOUT = 60
_BATCH = 1_000
# Workers that open a new database at once make its tables at once; all but one fail in that.
_TRIES = 20
_SECONDS_BETWEEN_TRIES = 0.1


def open_storage(
    address: str,
    *,
    heartbeat_interval: int | None = None,
    grace_period: int | None = None,
    heartbeat_stale_trial_callback: StaleTrialCallback | None = None,
) -> BaseStorage:
    """Open a storage for :func:`optuna.create_study` and :func:`optuna.load_study`.

    Args:
        address: One of

            - ``sqlite:///FILE``, ``postgresql://...``, ``mysql://...``, any URL of SQLAlchemy;
            - ``FILE.journal``, Optuna's journal in a file;
            - ``redis://...``, ``rediss://...``, Optuna's journal on Redis;
            - ``grpc://HOST:PORT``, a proxy run by :func:`optuna.storages.run_grpc_proxy_server`.
        heartbeat_interval: Seconds between the signs of life of a running trial. With heartbeats,
            :meth:`optuna.Study.optimize` fails the trials of workers that died; trials must then
            not be asked for outside of it.
        grace_period: Seconds without a sign of life after which a trial's worker is taken for
            dead, by default twice the interval.
        heartbeat_stale_trial_callback: What to do then, such as
            :class:`optuna.storages.RetryHeartbeatStaleTrialCallback`.

    Raises:
        ValueError: If the address is none of these, or an interval is not positive.

    Example:
        >>> storage = open_storage("sqlite://", heartbeat_interval=60)
        >>> study = optuna.create_study(storage=storage)
    """
    for name, seconds in (
        ("heartbeat_interval", heartbeat_interval),
        ("grace_period", grace_period),
    ):
        if seconds is not None and seconds <= 0:
            raise ValueError(f"`{name}` must be positive, got {seconds!r}.")
    if not isinstance(address, str):
        raise ValueError(f"`address` must be a text, got {address!r}.")
    scheme = urlsplit(address).scheme
    options: dict[str, Any] = {
        "heartbeat_interval": heartbeat_interval,
        "grace_period": grace_period,
        "heartbeat_stale_trial_callback": heartbeat_stale_trial_callback,
    }
    with warnings.catch_warnings():
        # Heartbeats, the proxy and the journal on Redis have been so for years.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if "://" not in address:
            if not address.endswith(".journal"):
                raise ValueError(
                    "`address` must be a URL such as sqlite:///study.db or a *.journal file, got "
                    f"{address!r}."
                )
            return _Journal(JournalFileBackend(address), **options)
        if scheme in ("redis", "rediss"):
            return _Journal(_RedisLog(address), **options)
        if scheme == "grpc":
            return _Grpc(address, **options)
        # A connection may have died since its last use, for example with the server.
        engine: dict[str, Any] = {"pool_pre_ping": True}
        if scheme.partition("+")[0] == "sqlite":
            engine = {"connect_args": {"timeout": _SQLITE_TIMEOUT}}
        try:
            return _Relational(address, engine_kwargs=engine, **options)
        except (sqlalchemy.exc.NoSuchModuleError, sqlalchemy.exc.ArgumentError) as error:
            raise ValueError(
                f"`address` must be a URL of a database that SQLAlchemy knows: {error}"
            ) from error


class _Silence:
    """For how long trials have not given another sign of life, by this process's own clock.

    Clocks of several machines are never compared.
    """

    def __init__(self) -> None:
        self._last: dict[int, tuple[object, float]] = {}

    def longer_than(self, seconds: float, signs: Mapping[int, object]) -> list[int]:
        now = time.monotonic()
        last = {
            trial_id: self._last[trial_id]
            if trial_id in self._last and self._last[trial_id][0] == sign
            else (sign, now)
            for trial_id, sign in signs.items()
        }
        self._last = last
        return [trial_id for trial_id, (_, since) in last.items() if now - since > seconds]


class _Relational(RDBStorage):
    """Finds the trials too whose worker died before their first heartbeat."""

    def __init__(self, url: str, **options: Any) -> None:
        for tries_left in reversed(range(_TRIES)):
            try:
                super().__init__(url, **options)
                break
            except sqlalchemy.exc.DBAPIError as error:
                made = isinstance(error, sqlalchemy.exc.IntegrityError)
                if not tries_left or not (made or "already exists" in str(error)):
                    raise
                time.sleep(_SECONDS_BETWEEN_TRIES)
        self._silence = _Silence()

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        from optuna.storages._rdb import models
        from optuna.storages._rdb.storage import _create_scoped_session

        stale = super()._get_stale_trial_ids(study_id)
        with _create_scoped_session(self.scoped_session) as session:
            silent = (
                session.query(models.TrialModel.trial_id)
                .outerjoin(models.TrialHeartbeatModel)
                .filter(models.TrialModel.study_id == study_id)
                .filter(models.TrialModel.state == TrialState.RUNNING)
                .filter(models.TrialHeartbeatModel.trial_id.is_(None))
                .all()
            )
        assert self.heartbeat_interval is not None
        grace = self.grace_period or 2 * self.heartbeat_interval
        return stale + self._silence.longer_than(grace, {trial_id: None for (trial_id,) in silent})


class _Heartbeat(BaseHeartbeat):
    """Heartbeats as attributes of trials, for storages that have none of their own."""

    def _beat(
        self,
        heartbeat_interval: int | None,
        grace_period: int | None,
        heartbeat_stale_trial_callback: StaleTrialCallback | None,
    ) -> None:
        self._interval = heartbeat_interval
        self._grace = grace_period or 2 * (heartbeat_interval or 0)
        self._callback = heartbeat_stale_trial_callback
        self._silence = _Silence()

    def record_heartbeat(self, trial_id: int) -> None:
        assert isinstance(self, BaseStorage)
        count = self.get_trial(trial_id).system_attrs.get(HEARTBEAT_KEY)
        # A trial that was taken for dead has finished; `Study.tell` will say so.
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self.set_trial_system_attr(
                trial_id, HEARTBEAT_KEY, count + 1 if isinstance(count, int) else 1
            )

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        assert isinstance(self, BaseStorage)
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        signs = {trial._trial_id: trial.system_attrs.get(HEARTBEAT_KEY) for trial in running}
        return self._silence.longer_than(self._grace, signs)

    def get_heartbeat_interval(self) -> int | None:
        return self._interval

    def get_heartbeat_stale_trial_callback(self) -> StaleTrialCallback | None:
        return self._callback


class _RedisLog(BaseJournalBackend):
    """Optuna's journal on Redis without its snapshots, which are unpickled; read in batches."""

    def __init__(self, url: str) -> None:
        self._log = JournalRedisBackend(url)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._log.append_logs(logs)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        log = self._log
        end = int(log._redis.get(f"{log._prefix}:log_number") or -1) + 1
        for start in range(log_number_from, end, _BATCH):
            numbers = range(start, min(start + _BATCH, end))
            for text in log._redis.mget(map(log._key_log_id, numbers)):
                if text is None:
                    return  # It is being written, on a cluster; the next reading starts here.
                yield json.loads(text)


class _Journal(JournalStorage, _Heartbeat):
    def __init__(self, backend: BaseJournalBackend, **options: Any) -> None:
        super().__init__(backend)
        self._beat(**options)


class _Grpc(GrpcStorageProxy, _Heartbeat):
    def __init__(self, address: str, **options: Any) -> None:
        parts = urlsplit(address)
        if parts.hostname is None or parts.port is None:
            raise ValueError(f"`address` must be grpc://HOST:PORT, got {address!r}.")
        super().__init__(host=parts.hostname, port=parts.port)
        self._beat(**options)
