from __future__ import annotations

from dataclasses import replace
import json
import math
from typing import Any

from any_tables import allocations
from hypothesis import given
import pytest

from optuna_nis.space.allocation import Allocation, TableAllocation, Tier

USER = TableAllocation("user", 1000, 16, (Tier(100, 16), Tier(500, 4)))
CITY = TableAllocation("city", 50, 8, ())


@given(allocations())
def test_json_round_trip(allocation: Allocation) -> None:
    again = Allocation.from_json(allocation.to_json())
    assert again == allocation
    assert hash(again) == hash(allocation)
    assert list(again) == list(allocation)


@given(allocations())
def test_sizes_are_sums(allocation: Allocation) -> None:
    rows = projections = 0
    for table in allocation.values():
        rows += sum(v * d for v, d, _ in table.tiers)
        if table.num_shared:
            rows += table.num_shared * table.tiers[-1].embedding_dim
        if any(d < table.embedding_dim for _, d, _ in table.tiers):
            projections += max(d for _, d, _ in table.tiers) * table.embedding_dim
        assert 0 <= table.kept <= table.kept + table.num_shared <= table.num_embeddings
    assert allocation.num_embedding_parameters == rows
    assert allocation.num_projection_parameters == projections
    assert allocation.num_parameters == rows + projections
    with pytest.warns(FutureWarning, match="dtype"):
        assert allocation.nbytes("float16") == 2 * allocation.num_parameters


@given(allocations())
def test_bytes_are_those_of_rows_steps_and_projections(allocation: Allocation) -> None:
    total = 0
    for table in allocation.values():
        first = None
        for rows, dim, bits in table.tiers:
            total += rows * math.ceil(dim * bits / 8) + (2 if bits < 16 else 0)
            if first is None and dim < table.embedding_dim:
                first = bits
        if table.num_shared:
            _, dim, bits = table.tiers[-1]
            total += table.num_shared * math.ceil(dim * bits / 8)
        if first is not None:
            numbers = table.tiers[0].embedding_dim * table.embedding_dim
            total += numbers * (4 if first == 32 else 2)
    assert allocation.nbytes() == total
    if all(tier.bits == 32 for table in allocation.values() for tier in table.tiers):
        assert total == 4 * allocation.num_parameters


def test_only_tables_with_narrow_tiers_carry_a_projection() -> None:
    assert (USER.num_embedding_parameters, USER.num_projection_parameters) == (3600, 256)
    assert USER.num_parameters == 3856
    full = TableAllocation("user", 1000, 16, (Tier(100, 16),))
    assert (full.is_projected, full.num_projection_parameters) == (False, 0)


def test_text() -> None:
    allocation = Allocation([USER, CITY])
    assert str(allocation) == "user: 100x16 + 500x4 (of 1000x16)\ncity: removed (of 50x8)"
    assert repr(allocation).startswith("Allocation([TableAllocation(name='user'")


def test_a_file_without_precisions_is_of_float32() -> None:
    text = json.dumps({"version": 1, "tables": [json.loads(_table())["tables"][0]]})
    assert Allocation.from_json(text)["a"].tiers == (Tier(2, 2, 32),)
    table = TableAllocation("a", 9, 4, (Tier(2, 4, 8), Tier(3, 4, 2)))
    assert str(table) == "a: 2x4x8bit + 3x4x2bit (of 9x4)"
    assert Allocation.from_json(Allocation([table]).to_json())["a"] == table


def test_shared_rows() -> None:
    shared = TableAllocation("user", 1000, 16, (Tier(100, 16, 8), Tier(500, 4, 2)), num_shared=7)
    assert str(shared) == "user: 100x16x8bit + 500x4x2bit + 7 shared (of 1000x16)"
    assert shared.stored_tiers == (Tier(100, 16, 8), Tier(507, 4, 2))
    assert shared.kept == 600
    # No step and no projection of their own.
    without = replace(shared, num_shared=0)
    assert shared.nbytes() - without.nbytes() == 7
    assert shared.num_parameters - without.num_parameters == 28
    assert without.stored_tiers is without.tiers


def test_only_shared_rows_need_the_new_file() -> None:
    shared = replace(USER, num_shared=2)
    for tables, version in (([USER, CITY], 2), ([shared, CITY], 3)):
        data = json.loads(Allocation(tables).to_json())
        assert data["version"] == version
        assert [("num_shared" in table) for table in data["tables"]] == 2 * [version == 3]
    assert Allocation.from_json(Allocation([shared, CITY]).to_json())["user"].num_shared == 2


def test_mapping() -> None:
    allocation = Allocation([USER, CITY])
    assert len(allocation) == 2
    assert allocation["city"] is CITY
    assert "day" not in allocation
    assert allocation != Allocation([USER])
    assert allocation != {"user": USER, "city": CITY}
    with pytest.raises(KeyError, match="No feature 'day' in this allocation; it has user, city"):
        allocation["day"]


