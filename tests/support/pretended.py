"""Jobs of the quality benchmark that are done in no time."""

from __future__ import annotations

from typing import Any

from laboratory import uniform_without
from stored_tables import WAYS

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace

SPACE = SearchSpace([EmbeddingSpec("user", 1000, 32), EmbeddingSpec("noise", 500, 32)])
OPTIONS = {"learning_rate": 0.005, "l2": 0.001, "dropout": 0.0}


class Pretended:
    """Jobs that are done in no time: fewer numbers, no noise and a larger rate are better."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []

    def run(self, **job: Any) -> dict[str, Any]:
        if job["kind"] == "describe":
            counts = {spec.name: [1] * spec.num_embeddings for spec in SPACE.specs}
            return {
                "space": SPACE.to_json(),
                "counts": counts,
                "metric": "ROC-AUC",
                "output_features": [],
                "options": OPTIONS,
            }
        self.jobs.append(job)
        if job["kind"] == "search":
            sizes = uniform(0.25 if job["seed"] else 0.5)
            return {"allocation": sizes.to_json(), "seconds": 30.0}
        if job["kind"] not in ("train", "stored", "learned_step"):
            return _with_bytes(job)
        sizes = Allocation.from_json(job["allocation"])
        rate = job.get("options", {}).get("learning_rate", OPTIONS["learning_rate"])
        value = 0.8 + rate + 0.1 * (not sizes["noise"].tiers) - 1e-7 * sizes.num_parameters
        result = _result(value, job["seed"])
        if job["kind"] == "stored":
            # Fewer bits are worse, and centroids of wide runs.
            result["ways"] = {
                name: _worth(value - 0.01 * (way.columns or 1) / way.bits)
                for name, way in WAYS.items()
            }
        elif job["kind"] == "learned_step":
            result |= _worth(value + 0.002 * job["bits"] + 0.001 * (job["start"] == "trained"))
        return result


def _with_bytes(job: dict[str, Any]) -> dict[str, Any]:
    """Of tables that are no sizes: what they take is a part of the result, but of hashed ones."""
    result = _result(0.7, job["seed"]) | {"search_seconds": 20.0}
    if job["kind"] == "mpe":
        # About a tenth of the bytes for each tenfold penalty.
        return result | {"nbytes": round(1e-2 / job["penalty"] ** 0.5), "mean_bits": 2.5}
    if job["kind"] == "pep" and job["budget"] < 0.05:
        return {"nbytes": 10**6}
    if job["kind"] == "optembed" and job["penalty"] < 1e-3:
        return {"nbytes": 10**6}
    return result | {"nbytes": 1000, "widths": [2, 3]}


def _result(value: float, seed: int) -> dict[str, Any]:
    return _worth(value) | {
        "val_error": 0.01,
        "steps": 100 + 10 * seed,
        "best_steps": 80,
        "seconds": 10.0,
        "num_dense_parameters": 7,
    }


def _worth(value: float) -> dict[str, float]:
    return {"val": value, "test": value - 0.1}


def uniform(budget: float) -> Allocation:
    """Uniform tables within a budget."""
    return uniform_without(SPACE.with_budget(budget), (), projected=False)
