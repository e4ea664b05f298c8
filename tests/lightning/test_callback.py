from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
import numpy as np
import optuna
import pytest
from tiny import MIXED, TRAIN, Net, batches_of
import torch

from optuna_nis import NISSampler, SearchSpace, penalised_reward
from optuna_nis.controller.policy import Policy
from optuna_nis.controller.replay import Replay
from optuna_nis.data import TableDataModule
from optuna_nis.lightning import EmbeddingModule, NISCallback, RankingModule, reference_model
from optuna_nis.lightning.convergence import error_on_validation
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import apply_allocation, make_searchable, set_choices, supernet_layers
from optuna_nis.strategy.baselines import frequent_ids, mixed_dimensions
from optuna_nis.strategy.journal import Journal
from optuna_nis.study.recording import TrialRecorder
from optuna_nis.study.results import best_allocation, space_of
from optuna_nis.study.searches import searches_of


def _space(datamodule: TableDataModule) -> SearchSpace:
    return SearchSpace(datamodule.embedding_specs(8), budget=0.5)


def _study(space: SearchSpace, seed: int = 0) -> optuna.Study:
    return optuna.create_study(direction="maximize", sampler=NISSampler(budget=space, seed=seed))


def _fit(
    datamodule: TableDataModule, study: optuna.Study, space: SearchSpace, **options: Any
) -> tuple[NISCallback, EmbeddingModule]:
    torch.manual_seed(0)
    model = reference_model(datamodule.features)(space)
    settings = {"num_updates": 6, "group_size": 4, "score_examples": 200, "warmup": 0.5}
    callback = NISCallback(space, study, **(settings | options))
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback])
    trainer.fit(model, datamodule=datamodule)
    return callback, model


def test_scored_choices_become_trials(datamodule: TableDataModule) -> None:
    space = _space(datamodule)
    study = _study(space)
    callback, model = _fit(datamodule, study, space)
    scored = [t for t in study.trials if t.user_attrs["fidelity"] == "supernet"]
    assert len(scored) == 24
    assert space_of(study) == space
    for trial in scored:
        allocation = space.allocation(trial.params)
        assert trial.user_attrs["num_parameters"] == allocation.num_parameters <= space.budget
        assert trial.value == trial.user_attrs["quality"] - trial.user_attrs["penalty"]
        assert 0.0 < trial.user_attrs["quality"] < 1.0
        assert trial.system_attrs["nis:group_size"] == 4
        assert trial.system_attrs["nis:log_prob"] < 0
    assert len({t.system_attrs["nis:group"] for t in scored}) == 6
    steps = [t.user_attrs["step"] for t in scored]
    assert steps == sorted(steps)
    assert min(steps) > 36  # The warm-up is half of two epochs of 37 steps.
    validated = [t for t in study.trials if t.user_attrs["fidelity"] == "validated"]
    finalists = {space.allocation(t.params) for t in validated}
    assert callback.candidates
    assert set(callback.candidates) <= finalists
    largest = max(candidate.num_parameters for candidate in callback.candidates)
    assert 0.9 * space.budget <= largest <= space.budget
    assert all(layer.num_choices == 1 for layer in supernet_layers(model).values())


def test_the_policy_in_memory_is_the_one_that_a_replay_gives(datamodule: TableDataModule) -> None:
    space = _space(datamodule)
    study = _study(space)
    callback, _ = _fit(datamodule, study, space)
    study_again = optuna.create_study(direction="maximize", sampler=NISSampler(budget=space))
    study_again.add_trials([t for t in study.trials if t.user_attrs["fidelity"] == "supernet"])
    sampler = study_again.sampler
    assert isinstance(sampler, NISSampler)
    replayed = sampler.policy(study_again).probabilities()
    for name, probabilities in callback.search.policy.probabilities().items():
        assert probabilities == pytest.approx(replayed[name], abs=1e-9)