def test_plain_tuples_become_tiers() -> None:
    table = TableAllocation("user", 1000, 16, ((100, 16), (500, 4)))  # type: ignore[arg-type]
    assert table == USER
    assert table.tiers[0].embedding_dim == 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_embeddings": 0}, "`num_embeddings` of 'user' must be a positive integer, got 0"),
        ({"embedding_dim": 2.0}, "`embedding_dim` of 'user' must be a positive integer, got 2.0"),
        ({"embedding_dim": True}, "`embedding_dim` of 'user' must be a positive integer"),
        ({"tiers": ((0, 4),)}, r"`tiers` of 'user' must hold positive integers, got \(0, 4\)"),
        ({"tiers": ((3, 4.0),)}, "`tiers` of 'user' must hold positive integers"),
        ({"tiers": ((3, 4, 3),)}, r"`tiers` of 'user' must have .* bits out of .*, got 3"),
        ({"tiers": ((3, 4, 2), (3, 2, 8))}, r"`tiers` of 'user' must not rise in prec.*\[2, 8\]"),
        ({"tiers": ((3, 4, 8), (3, 4, 8))}, r"must fall in width or precision, got .*\[8, 8\]"),
        (
            {"tiers": ((3, 4), (3, 4))},
            r"`tiers` of 'user' must fall in width, got .*\[4, 4\]",
        ),
        ({"tiers": ((3, 17),)}, "`tiers` of 'user' must be at most 16 wide, got 17"),
        (
            {"tiers": ((600, 8), (401, 4))},
            "`tiers` of 'user' must hold at most 1000 ids",
        ),
        (
            {"tiers": ((600, 8),), "num_shared": 401},
            "`num_shared` of 'user' must be an integer from 0 to 400, .*, got 401",
        ),
        ({"num_shared": 1}, "`num_shared` of 'user' must be an integer from 0 to 0, .*, got 1"),
        ({"tiers": ((6, 8),), "num_shared": True}, "`num_shared` of 'user' .*, got True"),
        ({"tiers": ((6, 8),), "num_shared": -1}, "`num_shared` of 'user' .*, got -1"),
    ],
)
def test_a_table_refuses(fields: dict[str, Any], message: str) -> None:
    defaults = {"name": "user", "num_embeddings": 1000, "embedding_dim": 16, "tiers": ()}
    with pytest.raises(ValueError, match=message):
        TableAllocation(**{**defaults, **fields})


def test_an_allocation_refuses_nothing_and_doubles() -> None:
    with pytest.raises(ValueError, match="`tables` must hold at least one feature"):
        Allocation([])
    with pytest.raises(ValueError, match="`tables` names the feature 'city' twice"):
        Allocation([CITY, USER, CITY])


def _table(**fields: Any) -> str:
    table = {"name": "a", "num_embeddings": 2, "embedding_dim": 2, "tiers": [[2, 2]], **fields}
    return json.dumps({"version": 1, "tables": [table]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "An allocation must be JSON"),
        ("[]", "An allocation must be of a version from 1 to 3, got None"),
        ('{"version": 4, "tables": []}', "An allocation must be of a version from 1 to 3, got 4"),
        ('{"version": 1}', "This allocation is malformed: KeyError"),
        ('{"version": 1, "tables": 5}', "This allocation is malformed: TypeError"),
        ('{"version": 1, "tables": []}', "`tables` must hold at least one feature"),
        (_table(tiers=[[2]]), "This allocation is malformed: TypeError"),
        (_table(tiers=None), "This allocation is malformed: TypeError"),
        (_table(num_embeddings="2"), "`num_embeddings` of 'a' must be a positive integer"),
        (_table(tiers=[[2, 3]]), "`tiers` of 'a' must be at most 2 wide"),
    ],
)
def test_from_json_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Allocation.from_json(text)


@given(allocation=allocations())
def test_what_is_widened_has_the_same_ids_and_costs_no_more(allocation: Allocation) -> None:
    wide = allocation.widened()
    assert wide.widened() == wide
    for name, table in allocation.items():
        assert wide[name].kept == table.kept
        assert wide[name].num_shared == table.num_shared
        assert wide[name].nbytes() == min(table.nbytes(), table.unprojected().nbytes())
        assert [bits for tier in wide[name].tiers for bits in [tier.bits] * tier[0]] == [
            bits for tier in table.tiers for bits in [tier.bits] * tier[0]
        ]
        assert not table.unprojected().is_projected


@pytest.mark.parametrize(
    ("tiers", "expected"),
    [
        ((Tier(2, 20),), "2x32"),
        ((Tier(1, 28), Tier(1, 4)), "2x32"),
        ((Tier(2, 8, 8),), "2x32x8bit"),
        ((Tier(1, 28, 8), Tier(1, 8, 2)), "1x32x8bit + 1x32x2bit"),
        ((), "removed"),
    ],
)
def test_few_ids_are_as_wide_as_may_be(tiers: tuple[Tier, ...], expected: str) -> None:
    table = TableAllocation("service", 2, 32, tiers)
    assert str(Allocation([table]).widened()["service"]) == f"service: {expected} (of 2x32)"
