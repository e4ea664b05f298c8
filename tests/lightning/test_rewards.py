"""Where the reward of any model comes from."""

from __future__ import annotations

import copy
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
import numpy as np
from ordinary import Data, Ordinary
import pytest
import torch
from torch import Tensor
from torchmetrics import MeanMetric, MeanSquaredError
from torchmetrics.classification import BinaryAUROC
from torchmetrics.functional.classification import binary_auroc

from optuna_nis import Allocation, SearchSpace
from optuna_nis.lightning.rewards import Rewards
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import apply_allocation, make_searchable


class _Probe(Callback):
    """Scores some choices in the middle of a training."""

    def __init__(self, rewards: Rewards, choices: list[Allocation], batches: list[Any]) -> None:
        self.rewards, self.choices, self.batches = rewards, choices, batches
        self.quality = torch.empty(0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        self.rewards.check(pl_module)
        self.quality = self.rewards.score(trainer, pl_module, self.choices, self.batches)


def _scored(
    model: LightningModule, batches: list[Any] | None = None, **options: Any
) -> tuple[Tensor, list[Allocation], list[Any]]:
    torch.manual_seed(0)
    space = make_searchable(model)
    rng = np.random.default_rng(0)
    choices = [space.sample(rng, cost) for cost in (2700, 1000, 200)]
    data = Data()
    batches = list(data.val_dataloader()) if batches is None else batches
    probe = _Probe(Rewards(space, **options), choices, batches)
    # One step, so that predictions differ, without weight of the learning rate.
    trainer = quiet_trainer(max_steps=1, callbacks=[probe])
    trainer.fit(model, data)
    return probe.quality, choices, batches


def _predicted(model: Ordinary, choice: Allocation, batches: list[Any]) -> tuple[Tensor, Tensor]:
    alone = Ordinary()
    make_searchable(alone)
    alone.load_state_dict(model.state_dict())
    apply_allocation(alone, choice).eval()
    with torch.no_grad():
        logits = torch.cat([alone(batch) for batch in batches])
    return logits, torch.cat([batch[3] for batch in batches])


@pytest.mark.parametrize("options", [{"metric": BinaryAUROC()}, {"monitor": "val_auroc"}])
def test_a_metric_is_that_of_each_choice_on_all_examples(options: Any) -> None:
    model = Ordinary()
    quality, choices, batches = _scored(model, **options)
    for value, choice in zip(quality, choices):
        assert value.item() == pytest.approx(
            binary_auroc(*_predicted(model, choice, batches)).item(), abs=1e-6
        )
    assert len(set(quality.tolist())) == 3


def test_the_validation_loss_is_negated() -> None:
    model = Ordinary()
    quality, choices, batches = _scored(model)
    for value, choice in zip(quality, choices):
        logits, target = _predicted(model, choice, batches)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target.float())
        assert value.item() == pytest.approx(-loss.item(), abs=1e-5)


class WithMethod(Ordinary):
    def choice_quality(self, batch: Any, num_choices: int) -> Tensor:
        target = batch[3].view(num_choices, -1)[0]
        return torch.stack([binary_auroc(p, target) for p in self(batch).view(num_choices, -1)])


def test_the_method_of_the_module_comes_before_the_logged_loss() -> None:
    model, batch = WithMethod(), next(iter(Data().val_dataloader()))
    by_method, _, _ = _scored(copy.deepcopy(model), [batch])
    by_metric, _, _ = _scored(copy.deepcopy(model), [batch], metric=BinaryAUROC())
    by_loss, _, _ = _scored(copy.deepcopy(model), [batch], monitor="val_loss")
    torch.testing.assert_close(by_method, by_metric, rtol=0, atol=1e-6)
    assert (by_loss < 0).all()


