from __future__ import annotations

from dataclasses import replace
import json
from typing import Any

from any_spaces import spaces, specs
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import optuna
import pytest

from optuna_nis.space.allocation import Allocation, TableAllocation, Tier
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec


def random_walk(space: SearchSpace, n: int, seed: int) -> tuple[list[dict[str, Any]], Any]:
    rng = np.random.default_rng(seed)
    walk = space.walk(n)
    params: list[dict[str, Any]] = [{} for _ in range(n)]
    for name, choices in space.choices.items():
        allowed = walk.allowed(name)
        assert allowed.shape in ((n, len(choices)), (1, len(choices)))
        allowed = np.broadcast_to(allowed, (n, len(choices)))
        assert allowed.any(axis=1).all()
        taken = np.array([rng.choice(np.flatnonzero(row)) for row in allowed])
        walk.take(name, taken)
        for draw, option in zip(params, taken):
            draw[name] = choices[option]
    return params, walk


@given(space=spaces(), n=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_every_walk_stays_within_the_budget_and_pays_what_it_costs(
    space: SearchSpace, n: int, seed: int
) -> None:
    params, walk = random_walk(space, n, seed)
    costs = [space.allocation(draw).nbytes() for draw in params]
    assert max(costs) <= space.budget_nbytes
    np.testing.assert_array_equal(space.budget_nbytes - walk._left, costs)


@given(space=spaces(), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_walk_forbids_only_what_exceeds_the_budget(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    walk = space.walk(1)
    last = {name: choices[0] for name, choices in space.choices.items()}
    taken: dict[str, Any] = {}
    for name, choices in space.choices.items():
        (allowed,) = walk.allowed(name)
        for option, choice in enumerate(choices):
            allocation = space.allocation({**last, **taken, name: choice})
            if not allowed[option] and space.params(allocation)[name] == choice:
                assert not space.fits(allocation)
        option = int(rng.choice(np.flatnonzero(allowed)))
        walk.take(name, np.array([option]))
        taken[name] = choices[option]


@given(space=spaces(), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_params_and_allocation_are_inverse(space: SearchSpace, seed: int) -> None:
    (params,), _ = random_walk(space, 1, seed)
    allocation = space.allocation(params)
    assert space.allocation(space.params(allocation)) == allocation
    if space.mode == "multi":
        # Of shared rows the least number that comes to the same.
        shared = {f"{t.name}[shared]": t.num_shared for t in allocation.values()}
        least = space.params(allocation)
        assert all(shared.get(n, 0) <= v <= params[n] for n, v in least.items() if n in shared)
        assert least == {**params, **{name: least[name] for name in least if name in shared}}
    assert list(space.params(allocation)) == list(space.choices)
    sizes = space.sizes(allocation)
    for name, widths in space.widths(allocation).items():
        assert list(widths) == sorted(widths, reverse=True)
        bits = [bits for _, bits in sizes[name]]
        assert bits == sorted(bits, reverse=True)
        assert allocation[name].kept == sum(
            rows for rows, width in zip(_spec(space, name).row_blocks, widths) if width
        )


def _spec(space: SearchSpace, name: str) -> EmbeddingSpec:
    return next(spec for spec in space.specs if spec.name == name)


@given(space=spaces(), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_any_sampler_gets_a_valid_allocation(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    params = {n: c[rng.integers(len(c))] for n, c in space.choices.items()}
    allocation = space.allocation({**params, "unrelated": 1})
    assert space.allocation(space.params(allocation)) == allocation


@given(
    space=spaces(),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0, 1),
    removal=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(deadline=None)
def test_random_allocations_cost_at_most_what_was_asked(
    space: SearchSpace, seed: int, share: float, removal: float
) -> None:
    most = share * space.full_parameters
    allocation = space.sample(np.random.default_rng(seed), most, removal)
    assert allocation.nbytes() <= 4 * most
    assert space.allocation(space.params(allocation)) == allocation
    if removal == 1.0:
        assert allocation.num_parameters == 0


@given(spaces())
def test_json_round_trip(space: SearchSpace) -> None:
    again = SearchSpace.from_json(space.to_json())
    assert again == space
    assert hash(again) == hash(space)
    assert again.budget == space.budget
    assert dict(again.choices) == dict(space.choices)
    assert list(again.choices) == list(space.choices)


def test_bytes_of_another_type_are_kept() -> None:
    space = SearchSpace([EmbeddingSpec("t", 1000, 16)], budget="8kB", dtype="float16")
    again = SearchSpace.from_json(space.to_json())
    assert again.with_budget("8kB").budget == space.with_budget("8kB").budget == 4000


def test_a_space_keeps_the_counts_and_is_equal_without_them() -> None:
    counted = EmbeddingSpec.from_counts("t", [5000 // (rank + 1) for rank in range(100)], 8)
    space = SearchSpace([counted, EmbeddingSpec("u", 5, 4)], budget="50%")
    again = SearchSpace.from_json(space.to_json())
    assert [spec.mean_counts for spec in again.specs] == [counted.mean_counts, None]
    assert again.with_budget("25%").specs[0].mean_counts == counted.mean_counts
    blind = EmbeddingSpec("t", 100, 8, row_blocks=counted.row_blocks)
    without = SearchSpace([blind, EmbeddingSpec("u", 5, 4)], budget="50%")
    assert without == space
    assert hash(without) == hash(space)


def test_a_space_of_an_earlier_release_is_read_without_counts() -> None:
    text = (
        '{"version": 1, "mode": "single", "budget": 40, "specs": [{"name": "t", '
        '"num_embeddings": 10, "embedding_dim": 4, "row_blocks": [2, 8], "col_blocks": [4]}]}'
    )
    spec = EmbeddingSpec("t", 10, 4, row_blocks=[2, 8], col_blocks=[4])
    space = SearchSpace.from_json(text)
    assert space == SearchSpace([spec], mode="single", budget=40)
    assert space.specs[0].mean_counts is None


@given(spaces())
def test_initial_weights_fit_the_choices(space: SearchSpace) -> None:
    weights = space.initial_log_weights()
    assert weights.keys() == space.choices.keys()
    for name, choices in space.choices.items():
        assert weights[name].shape == (len(choices),)
        assert np.isfinite(weights[name]).all()


@given(specs())
def test_cuts_sum_to_the_table(spec: EmbeddingSpec) -> None:
    assert sum(spec.row_blocks) == spec.num_embeddings == spec.row_cuts[-1]
    assert sum(spec.col_blocks) == spec.embedding_dim == spec.widths[-1]
    assert min(spec.row_blocks) > 0
    assert min(spec.col_blocks) > 0
    assert spec.widths[0] == 0


def test_numpy_sizes_are_as_good_as_any() -> None:
    spec = EmbeddingSpec(
        "t", np.int64(100), np.int32(8), row_blocks=np.array([10, 90]), col_blocks=np.int64(2)
    )
    assert spec == EmbeddingSpec("t", 100, 8, row_blocks=[10, 90], col_blocks=2)
    space = SearchSpace([spec])
    assert SearchSpace.from_json(space.to_json()) == space
    assert Allocation.from_json(space.full().to_json()) == space.full()


def test_single_mode_offers_the_grid_of_sizes() -> None:
    space = SearchSpace([EmbeddingSpec("t", 10, 2, row_blocks=2)], mode="single")
    assert space.choices["t"] == ("0x0", "5x1", "5x2", "10x1", "10x2")
    assert space.allocation({"t": "5x1"})["t"].tiers == (Tier(5, 1),)
    assert space.allocation({"t": "0x0"})["t"].tiers == ()


def test_multi_mode_has_a_width_for_every_block() -> None:
    space = SearchSpace([EmbeddingSpec("t", 10, 4, row_blocks=[2, 3, 5])])
    assert list(space.choices) == ["t[0:2]", "t[2:5]", "t[5:10]"]
    allocation = space.allocation({"t[0:2]": 4, "t[2:5]": 1, "t[5:10]": 2})
    assert allocation["t"].tiers == (Tier(2, 4), Tier(8, 1))
    assert space.widths(allocation) == {"t": (4, 1, 1)}


def test_cheap_tables_draw_first() -> None:
    space = SearchSpace([EmbeddingSpec("large", 40, 8), EmbeddingSpec("small", 4, 8)])
    assert list(space.choices) == ["small", "large"]
    assert list(space.full()) == ["large", "small"]


def test_suggest_asks_for_every_parameter() -> None:
    space = SearchSpace([EmbeddingSpec("t", 60, 8), EmbeddingSpec("u", 5, 8)])
    trial = optuna.trial.FixedTrial(space.params(space.full()))
    assert space.suggest(trial) == space.full()
    assert trial.distributions == space.distributions()


def test_full_is_everything() -> None:
    space = SearchSpace([EmbeddingSpec("t", 60, 8), EmbeddingSpec("u", 5, 8)], budget="50%")
    assert space.full().num_parameters == space.full_parameters == 520
    assert space.budget == 260
    assert repr(space) == "SearchSpace(2 features, mode='multi', budget=1,040 of 2,080 bytes)"
    assert " precisions=(8, 2), budget=" in repr(space.with_precisions((2, 8)))


def test_the_smallest_budget_is_accepted_and_one_less_refused() -> None:
    table = [EmbeddingSpec("t", 100, 16, row_blocks=[10, 90])]
    for mode in ("multi", "single"):
        least = SearchSpace(table, mode=mode).min_parameters  # type: ignore[arg-type]
        assert least == 10 + 16
        space = SearchSpace(table, mode=mode, budget=least)  # type: ignore[arg-type]
        params, _ = random_walk(space, 200, 0)
        assert {space.allocation(draw).num_parameters for draw in params} == {0, least}
        with pytest.raises(ValueError, match=r"must be at least 104 bytes \(26 parameters\)"):
            SearchSpace(table, mode=mode, budget=least - 1)  # type: ignore[arg-type]


def test_bytes_are_of_the_dtype() -> None:
    table = [EmbeddingSpec("t", 100, 16)]
    assert SearchSpace(table, budget="1600B").budget == 400
    stored = SearchSpace(table, budget="1600B", dtype="float16")
    assert stored.budget == stored.with_budget("1600B").budget == 800
    assert stored.with_precisions([32]).with_budget("1600B").budget == 800


def test_where_precisions_are_chosen_bytes_are_bytes() -> None:
    table = [EmbeddingSpec("t", 100, 16, precisions=(32, 8))]
    assert SearchSpace(table, budget="1600B", dtype="float16").budget_nbytes == 1600


TABLE = EmbeddingSpec("t", 10, 4, row_blocks=[2, 8])


@pytest.mark.parametrize(
    ("specs", "arguments", "message"),
    [
        ([], {}, "`specs` must hold at least one `EmbeddingSpec`"),
        ([TABLE, TABLE], {}, "`specs` names the feature 't' twice"),
        ([EmbeddingSpec("t", 2**62, 4)], {}, "`specs` must have at most 9,007,199,254,740,992"),
        ([EmbeddingSpec("t", 1, 2**21)], {}, "be at most 1,048,576 wide"),
        ([TABLE], {"mode": "both"}, '`mode` must be "multi" or "single", got \'both\''),
        ([TABLE], {"budget": 41}, "`budget` must be at most the full tables"),
        ([TABLE], {"budget": 0}, "`budget` must be at least one parameter"),
        ([TABLE], {"budget": 5}, "`budget` must be at least 24 bytes .* got 5, which is 20 bytes"),
        ([TABLE], {"budget": "1MB", "dtype": "real"}, "`dtype` must be one of"),
        ([replace(TABLE, precisions=(8,))], {"dtype": "real"}, "`dtype` must be one of"),
        (
            [EmbeddingSpec("t", 4, 4, precisions=(2,))],
            {"budget": "7B"},
            "at least 8 bytes .* got '7B', which is 4 bytes in whole float32 parameters",
        ),
        (
            [TABLE, EmbeddingSpec("t[0:2]", 5, 4)],
            {},
            r"`specs` gives two parameters the name 't\[0:2\]'",
        ),
    ],
)
def test_a_space_refuses(
    specs: list[EmbeddingSpec], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SearchSpace(specs, **arguments)


SPACE = SearchSpace([TABLE])
SINGLE = SearchSpace([TABLE], mode="single")
WIDE = SearchSpace([EmbeddingSpec("t", 10, 16, row_blocks=[2, 8])])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"t[0:2]": 4}, r"`params` must hold a choice for 't\[2:10\]'"),
        ({"t[0:2]": 4, "t[2:10]": 5}, r"`params\['t\[2:10\]'\]` must be one of \[0, 1, 2, 3, 4\]"),
    ],
)
def test_allocation_refuses(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SPACE.allocation(params)


@pytest.mark.parametrize(
    ("space", "table", "message"),
    [
        (SPACE, TableAllocation("u", 10, 4, ()), "`allocation` has no feature 't'"),
        (SPACE, TableAllocation("t", 10, 4, (Tier(3, 4),)), "`allocation` must follow the cuts"),
        (WIDE, TableAllocation("t", 10, 16, (Tier(2, 9),)), "`allocation` must follow the cuts"),
        (SPACE, TableAllocation("t", 10, 8, (Tier(2, 4),)), "`allocation` must follow the cuts"),
        (SPACE, TableAllocation("t", 11, 4, (Tier(2, 4),)), "`allocation` must follow the cuts"),
        (
            SINGLE,
            TableAllocation("t", 10, 4, (Tier(2, 4), Tier(8, 1))),
            r"`allocation` of 't' must have one width in a single-size space, got \[4, 1\]",
        ),
    ],
)
def test_params_refuses(space: SearchSpace, table: TableAllocation, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space.params(Allocation([table]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "This search space is malformed: JSONDecodeError"),
        ("[]", "This search space is malformed: TypeError"),
        ("{}", "This search space is malformed: KeyError"),
        ('{"version": 9}', "A search space must be of a version from 1 to 4, got 9"),
        (
            json.dumps({"version": 1, "specs": [{"rows": 1}], "budget": 1, "mode": "multi"}),
            "This search space is malformed: TypeError",
        ),
        (
            json.dumps({"version": 1, "specs": [], "budget": 1, "mode": "multi"}),
            "`specs` must hold at least one",
        ),
    ],
)
def test_from_json_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchSpace.from_json(text)


def test_what_is_best_needs_the_gains_of_every_parameter() -> None:
    with pytest.raises(
        ValueError, match=r"`gains` must be of every parameter, it lacks \['t\[2:10"
    ):
        SPACE.best({"t[0:2]": np.zeros(5)})


def test_spaces_differ_in_budget_and_mode() -> None:
    assert SearchSpace([TABLE]) == SPACE
    assert SPACE != SINGLE
    assert SearchSpace([TABLE], budget=20) != SPACE
    assert SPACE != "space"
