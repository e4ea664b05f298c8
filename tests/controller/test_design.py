from __future__ import annotations

import numpy as np
import pytest

from optuna_nis.controller.design import Design, sizes_of
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec

SPEC = EmbeddingSpec("user", 100, 6, row_blocks=[20, 80], precisions=(32, 8, 2))


def test_sizes_of_row_blocks_are_told_from_their_names() -> None:
    space = SearchSpace([SPEC])
    pairs = [(width, bits) for width in (1, 2, 3, 4, 5, 6) for bits in (2, 8, 32)]
    for options in space.choices.values():
        assert sizes_of(options) == [(0, 0), *pairs]


def test_sizes_of_single_size_tables_are_told_from_their_names() -> None:
    space = SearchSpace([SPEC], mode="single")
    (options,) = space.choices.values()
    sizes = sizes_of(options)
    assert sizes is not None
    assert sizes[0] == (0, 0, 0)
    for option, (rows, width, bits) in list(zip(options, sizes))[1:]:
        (tier,) = space.allocation({"user": option})["user"].tiers
        assert tier == (rows, width, bits)


@pytest.mark.parametrize("mode", ["multi", "single"])
def test_float32_has_no_names_of_sizes(mode: str) -> None:
    space = SearchSpace([EmbeddingSpec("user", 100, 6)], mode=mode)
    for options in space.choices.values():
        assert sizes_of(options) is None


@pytest.mark.parametrize(
    "options",
    [
        ("8x4bit", "auto"),
        ("8x4bit", 0),
        ("8x4bit", "8x3bit"),
        ("8x4bit", "08x4bit"),
        ("8x4bit", "8x4bits"),
        ("8x4bit", "8 x4bit"),
        ("8x4bit", "8x1\u0666bit"),
        ("8x4bit", "100x8x4bit"),
        ("8x4bit", "0x0"),
        ("8x4bit", "0x4bit"),
        ("8x4bit", "9" * 5000 + "x4bit"),
        ("606x8", "606x4"),
        ("0",),
        (None, True),
    ],
)
def test_other_words_are_no_sizes(options: tuple[object, ...]) -> None:
    assert sizes_of(options) is None  # type: ignore[arg-type]


def test_options_that_are_no_sizes_have_weights_of_their_own() -> None:
    choices = [(2, 4), ("8x4bit", "auto"), ("a", "b", "c")]
    design = Design(choices)
    assert not design.is_additive
    np.testing.assert_array_equal(design.rows(np.array([[1, 0, 2]])), [[0, 1, 1, 0, 0, 0, 1, 0]])
    weights = np.arange(8.0)
    assert design.values(weights) is weights


def test_sizes_add_up_their_width_and_their_bits() -> None:
    # Weights: 2 of numbers, 3 of widths, 3 of bits, an intercept.
    design = Design([(2, 4), ("0", "8x4bit", "8x16bit", "1x4bit")])
    assert design.is_additive
    rows = design.rows(np.array([[0, 0], [1, 2], [1, 3]]))
    np.testing.assert_array_equal(
        rows,
        [[1, 0, 1, 0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 1, 0, 0, 1, 0], [0, 1, 0, 1, 0, 0, 1, 0, 0]],
    )
    weights = np.array([1.0, 2.0, 10.0, 20.0, 30.0, 100.0, 200.0, 300.0, 7.0])
    np.testing.assert_array_equal(design.values(weights), [1, 2, 110, 230, 330, 220, 7])


def test_neighbours_are_alike_and_every_option_as_uncertain_as_any_other() -> None:
    for options in (("0", "1x2bit", "1x4bit", "2x2bit"), ("0x0", "9x1x2bit", "9x1x4bit")):
        design = Design([options])
        rows = design.rows(np.arange(len(options))[:, None])[:, :-1]
        prior = np.zeros((rows.shape[1],) * 2)
        start = 0
        for block in design.priors:
            own = slice(start, start := start + len(block))
            prior[own, own] = block
        alike = rows @ prior @ rows.T
        np.testing.assert_allclose(alike.diagonal(), 1.0)
        assert (np.diff(alike[0, :3]) < 0).all()
