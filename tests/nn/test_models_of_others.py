"""Models that others wrote are swapped, searched, given the sizes found and trained again.

They come with the optional dependencies ``foreign``.
"""

from __future__ import annotations

from collections.abc import Callable
import copy
from pathlib import Path
from typing import Any
from unittest import mock

from lightning.pytorch import LightningModule
import numpy as np
import optuna
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import BinaryAUROC

from optuna_nis import NISSampler
from optuna_nis.lightning import NISCallback
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import (
    apply_allocation,
    count_ids,
    make_searchable,
    set_choices,
    swapped_layers,
)
from optuna_nis.serve import to_dense, to_onnx

pytestmark = pytest.mark.slow

Batch = list[Tensor]
USERS, ITEMS, CITIES, LENGTH = 300, 120, 12, 5
SIZES = [USERS, ITEMS, CITIES]


class Wrapped(LightningModule):
    """What a user of such a model writes to train it with Lightning."""

    def __init__(self, net: nn.Module, predict: Callable[[Any, list[Tensor]], Tensor]) -> None:
        super().__init__()
        self.net = net
        self.predict = predict

    def forward(self, batch: list[Tensor]) -> Tensor:
        return self.predict(self.net, batch).clamp(1e-6, 1 - 1e-6)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.binary_cross_entropy(self(batch), batch[-1].float())

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        return self(batch), batch[-1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def _loader(rows: int, seed: int) -> DataLoader[Any]:
    """User, item, city, the last items (0 is padding), and whether there was a click."""
    generator = torch.Generator().manual_seed(seed)

    def ids(high: int, *shape: int) -> Tensor:
        return 1 + (torch.rand(shape, generator=generator).square() * (high - 1)).long()

    user, item, city = ids(USERS, rows), ids(ITEMS, rows), ids(CITIES, rows)
    history = ids(ITEMS, rows, LENGTH)
    known = torch.randint(1, LENGTH + 1, (rows, 1), generator=generator)
    history[torch.arange(LENGTH) >= known] = 0
    score = torch.sin(3.0 * item) + torch.cos(2.0 * history).mean(1) + torch.sin(1.0 * city)
    label = torch.rand(rows, generator=generator) < torch.sigmoid(2 * score)
    return DataLoader(TensorDataset(user, item, city, history, label.long()), batch_size=64)


def _search_and_retrain(
    build: Callable[[], Wrapped], ids: Any = None, **options: Any
) -> tuple[Wrapped, Batch]:
    """A model of the sizes found, trained, and a batch to predict."""
    torch.manual_seed(0)
    train, val = _loader(1280, 0), _loader(320, 1)
    batch = next(iter(val))
    model = build()
    plain = copy.deepcopy(model)
    expected = plain.eval()(batch)
    counts = count_ids(train, model, ids=ids, progress=False)

    space = make_searchable(model, counts=counts, budget=0.4, **options)
    torch.testing.assert_close(model.eval()(batch), expected)
    apply_allocation(plain, space.full(), counts=counts)
    torch.testing.assert_close(plain(batch), expected)

    study = optuna.create_study(direction="maximize", sampler=NISSampler(budget=space, seed=0))
    callback = NISCallback(
        space, study, metric=BinaryAUROC(), num_updates=3, group_size=3, warmup=0.5
    )
    quiet_trainer(max_epochs=2, callbacks=[callback]).fit(model.train(), train, val)
    assert sum(t.user_attrs["fidelity"] == "supernet" for t in study.trials) == 9
    best = callback.candidates[0]
    set_choices(model, space, [best])
    chosen = model.eval()(batch)
    torch.testing.assert_close(apply_allocation(model, best)(batch), chosen)

    final = apply_allocation(build(), best, counts=counts)
    size = sum(p.numel() for layer in swapped_layers(final) for p in layer.parameters())
    assert size == best.num_parameters <= space.budget
    before = _loss(final, train)
    quiet_trainer(max_epochs=3).fit(final, train, val)
    assert _loss(final, train) < before - 0.02
    return final.eval(), batch


def _export(final: Wrapped, batch: Batch, build: Callable[[], Wrapped], path: Path | None) -> None:
    """As plain layers, which the code of others loads; and as ONNX where a path is given."""
    expected = final(batch)
    if path is not None:
        # The label is no input of the model.
        to_onnx(Inputs(final), tuple(batch[:-1]), path, bags=["input_3"])
    plain = build().eval()
    plain.load_state_dict(to_dense(final).state_dict())
    torch.testing.assert_close(plain(batch), expected)


class Inputs(nn.Module):
    """The model as it is served."""

    def __init__(self, model: Wrapped) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model([*inputs, inputs[0]])


@torch.no_grad()
def _loss(model: Wrapped, loader: DataLoader[Any]) -> float:
    model.eval()
    losses = [model.training_step(batch, 0) for batch in loader]
    model.train()
    return float(torch.stack(losses).mean())


def test_deepctr_torch(tmp_path: Path) -> None:
    pytest.importorskip("requests")
    # It asks for its latest version when it is imported.
    with mock.patch("threading.Thread"):
        pytest.importorskip("deepctr_torch")
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import DeepFM

    columns = [
        SparseFeat("user", USERS, 8),
        SparseFeat("item", ITEMS, 8),
        SparseFeat("city", CITIES, 8),
        VarLenSparseFeat(SparseFeat("history", ITEMS, 8, embedding_name="item"), LENGTH, "mean"),
    ]

    def predict(net: Any, batch: list[Tensor]) -> Tensor:
        user, item, city, history, _ = batch
        inputs = torch.cat([torch.stack([user, item, city], 1), history], 1)
        predicted: Tensor = net(inputs.float()).squeeze(1)
        return predicted

    def build() -> Wrapped:
        return Wrapped(DeepFM(columns, columns, dnn_hidden_units=(32,)), predict)

    final, batch = _search_and_retrain(build)
    _export(final, batch, build, tmp_path / "model.onnx")
    # The penalty of its weights, which it holds in a list of its own, is that of the supernet.
    model = build()
    with torch.no_grad():
        before = model.net.get_regularization_loss()
    make_searchable(model)
    after = model.net.get_regularization_loss()
    torch.testing.assert_close(after, before)
    after.backward()
    tables = model.net.embedding_dict["item"].fields[0].weight
    assert tables.grad is not None


def test_torch_rechub(tmp_path: Path) -> None:
    pytest.importorskip("torch_rechub")
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.basic.initializers import RandomNormal
    from torch_rechub.models.ranking import DIN

    def predict(net: Any, batch: list[Tensor]) -> Tensor:
        names = ("user", "item", "city", "history")
        predicted: Tensor = net(dict(zip(names, batch)))
        return predicted

    def build() -> Wrapped:
        init = RandomNormal(0, 0.05)
        user = SparseFeature("user", USERS, 8, initializer=init)
        city = SparseFeature("city", CITIES, 8, initializer=init)
        item = SparseFeature("item", ITEMS, 8, padding_idx=0, initializer=init)
        history = SequenceFeature("history", ITEMS, 8, pooling="concat", shared_with="item")
        net = DIN(
            features=[user, city],
            history_features=[history],
            target_features=[item],
            mlp_params={"dims": [32]},
            attention_mlp_params={"dims": [16]},
        )
        return Wrapped(net, predict)

    final, batch = _search_and_retrain(build)
    _export(final, batch, build, tmp_path / "model.onnx")


@pytest.mark.parametrize("linear", [True, False])
def test_torchfm(linear: bool, tmp_path: Path) -> None:
    pytest.importorskip("torchfm")
    from torchfm.model.dfm import DeepFactorizationMachineModel

    def predict(net: Any, batch: list[Tensor]) -> Tensor:
        predicted: Tensor = net(torch.stack(batch[:3], 1))
        return predicted

    def build() -> Wrapped:
        return Wrapped(DeepFactorizationMachineModel(SIZES, 8, (32,), 0.1), predict)

    fields = {"net.embedding.embedding": {"user": USERS, "item": ITEMS, "city": CITIES}}
    if linear:
        final, batch = _search_and_retrain(build, fields=fields | {"net.linear.fc": SIZES})
    else:
        final, batch = _search_and_retrain(build, fields=fields, exclude=["net.linear.*"])
    _export(final, batch, build, tmp_path / "model.onnx" if linear else None)


def test_torch_geometric() -> None:
    pytest.importorskip("torch_geometric")
    from torch_geometric.nn.models import LightGCN

    train = _loader(1280, 0).dataset
    edges = torch.stack([train.tensors[0], USERS + train.tensors[1]])  # type: ignore[attr-defined]
    graph = torch.cat([edges, edges.flip(0)], 1)

    def predict(net: Any, batch: list[Tensor]) -> Tensor:
        # It reads the whole table, the `weight` of the layer.
        wanted = torch.stack([batch[0], USERS + batch[1]])
        predicted: Tensor = net.predict_link(graph, wanted, prob=True)
        return predicted

    def build() -> Wrapped:
        return Wrapped(LightGCN(USERS + ITEMS, 8, num_layers=2), predict)

    def ids(batch: list[Tensor]) -> dict[str, Tensor]:
        return {"net.embedding": torch.cat([batch[0], USERS + batch[1]])}

    final, batch = _search_and_retrain(build, ids, fields={"net.embedding": [USERS, ITEMS]})
    # Its graph goes beside the ids, and is not for ONNX.
    _export(final, batch, build, None)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_transformers(kind: str, tmp_path: Path) -> None:
    """The table of words is that of the head, too: one feature."""
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file

    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 1}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_positions=20, n_embd=16, n_layer=1, n_head=2, **sizes)
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.BertConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=20,
            **sizes,
        )
        model = transformers.BertForMaskedLM(config)
    model.eval()
    ids = torch.randint(1, 300, (6, 9))
    ids[:, 7:] = 0
    expected = model(input_ids=ids).logits.detach()
    plain, fresh = copy.deepcopy(model), copy.deepcopy(model)
    names = {module: name for name, module in model.named_modules()}
    words = names[model.get_input_embeddings()]
    counted = {words: torch.bincount(ids.view(-1), minlength=300)}
    space = make_searchable(model, include=[words], counts=counted, budget="30%")
    torch.testing.assert_close(model(input_ids=ids).logits, expected)
    choices = [space.sample(np.random.default_rng(seed), space.budget) for seed in range(2)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        set_choices(model, space, choices)
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    set_choices(model, space, choices[:1])
    expected = model(input_ids=ids).logits.detach()
    apply_allocation(model, choices[0])
    torch.testing.assert_close(model(input_ids=ids).logits, expected)
    model.save_pretrained(tmp_path)
    apply_allocation(fresh, choices[0], counts=counted)
    # It leaves out biases that are tied.
    found = fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert all(name.endswith("bias") for name in found.missing_keys)
    if not found.missing_keys:
        torch.testing.assert_close(fresh(input_ids=ids).logits, expected)
    plain.load_state_dict(to_dense(model).state_dict())
    torch.testing.assert_close(plain(input_ids=ids).logits, expected)
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
