"""The reference model of a data set."""

from __future__ import annotations

from inspect import signature
from typing import Any

from optuna_nis.data.features import Features
from optuna_nis.models.base import EmbeddingModule, check_hidden
from optuna_nis.models.ranking import RankingModule
from optuna_nis.models.retrieval import HIDDEN, ITEMS, RetrievalModule
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec

_EMBEDDING_DIM = {"ranking": 32, "retrieval": 64}
# Retrieval takes longer to learn.
_EPOCHS = {"ranking": 4, "retrieval": 6}
_MODULES: dict[str, type[RankingModule] | type[RetrievalModule]] = {
    "ranking": RankingModule,
    "retrieval": RetrievalModule,
}
_MAX_SLOWER = 4.0


class ReferenceModel:
    """Makes supernets from search spaces and models from allocations: :func:`reference_model`.

    Args:
        features: Features of the data set.
        search_items: As in :func:`reference_model`.
        options: As in :func:`reference_model`.
    """

    def __init__(
        self, features: Features, *, search_items: bool | None, options: dict[str, Any]
    ) -> None:
        if search_items is not None and features.task != "retrieval":
            raise ValueError(
                f'`search_items` is for the task "retrieval", this is {features.task!r}.'
            )
        self._features = features
        self._options = options
        self._search_items = search_items
        # An input of the same name has it.
        self._items: str = ITEMS
        while self._items in features.names:
            self._items = f"output {self._items}"

    def __call__(self, tables: SearchSpace | Allocation) -> EmbeddingModule:
        """Make a supernet or a model of given sizes."""
        features, options = self._features, self._options
        model: EmbeddingModule
        if features.task == "ranking":
            model = RankingModule(tables, bags=features.bags, **options)
        else:
            model = RetrievalModule(
                tables,
                num_classes=features.num_classes,
                bags=features.bags,
                items=self._items,
                **options,
            )
        model.options = options
        return model

    @property
    def epochs(self) -> int:
        """Epochs that a supernet takes: 4 for ranking, 6 for retrieval, which takes longer.

        More in proportion, up to four times as many, if ``learning_rate`` is lower than the
        model's default.
        """
        task = self._features.task
        default: float = signature(_MODULES[task]).parameters["learning_rate"].default
        rate: float = self._options.get("learning_rate", default)
        return round(_EPOCHS[task] * default / min(max(rate, default / _MAX_SLOWER), default))

    def specs(self, embedding_dim: int | None = None) -> list[EmbeddingSpec]:
        """The largest table of every feature, and of the items if they are searched.

        Args:
            embedding_dim: Largest width considered of a feature, by default 32 for ranking and 64
                for retrieval; the items' is that of the last layer.

        Example:
            >>> [spec.name for spec in reference_model(data.features).specs(8)]
            ['user', 'item']
        """
        dim = embedding_dim or _EMBEDDING_DIM[self._features.task]
        specs = self._features.embedding_specs(dim)
        targets = self._features.targets
        if targets is not None and self._search_items is not False:
            hidden = self._options.get("hidden", HIDDEN)
            check_hidden(hidden)
            specs.append(EmbeddingSpec.from_counts(self._items, targets.counts, hidden[-1]))
        return specs


def reference_model(
    features: Features, *, search_items: bool | None = None, **options: Any
) -> ReferenceModel:
    """The reference model of a data set's task, of any sizes.

    Args:
        features: Features of the data set.
        search_items: For retrieval, whether the table of the items, into which the softmax looks,
            is searched with those of the features; it is by default. Its name is "items", or
            "output items" if a feature has that name already.
        **options: Arguments of :class:`RankingModule` or :class:`RetrievalModule`.

    Returns:
        A function that makes a supernet from a search space and a model from an allocation. Its
        ``specs(embedding_dim)`` are those of the search space.

    Raises:
        ValueError: If ``search_items`` is given and the task is not retrieval.

    Example:
        >>> build = reference_model(data.features)
        >>> space = SearchSpace(build.specs(8))
        >>> type(build(space)).__name__, type(build(space.full()).embeddings.layers[0]).__name__
        ('RankingModule', 'MultiSizeEmbedding')
    """
    return ReferenceModel(features, search_items=search_items, options=options)
