"""Trainings and searches of the quality benchmark, in worker processes, kept on disk.

Every job is a function of its description alone; a description that has been run is never run
again. Finished jobs are lines of ``benchmarks/results/search_quality/<data>.jsonl``; if how a data
set is trained changes here, its lines must go. Times are those of the processor, so that it does
not matter what else runs on the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from inspect import signature
import json
import math
import multiprocessing
from pathlib import Path
import threading
import time
from typing import Any

from data_sets import EMBEDDING_DIM, ITEMS, MONITOR, data_config, model_options
import numpy as np
import optuna
from quiet import quiet
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from without import plan_without

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.lightning import SearchPlan, reference_model, search
from optuna_nis.lightning.training import Training, quiet_lightning, quiet_trainer, train
from optuna_nis.models.reference import ReferenceModel
from optuna_nis.nn import sized_layers
from optuna_nis.study.keys import FIDELITIES, ORIGIN_ATTR

Job = dict[str, Any]
Result = dict[str, Any]

# Part of every job: raised when trainings or searches go by other rules, to run them anew.
RULES = 3
# Options of the model that careful people tune; a job has those that are not the defaults.
OPTIONS = ("learning_rate", "l2", "dropout")
# Random draws with which TPE begins.
TPE_STARTUP = 5

# A column index of a pruned table fits into one byte, a quarter of a parameter.
_INDEX_PARAMETERS = 0.25
# Proposals over the budget cost a rival nothing but the time to make them.
_MAX_PROPOSALS = 2000


class Trainings:
    """Runs jobs side by side and remembers their results.

    Args:
        data: Name of the data, a key of ``data_sets.DATA``.
        data_dir: Folder, or folders, of the data sets that are not installed as packages.
        folder: Where results are kept.
        workers: Number of processes.
        threads: Threads of each.
    """

    def __init__(
        self,
        data: str,
        data_dir: str | Sequence[str] | None,
        folder: Path,
        workers: int,
        threads: int,
    ) -> None:
        self._config = {"data_dir": data_dir} if data_dir else {}
        self._data = data
        self._file = folder / f"{data}.jsonl"
        self._lock = threading.Lock()
        self._results: dict[str, Result] = {}
        self._running: dict[str, Future[Result]] = {}
        if self._file.exists():
            for line in self._file.read_text().splitlines():
                entry = json.loads(line)
                self._results[_key(entry["job"])] = entry["result"]
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(threads,),
        )

    def run(self, **job: Any) -> Result:
        """The result of a job, run if it has not been."""
        job["rules"] = RULES
        key = _key(job)
        with self._lock:
            if key in self._results:
                return self._results[key]
            if key not in self._running:
                self._running[key] = self._pool.submit(_run, self._data, self._config, job)
        result = self._running[key].result()
        with self._lock:
            if key not in self._results:
                self._results[key] = result
                if job["kind"] == "describe":
                    return result
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a") as file:
                    file.write(json.dumps({"job": job, "result": result}) + "\n")
                print(f"{self._data}: {_describe(job)}: {_describe(result)}", flush=True)
        return result

    def close(self) -> None:
        """Stop the processes."""
        self._pool.shutdown(cancel_futures=True)


def _key(job: Job) -> str:
    return json.dumps(job, sort_keys=True)


def _describe(mapping: Mapping[str, Any]) -> str:
    parts = []
    for name, value in mapping.items():
        if name != "allocation":
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            parts.append(f"{name}={text}")
    return " ".join(parts)


def _start(threads: int) -> None:
    torch.set_num_threads(threads)
    quiet()


def _model(
    data: str, datamodule: EmbeddingDataModule, options: Mapping[str, float] | None = None
) -> ReferenceModel:
    return reference_model(datamodule.features, **model_options(data) | dict(options or {}))


def _specs(data: str, datamodule: EmbeddingDataModule) -> list[EmbeddingSpec]:
    return _model(data, datamodule).specs(EMBEDDING_DIM[datamodule.task])


@lru_cache(maxsize=1)
def _datamodule(data: str, config: str) -> EmbeddingDataModule:
    return data_config(data, json.loads(config)).datamodule(withhold_test=False)


def _run(data: str, config: dict[str, Any], job: Job) -> Result:
    datamodule = _datamodule(data, json.dumps(config))
    kind = job["kind"]
    if kind == "describe":
        return _describe_data(data, datamodule)
    if kind == "train":
        return _train_and_test(data, datamodule, job)
    if kind == "prune":
        return _prune(data, datamodule, job["budget"], job["seed"])
    if kind == "search":
        with plan_without(job.get("without")) as plan:
            return _search(data, config, plan, job["budget"], job["mode"], job["seed"])
    assert kind == "trials"
    return _trials(
        data, datamodule, job["sampler"], job["budget"], job["num_trainings"], job["seed"]
    )


def _describe_data(data: str, datamodule: EmbeddingDataModule) -> Result:
    space = SearchSpace(_specs(data, datamodule))
    model = _model(data, datamodule)(space.full())
    known = datamodule.vocabularies | dict.fromkeys(
        model.output_features, datamodule.features.targets
    )
    return {
        "space": space.to_json(),
        "counts": {n: list(map(int, v.counts)) for n, v in known.items()},
        "metric": model.metric_name,
        "output_features": list(model.output_features),
        "options": {
            name: model.options.get(name, signature(type(model)).parameters[name].default)
            for name in OPTIONS
        },
    }


def _train_and_test(data: str, datamodule: EmbeddingDataModule, job: Job) -> Result:
    allocation = Allocation.from_json(job["allocation"])
    options = job.get("options", {})
    start = time.process_time()
    try:
        return _tested(_train(data, datamodule, allocation, job["seed"], options), datamodule)
    except FloatingPointError:
        # Whoever tunes comes upon options that are of no use.
        if not options:
            raise
        seconds = time.process_time() - start
        return {"val": -math.inf, "test": math.nan, "seconds": seconds}


def _train(
    data: str,
    datamodule: EmbeddingDataModule,
    allocation: Allocation,
    seed: int,
    options: Mapping[str, float] | None = None,
) -> Training:
    datamodule.shuffle_seed = seed
    model = _model(data, datamodule, options)
    start = time.process_time()
    training = train(model, allocation, datamodule, seed=seed, **_stopping(data))
    return replace(training, seconds=time.process_time() - start)


def _stopping(data: str) -> dict[str, Any]:
    return {"monitor": MONITOR.get(data.removesuffix(ITEMS), "val_metric")}


def _tested(training: Training, datamodule: EmbeddingDataModule) -> Result:
    with quiet_lightning():
        trainer = quiet_trainer(training.model)
        (metrics,) = trainer.test(training.model, datamodule=datamodule, verbose=False)
    return {
        "val": training.val_metric,
        "val_error": training.val_error,
        "test": metrics["test_metric"],
        **{n: value for n, value in metrics.items() if n.startswith(("test_recall", "test_ndcg"))},
        "epochs": training.epochs,
        "steps": training.steps,
        "best_steps": round(training.steps * training.best_epoch / training.epochs),
        "decays": training.decays,
        "ended": training.ended,
        "seconds": training.seconds,
        "num_dense_parameters": training.model.num_dense_parameters(),  # type: ignore[operator]
    }


def _search(
    data: str,
    extra: Mapping[str, Any],
    plan: SearchPlan,
    budget: float,
    mode: Any,
    seed: int,
) -> Result:
    config, options = data_config(data, extra), model_options(data)
    study = optuna.create_study(direction="maximize")
    start = time.process_time()
    config.datamodule(withhold_test=True)
    loaded = time.process_time()
    found = search(study, config, budget=budget, mode=mode, plan=plan, seed=seed, **options)
    # The search loads the data too, which is no part of its cost.
    seconds = time.process_time() - loaded - (loaded - start)
    trials = dict.fromkeys(FIDELITIES, 0)
    for trial in study.trials:
        trials[trial.user_attrs["fidelity"]] += 1
    return {
        "allocation": found.to_json(),
        "num_parameters": found.num_parameters,
        "seconds": seconds,
        "trials": trials,
        # What proposed the sizes that were best.
        "winner": study.best_trial.user_attrs[ORIGIN_ATTR] if trials["trained"] else None,
    }


def _trials(
    data: str,
    datamodule: EmbeddingDataModule,
    sampler: str,
    budget: float,
    num_trainings: int,
    seed: int,
) -> Result:
    """A training per trial. Proposals over the budget are told so at once and cost no training."""
    space = SearchSpace(_specs(data, datamodule), budget=budget)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True)
    )
    rng = np.random.default_rng(seed)
    trained: dict[Allocation, Training] = {}
    start = time.process_time()
    for _ in range(_MAX_PROPOSALS):
        if len(trained) == num_trainings:
            break
        if sampler == "random" or len(trained) < TPE_STARTUP:
            # Drawn within the budget: a uniform draw of widths nearly never is.
            allocation = space.sample(rng, rng.uniform(0.5, 1.0) * space.budget, removal=0.1)
            study.enqueue_trial(space.params(allocation))
        trial = study.ask()
        allocation = space.suggest(trial)
        excess = allocation.num_parameters / space.budget - 1
        if excess > 0:
            study.tell(trial, -excess)
            continue
        if allocation not in trained:
            trained[allocation] = _train(data, datamodule, allocation, seed)
        study.tell(trial, trained[allocation].val_metric)
    seconds = time.process_time() - start
    best = max(trained, key=lambda allocation: trained[allocation].val_metric)
    return {
        "allocation": best.to_json(),
        "num_parameters": best.num_parameters,
        "seconds": seconds,
        "trials": {"proposed": len(study.trials), "trained": len(trained)},
        "training": _tested(trained[best], datamodule),
    }


class _Masked(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def _prune(data: str, datamodule: EmbeddingDataModule, budget: float, seed: int) -> Result:
    """Train the full tables, drop the smallest numbers, train the others on.

    What is left is charged with its place: a byte for the column of each number and a parameter
    for each row (compressed sparse rows).
    """
    space = SearchSpace(_specs(data, datamodule), budget=budget)
    start = time.process_time()
    trained = _train(data, datamodule, space.full(), seed)
    model = trained.model
    layers = [layer for layer in sized_layers(model) if layer.name not in model.output_features]
    tables = [tier for layer in layers for tier in layer.tier_modules()]
    rows = sum(tier.weight.shape[0] + 1 for tier in tables)
    kept = int((space.budget - rows) / (1 + _INDEX_PARAMETERS))
    if kept <= 0:
        raise ValueError(f"A budget of {space.budget} parameters does not even pay for the rows.")
    magnitudes = torch.cat([tier.weight.detach().abs().flatten() for tier in tables])
    threshold = magnitudes.topk(kept).values[-1]
    for tier in tables:
        mask = (tier.weight.detach().abs() >= threshold).float()
        parametrize.register_parametrization(tier, "weight", _Masked(mask))
    tuned = train(lambda _: model, space.full(), datamodule, seed=seed, **_stopping(data))
    result = _tested(tuned, datamodule)
    return result | {
        "num_parameters": space.budget,
        "steps": trained.steps + tuned.steps,
        "best_steps": trained.steps + result["best_steps"],
        "seconds": time.process_time() - start,
    }
