from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
import torch
from users_and_genres import SPACE, batch_of

from optuna_nis.models import RankingModule, ranking
from optuna_nis.nn import set_choices


def test_auc_of_choices_is_that_of_each_alone() -> None:
    model = RankingModule(SPACE, bags={"genres"}, init_std=1.0).eval()
    rng = np.random.default_rng(0)
    choices = [SPACE.sample(rng, cost) for cost in (500, 100, 30)]
    batch = batch_of()
    set_choices(model, SPACE, choices)
    found = model.choice_quality({k: torch.cat([v] * 3) for k, v in batch.items()}, 3)
    for choice, auc in zip(choices, found):
        set_choices(model, SPACE, [choice])
        assert auc.item() == pytest.approx(roc_auc_score(batch["label"], model(batch).detach()))


def test_auc_of_one_class_is_nan() -> None:
    model, seen = RankingModule(SPACE, bags={"genres"}), []
    batch = batch_of() | {"label": torch.zeros(16)}
    model.embeddings.register_forward_hook(lambda *args: seen.append(args))
    assert model.choice_quality(batch, 1).isnan().all()
    # Where tables are spread over processes, another may need rows of this one.
    assert len(seen) == 1


def test_auc_of_a_part_is_that_of_all_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = RankingModule(SPACE, bags={"genres"}), batch_of(4)
    # Those of the first batch might be probabilities, were they not logits as the others are.
    logits = torch.tensor([0.85, 0.9, -3.0, 1.2])
    batch |= {"label": torch.tensor([0.0, 1.0, 0.0, 1.0]), "logits": logits}
    monkeypatch.setattr(model, "forward", lambda batch: batch["logits"])
    monkeypatch.setattr(model, "log", lambda *args, **options: None)
    for step, metric in (
        (model.validation_step, model.val_auroc),
        (model.test_step, model.test_auroc),
    ):
        for rows in (slice(2), slice(2, None)):
            step({name: values[rows] for name, values in batch.items()}, 0)
        assert metric.compute() == roc_auc_score(batch["label"], logits) == 1.0


def test_counts_dense_parameters() -> None:
    model = RankingModule(SPACE.full(), bags={"genres"}, hidden=(4,))
    assert model.num_dense_parameters() == (16 * 4 + 4) + (4 + 1) + 16


@pytest.mark.parametrize("num_numeric", [0, 3])
def test_the_first_layers_together_give_what_each_gives(
    num_numeric: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "_MANY", 1000)
    torch.manual_seed(0)
    model = RankingModule(SPACE, bags={"genres"}, num_numeric=num_numeric, init_std=1.0)
    batch = batch_of(100)
    if num_numeric:
        batch["numeric"] = torch.randn(len(batch["label"]), num_numeric)
    logits = [model(batch)]
    with torch.no_grad():
        few = {name: values[:9] for name, values in batch.items()}
        torch.testing.assert_close(model(few), logits[0][:9])
        logits.append(model(batch))
    seen: list[int] = []
    for layer in (model.mlp[0], model.wide, model.mlp):
        handle = layer.register_forward_hook(lambda *args: seen.append(0))
        logits.append(model(batch))
        handle.remove()
    # Whoever watches a layer sees it called.
    assert len(seen) == 3
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0])
    parameters = [*model.parameters()]
    first, *others = (
        torch.autograd.grad(own.square().sum(), parameters, allow_unused=True)
        for own in (logits[0], *logits[2:])
    )
    for other in others:
        torch.testing.assert_close(other, first)


def test_layers_that_others_have_changed_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_MANY", 1000)
    model, batch = RankingModule(SPACE, bags={"genres"}), batch_of(100)
    expected = model(batch)
    torch.nn.utils.parametrizations.weight_norm(model.mlp[0])
    torch.testing.assert_close(model(batch), expected)
    wide = model.wide
    model.wide = torch.nn.Sequential(wide)  # type: ignore[assignment]
    torch.testing.assert_close(model(batch), expected)
    model.wide = torch.nn.Linear(wide.in_features, 1)
    model.wide.weight = wide.weight
    torch.testing.assert_close(model(batch), expected + model.wide.bias)
    model.mlp[0] = torch.nn.Linear(wide.in_features, 128, bias=False)
    few = {name: values[:9] for name, values in batch.items()}
    torch.testing.assert_close(model(batch)[:9], model(few))
