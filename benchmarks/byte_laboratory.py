"""Methods of a budget in bytes whose numbers have fewer bits, or whose tables are no sizes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from host_model import Result
from laboratory import Found, Laboratory, NoRoomError
from rival_layers import hashed_nbytes, learned_step_nbytes, remainders_of
from stored_tables import PRODUCT, ROUNDED, stored_nbytes

from optuna_nis import Allocation
from optuna_nis.space.precision import PRECISIONS
from optuna_nis.strategy import baselines

# Widths of uniform tables that are product-quantised.
_PRODUCT_WIDTHS = (16, 8, 4)
_NIS_WAYS = ("8bit", "4bit")
# Searches in float32 whose sizes are rounded afterwards: those of ``nis_me``, largest first.
_NIS_BUDGETS = (0.25, 0.125, 0.05, 0.025, 0.01)
_LEARNED_BITS = (4, 2)
# Weights of the penalty on bits, from little to much; its authors have 2e-6 to 3e-4.
MPE_PENALTIES = tuple(float(f"{3 ** (n % 2) * 10.0 ** (n // 2 - 6):.0e}") for n in range(11))
# Of the penalty on low thresholds; its authors have 1e-6 to 1e-4.
OPTEMBED_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class Candidate:
    """Tables that are trained by a job, and perhaps stored in a way.

    Attributes:
        allocation: Their sizes.
        nbytes: Bytes as they are stored.
        job: The job but for its seed.
        way: Of those that the job stores them in.
    """

    allocation: Allocation
    nbytes: int
    job: Mapping[str, Any]
    way: str | None = None


class ByteLaboratory(Laboratory):
    """All methods on one data set."""

    def run(self, candidate: Candidate, seed: int) -> Result:
        """Train a candidate, or take what is known of it."""
        result = self.trainings.run(**candidate.job, seed=seed)
        if candidate.way is not None:
            result = result | result["ways"][candidate.way]
        return result | {
            "num_parameters": candidate.allocation.num_parameters,
            "nbytes": candidate.nbytes,
            "allocation": self._described(candidate),
            "options": self.options,
        }

    def _described(self, candidate: Candidate) -> str:
        job = candidate.job
        how = candidate.way or f"{job['bits']}bit, learned step, {job['start']}"
        return f"{candidate.allocation}\nstored as {how}"

    def best_candidate(self, candidates: Iterable[Candidate]) -> Found:
        """The best candidate by validation with the first seed, trained with all."""
        candidates = list(candidates)
        if not candidates:
            raise NoRoomError("no tables stored so are within the budget")
        first = self.each(lambda each: self.run(each, self.seeds[0]), candidates)
        best = max(range(len(first)), key=lambda index: first[index]["val"])
        others = self.each(lambda seed: self.run(candidates[best], seed), self.seeds[1:])
        # One training may have been stored in many ways, the best of which is what it has found.
        tried: dict[str, Result] = {}
        for candidate, run in sorted(zip(candidates, first), key=lambda pair: pair[1]["val"]):
            tried[str(candidate.job)] = run
        seconds = sum(run["seconds"] for run in tried.values())
        return [first[best], *others], seconds, list(tried.values())

    def stored(self, budget: float, sizes: Allocation, ways: Iterable[str]) -> list[Candidate]:
        """Tables stored in those of some ways that are within a budget."""
        limit = self.space(budget).budget_nbytes
        job = {"kind": "stored", "allocation": sizes.to_json()}
        found = [Candidate(sizes, stored_nbytes(sizes, way), job, way) for way in ways]
        return [each for each in found if each.nbytes <= limit]

    def widest(
        self,
        budget: float,
        nbytes: Callable[[Allocation], int],
        *,
        projected: bool,
        narrowest: int = 1,
    ) -> Allocation | None:
        """The widest uniform tables that are within a budget, stored so.

        Where the narrowest ones are not, the largest number of the most frequent ids of each
        feature keep a row; None if not even one may.
        """
        limit = self.space(budget).budget_nbytes
        dims = max(spec.embedding_dim for spec in self.full.specs)
        for width in range(dims, narrowest - 1, -1):
            sizes = baselines.uniform(self.full, width=width, projected=projected)
            if nbytes(sizes) <= limit:
                return sizes

        def of(rows: int) -> Allocation:
            return baselines.uniform(
                self.full, width=narrowest, max_embeddings=rows, projected=projected
            )

        most = max(spec.num_embeddings for spec in self.full.specs)
        rows = bisect_left(range(1, most + 1), True, key=lambda rows: nbytes(of(rows)) > limit)
        return of(rows) if rows else None

    def method_full_rounded(self, budget: float) -> Found:
        """The full tables, rounded after training, as exactly as the budget allows."""
        return self.best_candidate(self.stored(budget, self.full.full(), ROUNDED))

    def method_full_pq(self, budget: float) -> Found:
        """The full tables, product-quantised after training."""
        return self.best_candidate(self.stored(budget, self.full.full(), PRODUCT))

    def method_uniform_rounded(self, budget: float) -> Found:
        """The same width for all, rounded after training; its form is that of 4 bits."""

        def of(way: str, projected: bool) -> list[Candidate]:
            sizes = self.widest(
                budget, lambda sizes: stored_nbytes(sizes, way), projected=projected
            )
            return [] if sizes is None else self.stored(budget, sizes, [way])

        return self._of_better_form(of, list(ROUNDED), "4bit")

    def method_uniform_pq(self, budget: float) -> Found:
        """Narrower tables of one width, product-quantised after training."""
        return self.best_candidate(
            candidate
            for width in _PRODUCT_WIDTHS
            for candidate in self.stored(
                budget, baselines.uniform(self.full, width=width), PRODUCT
            )
        )

    def method_uniform_lsq(self, budget: float) -> Found:
        """The same width for all, rounded to a learned step from scratch or later on."""

        def of(way: tuple[int, str], projected: bool) -> list[Candidate]:
            bits, start = way

            def nbytes(sizes: Allocation) -> int:
                return _learned_nbytes(sizes, bits)

            sizes = self.widest(budget, nbytes, projected=projected, narrowest=8 // bits)
            if sizes is None:
                return []
            job = {"kind": "learned_step", "allocation": sizes.to_json()}
            return [Candidate(sizes, nbytes(sizes), job | {"bits": bits, "start": start})]

        ways = [(bits, start) for bits in _LEARNED_BITS for start in ("scratch", "trained")]
        return self._of_better_form(of, ways, ways[0])

    def _of_better_form(
        self,
        of: Callable[[Any, bool], list[Candidate]],
        ways: Sequence[Any],
        first: Any,
    ) -> Found:
        """The best of some ways in the form, projected or not, that is better for one of them."""
        forms = [of(first, projected) for projected in (False, True)]
        projected = False
        if all(forms):
            plain, other = self.each(lambda form: self.run(form[0], self.seeds[0]), forms)
            projected = other["val"] > plain["val"]
        elif forms[1]:
            projected = True
        others = [each for way in ways if way != first for each in of(way, projected)]
        return self.best_candidate([*forms[0], *forms[1], *others])

    def method_nis_rounded(self, budget: float) -> Found:
        """What the search finds in float32, rounded after training to 8 or 4 bits."""

        def found(seed: int, way: str) -> tuple[Candidate, float] | None:
            for larger in _NIS_BUDGETS:
                result = self.trainings.run(kind="search", budget=larger, mode="multi", seed=seed)
                sizes = Allocation.from_json(result["allocation"])
                for candidate in self.stored(budget, sizes, [way]):
                    return candidate, result["seconds"]
            return None

        def run(seed: int, way: str) -> Result:
            of_seed = found(seed, way)
            if of_seed is None:
                raise NoRoomError(f"no sizes found in float32 are within the budget in {way}")
            candidate, seconds = of_seed
            return self.run(candidate, seed) | {"search_seconds": seconds}

        ways = [way for way in _NIS_WAYS if found(self.seeds[0], way)]
        if not ways:
            raise NoRoomError("no sizes of a search are within the budget, rounded")
        first = self.each(lambda way: run(self.seeds[0], way), ways)
        best = max(range(len(ways)), key=lambda index: first[index]["val"])
        others = self.each(lambda seed: run(seed, ways[best]), self.seeds[1:])
        runs = [first[best], *others]
        return runs, fmean(run["search_seconds"] for run in runs), first

    def method_hashing(self, budget: float) -> Found:
        """Tables of full width in float16, the large ones hashed to fewer rows."""
        return self._hashed(budget, quotients=False)

    def method_quotient_remainder(self, budget: float) -> Found:
        """The same with the product of two rows, of remainder and quotient, for each id."""
        return self._hashed(budget, quotients=True)

    def _hashed(self, budget: float, quotients: bool) -> Found:
        self._check_inputs()
        specs = self.full.specs
        limit = self.space(budget).budget_nbytes

        def nbytes(rows: int) -> int:
            return sum(
                hashed_nbytes(
                    spec.num_embeddings,
                    remainders_of(spec.num_embeddings, rows, quotients),
                    spec.embedding_dim,
                    quotients,
                )
                for spec in specs
            )

        most = max(spec.num_embeddings for spec in specs)
        rows = bisect_left(range(1, most + 1), True, key=lambda rows: nbytes(rows) > limit)
        if not rows:
            raise NoRoomError("no hashed tables are within the budget")

        def run(seed: int) -> Result:
            result = self.trainings.run(kind="hashed", rows=rows, quotients=quotients, seed=seed)
            return self._no_sizes(result | {"nbytes": nbytes(rows)}, f"{rows} rows at most")

        runs = self.each(run, self.seeds)
        return runs, runs[0]["seconds"], runs[:1]

    def method_nis_bits(self, budget: float) -> Found:
        """Rows, widths and bits by the one-shot search."""
        return self.searched(
            lambda seed: self.trainings.run(
                kind="search", budget=budget, mode="multi", seed=seed, precisions=list(PRECISIONS)
            )
        )

    def method_mpe(self, budget: float) -> Found:
        """Mixed-precision embeddings, the weakest penalty on bits that is within the budget."""
        limit = self.space(budget).budget_nbytes

        def run(seed: int) -> Result:
            def result(penalty: float) -> Result:
                return self.trainings.run(kind="mpe", penalty=penalty, seed=seed)

            index = bisect_left(
                MPE_PENALTIES, True, key=lambda penalty: result(penalty)["nbytes"] <= limit
            )
            if index == len(MPE_PENALTIES):
                raise NoRoomError("no penalty on bits keeps within the budget")
            found = result(MPE_PENALTIES[index])
            return self._no_sizes(found, f"{found['mean_bits']:.2f} bits a number on average")

        return self._of_authors(run)

    def method_pep(self, budget: float) -> Found:
        """Numbers pruned by learned thresholds."""

        def run(seed: int) -> Result:
            found = self.trainings.run(kind="pep", budget=budget, seed=seed)
            return self._no_sizes(found, "numbers pruned")

        return self._of_authors(run)

    def method_optembed(self, budget: float) -> Found:
        """Ids pruned by learned thresholds, widths of features by evolution."""

        def run(seed: int) -> Result:
            for penalty in OPTEMBED_PENALTIES:
                found = self.trainings.run(
                    kind="optembed", budget=budget, penalty=penalty, seed=seed
                )
                if "val" in found:
                    break
            return self._no_sizes(found, f"widths {found.get('widths')}")

        return self._of_authors(run)

    def _check_inputs(self) -> None:
        if self.output_features:
            raise NoRoomError(f"it has nothing for the tables of outputs {self.output_features}")

    def _of_authors(self, run: Callable[[int], Result]) -> Found:
        self._check_inputs()
        runs = self.each(run, self.seeds)
        if not all("val" in each for each in runs):
            raise NoRoomError("it does not come within the budget")
        return runs, fmean(each["search_seconds"] for each in runs), runs[:1]

    def _no_sizes(self, result: Result, allocation: str) -> Result:
        """A run of tables that are no sizes; their bytes are told as float32 parameters too."""
        parameters = result["nbytes"] // 4
        return result | {
            "num_parameters": parameters,
            "allocation": allocation,
            "options": self.options,
        }


def _learned_nbytes(sizes: Allocation, bits: int) -> int:
    rows = sum(
        learned_step_nbytes(tier.num_embeddings, tier.embedding_dim, bits)
        for table in sizes.values()
        for tier in table.tiers
    )
    return rows + 2 * sizes.num_projection_parameters
