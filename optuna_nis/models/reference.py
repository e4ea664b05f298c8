"""The reference model of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import pandas as pd

from optuna_nis.data.columns import converted
from optuna_nis.data.features import Features
from optuna_nis.data.keys import check_task
from optuna_nis.data.vocabulary import Vocabulary
from optuna_nis.models.base import EmbeddingModule, check_hidden
from optuna_nis.models.cross import CrossRankingModule
from optuna_nis.models.items import ITEMS
from optuna_nis.models.ranking import RankingModule
from optuna_nis.models.retrieval import HIDDEN, RetrievalModule
from optuna_nis.models.sequence import SequenceModule
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec, Oov, replace_oov

_EMBEDDING_DIM = {"ranking": 32, "retrieval": 64}
# Retrieval takes longer to learn.
_EPOCHS = {"ranking": 4, "retrieval": 6}
# Of each task the default first.
_MODULES: dict[str, dict[str, type[EmbeddingModule]]] = {
    "ranking": {"deepfm": RankingModule, "dcn": CrossRankingModule},
    "retrieval": {"mlp": RetrievalModule, "sasrec": SequenceModule},
}
_MAX_SLOWER = 4.0


class ReferenceModel:
    """Makes supernets from search spaces and models from allocations: :func:`reference_model`.

    Args:
        features: Features of the data set.
        model: As in :func:`reference_model`.
        search_items: As in :func:`reference_model`.
        options: As in :func:`reference_model`.
    """

    def __init__(
        self,
        features: Features,
        *,
        model: str | None,
        search_items: bool | None,
        options: dict[str, Any],
    ) -> None:
        check_model(features.task, model)
        known = _MODULES[features.task]
        self._module = known[model or next(iter(known))]
        if unknown := options.keys() - signature(self._module).parameters.keys():
            raise TypeError(
                f"`{min(unknown)}` is no argument of `{self._module.__name__}`, which `model` is."
            )
        if search_items is not None and features.task != "retrieval":
            raise ValueError(
                f'`search_items` is for the task "retrieval", this is {features.task!r}.'
            )
        self._is_sequence = self._module is SequenceModule
        if self._is_sequence and search_items is False:
            raise ValueError(
                f"`search_items` must be True for {model!r}, whose items are one table as inputs "
                "and as targets, got False."
            )
        self._features = features
        # What models are told to be made of, to be kept beside them.
        self._kept = options if model is None else {"model": model, **options}
        self._search_items = search_items
        # An input of the same name has it.
        self._items: str = ITEMS
        while self._items in features.names:
            self._items = f"output {self._items}"
        own: dict[str, Any] = {"bags": features.bags}
        if num_numeric := features.num_numeric:
            own["num_numeric"] = num_numeric
        share = options.get("share") or features.share
        if share:
            _check_shared(share, features)
            own["share"] = share
        if features.task == "retrieval":
            own |= {"num_classes": features.num_classes, "items": self._items}
        if self._is_sequence:
            own |= sequence_of(features, options.get("sequence"))
        self._options = own | options

    def __call__(self, tables: SearchSpace | Allocation) -> EmbeddingModule:
        """Make a supernet or a model of given sizes."""
        model = self._module(tables, **self._options)
        model.options = self._kept
        return model

    @property
    def epochs(self) -> int:
        """Epochs that a supernet takes: 4 for ranking, 6 for retrieval, which takes longer.

        More in proportion, up to four times as many, if ``learning_rate`` is lower than the
        model's default.
        """
        default: float = signature(self._module).parameters["learning_rate"].default
        rate: float = self._options.get("learning_rate", default)
        slower = default / min(max(rate, default / _MAX_SLOWER), default)
        return round(_EPOCHS[self._features.task] * slower)

    def specs(
        self,
        embedding_dim: int | None = None,
        precisions: Sequence[int] = (32,),
        oov: Oov = "zero",
    ) -> list[EmbeddingSpec]:
        """The largest table of every feature, and of the items if they are searched.

        Args:
            embedding_dim: Largest width considered of a feature, by default 32 for ranking and 64
                for retrieval; the items' is that of the last layer, or of ``"sasrec"`` the same.
            precisions: Bits that a number may have, as in :class:`~optuna_nis.EmbeddingSpec`.
            oov: What ids without a row give, as in :class:`~optuna_nis.EmbeddingSpec`.

        Raises:
            ValueError: If a precision or ``oov`` is unknown.

        Example:
            >>> [spec.name for spec in reference_model(data.features).specs(8)]
            ['user', 'item']
        """
        dim = _EMBEDDING_DIM[self._features.task] if embedding_dim is None else embedding_dim
        shared = self._options.get("share") or {}
        specs = self._features.embedding_specs(dim, precisions)
        specs = [spec for spec in specs if spec.name not in shared]
        targets = self._features.targets
        if targets is not None and self._search_items is not False:
            if self._is_sequence:
                specs = [spec for spec in specs if spec.name != self._options["sequence"]]
            else:
                hidden = self._options.get("hidden", HIDDEN)
                check_hidden(hidden)
                dim = hidden[-1]
            items, counts = self._items, targets.counts
            specs.append(EmbeddingSpec.from_counts(items, counts, dim, precisions=precisions))
        return [replace_oov(spec, oov) for spec in specs]


def reference_model(
    features: Features,
    *,
    model: str | None = None,
    search_items: bool | None = None,
    **options: Any,
) -> ReferenceModel:
    """The reference model of a data set's task, of any sizes.

    Args:
        features: Features of the data set.
        model: For ranking ``"deepfm"``, the default, which is :class:`RankingModule`, or
            ``"dcn"``, :class:`CrossRankingModule`. For retrieval ``"mlp"``, the default,
            :class:`RetrievalModule`, or ``"sasrec"``, :class:`SequenceModule`: that needs a bag of
            items in their order, whose latest one is at the end that ``bag_keep`` keeps.
        search_items: For retrieval, whether the table of the items, into which the softmax looks,
            is searched with those of the features; it is by default. Its name is "items", or
            "output items" if a feature has that name already.
        **options: Arguments of the model's class.

    Returns:
        A function that makes a supernet from a search space and a model from an allocation. Its
        ``specs(embedding_dim, precisions, oov)`` are those of the search space.

    Raises:
        ValueError: If there is no such model for the task, ``search_items`` is given and the task
            is not retrieval, or the model needs a sequence and there is none, or more than one
            and ``sequence`` does not say which.

    Example:
        >>> build = reference_model(data.features)
        >>> space = SearchSpace(build.specs(8))
        >>> type(build(space)).__name__, type(build(space.full()).embeddings.layers[0]).__name__
        ('RankingModule', 'MultiSizeEmbedding')
        >>> type(reference_model(data.features, model="dcn")(space)).__name__
        'CrossRankingModule'
    """
    return ReferenceModel(features, model=model, search_items=search_items, options=options)


def check_model(task: str, model: str | None) -> None:
    """Check the name of a reference model, None for the default.

    Raises:
        ValueError: If there is none of that name for the task, or no such task.
    """
    check_task(task)
    known = _MODULES[task]
    if model is not None and model not in known:
        raise ValueError(
            f"`model` must be {' or '.join(map(repr, known))} for the task {task!r}, got "
            f"{model!r}."
        )


def _check_shared(share: Mapping[str, str], features: Features) -> None:
    """Check that features that share a table have the same ids.

    Raises:
        ValueError: If they have not, or one is unknown.
    """
    known = features.vocabularies
    for pair in share.items():
        if unknown := [name for name in pair if name not in known]:
            raise ValueError(f"`share` must be of the features {list(known)}, got {unknown[0]!r}.")
        name, owner = pair
        if known[name].values != known[owner].values:
            raise ValueError(
                f"`share` must be of features with the same vocabulary, {name!r} has "
                f"{len(known[name]):,} values and {owner!r} {len(known[owner]):,}, not the same."
            )


def sequence_of(features: Features, name: str | None) -> dict[str, Any]:
    """Which feature is the sequence, which item each of its ids is, and which end is the latest.

    Args:
        features: The features, whose targets are the items.
        name: The feature, or None for the only bag that holds items.

    Returns:
        Arguments of a :class:`~optuna_nis.models.SequenceModule`: ``sequence``, ``classes``,
        ``latest_first`` and ``max_length``.

    Raises:
        ValueError: If there is no such bag.
    """
    assert features.targets is not None
    found = {
        bag: _classes(features.vocabularies[bag], features.targets)
        for bag in features.names
        if bag in features.bags
    }
    holding = [bag for bag, classes in found.items() if min(classes) < len(features.targets)]
    if (name is None and len(holding) != 1) or (name is not None and name not in holding):
        raise ValueError(
            "`sequence` must name a bag that holds targets, the items of a user in their order; "
            f"there are {holding}, got {name!r}. Columns with several items are named by `bags`."
        )
    name = name or holding[0]
    return {
        "sequence": name,
        "classes": found[name],
        "latest_first": features.bag_keep == "first",
        "max_length": features.max_bag_length,
    }


def _classes(values: Vocabulary, targets: Vocabulary) -> list[int]:
    """The target that the value of each id is, their number if it is none."""
    every = values.decode(range(values.num_embeddings))
    column = converted(pd.Series(every, dtype=object), targets)
    found: list[int] = targets.encode(column).tolist()
    return found
