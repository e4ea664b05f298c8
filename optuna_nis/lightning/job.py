"""The search of the command: the reference model on a data set or a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from optuna import Study
import torch

from optuna_nis._checks import check_folder
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.data.config import DataConfig
from optuna_nis.data.of_study import check_data, oov_of_data, read_data, save_data, seen_rows
from optuna_nis.lightning._memory import looked_at
from optuna_nis.lightning.any_model import search_sizes
from optuna_nis.lightning.processes import built, group_of
from optuna_nis.models import reference_model
from optuna_nis.models.reference import sequence_of
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import Mode, SearchSpace
from optuna_nis.space.spec import Oov
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.study.keys import DATA_ATTR, MODEL_OPTIONS_ATTR, ROWS
from optuna_nis.study.settings import save_once

if TYPE_CHECKING:
    from optuna_nis.show.dashboard import DashboardCallback

# Targets among the items of their own sequence from which on these are not left out, and training
# batches that tell.
_MANY_REPEATS, _TELLING_BATCHES = 0.02, 50
# Splits of which no training row has a target of the others in its sequence.
_IN_TIME = ("chronological", "leave-one-out")


def search(
    study: Study,
    data: DataConfig,
    *,
    budget: int | float | str,
    mode: Mode = "multi",
    precisions: Sequence[int] = (32,),
    oov: Oov | None = None,
    embedding_dim: int | None = None,
    epochs: int | None = None,
    num_updates: int | None = None,
    plan: SearchPlan | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    dashboard: DashboardCallback | None = None,
    progress: Callable[[str], None] = lambda text: None,
    checkpoint_dir: str | Path | None = None,
    shard: tuple[int, int] = (0, 1),
    cache_dir: str | Path | None = None,
    trainer_options: Mapping[str, Any] | None = None,
    shard_tables_above: int | None = None,
    **model_options: Any,
) -> Allocation:
    """Search the embedding sizes of the reference model on a data set, into a study.

    This is :func:`search_sizes` with the reference model, whose options and data the study keeps,
    so that :func:`retrain` and further searches need only the study.

    Args:
        study: A study that maximises. Its sampler is replaced by a
            :class:`~optuna_nis.NISSampler` with the budget.
        data: The data; its test part is never touched.
        budget: As in :class:`~optuna_nis.SearchSpace`.
        mode: As in :class:`~optuna_nis.SearchSpace`.
        precisions: Bits that a number may have, as in :func:`search_sizes`.
        oov: What ids without a row give, as in :class:`~optuna_nis.EmbeddingSpec`: zeros, or rows
            that they share, new and rare values among them, as many as the search finds worth
            their bytes. By default what the data say.
        embedding_dim: Largest width considered of a feature; by default that of the reference
            model.
        epochs: Epochs of the supernet; by default those of the plan.
        num_updates: Updates of the controller; by default those of the plan.
        plan: As in :func:`search_sizes`.
        seed: Seed of the supernet and the controller.
        callbacks: Further callbacks of the trainer, such as a progress bar.
        dashboard: Keeps figures up to date in Optuna Dashboard.
        progress: Called with a line of text whenever something begins.
        checkpoint_dir: As in :func:`search_sizes`.
        shard: Train on a part of the training rows only, ``(index, count)`` with the index from 0;
            ids and validation are those of all rows.
        cache_dir: Folder for the columns of a large table, so that they are read once, whatever
            becomes of the search; as :class:`~optuna_nis.data.TableDataModule` takes it.
        trainer_options: Further arguments of all trainers, as in :func:`search_sizes`. Of several
            processes each gets its share of every batch.
        shard_tables_above: Spread the rows of tables of more ids over the processes, see
            :func:`optuna_nis.nn.sharding.sharded`. By default all have all rows.
        **model_options: Arguments of the reference model; the study keeps them. Where rows are
            split in time, ``model="sasrec"`` is trained on every position of the sequences.

    Returns:
        The best allocation.

    Raises:
        ValueError: If an argument is out of range, the data cannot be used, or the study was
            searched with another space, other data or other options of the model.

    Example:
        >>> import optuna
        >>> from optuna_nis.study.results import space_of
        >>> study = optuna.create_study(direction="maximize")
        >>> config = DataConfig(dataset="flights", max_rows=2_000)
        >>> best = search(study, config, budget="25%", epochs=1, num_updates=2)
        >>> best.nbytes() <= space_of(study).budget_nbytes
        True
    """
    group = group_of(trainer_options or {})
    study = group.study(study)
    progress = group.only_first(progress)
    oov = data.oov if oov is None else oov
    data = replace(data, oov=oov_of_data(study, oov))
    check_data(study, data)
    if checkpoint_dir is not None:
        check_folder("checkpoint_dir", checkpoint_dir)
    with group.first_before_others():
        datamodule = read_data(
            study, data, withhold_test=True, progress=progress, cache_dir=cache_dir
        )
    datamodule.shard = shard
    if model_options.get("model") == "sasrec":
        model_options.setdefault("every_position", datamodule.split in _IN_TIME)
        known = study.user_attrs.get(MODEL_OPTIONS_ATTR)
        if known is not None:
            # As it was when the search began, perhaps by an earlier release.
            if "repeats" in known:
                model_options.setdefault("repeats", known["repeats"])
        elif "repeats" not in model_options:
            model_options["repeats"] = _items_come_again(
                datamodule, model_options.get("sequence"), progress
            )
    reference = reference_model(datamodule.features, **model_options)
    space = SearchSpace(reference.specs(embedding_dim, precisions, oov), budget=budget, mode=mode)
    build = built(reference, space, shard_tables_above, group)
    # A bad option must be told before anything is written into the study.
    looked_at(build, space)
    options = json.loads(json.dumps(model_options, default=float))
    save_once(study, MODEL_OPTIONS_ATTR, options, "other model options")
    if DATA_ATTR not in study.user_attrs:
        save_data(study, data, datamodule, cache_dir)
    spread = {} if shard_tables_above is None else {"shard_tables_above": shard_tables_above}
    fields: dict[str, Any] = {"epochs": epochs, "num_updates": num_updates}
    found = search_sizes(
        build,
        datamodule,
        space=space,
        study=study,
        plan=plan,
        seed=seed,
        callbacks=callbacks,
        dashboard=dashboard,
        progress=progress,
        checkpoint_dir=checkpoint_dir,
        settings={"shard": list(shard), ROWS: seen_rows(datamodule), **spread, **options},
        trainer_options=trainer_options,
        **{name: value for name, value in fields.items() if value is not None},
    )
    return found.allocation


def _items_come_again(
    datamodule: EmbeddingDataModule,
    sequence: str | None,
    progress: Callable[[str], None] | None,
) -> bool:
    """Whether the targets of training are often among the items of their own sequence."""
    features = datamodule.features
    found = sequence_of(features, sequence)
    classes = torch.tensor([*found["classes"], features.num_classes])
    again = known = 0
    # What the order of the batches is drawn from stays as it was.
    with torch.random.fork_rng(devices=[]):
        for batch in islice(datamodule.train_dataloader(), _TELLING_BATCHES):
            labels = batch["label"]
            items = classes[batch[found["sequence"]]]
            again += int((items == labels.unsqueeze(1)).any(1).sum())
            known += int((labels >= 0).sum())
    share = again / max(known, 1)
    if share < _MANY_REPEATS:
        return False
    if progress is not None:
        progress(
            f"{share:.0%} of the targets are among the items of their own sequence, so these are "
            "not left out of its ranking (`repeats`)."
        )
    return True
