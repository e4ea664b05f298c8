from __future__ import annotations

import pytest

from optuna_nis.study.verdict import Contender, verdict

NIS = Contender("nis", "NIS", 0.7753, 0.12)
SMALL = Contender("nis", "NIS", 0.7753, 0.0156, 16_016)
UNIFORM = Contender("uniform_native", "Uniform 8", 0.7641, 0.25)
MIXED = Contender("mixed", "Mixed dimensions", 0.7702, 0.251)
FULL = Contender("full", "Full size", 0.78, 1.0)


@pytest.mark.parametrize(
    ("taken", "tied", "others", "reference", "line"),
    [
        (
            NIS, [], [MIXED, UNIFORM], None,
            "The found sizes are best: validation ROC-AUC 0.7753 against 0.7702 of mixed "
            "dimensions, with 12 % of the full tables.",
        ),
        (
            SMALL, [], [MIXED], None,
            "The found sizes are best: validation ROC-AUC 0.7753 against 0.7702 of mixed "
            "dimensions, with 16 kB, 1.56 % of the full tables.",
        ),
        (
            NIS, [UNIFORM], [MIXED], None,
            "The found sizes are as good, take them: validation ROC-AUC 0.7753 against 0.7641 of "
            "uniform 8, with 12 % of the full tables.",
        ),
        (
            UNIFORM, [MIXED, NIS], [], None,
            "Uniform 8 is as good, take it: validation ROC-AUC 0.7641 against 0.7753 of the found "
            "sizes, with 25 % of the full tables.",
        ),
        (
            MIXED, [UNIFORM], [NIS], FULL,
            "Mixed dimensions are better, take them: validation ROC-AUC 0.7702 against 0.7753 of "
            "the found sizes, with 25.1 % of the full tables; the full tables, above the budget, "
            "reach 0.7800.",
        ),
        (
            FULL, [], [NIS], None,
            "The full tables are better, take them: validation ROC-AUC 0.7800 against 0.7753 of "
            "the found sizes, with 100 % of the full tables.",
        ),
    ],
)  # fmt: skip
def test_a_verdict_in_one_line(taken, tied, others, reference, line):
    assert verdict("ROC-AUC", taken, tied, others, reference) == line


def test_found_sizes_that_anyone_would_try_are_told():
    line = verdict("ROC-AUC", NIS, [], [MIXED], alike="Uniform 5, projected")
    assert line.startswith("The found sizes, which are those of uniform 5, projected, are best: ")
