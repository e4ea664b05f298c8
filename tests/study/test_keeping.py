from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import optuna
import pytest

from optuna_nis.study import _keeping as keeping
from optuna_nis.study._keeping import keep_text, kept_text
from optuna_nis.study.storages import open_storage


def system_attrs(study):
    return study._storage.get_study_system_attrs(study._study_id)


@pytest.mark.parametrize("storage", [None, "sqlite://", "study.journal"])
def test_a_long_text_is_kept_in_pieces(storage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = optuna.create_study(storage=storage and open_storage(storage))
    assert kept_text(study, "words") is None
    text = "".join(map(chr, np.random.default_rng(0).integers(32, 0x2FFF, 60_000)))
    keep_text(study, "words", text)
    assert kept_text(study, "words") == text
    assert kept_text(study, "other") is None
    sizes = [len(json.dumps(value)) for value in system_attrs(study).values()]
    assert len(sizes) > 3
    assert max(sizes) <= 65_535
    assert not study.user_attrs


@pytest.mark.parametrize("text", ["", "{}"])
def test_short_texts(text):
    study = optuna.create_study()
    keep_text(study, "words", text)
    assert kept_text(study, "words") == text


def test_a_later_text_takes_the_place_of_the_earlier(monkeypatch):
    study = optuna.create_study()
    keep_text(study, "words", "first")
    with monkeypatch.context() as patch:
        # Killed before it has written all.
        patch.setattr(keeping, "_set", lambda study, key, value: None)
        keep_text(study, "words", "second")
    assert kept_text(study, "words") == "first"
    keep_text(study, "words", "second")
    assert kept_text(study, "words") == "second"


def test_a_text_goes_with_a_copy_of_its_study():
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="a")
    keep_text(study, "words", "text")
    optuna.copy_study(
        from_study_name="a", to_study_name="b", from_storage=storage, to_storage=storage
    )
    assert kept_text(optuna.load_study(study_name="b", storage=storage), "words") == "text"


def test_a_text_that_is_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(keeping, "_MOST_PIECES", 0)
    study = optuna.create_study()
    with pytest.raises(ValueError, match="`text` named 'words' must have at most 0 characters"):
        keep_text(study, "words", "text")
    assert not system_attrs(study)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("text", "must be of version 1, got 'text'"),
        ({"version": 2}, "must be of version 1"),
        ({"version": 1, "pieces": 10**9}, "must have at most 20,000 pieces, got 1000000000"),
        ({"version": 1, "pieces": None}, "pieces, got None"),
        ({"version": 1, "pieces": 1, "digest": "0"}, "its pieces are not all there"),
    ],
)
def test_what_others_wrote_is_refused(entry, message):
    study = optuna.create_study(study_name="mine")
    study._storage.set_study_system_attr(study._study_id, "nis:kept:words", entry)
    with pytest.raises(ValueError, match=f"kept:words' of 'mine' cannot be read: .*{message}"):
        kept_text(study, "words")


@pytest.mark.parametrize("packed", ["not base 85: \x7f", base64.b85encode(b"not zlib").decode()])
def test_pieces_that_are_no_text_are_refused(packed):
    study = optuna.create_study()
    digest = keeping._digest(packed)
    for key, value in (
        (f"nis:kept:words:{digest}:0", packed),
        ("nis:kept:words", {"version": 1, "digest": digest, "pieces": 1}),
    ):
        study._storage.set_study_system_attr(study._study_id, key, value)
    with pytest.raises(ValueError, match="cannot be read"):
        kept_text(study, "words")


def test_a_text_that_swells_is_not_read(monkeypatch):
    study = optuna.create_study()
    keep_text(study, "words", "0" * 100_000)
    assert len(base64.b85encode(zlib.compress(b"0" * 100_000))) < 500
    monkeypatch.setattr(keeping, "_MOST_BYTES", 10_000)
    with pytest.raises(ValueError, match="a text of at most 10,000 bytes"):
        kept_text(study, "words")
