"""Methods that name embedding sizes for a budget, on one data set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import fmean
from typing import Any

from host_model import Result
from jobs import TPE_STARTUP
from trainings import Trainings
from tuning import leave_out, tune

from optuna_nis import Allocation, SearchSpace, TableAllocation, Tier
from optuna_nis.strategy import baselines
from optuna_nis.strategy.decision import decide

ALPHAS = (0.1, 0.2, 0.3, 0.5)
GRID_SHARES = (1.0, 0.5, 0.2, 0.05)
MANY_IDS = 1000
# Trial-per-training searches get few plain trainings, about what a one-shot search took once, and
# a careful person's many in some cells.
PLAIN_TRAININGS = 2
LONG_TRAININGS = 20
HAND_MADE = {
    # Most frequent 5, 10, 20, 30 and 35 % of the users and of the items.
    ("movielens-1m-user-item", 0.25): (32, 16, 8, 4, 4),
}

# The runs of a method with every seed, the time that it took to find the sizes, and what it chose
# among by validation.
Found = tuple[list[Result], float, list[Result]]


class NoRoomError(Exception):
    """A method has nothing that is within a budget."""


def fitting(*makers: Callable[[], Allocation]) -> list[Allocation]:
    """The sizes of those baselines that find some within their budget.

    Raises:
        NoRoomError: If none does.
    """
    found, reasons = [], []
    for maker in makers:
        try:
            found.append(maker())
        except ValueError as error:
            reasons.append(str(error))
    if not found:
        raise NoRoomError(" ".join(reasons))
    return found


class Laboratory:
    """The methods on one data set."""

    def __init__(self, data: str, trainings: Trainings, seeds: Sequence[int]) -> None:
        self.data = data
        self.trainings = trainings
        self.seeds = seeds
        about = trainings.run(kind="describe")
        self.full = SearchSpace.from_json(about["space"])
        self.counts = about["counts"]
        self.metric = about["metric"]
        self.output_features = about["output_features"]
        self.options = about["options"]

    def train(
        self,
        allocation: Allocation,
        seed: int,
        known: Result | None = None,
        options: Mapping[str, float] | None = None,
    ) -> Result:
        """Train from scratch and test, unless that has been done.

        Args:
            allocation: The sizes.
            seed: The seed.
            known: The result, if it has been done.
            options: Options of the model that are not the defaults.
        """
        job: dict[str, Any] = {"options": dict(options)} if options else {}
        result = known or self.trainings.run(
            kind="train", allocation=allocation.to_json(), seed=seed, **job
        )
        return result | {
            "num_parameters": allocation.num_parameters,
            "nbytes": allocation.nbytes(),
            "allocation": allocation,
            "options": {**self.options, **job.get("options", {})},
        }

    def each(self, function: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
        """Call a function on many arguments side by side."""
        with ThreadPoolExecutor(32) as threads:
            return list(threads.map(function, *arguments))

    def plain(self, what: str) -> float:
        """Mean of what a plain training of the full tables takes: its ``"seconds"``, say."""
        return fmean(run[what] for run in self.method_full(1.0)[0])

    def best_of(self, candidates: Sequence[Allocation]) -> Found:
        """The best of some allocations by validation with the first seed, trained with all."""
        distinct = list(dict.fromkeys(candidates))
        first = self.each(lambda allocation: self.train(allocation, self.seeds[0]), distinct)
        best = max(first, key=lambda run: run["val"])
        others = self.each(lambda seed: self.train(best["allocation"], seed), self.seeds[1:])
        return [best, *others], sum(run["seconds"] for run in first), first

    def tuned(self, allocations: Sequence[Allocation]) -> Found:
        """An allocation for each seed, trained with the options that are best for the first."""

        def train(options: Sequence[Mapping[str, float]]) -> list[Result]:
            return self.each(
                lambda each: self.train(allocations[0], self.seeds[0], options=each), options
            )

        options, tried = tune(self.options, train)
        runs = self.each(
            lambda allocation, seed: self.train(allocation, seed, options=options),
            allocations,
            self.seeds,
        )
        return runs, sum(run["seconds"] for run in tried), tried

    def one_out(self, without: Callable[[Collection[str]], Allocation]) -> Found:
        """Features left out one after the other, as long as that is worth it."""

        def train(out: Sequence[Collection[str]]) -> list[Result]:
            return self.each(lambda each: self.train(without(each), self.seeds[0]), out)

        names = [name for name in self.full.full() if name not in self.output_features]
        out, tried = leave_out(names, train)
        runs = self.each(lambda seed: self.train(without(out), seed), self.seeds)
        return runs, sum(run["seconds"] for run in tried), tried

    def searched(self, find: Callable[[int], Result]) -> Found:
        """An allocation found anew for every seed, trained with this seed.

        Of several finalists all are trained, and validation decides, as ``retrain`` does.
        """

        def run(seed: int) -> Result:
            found = find(seed)
            # A search that trains for each trial has trained it with this seed.
            known = found.get("training")
            finalists = found.get("finalists", [found["allocation"]])
            runs = self.each(
                lambda text: self.train(Allocation.from_json(text), seed, known), finalists
            )
            trained = _taken(runs)
            more = sum(each["seconds"] for each in runs) - trained["seconds"]
            return trained | {"search_seconds": found["seconds"], "finalist_seconds": more}

        runs = self.each(run, self.seeds)
        return runs, fmean(run["search_seconds"] for run in runs), runs[:1]

    def space(self, budget: float) -> SearchSpace:
        """The space under a budget."""
        return self.full.with_budget(budget)

    def method_full(self, budget: float) -> Found:
        """Every id at full width, whatever the budget."""
        return self.best_of([self.full.full()])

    def method_uniform(self, budget: float) -> Found:
        """The same width for all, as it is or projected."""
        space = self.space(budget)
        return self.best_of(_uniform_forms(space))

    def method_grid(self, budget: float) -> Found:
        """The best cell of widths x rows that fits the budget."""
        space = self.space(budget)
        cells = [cell for cell in self._grid(True) if space.fits(cell)]
        if not cells:
            raise NoRoomError("no cell of the grid is within the budget")
        runs = self.each(lambda cell: self.train(cell, self.seeds[0]), cells)
        ranked = sorted(zip(cells, runs), key=lambda pair: pair[1]["val"], reverse=True)
        candidates = [cell for cell, _ in ranked[:1]]
        native = dict(zip(self._grid(True), self._grid(False)))
        candidates += [native[cell] for cell in candidates]
        candidates += _uniform_forms(space)
        chosen, _, last = self.best_of(candidates)
        tried = {run["allocation"]: run for run in [*runs, *last]}
        return chosen, sum(run["seconds"] for run in runs), list(tried.values())

    def _grid(self, projected: bool) -> list[Allocation]:
        specs = self.full.specs
        largest = max(spec.num_embeddings for spec in specs)
        caps: list[int | None] = [round(share * largest) for share in GRID_SHARES]
        if any(spec.num_embeddings <= MANY_IDS for spec in specs):
            caps.append(None)
        cells = []
        for width in (w for w in specs[0].widths[1:] if w.bit_count() == 1):
            for cap in caps:
                cell = baselines.uniform(
                    self.full, width=width, max_embeddings=cap or largest, projected=projected
                )
                if cap is None:
                    cell = Allocation(map(_without_many_ids, cell.values()))
                cells.append(cell)
        return cells

    def method_rule_of_thumb(self, budget: float) -> Found:
        """Widths by the number of ids."""
        space = self.space(budget)
        return self.best_of(fitting(lambda: baselines.rule_of_thumb(space)))

    def method_mde(self, budget: float) -> Found:
        """Mixed dimensions by popularity, the best of several powers."""
        space = self.space(budget)
        return self.best_of(
            fitting(*(partial(baselines.mixed_dimensions, space, self.counts, a) for a in ALPHAS))
        )

    def method_hand_made(self, budget: float) -> Found:
        """Several widths, the same for users and items."""
        widths = HAND_MADE[self.data, budget]
        params = {
            name: widths[index]
            for spec in self.full.specs
            for index, name in enumerate(n for n in self.full.choices if n.startswith(spec.name))
        }
        return self.best_of([self.full.allocation(params)])

    def method_pruning(self, budget: float) -> Found:
        """The full tables without their smallest numbers, trained on."""
        space = self.space(budget)
        # A parameter each for where a row begins.
        if space.budget < sum(spec.num_embeddings + 1 for spec in space.specs) + 2:
            raise NoRoomError("the budget does not even pay for the rows")

        def run(seed: int) -> Result:
            return self.trainings.run(kind="prune", budget=budget, seed=seed) | {
                "allocation": "pruned",
                "nbytes": space.budget_nbytes,
            }

        runs = self.each(run, self.seeds)
        return runs, fmean(run["seconds"] for run in runs), runs[:1]

    def method_random(self, budget: float) -> Found:
        """Random draws within the budget, a training each."""
        return self._trials("random", budget, PLAIN_TRAININGS)

    def method_tpe(self, budget: float) -> Found:
        """Optuna's TPE, a training per trial."""
        return self._trials("tpe", budget, PLAIN_TRAININGS)

    def method_random_20(self, budget: float) -> Found:
        """Random draws, twenty trainings."""
        return self._trials("random", budget, LONG_TRAININGS)

    def method_tpe_20(self, budget: float) -> Found:
        """TPE, twenty trainings."""
        return self._trials("tpe", budget, LONG_TRAININGS)

    def _trials(self, sampler: str, budget: float, num_trainings: int) -> Found:
        if num_trainings <= TPE_STARTUP:
            # All of TPE's draws are random ones then: the same jobs.
            sampler = "random"
        return self.searched(
            lambda seed: self.trainings.run(
                kind="trials",
                sampler=sampler,
                budget=budget,
                num_trainings=num_trainings,
                seed=seed,
            )
        )

    def method_nis_se(self, budget: float) -> Found:
        """Single-size embeddings by the one-shot search."""
        return self._nis(budget, "single")

    def method_nis_me(self, budget: float) -> Found:
        """Multi-size embeddings by the one-shot search."""
        return self._nis(budget, "multi")

    def method_nis_retrained(self, budget: float) -> Found:
        """What ``retrain`` takes with each seed: found, uniform or mixed sizes, by validation."""
        space = self.space(budget)
        found, search_seconds, _ = self.method_nis_me(budget)
        rivals = fitting(
            *(partial(baselines.uniform, space, projected=p) for p in (False, True)),
            partial(baselines.mixed_dimensions, space, self.counts),
        )

        def taken(own: Result, seed: int) -> tuple[Result, list[Result]]:
            runs = [own, *self.each(lambda sizes: self.train(sizes, seed), rivals)]
            return _taken(runs), runs

        results = self.each(taken, found, self.seeds)
        seconds = fmean(sum(run["seconds"] for run in runs) for _, runs in results)
        seconds += fmean(run["finalist_seconds"] for run in found)
        return [run for run, _ in results], search_seconds + seconds, results[0][1]

    def _nis(self, budget: float, mode: str) -> Found:
        return self.searched(
            lambda seed: self.trainings.run(kind="search", budget=budget, mode=mode, seed=seed)
        )

    def method_full_tuned(self, budget: float) -> Found:
        """The full tables, learning rate, l2 and dropout tuned."""
        return self.tuned([self.full.full()] * len(self.seeds))

    def method_uniform_tuned(self, budget: float) -> Found:
        """The same width for all, the better form of both tuned."""
        return self._from_uniform(budget, lambda sizes: self.tuned([sizes] * len(self.seeds)))

    def method_nis_tuned(self, budget: float) -> Found:
        """What the one-shot search finds with each seed, tuned."""
        found, search_seconds, _ = self.method_nis_me(budget)
        runs, seconds, tried = self.tuned([run["allocation"] for run in found])
        return runs, search_seconds + seconds, tried

    def method_full_one_out(self, budget: float) -> Found:
        """The full tables without the features that are better left out."""
        full = self.full.full()
        return self.one_out(
            lambda out: Allocation(
                _removed(name, table.num_embeddings, table.embedding_dim) if name in out else table
                for name, table in full.items()
            )
        )

    def method_uniform_one_out(self, budget: float) -> Found:
        """The same width for all features but those better left out, as wide as that allows."""
        space = self.space(budget)
        form = baselines.uniform(space, projected=True)
        return self._from_uniform(
            budget,
            lambda sizes: self.one_out(lambda out: uniform_without(space, out, sizes == form)),
        )

    def _from_uniform(self, budget: float, find: Callable[[Allocation], Found]) -> Found:
        """What is found from the better form of the same width for all, which is tried first."""
        chosen, _, forms = self.method_uniform(budget)
        best = chosen[0]["allocation"]
        runs, _, tried = find(best)
        tried = [*(run for run in forms if run["allocation"] != best), *tried]
        return runs, sum(run["seconds"] for run in tried), tried