def test_a_search_is_resumed_by_its_name_and_another_makes_its_own_updates(
    datamodule: TableDataModule,
) -> None:
    space = _space(datamodule)
    study = _study(space)

    def scored() -> dict[str, int]:
        trials = [t for t in study.trials if t.user_attrs["fidelity"] == "supernet"]
        return dict(Counter(t.user_attrs["search"] for t in trials))

    _fit(datamodule, study, space, num_updates=2, search_id="first")
    assert scored() == {"first": 8}
    _fit(datamodule, study, space, num_updates=6, search_id="first")
    assert scored() == {"first": 24}
    callback, _ = _fit(datamodule, study, space, num_updates=3)
    assert callback.search.id is not None
    assert scored() == {"first": 24, callback.search.id: 12}
    # The same seed was given, but they do not draw the same.
    assert len({search.seed for search in searches_of(study).values()}) == 2
    with pytest.raises(ValueError, match="`search_id` must be a text"):
        NISCallback(space, study, search_id="")


class _AnotherSearch(Callback):
    """Scores a group of choices whenever the search at work has scored its own."""

    def __init__(self, study: optuna.Study, space: SearchSpace) -> None:
        self.study = study
        self.space = space
        self.recorder = TrialRecorder(study, space, "another")
        self.rng = np.random.default_rng(0)
        self.policies: list[tuple[int, Policy]] = []
        self.num_trials = 0

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        (search,) = (c for c in trainer.callbacks if isinstance(c, NISCallback))
        trials = self.study.get_trials(deepcopy=False)
        if len(trials) == self.num_trials:
            return
        # Known to the search: all but what is added from here on.
        self.policies.append((len(trials), search.search.policy.copy()))
        options, log_probs = search.search.policy.sample(3, self.rng)
        params = search.search.policy.params(options)
        costs = [self.space.allocation(choice).num_parameters for choice in params]
        rewards = [penalised_reward(cost / 1e4, cost, self.space.budget) for cost in costs]
        self.recorder.record(
            params, rewards, fidelity="supernet", step=0, log_probs=log_probs.tolist()
        )
        self.num_trials = len(self.study.get_trials(deepcopy=False))


@pytest.mark.parametrize("storage", [None, "sqlite:///{}/study.db"])
def test_other_searches_are_learned_from_while_it_runs(
    datamodule: TableDataModule, tmp_path: Path, storage: str | None
) -> None:
    space = _space(datamodule)
    study = optuna.create_study(
        direction="maximize",
        sampler=NISSampler(budget=space, seed=0),
        storage=storage and storage.format(tmp_path),
    )
    torch.manual_seed(0)
    callback = NISCallback(
        space, study, num_updates=6, group_size=4, score_examples=200, warmup=0.5
    )
    another = _AnotherSearch(study, space)
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback, another])
    trainer.fit(reference_model(datamodule.features)(space), datamodule=datamodule)
    trials = study.get_trials()
    counts = Counter(t.user_attrs["search"] for t in trials if t.user_attrs["step"] == 0)
    assert counts == {"another": 18}
    assert len(another.policies) == 6
    for num_trials, policy in another.policies:
        replay = Replay(study.direction, space)
        replay.learn(trials[:num_trials])
        assert replay.policy is not None
        np.testing.assert_array_equal(policy.logits, replay.policy.logits)


