"""The model of a search whose embedding layers are swapped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
import inspect
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import LightningModule
from torch.utils._pytree import tree_leaves

from optuna_nis.data.windows import whole
from optuna_nis.lightning._package import is_a, lightning_of
from optuna_nis.lightning._training_key import shown_model
from optuna_nis.lightning.searching import Subject
from optuna_nis.lightning.training import Data, training_loader
from optuna_nis.nn import apply_allocation, count_ids, make_searchable, output_features
from optuna_nis.nn.swap import Counts
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.spec import Oov

# Arguments that are those of the search itself.
_NOT_OF_SWAP = ("model", "budget", "counts", "mode", "precisions")
_NOT_OF_COUNT = ("dataloader", "model", "datamodule")
# Of data without an end: an epoch may be short, and how rare ids rank takes many batches.
_EPOCHS_COUNTED = 4


def swapped_subject(
    build_model: Callable[[], LightningModule],
    data: Data,
    counts: Counts | None,
    count_options: Mapping[str, Any] | None,
    swap_options: Mapping[str, Any] | None,
    *,
    oov: Oov,
    trainer_options: Mapping[str, Any] | None = None,
    **of_space: Any,
) -> Subject:
    """The space of the layers of a model, and how their swapped models are made.

    Args:
        build_model: Makes the model.
        data: Training data, where ids are counted: all of them, but at most four epochs of data
            without a length, where the trainers have a number as ``limit_train_batches`` and
            ``count_options`` no ``max_batches``.
        counts: As in :func:`search_sizes`.
        count_options: As in :func:`search_sizes`.
        swap_options: As in :func:`search_sizes`.
        oov: As in :func:`search_sizes`.
        trainer_options: As in :func:`search_sizes`.
        **of_space: Budget, mode and precisions.

    Raises:
        ValueError: As in :func:`search_sizes`.
    """
    options = {
        **_options("swap_options", swap_options, make_searchable, _NOT_OF_SWAP),
        **of_space,
    }
    if options.setdefault("oov", oov) != oov != "zero":
        raise ValueError(
            f"Either `oov` or `oov` of `swap_options` may be given, got {oov!r} and "
            f"{options['oov']!r}."
        )
    if counts is None:
        of_count = _options("count_options", count_options, count_ids, _NOT_OF_COUNT)
        if "outputs" in options and "ids" not in of_count:
            _check_outputs(build_model(), options)
        counts = _counted(build_model(), data, of_count, options, trainer_options or {})
        if "outputs" in options:
            _check_outputs(build_model(), {**options, "counts": counts})
    elif count_options is not None:
        raise ValueError(
            f"Either `counts` or `count_options` may be given, got {count_options!r} too."
        )
    return _swapped(build_model, counts, options)


def _options(
    name: str,
    given: Mapping[str, Any] | None,
    function: Callable[..., Any],
    own: Collection[str],
) -> dict[str, Any]:
    """Options that are passed on to a function, by name."""
    known = [each for each in inspect.signature(function).parameters if each not in own]
    for option in given or {}:
        if option not in known:
            raise ValueError(f"`{name}` must be some of {known}, got {option!r}.")
    return dict(given or {})


def _check_outputs(model: LightningModule, options: Mapping[str, Any]) -> None:
    """Check that it is known how often each output is the target."""
    space = make_searchable(model, **options)
    outputs = output_features(model)
    unknown = [s.name for s in space.specs if s.name in outputs and s.mean_counts is None]
    if unknown:
        raise ValueError(
            f"`swap_options` has the outputs {unknown}, but how often each is the target cannot "
            "be seen by running the model. Say where the ids of every layer are in a batch, "
            f'`count_options={{"ids": lambda batch: {{..., {unknown[0]!r}: batch[1]}}}}`, or give '
            "`counts` of every layer."
        )


def _counted(
    model: LightningModule,
    data: Data,
    options: Mapping[str, Any],
    swap: Mapping[str, Any],
    trainer_options: Mapping[str, Any],
) -> Counts:
    """How often each id occurs in the training data, or in the first batches of endless ones."""
    lightning_of(model)  # It must be a LightningModule.
    loader = training_loader(data)
    options = {
        "exclude": swap.get("exclude", ()),
        "datamodule": None if isinstance(data, Sequence) else data,
        "max_batches": None if _has_length(loader) else _most_batches(trainer_options),
        **options,
    }
    return count_ids(whole(loader), model, **options)


def _has_length(loader: Any) -> bool:
    """Whether it is known how many batches a dataloader has, or each of several."""
    loaders = loader.flattened if is_a(loader, "CombinedLoader") else tree_leaves(loader)
    return all(sized_len(each) is not None for each in loaders)


def _most_batches(trainer_options: Mapping[str, Any]) -> int | None:
    """Batches of a few epochs of a trainer, None if it is not told how many an epoch has."""
    limit = trainer_options.get("limit_train_batches")
    if isinstance(limit, float):
        # Above one it is a number of batches too, else a share.
        limit = int(limit) if limit > 1 else None
    return _EPOCHS_COUNTED * limit if isinstance(limit, int) and limit > 0 else None


def _swapped(
    build_model: Callable[[], LightningModule], counts: Counts, options: Mapping[str, Any]
) -> Subject:
    def supernet() -> LightningModule:
        model = build_model()
        make_searchable(model, counts=counts, **options)
        return model

    def sized(allocation: Allocation) -> LightningModule:
        return apply_allocation(build_model(), allocation, counts=counts)

    model = build_model()
    key = shown_model(model)
    space = make_searchable(model, counts=counts, **options)
    return Subject(space, supernet, sized, key)