def _taken(runs: Sequence[Result]) -> Result:
    """What validation takes of trainings with one seed, as ``retrain`` does."""
    error = max(runs, key=lambda run: run["val"]).get("val_error")
    decision = decide([[run["val"]] for run in runs], [run["nbytes"] for run in runs], error=error)
    return runs[decision.taken]


def _uniform_forms(space: SearchSpace) -> list[Allocation]:
    """The same width for all, as it is and projected."""
    return fitting(*(partial(baselines.uniform, space, projected=p) for p in (False, True)))


def uniform_without(space: SearchSpace, out: Collection[str], projected: bool) -> Allocation:
    """Uniform sizes of the features that are not left out, within the budget of all."""
    kept = [spec for spec in space.specs if spec.name not in out]
    budget = min(space.budget, sum(spec.num_parameters for spec in kept))
    sizes = baselines.uniform(SearchSpace(kept, budget=budget), projected=projected)
    # Models take features of one width.
    dims = {spec.embedding_dim: sizes[spec.name].embedding_dim for spec in kept}
    return Allocation(
        sizes[spec.name]
        if spec.name in sizes
        else _removed(spec.name, spec.num_embeddings, dims[spec.embedding_dim])
        for spec in space.specs
    )


def _removed(name: str, num_embeddings: int, embedding_dim: int) -> TableAllocation:
    return TableAllocation(name, num_embeddings, embedding_dim, ())


def _without_many_ids(table: TableAllocation) -> TableAllocation:
    if table.num_embeddings <= MANY_IDS:
        return table
    tiers = (Tier(1, table.tiers[0].embedding_dim),)
    return TableAllocation(table.name, table.num_embeddings, table.embedding_dim, tiers)
