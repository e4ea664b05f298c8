"""What the jobs of the quality benchmark do: each a function of its description alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from inspect import signature
import json
import math
import time
from typing import Any

import author_jobs
from data_sets import data_config
from host_model import Job, Result, build_model, specs_of, tested, trained
import numpy as np
import optuna
import rival_jobs
from without import plan_without

from optuna_nis import Allocation, SearchSpace
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.lightning import SearchPlan, search_sizes
from optuna_nis.lightning.training import Training
from optuna_nis.study.keys import FIDELITIES, ORIGIN_ATTR
from optuna_nis.study.results import finalist_allocations

# Options of the model that careful people tune; a job has those that are not the defaults.
OPTIONS = ("learning_rate", "l2", "dropout")
# Random draws with which TPE begins.
TPE_STARTUP = 5
# Proposals over the budget cost a rival nothing but the time to make them.
_MAX_PROPOSALS = 2000
RIVALS = {
    "stored": rival_jobs.stored,
    "learned_step": rival_jobs.learned_step,
    "hashed": rival_jobs.hashed,
}
# By code of others, which is in a folder beside the project.
AUTHORS = {
    "mpe": author_jobs.mpe,
    "pep": author_jobs.pep,
    "optembed": author_jobs.optembed,
}


@lru_cache(maxsize=1)
def _datamodule(data: str, config: str) -> EmbeddingDataModule:
    return data_config(data, json.loads(config)).datamodule(withhold_test=False)


def run(data: str, config: dict[str, Any], job: Job) -> Result:
    datamodule = _datamodule(data, json.dumps(config))
    kind = job["kind"]
    if kind == "describe":
        return _described(data, datamodule)
    if kind == "train":
        return _train_and_test(data, datamodule, job)
    if kind == "prune":
        return rival_jobs.prune(data, datamodule, job["budget"], job["seed"])
    if kind in RIVALS:
        return RIVALS[kind](data, datamodule, job)
    if kind in AUTHORS:
        return AUTHORS[kind](data, datamodule, job, config["rivals_dir"])
    if kind == "search":
        with plan_without(job.get("without")) as plan:
            return _search(data, config, plan, job)
    assert kind == "trials"
    return _trials(
        data, datamodule, job["sampler"], job["budget"], job["num_trainings"], job["seed"]
    )


def _described(data: str, datamodule: EmbeddingDataModule) -> Result:
    space = SearchSpace(specs_of(data, datamodule))
    model = build_model(data, datamodule)(space.full())
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
        return tested(trained(data, datamodule, allocation, job["seed"], options), datamodule)
    except FloatingPointError:
        # Whoever tunes comes upon options that are of no use.
        if not options:
            raise
        seconds = time.process_time() - start
        return {"val": -math.inf, "test": math.nan, "seconds": seconds}


def _search(data: str, config: Mapping[str, Any], plan: SearchPlan, job: Job) -> Result:
    datamodule = data_config(data, config).datamodule(withhold_test=True)
    study = optuna.create_study(direction="maximize")
    space = SearchSpace(specs_of(data, datamodule), mode=job["mode"])
    space = space.with_precisions(job.get("precisions", space.precisions))
    loaded = time.process_time()
    sizes = search_sizes(
        build_model(data, datamodule),
        datamodule,
        space=space.with_budget(job["budget"]),
        study=study,
        plan=plan,
        seed=job["seed"],
    )
    seconds = time.process_time() - loaded
    found = sizes.allocation
    trials = dict.fromkeys(FIDELITIES, 0)
    for trial in study.trials:
        trials[trial.user_attrs["fidelity"]] += 1
    return {
        "allocation": found.to_json(),
        "finalists": [each.to_json() for each in finalist_allocations(study).values()],
        "num_parameters": found.num_parameters,
        "nbytes": found.nbytes(),
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
    space = SearchSpace(specs_of(data, datamodule), budget=budget)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True)
    )
    rng = np.random.default_rng(seed)
    done: dict[Allocation, Training] = {}
    start = time.process_time()
    for _ in range(_MAX_PROPOSALS):
        if len(done) == num_trainings:
            break
        if sampler == "random" or len(done) < TPE_STARTUP:
            # Drawn within the budget: a uniform draw of widths nearly never is.
            allocation = space.sample(rng, rng.uniform(0.5, 1.0) * space.budget, removal=0.1)
            study.enqueue_trial(space.params(allocation))
        trial = study.ask()
        allocation = space.suggest(trial)
        excess = allocation.nbytes() / space.budget_nbytes - 1
        if excess > 0:
            study.tell(trial, -excess)
            continue
        if allocation not in done:
            done[allocation] = trained(data, datamodule, allocation, seed)
        study.tell(trial, done[allocation].val_metric)
    seconds = time.process_time() - start
    best = max(done, key=lambda allocation: done[allocation].val_metric)
    return {
        "allocation": best.to_json(),
        "num_parameters": best.num_parameters,
        "seconds": seconds,
        "trials": {"proposed": len(study.trials), "trained": len(done)},
        "training": tested(done[best], datamodule),
    }
