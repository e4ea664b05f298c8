"""What was read, for people."""

from __future__ import annotations

from collections.abc import Mapping

from optuna_nis.data.features import Features
from optuna_nis.data.keys import LABEL


def summary(
    features: Features, sizes: Mapping[str, int], unseen: Mapping[str, float], validated: int
) -> str:
    """Rows of every part, distinct ids of every feature.

    Args:
        features: The features.
        sizes: Number of rows of every part.
        unseen: For every feature, and the label of retrieval, the share of validation's values
            that training has never seen.
        validated: Number of validation rows that are used.
    """
    sampled = ""
    if validated < sizes["validation"]:
        sampled = f" ({validated:,} of them, drawn at random, are used)"
    lines = [
        f"{sum(sizes.values()):,} rows: {sizes['train']:,} for training, "
        f"{sizes['validation']:,} for validation{sampled}, {sizes['test']:,} for the test"
    ]
    share = features.share
    ids = {name: len(each) for name, each in features.vocabularies.items()}
    if features.targets is not None:
        ids[LABEL] = len(features.targets)
    for name, number in ids.items():
        kind = "targets" if name == LABEL else "ids in bags" if name in features.bags else "ids"
        shared = f", with {share[name]} in one table" if name in share else ""
        unknown = None if name == LABEL else features.vocabularies[name].unknown
        rest = f" and {unknown.number:,} for all others" if unknown is not None else ""
        new = f", {unseen[name]:.1%} of validation's unseen in training" if unseen[name] else ""
        lines.append(f"{name}: {number:,} {kind}{rest}{shared}{new}")
    if features.numeric:
        gaps = [name for name, each in features.numeric.items() if each.has_missing]
        missing = f"; {', '.join(gaps)} with missing ones" if gaps else ""
        lines.append(f"numbers: {', '.join(features.numeric)}{missing}")
    return "\n".join(lines)