def test_a_search_that_is_alone_reads_no_trials_between_its_groups(
    datamodule: TableDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = _space(datamodule)
    readings = []

    def reading(self: Journal) -> Policy:
        readings.append(len(self._study.trials))
        return replayed(self)

    replayed = Journal.policy
    monkeypatch.setattr(Journal, "policy", reading)
    _fit(datamodule, _study(space), space)
    # At the start, and after the first group, whose number tells nothing.
    assert readings == [0, 4]


def test_same_seed_same_trials(datamodule: TableDataModule) -> None:
    space = _space(datamodule)
    runs = []
    for _ in range(2):
        study = _study(space)
        datamodule = datamodule.__class__(**_again(datamodule))
        datamodule.setup("fit")
        _fit(datamodule, study, space)
        runs.append([(t.params, t.value) for t in study.trials])
    assert runs[0] == runs[1]


def _again(datamodule: TableDataModule) -> dict[str, Any]:
    return {
        "path": datamodule.path,
        "label": "clicked",
        "features": ["user", "city"],
        "bags": {"genres": "|"},
    }


def test_an_exception_keeps_the_trials(datamodule: TableDataModule) -> None:
    space = _space(datamodule)
    study = _study(space)

    class Diverging(RankingModule):
        calls = 0

        def choice_quality(self, batch: Any, num_choices: int) -> torch.Tensor:
            Diverging.calls += 1  # What it adds to itself is put back.
            quality = super().choice_quality(batch, num_choices)
            return quality * torch.inf if Diverging.calls > 3 else quality

    model = Diverging(space, bags=datamodule.bags)
    callback = NISCallback(
        space, study, num_updates=6, group_size=4, score_examples=200, warmup=0.7
    )
    with pytest.raises(ValueError, match="`quality` must be a finite number, got inf"):
        quiet_trainer(max_epochs=2, callbacks=[callback]).fit(model, datamodule=datamodule)
    assert len(study.trials) == 8


def test_batches_of_one_class_are_passed_over_or_refused(datamodule: TableDataModule) -> None:
    space = _space(datamodule)

    class Blind(RankingModule):
        calls = 0
        blind = 4

        def choice_quality(self, batch: Any, num_choices: int) -> torch.Tensor:
            Blind.calls += 1  # What it adds to itself is put back.
            quality = super().choice_quality(batch, num_choices)
            # The first is of the full tables on all the data.
            return quality if not 1 < Blind.calls <= self.blind else quality * torch.nan

    def fit(model: RankingModule) -> optuna.Study:
        study = _study(space)
        callback = NISCallback(
            space, study, num_updates=2, group_size=4, score_examples=50, warmup=0.7
        )
        quiet_trainer(max_epochs=1, callbacks=[callback]).fit(model, datamodule=datamodule)
        return study

    model = Blind(space, bags=datamodule.bags)
    assert len(fit(model).trials) >= 8
    model = Blind(space, bags=datamodule.bags)
    model.blind = 10**9
    with pytest.raises(ValueError, match="one class only"):
        fit(model)


def test_bad_arguments(datamodule: TableDataModule) -> None:
    space = _space(datamodule)
    study = _study(space)
    for wrong in ({"num_updates": 0}, {"group_size": 1}, {"score_examples": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be an integer"):
            NISCallback(space, study, **wrong)
    with pytest.raises(ValueError, match=r"`warmup` must be a share in \[0, 1\], got 1.1"):
        NISCallback(space, study, warmup=1.1)
    with pytest.raises(TypeError, match="`update` is no field of a SearchPlan"):
        NISCallback(space, study, update=3)


def test_formulas_and_frequent_ids_compete_without_being_asked_for(
    datamodule: TableDataModule,
) -> None:
    space = _space(datamodule)
    study = _study(space)
    # What blocks are worth may leave some of a budget unused.
    callback, _ = _fit(datamodule, study, space, price_shares=())
    validated = {
        space.allocation(t.params): t.value
        for t in study.trials
        if t.user_attrs["fidelity"] == "validated"
    }
    popular = [
        mixed_dimensions(smaller, alpha=power, on_grid=True).widened()
        for smaller in (space, space.with_budget(space.budget // 2))
        for power in (0.3, 0.5)
    ]
    frequent = [frequent_ids(space, full_width=full).widened() for full in (True, False)]
    assert validated.keys() > {*popular, *frequent}
    # Each has a place for the best of its kind.
    candidates = callback.candidates
    assert max(popular[:2], key=validated.__getitem__) in candidates
    assert set(candidates) & set(frequent)
    costs = [choice.num_parameters for choice in candidates]
    assert costs == sorted(costs, reverse=True)
    assert 0.8 * space.budget < costs[0] <= space.budget
    # For a smaller budget none that fits is better, though it may leave some of that unused.
    fitting = [validated[c] for c in candidates if c.num_parameters <= space.budget // 2]
    assert max(fitting) >= max(validated[c] for c in popular[2:])


def test_prices_find_candidates_for_each_share_of_the_budget(
    datamodule: TableDataModule,
) -> None:
    space = _space(datamodule)
    study = _study(space)
    callback, _ = _fit(datamodule, study, space)
    validated = [t for t in study.trials if t.user_attrs["fidelity"] == "validated"]
    priced = [t for t in validated if t.user_attrs["origin"] == "values"]
    shares = [t.user_attrs["num_parameters"] / space.budget for t in priced]
    assert all(any(share <= high for share in shares) for high in (1.0, 0.5, 0.25, 0.125, 0.0625))
    assert {t.user_attrs["origin"] for t in validated} == {
        "formula",
        "policy",
        "uniform",
        "values",
    }
    (uniform,) = (t for t in validated if t.user_attrs["origin"] == "uniform")
    assert space.allocation(uniform.params) in callback.candidates


def test_the_candidates_are_trained_for_real(datamodule: TableDataModule) -> None:
    space = _space(datamodule)
    study = _study(space)
    callback, _ = _fit(datamodule, study, space)
    lines: list[str] = []
    best = callback.train_candidates(
        reference_model(datamodule.features), datamodule, progress=lines.append
    )
    trained = [t for t in study.trials if t.user_attrs["fidelity"] == "trained"]
    dropped = [t for t in study.trials if t.user_attrs["fidelity"] == "dropped"]
    for_real = {space.allocation(t.params) for t in (*trained, *dropped)}
    assert for_real == set(callback.candidates)
    assert space.allocation(max(trained, key=lambda t: t.value).params) == best
    assert best == best_allocation(study)
    assert lines[0].startswith(f"round 1 of 2: 1 of {len(callback.candidates)}, ")
    # Started again, nothing is written twice.
    assert callback.train_candidates(reference_model(datamodule.features), datamodule) == best
    kinds = Counter(t.user_attrs["fidelity"] for t in study.trials)
    assert (kinds["trained"], kinds["dropped"]) == (len(trained), len(dropped))


def test_memory_has_a_price_where_the_standard_error_is_known(
    datamodule: TableDataModule,
) -> None:
    space = _space(datamodule)
    study = _study(space)
    callback, model = _fit(datamodule, study, space)
    callback.train_candidates(reference_model(datamodule.features), datamodule)
    error = error_on_validation(model, datamodule)
    assert error is not None
    # A quarter of the error of what the full tables were worth, for the whole budget.
    least, most = (0.25 * error(value) for value in (0.9, 0.6))
    shares = [t.user_attrs["num_parameters"] / space.budget for t in study.trials]
    prices = [t.user_attrs["penalty"] / share for t, share in zip(study.trials, shares)]
    assert least < prices[0] < most
    assert prices == pytest.approx([prices[0]] * len(prices))
    assert {t.user_attrs["fidelity"] for t in study.trials} == {
        "supernet",
        "validated",
        "dropped",
        "trained",
    }


def test_a_price_of_the_metric_is_none_of_another_value(datamodule: TableDataModule) -> None:
    class WithLoss(RankingModule):
        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            self.log("val_loss", 0.5 + self.num_parameters / 1e6)

        @property
        def num_parameters(self) -> int:
            return sum(parameter.numel() for parameter in self.parameters())

    def build(allocation: Any) -> RankingModule:
        return WithLoss(allocation, bags=datamodule.bags)

    space = _space(datamodule)
    study = _study(space)
    callback, _ = _fit(datamodule, study, space, shortlist_epochs=(1,))
    callback.train_candidates(build, datamodule, monitor="val_loss")
    trained = [t for t in study.trials if t.user_attrs["fidelity"] == "trained"]
    assert len(trained) == len(callback.candidates)
    assert {t.user_attrs["penalty"] for t in trained} == {0.0}


def test_a_wrong_name_of_a_value_leaves_the_price_of_memory_as_it_is(
    datamodule: TableDataModule,
) -> None:
    space = _space(datamodule)
    study = _study(space)
    callback, _ = _fit(datamodule, study, space, shortlist_epochs=(1,))
    build = reference_model(datamodule.features)
    with pytest.raises(ValueError, match="got 'val_aucroc'"):
        callback.train_candidates(build, datamodule, monitor="val_aucroc")
    for error in ("val_mse", "val_cross_entropy"):
        with pytest.raises(ValueError, match=f"`mode` must be given for the monitor '{error}'"):
            callback.train_candidates(build, datamodule, monitor=error)
    callback.train_candidates(build, datamodule)
    trained = [t for t in study.trials if t.user_attrs["fidelity"] == "trained"]
    assert all(t.user_attrs["penalty"] > 0 for t in trained)


def test_values_of_different_groups_compare(datamodule: TableDataModule) -> None:
    space = _space(datamodule)

    class Shifting(RankingModule):
        """Thinks better of all choices with every batch of validation data."""

        def choice_quality(self, batch: Any, num_choices: int) -> torch.Tensor:
            shift = float(batch["label"].sum())
            return super().choice_quality(batch, num_choices) + shift

    study = _study(space)
    callback = NISCallback(
        space, study, num_updates=6, group_size=4, score_examples=200, warmup=0.7
    )
    model = Shifting(space, bags=datamodule.bags)
    quiet_trainer(max_epochs=2, callbacks=[callback]).fit(model, datamodule=datamodule)
    scored = [t.value for t in study.trials if t.user_attrs["fidelity"] == "supernet"]
    assert max(scored) - min(scored) < 1.0


def test_searches_where_the_first_epochs_are_not_validated(datamodule: TableDataModule) -> None:
    space = _space(datamodule)
    search = NISCallback(space, num_updates=2, group_size=4, score_examples=50, warmup=0.0)
    trainer = quiet_trainer(max_epochs=2, check_val_every_n_epoch=2, callbacks=[search])
    trainer.fit(reference_model(datamodule.features)(space), datamodule=datamodule)
    assert search.candidates
    assert "val_metric" in trainer.callback_metrics


def test_what_is_validated_after_the_training_is_left_as_it_is() -> None:
    model, validation = Net(), batches_of(MIXED)
    space = make_searchable(model, budget=0.5)
    search = NISCallback(space, num_updates=1, group_size=2)
    trainer = quiet_trainer(max_epochs=1, callbacks=[search])
    trainer.fit(model, batches_of(TRAIN), validation)
    choice = space.sample(np.random.default_rng(0), space.budget)
    set_choices(model, space, [choice])
    chosen = trainer.validate(model, validation, verbose=False)
    apply_allocation(model, choice)
    (sized,) = trainer.validate(model, validation, verbose=False)
    assert sized == pytest.approx(chosen[0])


class _Terminated(Callback):
    """As Lightning is where it is told to end after the last batch."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer._signal_connector.received_sigterm = True


def test_it_ends_when_it_is_told_to_while_it_scores(datamodule: TableDataModule) -> None:
    space = _space(datamodule)
    study = _study(space)
    callback = NISCallback(space, study, num_updates=2, group_size=2, score_examples=200)
    trainer = quiet_trainer(max_epochs=1, callbacks=[_Terminated(), callback])
    with pytest.raises(SIGTERMException):
        trainer.fit(reference_model(datamodule.features)(space), datamodule=datamodule)
    assert not callback.search.is_done


class Unsearchable(LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> None: ...


def test_bad_set_ups(datamodule: TableDataModule) -> None:
    space = _space(datamodule)
    build = reference_model(datamodule.features)

    def fit(model: LightningModule, study: optuna.Study, space: SearchSpace = space) -> None:
        callback = NISCallback(space, study)
        quiet_trainer(max_epochs=1, callbacks=[callback]).fit(model, datamodule=datamodule)

    with pytest.raises(MisconfigurationException, match="must define `choice_quality"):
        fit(Unsearchable(), _study(space))
    with pytest.raises(MisconfigurationException, match="must have a SupernetEmbedding for each"):
        fit(build(space.full()), _study(space))
    with pytest.raises(MisconfigurationException, match="its sampler is TPESampler"):
        fit(build(space), optuna.create_study(direction="maximize"))
    other = SearchSpace(space.specs, budget=0.25)
    study = _study(space)
    fit(build(space), study)
    with pytest.raises(MisconfigurationException, match="its sampler is NISSampler with `budget="):
        fit(build(other), study, other)
    study.sampler = NISSampler(budget=other)
    with pytest.raises(ValueError, match="was searched with another space: a budget of"):
        fit(build(other), study, other)
    callback = NISCallback(space, _study(space))
    with pytest.raises(MisconfigurationException, match="needs a validation dataloader"):
        quiet_trainer(max_epochs=1, callbacks=[callback]).fit(
            build(space), train_dataloaders=datamodule.train_dataloader()
        )
    callback = NISCallback(space, _study(space), warmup=0.7)
    with pytest.raises(MisconfigurationException, match="needs `max_epochs` or `max_steps`"):
        quiet_trainer(max_epochs=-1, callbacks=[callback]).fit(build(space), datamodule=datamodule)
