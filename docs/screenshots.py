"""The pictures of docs/images: figures and dashboard of a study, in Chromium, light and dark.

make screenshots
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
import shutil
import tempfile
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import numpy as np
import optuna
from optuna import Study
import optuna_dashboard
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
import plotly.graph_objects as go

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.show import figures as visualization
from optuna_nis.show.dashboard import publish
from optuna_nis.study.storages import open_storage

IMAGES = Path(__file__).parent / "images"
PAPER = {"light": "#ffffff", "dark": "#15171a"}
MOST_BYTES = 200_000


def main() -> None:
    """Take all pictures of the study that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", required=True)
    parser.add_argument("--study-name", required=True)
    parser.add_argument("--output", type=Path, default=IMAGES)
    arguments = parser.parse_args()
    study = optuna.load_study(
        storage=open_storage(arguments.storage), study_name=arguments.study_name
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    figures = {
        name.removeprefix("plot_").replace("_", "-"): getattr(visualization, name)(study)
        for name in visualization.__all__
    }
    figures["allocation-200"] = many_features()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for theme in PAPER:
            for name, figure in figures.items():
                save_figure(chromium, figure, theme, arguments.output / f"{name}-{theme}.png")
            save_dashboard(chromium, study, theme, arguments.output)
        chromium.close()


def many_features() -> go.Figure:
    """Made-up sizes of 200 features, to see that they can be read."""
    rng = np.random.default_rng(0)
    specs = [
        EmbeddingSpec(f"feature_{index}", int(10 ** rng.uniform(1, 5)), 32) for index in range(200)
    ]
    space = SearchSpace(specs, budget="25%")
    return visualization.plot_allocation(space.sample(rng, space.budget, removal=0.1))


def save_figure(browser: Browser, figure: go.Figure, theme: str, path: Path) -> None:
    """Take the picture of a figure on a light or dark page."""
    height = int(figure.layout.height)
    page = browser.new_page(viewport={"width": 900, "height": height})
    with tempfile.TemporaryDirectory() as folder:
        page_file = Path(folder) / "figure.html"
        body = figure.to_html(full_html=False, include_plotlyjs=True)
        page_file.write_text(f'<body style="margin:0; background:{PAPER[theme]}">{body}</body>')
        page.goto(page_file.as_uri())
        page.wait_for_selector(".main-svg")
        page.wait_for_timeout(300)
        page.screenshot(path=path)
    page.close()
    compress(path)


def save_dashboard(browser: Browser, study: Study, theme: str, folder: Path) -> None:
    """Take the pictures of a study's page and of its note."""
    ids = publish(study)
    with serve(study) as address:
        context = browser.new_context(color_scheme=theme, viewport={"width": 1300, "height": 900})
        page = context.new_page()
        page.goto(address)
        for name in ids:
            page.wait_for_selector(f'[id="user-defined-plot:{name}"] .main-svg')
        page.wait_for_timeout(2_000)
        page.screenshot(path=folder / f"dashboard-{theme}.png", full_page=True)
        page.goto(f"{address}/note")
        page.wait_for_selector("table")
        page.screenshot(path=folder / f"dashboard-note-{theme}.png")
        context.close()
    for name in ("dashboard", "dashboard-note"):
        compress(folder / f"{name}-{theme}.png")


@contextmanager
def serve(study: Study) -> Iterator[str]:
    """The address of a study's page in a dashboard."""
    server = make_server(
        "127.0.0.1", 0, optuna_dashboard.wsgi(study._storage), handler_class=_Quiet
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/dashboard/studies/{study._study_id}"
    server.shutdown()
    server.server_close()


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


def compress(path: Path) -> None:
    """Few colours are enough for figures; those of large areas are kept as they are."""
    picture = Image.open(path).convert("RGB")
    counts = picture.getcolors(picture.width * picture.height)
    frequent = [color for _, color in sorted(counts, reverse=True)[:32]]
    rest = picture.quantize(128, Image.Quantize.MAXCOVERAGE).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette([*chain.from_iterable(frequent), *rest])
    few = picture.quantize(palette=palette, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    size = path.stat().st_size
    if size >= MOST_BYTES:
        raise SystemExit(f"{path} has {size:,} bytes, allowed are {MOST_BYTES:,}.")


if __name__ == "__main__":
    main()
