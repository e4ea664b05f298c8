"""The best sizes of a study, trained from scratch beside baselines and tested once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import json
from typing import Any

from lightning.pytorch import Callback
from optuna import Study

from optuna_nis._logging import get_logger
from optuna_nis.data.config import data_of, read_data
from optuna_nis.lightning.comparison import check_options, compare
from optuna_nis.lightning.parts import parts_of_data
from optuna_nis.lightning.rewards import Monitored
from optuna_nis.lightning.trainings import Comparison
from optuna_nis.models import reference_model
from optuna_nis.study.results import (
    MODEL_OPTIONS_ATTR,
    RetrainResult,
    best_allocation,
    cautions_of,
    save_parts,
    space_of,
)

_logger = get_logger(__name__)


def retrain(
    study: Study,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    output: str | None = None,
    max_epochs: int = 30,
    patience: int = 3,
    callbacks: Sequence[Callback] = (),
    progress: Callable[[str], None] = lambda text: None,
    **model_options: Any,
) -> list[RetrainResult]:
    """Train the best allocation of a study from scratch, and baselines, and test them.

    The baselines are the full tables and uniform sizes at the same budget; of the latter the rows
    are taken as they are or projected to the full width, whichever validates better. Each
    training goes on until validation stops improving and returns to its best epoch.

    Ids are those that were searched, whatever has come into the table since. The study keeps what
    each finished training came to: called again, with the same data and options, only those are
    run that are not finished, with the same results.

    Args:
        study: A searched study; the results are written into it.
        seeds: Seeds of the weights and of the order of the training rows.
        output: Folder for the model of the best allocation with the best validation, see
            :class:`Predictor`. It holds one as soon as the first is trained.
        max_epochs: Most epochs of a training.
        patience: Epochs without improvement after which a training stops.
        callbacks: Further callbacks of the trainers, such as a progress bar.
        progress: Called with a line of text before and after each training.
        **model_options: Arguments of the reference model in place of those of the search.

    Returns:
        The results, best allocation first.

    Raises:
        ValueError: If the study has not been searched, the seeds are not distinct integers from 0
            or there is none, or ``output`` cannot be written.

    Example:
        >>> import optuna
        >>> from optuna_nis.lightning import DataConfig, search
        >>> study = optuna.create_study(direction="maximize")
        >>> config = DataConfig(dataset="flights", max_rows=2_000)
        >>> _ = search(study, config, budget="25%", epochs=1, num_updates=2)
        >>> [result.name for result in retrain(study, seeds=[0], max_epochs=1)]
        ['nis', 'uniform', 'full']
    """
    check_options(seeds, max_epochs, patience, output)
    data = data_of(study)
    datamodule = read_data(study, data, withhold_test=False, progress=progress)
    options = study.user_attrs.get(MODEL_OPTIONS_ATTR, {}) | model_options
    build = reference_model(datamodule.features, **options)
    best = best_allocation(study)
    model = build(best)
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
        # Whatever else changes what a training comes to.
        key=[
            datamodule.fingerprint(),
            datamodule.batch_size,
            json.loads(json.dumps(options, default=float)),
        ],
    )
    results = compare(study, comparison, space_of(study), best, seeds)
    save_parts(study, parts_of_data(datamodule, model, ["validation", "test"]))
    for line in cautions_of(study):
        _logger.warning(line)
    return results
