from __future__ import annotations

from collections.abc import Callable
import math
from pathlib import Path
import re
from typing import Any

from killing import KilledError
import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from optuna_nis import Allocation, SearchSpace
from optuna_nis._format import size
from optuna_nis.data import TableDataModule
from optuna_nis.lightning import (
    Candidate,
    RankingModule,
    checkpoints,
    evaluate,
    reference_model,
    train,
    train_shortlist,
    warm_start,
)
from optuna_nis.lightning.training import quiet_trainer


def test_training_returns_to_its_best_epoch(datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    build = reference_model(datamodule.features, learning_rate=0.02)
    run = train(build, space.full(), datamodule, seed=0, max_epochs=12, patience=1)
    assert run.epochs < 12
    assert 0.6 < run.val_metric < 1.0
    (metrics,) = quiet_trainer().validate(run.model, datamodule=datamodule, verbose=False)
    assert metrics["val_metric"] == pytest.approx(run.val_metric)
    with pytest.raises(ValueError, match="must have a test part"):
        evaluate(run.model, datamodule)


def test_warm_start_gives_the_output_of_the_supernet(datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    build = reference_model(datamodule.features)
    supernet, model = build(space), build(space.full())
    warm_start(model, supernet)
    batch = next(iter(datamodule.train_dataloader()))
    torch.testing.assert_close(model(batch), supernet(batch))
    with pytest.raises(ValueError, match="must have the parameters of the supernet"):
        warm_start(reference_model(datamodule.features, hidden=(4,))(space.full()), supernet)


def _build_told(
    datamodule: TableDataModule, told: dict[Allocation, list[float]]
) -> Callable[[Allocation], RankingModule]:
    """Models that log given values, epoch by epoch."""
    build = reference_model(datamodule.features)

    class Told(RankingModule):
        def on_validation_epoch_end(self) -> None:
            self.log("told", told[self.allocation][self.current_epoch])

    def build_told(allocation: Allocation) -> RankingModule:
        model = build(allocation)
        model.__class__ = Told
        model.allocation = allocation
        return model

    return build_told


def test_shortlist_trains_all_and_the_better_half_longer(datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    build = reference_model(datamodule.features)
    rng = np.random.default_rng(0)
    choices = [space.sample(rng, space.full_parameters * share) for share in (0.2, 0.5, 1.0)]
    lines: list[str] = []
    found = train_shortlist(
        choices,
        build(space),
        build,
        datamodule,
        shortlist_epochs=(1, 2),
        progress=lines.append,
    )
    assert {candidate.allocation for candidate in found} == set(choices)
    values = [candidate.val_metric for candidate in found]
    assert values == sorted(values, reverse=True)
    assert len(lines) == 3 + 2
    pattern = (
        r"round 1 of 2: 2 of 3, [\d.]+ k?[Bb]\w*: val_metric 0\.\d{4}, about \d+ s left in it"
    )
    assert re.fullmatch(pattern, lines[1])
    assert "left" not in lines[2] + lines[4]
    last = {line.split(", ")[1].split(":")[0]: line.split()[-1] for line in (lines[2], lines[4])}
    for candidate in found:
        name = size(candidate.allocation.nbytes())
        assert last.get(name, f"{candidate.val_metric:.4f}") == f"{candidate.val_metric:.4f}"


def test_no_more_than_three_stay_in_the_shortlist(datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    build = reference_model(datamodule.features)
    rng = np.random.default_rng(0)
    choices = [space.sample(rng, space.full_parameters * 0.7**n) for n in range(8)]
    lines: list[str] = []
    train_shortlist(
        choices, build(space), build, datamodule, shortlist_epochs=(1, 1), progress=lines.append
    )
    assert [line.split(",")[0] for line in lines[8:]] == [
        f"round 2 of 2: {n} of 3 from scratch" for n in (1, 2, 3)
    ]


def test_a_choice_that_gets_worse_in_training_leaves_the_shortlist(
    datamodule: TableDataModule,
) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    large, small = space.full(), space.allocation(dict.fromkeys(space.choices, 1))
    build = _build_told(datamodule, {large: [0.9, 0.5], small: [0.6, 0.7, 0.8]})
    supernet = reference_model(datamodule.features)(space)
    found = train_shortlist(
        [large, small],
        supernet,
        build,
        datamodule,
        shortlist_epochs=(2, 1),
        warm_rounds=2,
        monitor="told",
        mode="max",
    )
    assert found == [
        Candidate(small, pytest.approx(0.8), is_finalist=True),
        Candidate(large, pytest.approx(0.5), is_finalist=False),
    ]


def test_a_choice_that_leaves_an_optimiser_nothing_is_named(
    datamodule: TableDataModule, caplog: pytest.LogCaptureFixture
) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    first = next(iter(space.full()))

    class TwoOptimizers(RankingModule):
        def configure_optimizers(self) -> Any:
            own = [*self.embeddings.layers[0].parameters()]
            return torch.optim.SGD(own, lr=0.1)

    def build(tables: SearchSpace | Allocation) -> RankingModule:
        return TwoOptimizers(tables, bags=datamodule.features.bags)

    removed = space.allocation(
        {name: 0 if name.startswith(first) else 8 for name in space.choices}
    )
    with pytest.raises(ValueError, match=rf"nothing to train, .* no row of \['{first}'\]: let it"):
        train(build, removed, datamodule, seed=0, max_epochs=1)
    choices = [space.full(), removed]
    options: dict[str, Any] = {"shortlist_epochs": (1,), "shortlist_batches": 0.1}
    found = train_shortlist(choices, build(space), build, datamodule, **options)
    assert [each.allocation for each in found] == [space.full()]
    assert f"A choice is left out: `configure_optimizers` gives .* ['{first}']" in re.sub(
        "gives an .* no row of", "gives .*", caplog.text
    )


def test_choices_whose_trainings_diverge_are_left_out(
    datamodule: TableDataModule, caplog: pytest.LogCaptureFixture
) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    large, small = space.full(), space.allocation(dict.fromkeys(space.choices, 1))
    supernet = reference_model(datamodule.features)(space)

    def found(values: list[float]) -> list[Candidate]:
        build = _build_told(datamodule, {large: values, small: [0.6]})
        run = ([large, small], supernet, build, datamodule)
        return train_shortlist(
            *run, shortlist_epochs=(1,), shortlist_batches=0.1, monitor="told", mode="max"
        )

    assert found([math.nan]) == [Candidate(small, pytest.approx(0.6))]
    assert "not a finite number for 1 of the 2 choices" in caplog.text
    build = _build_told(datamodule, {large: [math.nan]})
    with pytest.raises(FloatingPointError, match="not a finite number for any of"):
        train_shortlist(
            [large], supernet, build, datamodule, shortlist_epochs=(1,), monitor="told", mode="max"
        )
    with pytest.raises(ValueError, match="`monitor` must be a value that the model logs in val"):
        train_shortlist([large], supernet, build, datamodule, shortlist_epochs=(1,), monitor="auc")


def test_what_is_to_be_kept_stays_in_the_shortlist(datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    full = space.full_parameters
    rng = np.random.default_rng(0)
    # The last one costs about as much as the first.
    choices = [space.sample(rng, full * share) for share in (0.8, 0.4, 0.2, 0.82)]
    values = [[0.7, 0.7], [0.6, 0.6], [0.5, 0.5], [0.1, 0.9]]
    build = _build_told(datamodule, dict(zip(choices, values)))
    supernet = reference_model(datamodule.features)(space)
    run = (choices, supernet, build, datamodule)
    rounds: dict[str, Any] = {"shortlist_epochs": (1, 1), "warm_rounds": 2}
    found = train_shortlist(*run, **rounds, monitor="told", mode="max")
    assert found[0] == Candidate(choices[0], pytest.approx(0.7))
    lines: list[str] = []
    found = train_shortlist(
        *run,
        **rounds,
        monitor="told",
        mode="max",
        keep=[choices[3], space.full()],
        progress=lines.append,
    )
    assert found[0] == Candidate(choices[3], pytest.approx(0.9))
    assert lines[-1].startswith("round 2 of 2: 2 of 2, ")


@pytest.mark.parametrize("warm_rounds", [0, 2])
@pytest.mark.parametrize("kind", ["one cycle", "plateau"])
def test_schedules_of_the_learning_rate_go_over_all_rounds(
    datamodule: TableDataModule, kind: str, warm_rounds: int
) -> None:
    seen: list[Any] = []

    class Scheduled(RankingModule):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
            if kind == "plateau":
                plateau = ReduceLROnPlateau(optimizer, mode="max")
                seen.append(plateau)
                return {
                    "optimizer": optimizer,
                    "lr_scheduler": {"scheduler": plateau, "monitor": "val_metric"},
                }
            steps = int(self.trainer.estimated_stepping_batches)
            seen.append(OneCycleLR(optimizer, 0.01, total_steps=steps))
            return [optimizer], [{"scheduler": seen[-1], "interval": "step"}]

    build = reference_model(datamodule.features)

    def scheduled(allocation: Allocation) -> RankingModule:
        model = build(allocation)
        model.__class__ = Scheduled
        return model

    space = SearchSpace(datamodule.embedding_specs(8))
    rounds: dict[str, Any] = {"shortlist_epochs": (1, 2), "warm_rounds": warm_rounds}
    train_shortlist([space.full()], build(space), scheduled, datamodule, **rounds)
    first, second = seen  # One for each round.
    if kind == "plateau":
        assert (first.last_epoch, second.last_epoch) == (1, 3)
    else:
        assert first.total_steps == second.total_steps
        assert 3 * first.last_epoch == second.last_epoch == second.total_steps


@pytest.mark.parametrize(("warm_rounds", "steps"), [(0, 12), (1, 9), (2, 6), (3, 12)])
def test_rounds_that_are_interrupted_anywhere_go_on_where_they_stopped(
    datamodule: TableDataModule,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warm_rounds: int,
    steps: int,
) -> None:
    monkeypatch.setattr(checkpoints, "_INTERVAL", 0.0)
    monkeypatch.setattr(checkpoints, "_MAX_SHARE", 1.0)
    seen: list[tuple[int, float, float]] = []
    killed_at: set[int] = set()
    build = reference_model(datamodule.features)
    space = SearchSpace(datamodule.embedding_specs(8))
    supernet = build(space)

    class Killed(RankingModule):
        """Stops before each of its steps, once."""

        def on_train_batch_start(self, *args: Any) -> None:
            if len(seen) in killed_at:
                killed_at.remove(len(seen))
                raise KilledError
            weight = float(self.head.weight.detach().sum())
            # Random numbers go on too.
            seen.append((self.global_step, weight, float(torch.rand(()))))

    def killed(allocation: Allocation) -> RankingModule:
        model = build(allocation)
        model.__class__ = Killed
        return model

    run = ([space.full()], supernet, killed, datamodule)
    options = {
        "shortlist_epochs": (1, 1, 2),
        "warm_rounds": warm_rounds,
        "shortlist_batches": 3 / 37,
    }
    torch.manual_seed(1)
    whole = train_shortlist(*run, **options)
    undisturbed = seen.copy()
    begins = [weight for step, weight, _ in undisturbed if step == 0]
    warm = float(supernet.state_dict()["head.weight"].sum())
    assert [begin == pytest.approx(warm) for begin in begins] == {
        0: [False],
        1: [True, False],
        2: [True, False],
        3: [True],
    }[warm_rounds]
    assert [step for step, *_ in undisturbed][-steps:] == list(range(steps))
    seen.clear()
    killed_at |= set(range(12))
    while killed_at:
        torch.manual_seed(1)
        with pytest.raises(KilledError):
            train_shortlist(*run, **options, folder=tmp_path)
    torch.manual_seed(1)
    assert train_shortlist(*run, **options, folder=tmp_path) == whole
    assert seen == undisturbed


@pytest.mark.parametrize("name", ["callbacks", "max_epochs", "check_val_every_n_epoch"])
def test_options_that_are_the_search_s_to_give(datamodule: TableDataModule, name: str) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    build = reference_model(datamodule.features)
    with pytest.raises(ValueError, match=f"`trainer_options` must not have '{name}': "):
        train_shortlist(
            [space.full()], build(space), build, datamodule, trainer_options={name: None}
        )


def test_trainings_that_were_done_are_not_done_again(
    datamodule: TableDataModule, tmp_path: Path
) -> None:
    steps: list[int] = []

    class Counted(RankingModule):
        def on_train_batch_end(self, *args: Any) -> None:
            steps.append(self.global_step)

    build = reference_model(datamodule.features)

    def counted(allocation: Allocation) -> RankingModule:
        model = build(allocation)
        model.__class__ = Counted
        return model

    space = SearchSpace(datamodule.embedding_specs(8))
    supernet = build(space)

    def found() -> list[Candidate]:
        return train_shortlist(
            [space.full()],
            supernet,
            counted,
            datamodule,
            folder=tmp_path,
            shortlist_epochs=(1, 1),
        )

    first = found()
    assert steps
    steps.clear()
    assert found() == first
    assert not steps
