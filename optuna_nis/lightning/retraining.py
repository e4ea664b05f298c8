"""The best sizes of a study, trained from scratch beside others, and which of them to take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
import json
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback
from optuna import Study

from optuna_nis._checks import check_folder, check_integer
from optuna_nis._logging import get_logger
from optuna_nis.data.of_study import data_of, read_data
from optuna_nis.data.splits import MIN_ROWS
from optuna_nis.lightning._memory import looked_at
from optuna_nis.lightning._training_key import options_key
from optuna_nis.lightning.comparison import check_options, compare
from optuna_nis.lightning.parts import parts_of_data
from optuna_nis.lightning.processes import built, group_of
from optuna_nis.lightning.rewards import Monitored
from optuna_nis.lightning.trainings import Comparison
from optuna_nis.models import EmbeddingModule, reference_model
from optuna_nis.study.results import (
    MODEL_OPTIONS_ATTR,
    Results,
    cautions_of,
    finalist_allocations,
    parts_of,
    save_parts,
    space_of,
    unfinished,
)

_logger = get_logger(__name__)


def retrain(
    study: Study,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    output: str | None = None,
    max_epochs: int | None = None,
    patience: int = 2,
    checkpoint_dir: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    progress: Callable[[str], None] = _logger.info,
    cache_dir: str | Path | None = None,
    max_rows: int | Literal["all"] | None = None,
    trainer_options: Mapping[str, Any] | None = None,
    shard_tables_above: int | None = None,
    **model_options: Any,
) -> Results:
    """Train the best allocations of a study from scratch, and what else one would try.

    The finalists of the search, at most three, are trained to their end with the first seed, and
    those that validation cannot tell from the best with the others too. The best, or the smallest
    of those that tie with it then, goes on as the found sizes:
    :func:`~optuna_nis.study.results.best_allocation` tells which. What else one would try is
    uniform sizes and mixed dimensions by popularity at the same budget, and the full tables. Each
    training goes on until validation stops improving and returns to its best
    weights. Validation decides which sizes to take, and only then they are tested.

    Ids are those that were searched, whatever has come into the table since. The study keeps what
    each finished training came to: called again, with the same data and options, only those are
    run that are not finished, with the same results.

    Args:
        study: A searched study; the results are written into it.
        seeds: Seeds of the weights and of the order of the training rows.
        output: Folder for the model of the sizes that the verdict takes, see :class:`Predictor`:
            of the seed with the best validation. Until the verdict it has the first model of
            the found sizes.
        max_epochs: As in :func:`train`.
        patience: As in :func:`train`.
        checkpoint_dir: Where trained weights wait for their test, so that a retraining that was
            interrupted has them. By default those that wait are trained again.
        callbacks: Further callbacks of the trainers, such as a progress bar. Every training has
            copies of its own. With other ones than before all trainings are run again, but for
            those that only show something; so they are with any that cannot be pickled.
        progress: Called with a line of text before and after each training; by default these
            lines are logged as those of Optuna are.
        cache_dir: As in :func:`search`.
        max_rows: Train on about so many rows, or on ``"all"``, after a search with another
            ``max_rows``, whose ids it keeps; by default as many as that. Where a search had
            ``search_rows``, that is on all rows and with all ids.
        trainer_options: As in :func:`search`.
        shard_tables_above: As in :func:`search`.
        **model_options: Arguments of the reference model in place of those of the search.

    Returns:
        The results, best allocation first, a list that prints as a line each; its ``verdict``
        says which sizes to take and why, its ``best`` is their result.

    Raises:
        ValueError: If the study has not been searched, the seeds are not distinct integers from 0
            or there is none, a number is out of range, ``output`` cannot be written, or the
            processes of ``trainer_options`` are not there.

    Example:
        >>> import optuna
        >>> from optuna_nis.lightning import DataConfig, search
        >>> study = optuna.create_study(direction="maximize")
        >>> config = DataConfig(dataset="flights", max_rows=2_000)
        >>> _ = search(study, config, budget="25%", epochs=1, num_updates=2)
        >>> results = retrain(study, seeds=[0], max_epochs=1)
        >>> [result.name for result in results][:3]
        ['nis', 'uniform', 'full']
        >>> results.best in results
        True
    """
    check_options(seeds, max_epochs, patience, output)
    if checkpoint_dir is not None:
        check_folder("checkpoint_dir", checkpoint_dir)
    group = group_of(trainer_options or {})
    study, progress = group.study(study), group.only_first(progress)
    data = data_of(study)
    if max_rows == "all":
        data = replace(data, max_rows=None)
    elif max_rows is not None:
        if isinstance(max_rows, str):
            raise ValueError(f'`max_rows` must be "all" or a number of rows, got {max_rows!r}.')
        check_integer("max_rows", max_rows, MIN_ROWS)
        data = replace(data, max_rows=max_rows)
    with group.first_before_others():
        datamodule = read_data(
            study, data, withhold_test=False, progress=progress, cache_dir=cache_dir
        )
    options = study.user_attrs.get(MODEL_OPTIONS_ATTR, {}) | model_options
    reference = reference_model(datamodule.features, **options)
    build = built(reference, space_of(study), shard_tables_above, group)
    finalists = finalist_allocations(study)
    for line in unfinished(study) if group.is_first else ():
        _logger.warning(line)
    model = looked_at(build, next(iter(finalists.values())))
    assert isinstance(model, EmbeddingModule)
    # Whatever else changes what a training comes to.
    key: list[Any] | None = options_key(trainer_options or {}, callbacks)
    if key is not None:
        options = json.loads(json.dumps(options, default=float))
        key = [datamodule.fingerprint(), datamodule.batch_size, options, *key]
    comparison = Comparison(
        build,
        datamodule,
        Monitored(model.monitor),
        "test_metric",
        max_epochs=max_epochs,
        patience=patience,
        callbacks=callbacks,
        progress=progress,
        output=output,
        checkpoint_dir=checkpoint_dir,
        key=key,
        trainer_options=trainer_options,
    )
    results = compare(study, comparison, space_of(study), finalists, seeds)
    parts = parts_of_data(datamodule, model, ["validation", "test"])
    known = parts_of(study)
    if (searched := known.get("search", known.get("train"))) not in (None, parts["train"]):
        parts["search"] = searched
    save_parts(study, parts)
    if group.is_first:
        for line in cautions_of(study):
            _logger.warning(line)
    return results
