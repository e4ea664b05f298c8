from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import optuna
import pytest

from optuna_nis.study import attributes
from optuna_nis.study.attributes import read_text, save_text
from optuna_nis.study.keys import PIECE_KEY
from optuna_nis.study.storages import open_storage

LONG = "".join(map(chr, np.random.default_rng(0).integers(32, 0x2FFF, 60_000)))


def system_attrs(study):
    return study._storage.get_study_system_attrs(study._study_id)


@pytest.mark.parametrize("storage", [None, "sqlite://", "study.journal"])
def test_a_long_text_is_kept_in_pieces(storage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = optuna.create_study(storage=storage and open_storage(storage))
    assert read_text(study, "words") == ""
    save_text(study, "words", LONG)
    assert read_text(study, "words") == LONG
    assert read_text(study, "other") == ""
    attrs = system_attrs(study) | study.user_attrs
    sizes = [len(json.dumps(value)) for value in attrs.values()]
    assert len(sizes) > 3
    assert max(sizes) <= 65_535


@pytest.mark.parametrize("text", ["", "{}", "ü" * 2_000])
def test_a_short_text_is_kept_for_people_to_read(text):
    study = optuna.create_study()
    save_text(study, "words", text)
    assert read_text(study, "words") == study.user_attrs["words"] == text
    assert not system_attrs(study)


def test_a_later_text_takes_the_place_of_the_earlier(monkeypatch):
    study = optuna.create_study()
    save_text(study, "words", LONG)
    with monkeypatch.context() as patch:
        # Killed before it has written all.
        patch.setattr(study, "set_user_attr", lambda key, value: None)
        save_text(study, "words", LONG[::-1])
    assert read_text(study, "words") == LONG
    for text in (LONG[::-1], "short", LONG):
        save_text(study, "words", text)
        assert read_text(study, "words") == text


@pytest.mark.parametrize("length", [20_000, 64_000, 100_000])
def test_a_text_of_release_0_1_is_read_and_replaced(length):
    study = optuna.create_study()
    text = LONG.encode("ascii", "backslashreplace").decode()[:length]
    for index, start in enumerate(range(0, length, 32_000)):
        part = text[start : start + 32_000]
        study.set_user_attr(f"words:{index}" if index else "words", part)
    assert read_text(study, "words") == text
    for text in ("short", LONG):
        save_text(study, "words", text)
        assert read_text(study, "words") == text


def test_a_text_that_never_ends_is_not_read():
    study = optuna.create_study(study_name="s")
    for part in range(130):
        study.set_user_attr("words" + (f":{part}" if part else ""), "x" * 32_000)
    with pytest.raises(ValueError, match="'words' of 's' must be of at most 4,000,000"):
        read_text(study, "words")


def test_a_text_goes_with_a_copy_of_its_study():
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="a")
    save_text(study, "words", LONG)
    optuna.copy_study(
        from_study_name="a", to_study_name="b", from_storage=storage, to_storage=storage
    )
    assert read_text(optuna.load_study(study_name="b", storage=storage), "words") == LONG


def test_a_text_that_is_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(attributes, "_MOST_PIECES", 0)
    study = optuna.create_study()
    with pytest.raises(ValueError, match="`text` named 'words' must have at most 0 characters"):
        save_text(study, "words", LONG)
    assert not system_attrs(study)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"version": 2}, "must be of version 1"),
        ({"version": 1, "pieces": 10**9}, "must have at most 20,000 pieces, got 1000000000"),
        ({"version": 1, "pieces": None}, "pieces, got None"),
        ({"version": 1, "pieces": 1, "digest": "0"}, "its pieces are not all there"),
    ],
)
def test_what_others_wrote_is_refused(entry, message):
    study = optuna.create_study(study_name="mine")
    study.set_user_attr("words", entry)
    with pytest.raises(ValueError, match=f"'words' of 'mine' cannot be read: .*{message}"):
        read_text(study, "words")


@pytest.mark.parametrize("packed", ["not base 85: \x7f", base64.b85encode(b"not zlib").decode()])
def test_pieces_that_are_no_text_are_refused(packed):
    study = optuna.create_study()
    digest = attributes._digest(packed)
    study._storage.set_study_system_attr(study._study_id, f"{PIECE_KEY}words:{digest}:0", packed)
    study.set_user_attr("words", {"version": 1, "digest": digest, "pieces": 1})
    with pytest.raises(ValueError, match="cannot be read"):
        read_text(study, "words")


def test_a_text_that_swells_is_not_read(monkeypatch):
    study = optuna.create_study()
    save_text(study, "words", "0" * 100_000)
    assert len(base64.b85encode(zlib.compress(b"0" * 100_000))) < 500
    monkeypatch.setattr(attributes, "_MOST_BYTES", 10_000)
    with pytest.raises(ValueError, match="a text of at most 10,000 bytes"):
        read_text(study, "words")
