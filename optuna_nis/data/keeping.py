"""Features in a folder or a study: JSON, and beside it a file for vocabularies of many values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
import hashlib
import json
from pathlib import Path
import re
from typing import Any, Final

from optuna_nis._checks import check_folder
from optuna_nis._files import beside, replacing
from optuna_nis._json import read_json
from optuna_nis.data.features import Features
from optuna_nis.data.lookup import hashes_of
from optuna_nis.data.vocabulary import Vocabulary
from optuna_nis.data.vocabulary_file import read_packed, write_packed

FEATURES_FILE: Final = "features.json"
"""The file in a folder that :func:`save_features` writes and others may read."""

# With this many values, JSON takes a second to read and some 150 bytes of memory a value.
_LARGE: Final = 100_000
# In the place of a vocabulary that is kept in a file; those of JSON are of version 1.
_VERSION: Final = 2
_FILE: Final = re.compile(r"vocabularies-([0-9a-f]{32})\.parquet")
_TARGETS: Final = "targets"
_VOCABULARIES: Final = "vocabularies"


def save_features(features: Features, folder: str | Path) -> None:
    """Write features into a folder, in place of earlier ones.

    Vocabularies of more than 100,000 values go into a Parquet file, a few bytes a value; the file
    of JSON names it. Whoever is killed meanwhile leaves the earlier features or these.

    Args:
        features: The features.
        folder: Made if it is not there.

    Raises:
        ValueError: If the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_features(data.features, folder)
        ...     load_features(folder) == data.features
        True
    """
    folder = Path(folder)
    check_folder("folder", folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = pack_features(features, folder)
    with replacing(folder / FEATURES_FILE) as new:
        new.write_text(text)
    drop_unused(folder)


def load_features(folder: str | Path) -> Features:
    """Read what :func:`save_features` wrote, or the JSON of features in a file of that name.

    Args:
        folder: The folder. Nothing in it is executed.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is malformed.
    """
    path = Path(folder) / FEATURES_FILE
    if not path.is_file():
        raise FileNotFoundError(f"`folder` must hold features, but {str(path)!r} is not there.")
    return unpack_features(path.read_text(), folder)


def pack_features(features: Features, folder: str | Path) -> str:
    """Write the vocabularies of many values into a folder, and the rest as JSON.

    Args:
        features: The features.
        folder: Where the file of vocabularies goes, named by what is in it; made if need be.

    Returns:
        JSON for :func:`unpack_features`. Without such vocabularies, nothing is written and it is
        that of :meth:`Features.to_json`.
    """
    large = _large(features)
    if not large:
        return features.to_json()
    file = _write(large, Path(folder))
    return _to_json(
        features,
        {
            key: {"version": _VERSION, "file": file, "size": len(vocabulary)}
            for key, vocabulary in large.items()
        },
    )


def unpack_features(text: str, folder: str | Path) -> Features:
    """Read what :func:`pack_features` returned.

    Args:
        text: The JSON.
        folder: Where the file of vocabularies is. Nothing in it is executed.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it or the text is malformed.
    """
    data = read_json(text)
    entries = {}
    for key, holder, name in _places(data):
        entry = holder[name]
        if isinstance(entry, dict) and entry.get("version") == _VERSION:
            entries[key] = entry
            holder[name] = Vocabulary([""], [1]).to_dict()
    features = Features.from_dict(data)
    if not entries:
        return features
    large = _read(entries, Path(folder))
    return replace(
        features,
        vocabularies={
            name: large.get(_key(features.share.get(name, name)), each)
            for name, each in features.vocabularies.items()
        },
        targets=large.get(_TARGETS, features.targets),
    )


def drop_unused(folder: str | Path) -> None:
    """Remove files of vocabularies that the features in a folder do not name.

    Args:
        folder: A folder that :func:`save_features` wrote, of nobody else's.
    """
    folder = Path(folder)
    text = (folder / FEATURES_FILE).read_text()
    for path in folder.glob("vocabularies-*.parquet"):
        if _FILE.fullmatch(path.name) and path.name not in text:
            path.unlink(missing_ok=True)


def fingerprint(features: Features) -> bytes:
    """Bytes that are others as soon as anything in the features is, few for many values.

    Example:
        >>> fingerprint(data.features) == data.features.to_json().encode()
        True
    """
    large = _large(features)
    if not large:
        return features.to_json().encode()
    return _to_json(features, {key: _hashed(each) for key, each in large.items()}).encode()


def _hashed(vocabulary: Vocabulary) -> str:
    table = vocabulary.to_table()
    digest = hashlib.blake2b(table.column_names[0].encode(), digest_size=16)
    digest.update(hashes_of(table.column(0).combine_chunks()).data)
    digest.update(vocabulary.counts.data)
    return digest.hexdigest()


def _large(features: Features) -> dict[str, Vocabulary]:
    """The vocabularies of many values, by a key of each."""
    known = features.vocabularies
    found = {_key(name): known[name] for name in known if name not in features.share}
    if features.targets is not None:
        found[_TARGETS] = features.targets
    return {key: each for key, each in found.items() if len(each) > _LARGE}


def _key(name: str) -> str:
    return f"{_VOCABULARIES}.{name}"


def _places(data: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Where vocabularies are in the dictionary of features, by their keys."""
    if not isinstance(data, dict):
        return
    if isinstance(vocabularies := data.get(_VOCABULARIES), dict):
        for name in vocabularies:
            yield _key(name), vocabularies, name
    if _TARGETS in data:
        yield _TARGETS, data, _TARGETS


def _to_json(features: Features, entries: Mapping[str, Any]) -> str:
    """The features with something else in the place of some vocabularies."""
    vocabularies = {
        name: each.cut(1) if _key(features.share.get(name, name)) in entries else each
        for name, each in features.vocabularies.items()
    }
    targets = features.targets
    if targets is not None and _TARGETS in entries:
        targets = targets.cut(1)
    data = replace(features, vocabularies=vocabularies, targets=targets).to_dict()
    for key, holder, name in _places(data):
        holder[name] = entries.get(key, holder[name])
    return json.dumps(data)


def _write(vocabularies: Mapping[str, Vocabulary], folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    with beside(folder / "vocabularies.parquet") as new:
        write_packed({key: each.to_table() for key, each in vocabularies.items()}, new)
        name = f"vocabularies-{_digest(new)}.parquet"
        new.replace(folder / name)
    return name


def _read(entries: Mapping[str, dict[str, Any]], folder: Path) -> dict[str, Vocabulary]:
    names = {str(entry.get("file")) for entry in entries.values()}
    match = _FILE.fullmatch(name := names.pop())
    if names or match is None:
        raise ValueError(f"These features are malformed: {name!r} is no file of vocabularies.")
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"`folder` must hold the vocabularies of the features, but {str(path)!r} is not there."
        )
    if _digest(path) != match[1]:
        raise ValueError(f"The file of vocabularies {str(path)!r} is not as it was written.")
    found = {key: Vocabulary.from_table(table) for key, table in read_packed(path).items()}
    wanted = {key: entry.get("size") for key, entry in entries.items()}
    sizes = {key: len(each) for key, each in found.items()}
    if wanted != sizes:
        raise ValueError(
            f"The file of vocabularies {str(path)!r} must hold as many values as the features "
            f"say, {wanted}, got {sizes}."
        )
    return found


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()[:32]
