"""How Sphinx builds the site: ``make docs``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
import sys
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from sphinx.application import Sphinx
from sphinx.config import Config

HERE = Path(__file__).parent
# For the programs beside this one, readme_table.py, and building without an installation.
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks"), str(HERE.parent)]

import command  # noqa: E402
import worth_it  # noqa: E402

import optuna_nis  # noqa: E402

project = "optuna-nis"
author = "The optuna-nis developers"
copyright = author
version = release = optuna_nis.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = [
    "_build",
    "generated/quality*",
    "generated/costs.md",
    "generated/ablation.md",
    "generated/sample_efficiency.md",
    "generated/static",
]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
# What `make docs` does without where it cannot be had.
autodoc_mock_imports = [] if find_spec("torchrec") else ["torchrec", "fbgemm_gpu"]
autodoc_default_options = {"members": True}
python_display_short_literal_types = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Dataclasses describe their fields in `Args:`.
napoleon_use_ivar = True

# Two hyphens are an option, not a dash.
smartquotes = False
html_theme = "furo"
html_title = f"optuna-nis {release}"
html_static_path = ["static", "generated/static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"

sphinx_gallery_conf = {
    "examples_dirs": "../tutorials",
    "gallery_dirs": "tutorials",
    "filename_pattern": r"/\d\d_",
    # The two Lightning scripts, before and after, are shown on the page on one's own model, those
    # of other trainers on theirs.
    "ignore_pattern": r"_training\.py$|with_\w+\.py$|__init__\.py$",
    "within_subsection_order": "FileNameSortKey",
    # Running them takes minutes: `make docs GALLERY=1`.
    "plot_gallery": "False",
    "abort_on_example_error": True,
    "image_scrapers": (),
    "reset_modules": (),
    "capture_repr": ("_repr_html_", "__repr__"),
    "download_all_examples": False,
    "write_computation_times": False,
    "show_signature": False,
    "remove_config_comments": True,
}


def _write_generated(app: Sphinx, config: Config) -> None:
    """Pages and scripts that are made from the project itself."""
    static = HERE / "generated" / "static"
    static.mkdir(parents=True, exist_ok=True)
    (static / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
    worth_it.write(HERE.parent / "benchmarks" / "results", HERE / "generated")
    command.write(HERE / "generated")


def _load_plotly(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Only where there are figures: it is large."""
    if page == "worth_it" or page.startswith("tutorials/"):
        path = context["pathto"]("_static/plotly.min.js", resource=True)
        context["metatags"] += f'<script src="{path}"></script>'


def setup(app: Sphinx) -> None:
    """Hook into the build."""
    # Before Sphinx checks that the static folder is there.
    app.connect("config-inited", _write_generated, priority=100)
    app.connect("html-page-context", _load_plotly)
    go.Figure._repr_html_ = lambda figure: figure.to_html(full_html=False, include_plotlyjs=False)
