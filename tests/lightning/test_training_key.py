from __future__ import annotations

from datetime import timedelta
import threading
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    RichProgressBar,
    StochasticWeightAveraging,
)
import numpy as np
import pytest
import pytorch_lightning

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.lightning._training_key import (
    has_bar,
    model_key,
    options_key,
    shown_options,
    untold,
)
from optuna_nis.models import RankingModule


class _Unknown(Callback):
    def __init__(self) -> None:
        self.lock = threading.Lock()  # Not to be pickled.


def test_what_only_shows_something_or_says_where_changes_nothing() -> None:
    shown = [
        RichProgressBar(),
        LearningRateMonitor(),
        pytorch_lightning.callbacks.TQDMProgressBar(),
    ]
    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "logger": object()}
    assert options_key({}, []) == options_key(options, shown) == []
    assert [has_bar([each]) for each in shown] == [True, False, True]
    assert not has_bar([EarlyStopping("loss")])


def test_options_and_callbacks_tell_trainings_apart() -> None:
    keys: list[Any] = [
        options_key({}, []),
        options_key({"gradient_clip_val": 1.0}, []),
        options_key({"gradient_clip_val": 0.5}, []),
        options_key({}, [StochasticWeightAveraging(0.1)]),
        options_key({}, [StochasticWeightAveraging(0.2)]),
        options_key({"gradient_clip_val": 0.5}, [StochasticWeightAveraging(0.2)]),
    ]
    assert all(keys.count(key) == 1 for key in keys)
    again = options_key({"gradient_clip_val": 0.5}, [StochasticWeightAveraging(0.2)])
    assert again == keys[-1]


def test_values_that_json_has_not_are_told() -> None:
    options = {"limit_train_batches": np.int64(3), "max_time": timedelta(hours=1)}
    assert options_key(options, []) == [{"limit_train_batches": 3, "max_time": "1:00:00"}]
    assert untold(options, [EarlyStopping("loss")]) == []


@pytest.mark.parametrize(
    ("options", "callbacks", "names"),
    [({"plugins": object()}, [], ["`plugins`"]), ({}, [_Unknown()], ["_Unknown"])],
)
def test_what_cannot_be_told(
    options: dict[str, Any], callbacks: list[Callback], names: list[str]
) -> None:
    assert options_key(options, callbacks) is None
    assert untold(options, callbacks) == names


def test_what_can_be_told_of_options_is_beside_what_cannot() -> None:
    assert shown_options({}) == {}
    clipped = {"gradient_clip_val": 0.5}
    assert shown_options(clipped | {"devices": 2}) == clipped
    assert shown_options(clipped | {"profiler": object()}) == clipped | {"untold": ["`profiler`"]}


class _Shown:
    def __deepcopy__(self, memo: Any) -> _Shown:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("It cannot be pickled.")


class _Model(LightningModule):
    def __init__(self, rate: float, numbers: Any) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_models_are_known_by_what_they_were_made_of() -> None:
    many = np.arange(5000)
    others = many.copy()
    others[2000:3000] = 7  # Numbers that NumPy does not show.
    models = [_Model(0.1, many), _Model(0.2, many), _Model(0.1, others)]
    keys = [model_key(model) for model in models]
    assert len({*keys}) == 3
    assert model_key(_Model(0.1, np.arange(5000))) == keys[0]
    # What cannot be pickled is what it shows as, wherever it is in memory.
    generators = [_Model(0.1, _Shown()) for _ in range(2)]
    assert model_key(generators[0]) == model_key(generators[1]) not in keys
    full = SearchSpace([EmbeddingSpec("x", 9, 4)]).full()
    slow, fast = RankingModule(full), RankingModule(full)
    fast.options = {"learning_rate": 0.5}
    assert model_key(slow) != model_key(fast)
