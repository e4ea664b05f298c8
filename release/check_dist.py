"""Check what the wheel and the source archive in ``dist`` hold.

    python release/check_dist.py

The wheel holds the files of the package that git knows and its metadata; the source archive holds
all that git knows but what only serves the repository. Nothing is missing, nothing else is there.
"""

from __future__ import annotations

from pathlib import Path
import subprocess
import sys
import tarfile
import zipfile

ROOT = Path(__file__).resolve().parent.parent
METADATA = {
    "METADATA",
    "RECORD",
    "WHEEL",
    "entry_points.txt",
    "licenses/LICENSE",
    "top_level.txt",
}
OF_THE_REPOSITORY = (
    ".ci/",
    ".gitignore",
    "benchmarks/results/output_tables/",
    "benchmarks/results/search_quality/",
)
MADE_BY_BUILD = {"MANIFEST.in", "PKG-INFO", "setup.cfg"}
# Where there is a C compiler.
COMPILED, SOURCES = "optuna_nis/nn/_kernels.", (".c", ".pyi")


def main() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    known = set(listed.stdout.splitlines())
    (wheel,) = (ROOT / "dist").glob("*.whl")
    (archive,) = (ROOT / "dist").glob("*.tar.gz")
    differences = [
        *compare(wheel.name, in_wheel(wheel), {f for f in known if f.startswith("optuna_nis/")}),
        *compare(
            archive.name,
            in_archive(archive) - MADE_BY_BUILD,
            {f for f in known if not f.startswith(OF_THE_REPOSITORY)} - MADE_BY_BUILD,
        ),
    ]
    if differences:
        sys.exit("\n".join(differences))
    print(f"{wheel.name} and {archive.name} hold what they should.")


def in_wheel(path: Path) -> set[str]:
    """Files of a wheel without its metadata, which must be complete."""
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
    folder = "-".join(path.name.split("-")[:2]) + ".dist-info/"
    metadata = {name.removeprefix(folder) for name in names if name.startswith(folder)}
    if metadata != METADATA:
        sys.exit(f"{path.name}: its metadata are {sorted(metadata)}, not {sorted(METADATA)}.")
    files = {name for name in names if not name.startswith(folder)}
    return {name for name in files if not name.startswith(COMPILED) or name.endswith(SOURCES)}


def in_archive(path: Path) -> set[str]:
    """Files of a source archive without what setuptools adds."""
    with tarfile.open(path) as archive:
        files = [member.name for member in archive.getmembers() if member.isfile()]
    names = {name.split("/", 1)[1] for name in files}
    return {name for name in names if not name.startswith("optuna_nis.egg-info/")}


def compare(name: str, found: set[str], expected: set[str]) -> list[str]:
    """What is missing, and what should not be there."""
    return [
        *(f"{name}: {file} is missing." for file in sorted(expected - found)),
        *(f"{name}: {file} should not be in it." for file in sorted(found - expected)),
    ]


if __name__ == "__main__":
    main()
