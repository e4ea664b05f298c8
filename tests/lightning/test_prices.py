"""Gradients of the loss of Lightning modules, as a search asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
import numpy as np
import pytest
from tiny import MIXED, TRAIN, Net, SideBySide, batches_of
import torch
from torch import Tensor
from torch.nn import functional

from optuna_nis import SearchSpace
from optuna_nis.lightning import NISCallback
from optuna_nis.lightning.prices import Prices
from optuna_nis.lightning.rewards import Rewards
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.lightning.validation_scores import ValidationScores
from optuna_nis.nn import make_searchable, mask_gradients, supernet_layers
from optuna_nis.strategy.block_values import Gradients, Path, random_path
from optuna_nis.strategy.pricing import Pricing

WARNING = "The search goes on without gradients of the loss"


class Priced(Callback):
    """Asks for gradients when the training ends."""

    def __init__(self, space: SearchSpace, pricing: Pricing) -> None:
        rewards = Rewards(space, monitor="auroc", mode="max")
        self.scores = ValidationScores(rewards, num_examples=10)
        self.prices = Prices(space, self.scores)
        self.pricing = pricing
        self.found: list[list[Gradients]] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.scores.start(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        random = torch.get_rng_state()
        state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        metrics = dict(trainer.callback_metrics)
        self.found = self.prices.gradients(trainer, pl_module, self.pricing)
        assert torch.equal(random, torch.get_rng_state())
        after = pl_module.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in state.items())
        assert trainer.callback_metrics == metrics
        assert pl_module.training


def priced(
    net: LightningModule, paths: int = 1, num_examples: int | None = 10, num_batches: int = 3
) -> tuple[Priced, SearchSpace]:
    torch.manual_seed(0)
    space = make_searchable(net, budget="50%")
    rng = np.random.default_rng(0)
    batches = tuple(
        tuple(random_path(space, rng) for _ in range(paths)) for _ in range(num_batches)
    )
    callback = Priced(space, Pricing(batches, num_examples))
    trainer = quiet_trainer(max_epochs=1, callbacks=[callback])
    trainer.fit(net, batches_of(TRAIN), batches_of(MIXED))
    return callback, space


@contextmanager
def warned(caplog: pytest.LogCaptureFixture, message: str) -> Iterator[None]:
    with caplog.at_level(logging.WARNING):
        yield
    (record,) = [r.getMessage() for r in caplog.records if WARNING in r.getMessage()]
    assert message in record


@pytest.mark.parametrize("paths", [1, 2])
def test_they_are_those_of_the_training_step_on_validation_data(paths: int) -> None:
    net = Net()
    callback, _ = priced(net, paths=paths)
    assert callback.found is not None
    for number, (own, found) in enumerate(zip(callback.pricing.batches, callback.found)):
        ids, label = batches_of(MIXED).dataset[10 * number : 10 * number + 10]

        def loss() -> Tensor:
            return functional.binary_cross_entropy_with_logits(net(ids), label.float())  # noqa: B023

        for wanted, got in zip(mask_gradients(net, own, loss), found):
            for name, gradients in wanted.items():
                np.testing.assert_allclose(got[name], gradients, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("num_examples", "batches"), [(20, 2), (5, 1), (None, 1), (7, 1)])
def test_as_many_examples_as_are_asked_for_are_taken_in_turn(
    num_examples: int | None, batches: int
) -> None:
    seen: list[list[int]] = []

    class Noting(Net):
        def choice_loss(self, batch: Any) -> Tensor:
            self.note(batch[0].tolist())
            return super().training_step(batch, 0)

    net = Noting()
    net.note = lambda ids: seen.append(ids) if isinstance(ids, list) else None
    priced(net, num_examples=num_examples, num_batches=5)
    flat = [each for ids in seen for each in ids]
    assert flat == [n % 40 for n in range(len(flat))]
    assert len(seen) >= 5 * batches


def test_the_loss_of_a_module_that_says_what_it_is() -> None:
    class Own(Net):
        def choice_loss(self, batch: Any) -> Tensor:
            return 2 * super().training_step(batch, 0)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert self.training
            return super().training_step(batch, batch_idx)

    found = []
    for kind in (Own, Net):
        torch.manual_seed(1)
        found.append(priced(kind())[0].found)
    own, plain = found
    assert own is not None
    assert plain is not None
    for twice, once in zip(own, plain):
        for name in once[0]:
            np.testing.assert_allclose(twice[0][name], 2 * once[0][name], rtol=1e-4, atol=1e-7)


def test_a_step_that_logs_and_returns_a_dictionary() -> None:
    class Logging(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("train_loss", loss)
            self.log_dict({"again": loss})
            return {"loss": loss}

    assert priced(Logging())[0].found is not None


def test_a_step_that_needs_more_than_validation_data_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Needing(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if not self.training:
                raise KeyError("negatives")
            return super().training_step(batch, batch_idx)

    with warned(caplog, "KeyError: 'negatives'. A method `choice_loss(batch)` of Needing"):
        callback, _ = priced(Needing())
    assert callback.found is None


def test_a_step_that_returns_no_loss(caplog: pytest.LogCaptureFixture) -> None:
    class Detached(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss if self.training else loss.detach()

    with warned(caplog, "`loss` must compute a single number"):
        assert priced(Detached())[0].found is None
    assert "A method `choice_loss(batch)` of Detached" in caplog.text


def test_a_module_that_optimises_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    class Manual(Net):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            return loss

    net = Manual()
    net.automatic_optimization = False
    with warned(caplog, "`training_step` optimises by itself"):
        assert priced(net)[0].found is None


def test_gradients_that_are_no_numbers(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Net):
        def choice_loss(self, batch: Any) -> Tensor:
            return super().training_step(batch, 0) * torch.inf

    with warned(caplog, "the gradients of 'ids' are not finite numbers"):
        assert priced(Broken())[0].found is None
    # It has the method that other modules are told to have.
    assert "A method" not in caplog.text


@pytest.mark.parametrize("kind", [Net, SideBySide])
def test_a_search_prices_blocks(kind: type[Net]) -> None:
    net = kind()
    space = make_searchable(net, budget="60%")
    monitor = None if kind is SideBySide else "auroc"
    callback = NISCallback(
        space, monitor=monitor, mode="max", num_updates=2, group_size=2, score_examples=10
    )
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback])
    trainer.fit(net, batches_of(TRAIN), batches_of(MIXED))
    assert callback.candidates
    origins = {t.user_attrs.get("origin") for t in callback.study.trials}
    # In a space as small as this one they may propose the same.
    assert origins & {"policy", "values"}
    assert all(layer.num_choices == 1 for layer in supernet_layers(net).values())


def test_a_path_is_of_the_features_of_the_model(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    space = make_searchable(net, budget="50%")
    callback = Priced(space, Pricing(((Path({"other": (1,)}, {"other": (2,)}, 0.5),),), 10))
    trainer = quiet_trainer(max_epochs=1, callbacks=[callback])
    with warned(caplog, "`paths` must have widths for each of ['ids']"):
        trainer.fit(net, batches_of(TRAIN), batches_of(MIXED))
    assert callback.found is None
