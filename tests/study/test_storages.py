"""One study, one policy, whatever the storage and however many workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
import math
from multiprocessing import get_context
import os
from pathlib import Path
import re
import signal
import threading
import time
from typing import Any
import warnings

import numpy as np
import optuna
from optuna import Study, Trial
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState
import pytest
import sqlalchemy

from optuna_nis import EmbeddingSpec, NISSampler, SearchSpace
from optuna_nis.controller.policy import Policy
from optuna_nis.controller.replay import GROUP_KEY, GROUP_SIZE_KEY, LOG_PROB_KEY
from optuna_nis.study.recording import add_finished_trials
from optuna_nis.study.storages import HEARTBEAT_KEY, open_storage

SPACE = SearchSpace(
    [EmbeddingSpec("user", 30, 8, row_blocks=(3, 9, 18)), EmbeddingSpec("city", 10, 8)],
    budget=0.4,
)
STORAGES = ("sqlite", "postgresql", "journal", "redis", "grpc")


@pytest.fixture
def address(request: pytest.FixtureRequest, servers: Callable[[str], str], tmp_path: Path) -> str:
    """Where a storage of the kind that the test is parametrised with is found."""
    kind: str = request.param
    if kind == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    if kind == "journal":
        return f"{tmp_path}/study.journal"
    return servers(kind)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


on_every_storage = pytest.mark.parametrize("address", STORAGES, indirect=True)
_names = iter(range(10**6))


def new_study(address: str, **options: Any) -> Study:
    return optuna.create_study(
        storage=open_storage(address, **options),
        study_name=f"study-{next(_names)}",
        direction="maximize",
        sampler=NISSampler(budget=SPACE, seed=0),
    )


def opened(study: Study, address: str) -> Study:
    """The study as another process finds it."""
    return optuna.load_study(
        storage=open_storage(address),
        study_name=study.study_name,
        sampler=NISSampler(budget=SPACE, seed=1),
    )


def bits(policy: Policy) -> bytes:
    return b"".join(array.tobytes() for array in (policy._logits, *policy._critic.arrays()))


def policy_bits(study: Study, address: str) -> bytes:
    return bits(NISSampler(budget=SPACE).policy(opened(study, address)))


def quality(trial: Trial) -> float:
    allocation = SPACE.suggest(trial)
    assert allocation.num_parameters <= SPACE.budget
    return math.log1p(allocation.num_parameters)


@on_every_storage
def test_every_kind_of_trial(address: str) -> None:
    study = new_study(address)
    study.optimize(quality, n_trials=3)
    study.enqueue_trial({"city": 8})
    study.optimize(quality, n_trials=1)
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    study.optimize(lambda trial: SPACE.suggest(trial).num_parameters / 1e3, n_trials=3)
    study.sampler = NISSampler(budget=SPACE, seed=2)

    def pruned(trial: Trial) -> float:
        value = quality(trial)
        trial.report(value / 2, 1)
        raise optuna.TrialPruned

    study.optimize(pruned, n_trials=2)
    study.optimize(lambda trial: quality(trial) * math.inf, n_trials=1)
    learned = policy_bits(study, address)

    study.optimize(lambda trial: quality(trial) * math.nan, n_trials=1)
    study.optimize(lambda trial: quality(trial) / 0, n_trials=1, catch=ZeroDivisionError)
    abandoned = study.ask()
    SPACE.suggest(abandoned)
    states = [trial.state for trial in study.get_trials()]
    assert states[7:] == [
        TrialState.PRUNED,
        TrialState.PRUNED,
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.FAIL,
        TrialState.RUNNING,
    ]
    assert bits(study.sampler.policy(study)) == policy_bits(study, address) == learned
    study.optimize(quality, n_trials=2)
    assert bits(study.sampler.policy(study)) == policy_bits(study, address) != learned


@on_every_storage
def test_threads_of_two_studies_are_learned_by_each_other(address: str) -> None:
    study = new_study(address)
    other = opened(study, address)
    study.optimize(quality, n_trials=8, n_jobs=4)
    other.optimize(quality, n_trials=8, n_jobs=4)
    study.optimize(quality, n_trials=4, n_jobs=2)
    trials = study.get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(20))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert (
        bits(study.sampler.policy(study))
        == bits(other.sampler.policy(other))
        == policy_bits(study, address)
    )


def _work(address: str, name: str, n_trials: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = NISSampler(budget=SPACE, seed=0)
    sampler.reseed_rng()
    study = optuna.load_study(storage=open_storage(address), study_name=name, sampler=sampler)
    study.optimize(quality, n_trials=n_trials)


@on_every_storage
def test_processes_share_a_study(address: str) -> None:
    study = new_study(address)
    # Processes that hold nothing of this one, as where they are spawned, but import once for all.
    context = get_context("forkserver")
    context.set_forkserver_preload(["sqlalchemy.orm", "optuna", NISSampler.__module__])
    workers = [
        context.Process(target=_work, args=(address, study.study_name, 6)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    trials = study.get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(18))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    # Workers that had the same seed draw apart after `reseed_rng`.
    assert len({tuple(trial.params.values()) for trial in trials}) > 6
    assert policy_bits(study, address) == policy_bits(study, address)
    assert bits(study.sampler.policy(study)) == policy_bits(study, address)


def _hang(address: str, name: str, options: dict[str, Any]) -> None:
    study = optuna.load_study(
        storage=open_storage(address, **options),
        study_name=name,
        sampler=NISSampler(budget=SPACE, seed=0),
    )

    def objective(trial: Trial) -> float:
        trial.suggest_categorical("user[0:3]", SPACE.choices["user[0:3]"])
        time.sleep(600)
        return 0.0

    study.optimize(objective, n_trials=1)


@on_every_storage
def test_a_killed_worker_s_trial_is_retried_within_the_budget(address: str) -> None:
    options = {"heartbeat_interval": 1, "grace_period": 2}
    study = new_study(
        address,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=1),
        **options,
    )
    context = get_context("spawn")
    worker = context.Process(target=_hang, args=(address, study.study_name, options))
    worker.start()
    while not any(trial.params for trial in study.get_trials(deepcopy=False)):
        time.sleep(0.05)
    assert worker.pid is not None
    # Not a whole number of heartbeats: killed while it writes a journal file, a worker would hold
    # up the others for the 30 seconds after which its lock is broken.
    for _ in range(2):
        time.sleep(1.3)
        fail_stale_trials(study)
    assert [trial.state for trial in study.get_trials()] == [TrialState.RUNNING]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    end = time.monotonic() + 30
    while time.monotonic() < end and study.get_trials()[0].state == TrialState.RUNNING:
        time.sleep(0.25)
        fail_stale_trials(study)
    assert [t.state for t in study.get_trials()] == [TrialState.FAIL, TrialState.WAITING]
    study.optimize(quality, n_trials=2)
    failed, retried, other = study.get_trials()
    assert retried.state == other.state == TrialState.COMPLETE
    assert retried.params["user[0:3]"] == failed.params["user[0:3]"]
    assert RetryHeartbeatStaleTrialCallback.retried_trial_number(retried) == failed.number
    assert bits(study.sampler.policy(study)) == policy_bits(study, address)


@on_every_storage
def test_a_worker_that_died_before_its_first_heartbeat(address: str) -> None:
    study = new_study(address, heartbeat_interval=1, grace_period=1)
    study._storage.create_new_trial(study._study_id)
    fail_stale_trials(study)
    assert study.get_trials()[0].state == TrialState.RUNNING
    time.sleep(1.1)
    fail_stale_trials(study)
    assert study.get_trials()[0].state == TrialState.FAIL


@pytest.mark.parametrize("address", ["journal", "redis", "grpc"], indirect=True)
def test_a_trial_taken_for_dead_may_still_beat(address: str) -> None:
    study = new_study(address, heartbeat_interval=1)
    storage = study._storage
    trial_id = storage.create_new_trial(study._study_id)
    storage.record_heartbeat(trial_id)
    storage.record_heartbeat(trial_id)
    storage.set_trial_state_values(trial_id, TrialState.FAIL)
    storage.record_heartbeat(trial_id)
    assert study.get_trials()[0].system_attrs == {HEARTBEAT_KEY: 2}


def _group(name: str, seed: int) -> list[FrozenTrial]:
    rng = np.random.default_rng(seed)
    distributions = dict(SPACE.distributions())
    state = (TrialState.PRUNED, TrialState.COMPLETE)[seed % 2]
    return [
        optuna.create_trial(
            state=state,
            params=SPACE.params(SPACE.sample(rng, SPACE.budget)),
            distributions=distributions,
            value=value,
            user_attrs={"quality": value, "näme": "ü" * 50},
            system_attrs={GROUP_KEY: name, GROUP_SIZE_KEY: 3, LOG_PROB_KEY: -4.0},
        )
        for value in (float(rng.normal()), math.inf, -math.inf)
    ]


def _record(address: str, name: str, worker: int) -> None:
    study = optuna.load_study(storage=open_storage(address), study_name=name)
    for number in range(5):
        add_finished_trials(study, _group(f"{worker}-{number}", number))


@on_every_storage
def test_trials_recorded_at_once_are_as_if_added_one_by_one(address: str) -> None:
    one_by_one, at_once = new_study(address), new_study(address)
    for number in range(3):
        group = _group(f"g{number}", number)
        one_by_one.add_trials(group)
        add_finished_trials(at_once, group)
    wanted = opened(one_by_one, address).get_trials()
    found = opened(at_once, address).get_trials()
    for trial in (*wanted, *found):
        trial._trial_id = 0
    assert found == wanted
    assert policy_bits(at_once, address) == policy_bits(one_by_one, address)


@pytest.mark.parametrize("address", ["sqlite", "postgresql"], indirect=True)
def test_groups_of_several_processes_are_complete_and_in_order(address: str) -> None:
    study = new_study(address)
    workers = [
        get_context("spawn").Process(target=_record, args=(address, study.study_name, worker))
        for worker in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    found = opened(study, address).get_trials()
    assert [trial.number for trial in found] == list(range(45))
    names = [trial.system_attrs[GROUP_KEY] for trial in found]
    assert names[::3] == names[1::3] == names[2::3]
    assert len(set(names)) == 15
    assert bits(study.sampler.policy(study)) == policy_bits(study, address)


def test_nothing_is_unpickled_from_redis(servers: Callable[[str], str]) -> None:
    address = servers("redis")
    study = new_study(address)
    study.optimize(quality, n_trials=2)
    backend = study._storage._backend._log
    backend.save_snapshot(b"cbuiltins\nexit\n(I7\ntR.")
    again = opened(study, address)
    assert len(again.trials) == 2
    backend._redis.delete(f"{backend._prefix}:snapshot")


def test_a_log_on_redis_is_read_in_batches(
    servers: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = servers("redis")
    study = new_study(address)
    study.optimize(quality, n_trials=3)
    monkeypatch.setattr("optuna_nis.study.storages._BATCH", 4)
    assert opened(study, address).get_trials() == study.get_trials()


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        ("study.db", {}, "`address` must be a URL such as sqlite:///study.db or a *.journal file"),
        ("grpc://host", {}, "`address` must be grpc://HOST:PORT, got 'grpc://host'"),
        ("ftp://host/a", {}, "`address` must be a URL of a database that SQLAlchemy knows"),
        ("sqlite://", {"heartbeat_interval": 0}, "`heartbeat_interval` must be positive, got 0"),
        ("s.journal", {"grace_period": -1}, "`grace_period` must be positive, got -1"),
    ],
)
def test_bad_addresses(address: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        open_storage(address, **options)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_new_database_is_opened_by_several_at_once(
    kind: str, servers: Callable[[str], str], tmp_path: Path
) -> None:
    address = f"sqlite:///{tmp_path}/new.db"
    if kind == "postgresql":
        server = sqlalchemy.make_url(servers(kind))
        with sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT").connect() as database:
            database.execute(sqlalchemy.text("CREATE DATABASE new"))
        address = server.set(database="new").render_as_string(hide_password=False)
    together = threading.Barrier(4)

    def open_study(_: int) -> str:
        together.wait()
        return optuna.create_study(
            storage=open_storage(address), study_name="s", load_if_exists=True
        ).study_name

    with ThreadPoolExecutor(4) as workers:
        assert list(workers.map(open_study, range(4))) == ["s"] * 4


def test_without_heartbeats_nothing_is_failed(tmp_path: Path) -> None:
    study = new_study(f"{tmp_path}/s.journal")
    study.ask()
    fail_stale_trials(study)
    assert study.get_trials()[0].state == TrialState.RUNNING


def test_no_warnings_of_experimental_features(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        storage = open_storage(f"sqlite:///{tmp_path}/s.db", heartbeat_interval=10)
    assert storage.get_heartbeat_interval() == 10