def test_few_choices_at_once_score_like_many(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = WithMethod(), next(iter(Data().val_dataloader()))
    together, _, _ = _scored(copy.deepcopy(model), [batch])
    seen: list[int] = []
    scored = WithMethod.choice_quality

    def counted(self: WithMethod, batch: Any, num_choices: int) -> Tensor:
        seen.append(num_choices)
        return scored(self, batch, num_choices)

    monkeypatch.setattr(WithMethod, "choice_quality", counted)
    for limit, sizes in ((1, [1, 1, 1]), (2 * len(batch[3]), [2, 1]), (10_000, [3])):
        monkeypatch.setattr("optuna_nis.lightning.rewards._MAX_EXAMPLES", limit)
        seen.clear()
        apart, _, _ = _scored(copy.deepcopy(model), [batch])
        assert seen == sizes
        torch.testing.assert_close(apart, together, rtol=0, atol=1e-6)


class _Remembers(_Probe):
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        assert isinstance(pl_module, Ordinary)
        pl_module.seen.append(-1)
        pl_module.val_auroc.update(torch.tensor([0.2, 0.9]), torch.tensor([0, 1]))
        pl_module.norm.eval()
        mean = pl_module.norm.running_mean.clone()
        logged = dict(trainer.callback_metrics)
        super().on_train_batch_end(trainer, pl_module)
        assert pl_module.seen == [-1]
        assert pl_module.val_auroc.compute() == 1.0
        assert pl_module.val_auroc.update_count == 1
        assert torch.equal(pl_module.norm.running_mean, mean)
        assert pl_module.training
        assert not pl_module.norm.training
        assert trainer.callback_metrics == logged
        assert trainer.training
        assert "log" not in vars(pl_module)
        pl_module.seen.clear()
        pl_module.val_auroc.reset()
        self.done = True


def test_scoring_leaves_no_trace() -> None:
    model = Ordinary()
    space = make_searchable(model)
    probe = _Remembers(Rewards(space), [space.full()], list(Data().val_dataloader()))
    quiet_trainer(max_steps=1, callbacks=[probe]).fit(model, Data())
    assert probe.done


def test_examples_of_one_class_cannot_tell() -> None:
    batch = [tensor[:4] for tensor in next(iter(Data().val_dataloader()))]
    batch[3] = torch.ones(4, dtype=torch.long)
    quality, _, _ = _scored(Ordinary(), [batch], metric=BinaryAUROC())
    assert quality.isnan().all()


class Returns(Ordinary):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.log("score", self(batch).mean())
        return self.value(self(batch).sigmoid(), batch[3].float())


def test_what_validation_may_return() -> None:
    expected, _, _ = _scored(Ordinary(), metric=MeanSquaredError())
    pair, _, _ = _scored(Returns(lambda p, t: (p, t)), metric=MeanSquaredError())
    more, _, _ = _scored(
        Returns(lambda p, t: {"loss": 0.0, "preds": p, "target": t}), metric=MeanSquaredError()
    )
    torch.testing.assert_close(pair, more)
    assert (pair < 0).all()  # Errors are negated.
    assert expected.shape == pair.shape
    largest, _, _ = _scored(Returns(lambda p, t: (p, t)), metric=MeanSquaredError(), mode="max")
    torch.testing.assert_close(largest, -pair)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": MeanSquaredError()}, "must return a tuple or a dictionary of .*, got Tensor"),
        ({}, r"logs \['score'\], not 'val_loss'"),
        ({"monitor": "score"}, "needs `mode`, .* to know whether 'score'"),
    ],
)
def test_what_cannot_be_scored(options: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        _scored(Returns(lambda p, t: p), **options)


def test_bad_arguments() -> None:
    space = SearchSpace(make_searchable(Ordinary()).specs)
    with pytest.raises(ValueError, match="Either `metric` or `monitor`"):
        Rewards(space, metric=MeanMetric(), monitor="val_loss")
    with pytest.raises(ValueError, match=r"`metric` must be a torchmetrics.Metric, got 'auc'"):
        Rewards(space, metric="auc")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='`mode` must be "max" or "min", got \'most\''):
        Rewards(space, mode="most")  # type: ignore[arg-type]
