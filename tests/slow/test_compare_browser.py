"""The report of a comparison, and MLflow's own page of it, in a real browser."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drift.comparison.records import from_experiment
from drift.comparison.report import Comparison, write_report
from drift.runs.stores import comparison_address, open_experiment
from tests.slow.test_tracking_server import Server
from tests.unit.comparison.test_compare import make_run, store_runs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
LONG = "masking=" + "x" * 80


@pytest.fixture
def report(tmp_path: Path) -> Path:
    runs = [
        make_run(name, seed, accuracies=(0.2, 0.3 + seed / 10, 0.7))
        for name in ("all", "coupled", "x" * 80)
        for seed in (0, 1)
    ]
    for number, run in enumerate(runs):
        run.params["optim.lr"] = str(number // 2)
    return write_report(tmp_path, Comparison(LONG, runs), None)[0]


@pytest.fixture(
    params=[(scheme, width) for scheme in ("light", "dark") for width in (1280, 390)],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def page(browser: "Browser", request: pytest.FixtureRequest) -> Iterator["Page"]:
    scheme, width = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    context.close()
    assert said == []


def luminance(color: str) -> float:
    """0 for rgb(0, 0, 0), 1 for rgb(255, 255, 255), without gamma."""
    return sum(float(part.strip(" rgba()")) for part in color.split(",")[:3]) / 765


def test_the_report_can_be_read_on_a_desk_and_on_a_phone(page: "Page", report: Path) -> None:
    page.goto(report.as_uri())
    assert page.locator("h1").inner_text() == LONG
    width, view = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width == view  # wide tables scroll in their own frame
    assert page.locator("#groups tbody tr").count() == 3
    assert page.locator("#runs tbody tr").count() == 6
    assert page.locator("#differences tbody td").all_inner_texts() == ["optim.lr", "0", "1", "2"]
    pictures = page.locator("figure svg")
    assert pictures.count() == 8
    for number in range(8):
        box = pictures.nth(number).bounding_box()
        assert box is not None
        assert box["width"] > 300
        assert box["height"] > 180
    ink = page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert abs(luminance(ink) - luminance(paper)) > 0.6
    page.locator("summary").click()
    assert page.get_by_text("rollout.group_size").is_visible()


def test_mlflows_page_at_the_printed_address_shows_the_runs(
    browser: "Browser", tmp_path: Path
) -> None:
    server = Server(tmp_path)
    store = store_runs(tmp_path)
    (tmp_path / "mlflow.db").rename(tmp_path / "server.db")
    server.start()
    try:
        served = replace(store, uri=server.uri)
        runs = from_experiment(served)
        ids = [run.run_id for run in runs if run.run_id]
        _, experiment = open_experiment(served)
        page = browser.new_page()
        page.goto(comparison_address(server.uri, ids, [experiment]))
        page.get_by_text("Comparing 2 Runs").first.wait_for(timeout=60_000)
        for run_id in ids:
            page.get_by_text(run_id).first.wait_for(timeout=60_000)
        page.get_by_text("masking").first.wait_for(timeout=60_000)
        page.get_by_text("eval/accuracy").first.wait_for(timeout=60_000)
        page.close()
    finally:
        server.stop()
