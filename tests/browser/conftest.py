from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
import shutil
from socketserver import ThreadingMixIn
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import numpy as np
import optuna
from optuna import Study
import optuna_dashboard
import pandas as pd
import pytest

from optuna_nis.lightning import DataConfig, search
from optuna_nis.show.dashboard import DashboardCallback

CHROMIUM = shutil.which("chromium")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serve(study: Study) -> Iterator[str]:
    """The dashboard of a study's storage, and the address of its page."""
    app = optuna_dashboard.wsgi(study._storage)
    server = make_server("127.0.0.1", 0, app, server_class=_Server, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dashboard/studies/{study._study_id}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A one-shot search of a small table, which wrote its figures itself."""
    folder = tmp_path_factory.mktemp("search")
    rng = np.random.default_rng(0)
    user, city = rng.integers(0, 300, 4_000), rng.integers(0, 9, 4_000)
    clicked = (rng.random(4_000) < 0.2 + 0.6 * (city % 2)).astype(int)
    frame = pd.DataFrame({"user": user, "city": city, "clicked": clicked})
    frame.to_csv(folder / "clicks.csv", index=False)
    study = optuna.create_study(
        storage=f"sqlite:///{folder}/study.db", study_name="clicks", direction="maximize"
    )
    data = DataConfig(table=str(folder / "clicks.csv"), label="clicked", features=("user", "city"))
    search(
        study,
        data,
        budget="50%",
        embedding_dim=8,
        epochs=1,
        num_updates=8,
        dashboard=DashboardCallback(interval=0),
    )
    return study


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: make chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium has no sandbox where the tests run as root.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(params=["light", "dark"])
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page of a light or dark system, in which nothing may go wrong."""
    context = browser.new_context(
        color_scheme=request.param, viewport={"width": 1400, "height": 900}
    )
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda m: m.type == "error" and troubles.append(m.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))

    def failed(request: Any) -> None:
        # Going to another page gives up what this one was still asking for.
        if request.failure != "net::ERR_ABORTED":
            troubles.append(f"failed: {request.url}: {request.failure}")

    page.on("requestfailed", failed)
    page.set_default_timeout(15_000)
    yield page
    context.close()
    assert troubles == []


@pytest.fixture
def served() -> Callable[[Study], AbstractContextManager[str]]:
    """The dashboard of any study, while the context lasts."""
    return serve


@pytest.fixture
def dashboard(study: Study) -> Iterator[str]:
    with serve(study) as address:
        yield address
