"""Trace pages of training and of evaluation: what is on them, and what a reader does there."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drift.config.rollout import RolloutWeights
from tests.commands.test_viewer_runs import (
    SMALL,
    evaluated as evaluated,
    rows_of,
    trained as trained,
)
from tests.conftest import ROOT, Run

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.mark.parametrize("weights", [RolloutWeights.replica, RolloutWeights.gather])
def test_the_first_of_two_ranks_writes_under_zero3(
    run: Run, tmp_path: Path, weights: RolloutWeights, trained: Path
) -> None:
    strict = f"cluster.deepspeed={ROOT / 'tests' / 'strict_zero.json'}"
    run("train", *SMALL, "num_steps=1", "traces.rows=6", "cluster.num_processes=2", strict,
        "cluster.threads=1", "cluster.zero_stage=3", f"rollout.weights={weights}",
        "hydra.run.dir=run")  # fmt: skip
    mine = rows_of(tmp_path / "run" / "traces" / "step_000001.html")
    theirs = rows_of(trained / "traces" / "step_000001.html")
    shared = [row for row in theirs if row["prompt"] in {other["prompt"] for other in mine}]
    assert shared
    for row in shared:
        assert any(row["tokens"] == other["tokens"] and row["views"] == other["views"]
                   for other in mine)  # fmt: skip


# ---- in a browser


def words(page: "Page", selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


@pytest.mark.browser
def test_a_reader_sees_what_was_trained_on(page: "Page", trained: Path) -> None:
    path = trained / "traces" / "step_000004.html"
    rows = rows_of(path)
    page.goto(path.as_uri())
    assert page.inner_text("h1") == "tiny on countdown, step 4, masking sequential"
    first = rows[0]
    assert f"reward {first['reward']:.2f}" in page.inner_text(".meta")
    advantage = f"{first['advantage']:+.2f}".replace("-", "−")
    assert f"advantage {advantage}" in page.inner_text(".meta")
    for k, view in enumerate(first["views"]):
        page.select_option("#shade", label=f"view {k + 1} of 4")
        kinds = page.locator(".canvas .token").evaluate_all(
            "ts => ts.map(t => t.classList.contains('scored') ? 's'"
            " : t.classList.contains('hid') ? 'h' : '-').join('')"
        )
        assert [c == "s" for c in kinds] == [bit == "1" for bit in view["scored"]]
        assert [c != "-" for c in kinds] == [bit == "1" for bit in view["hidden"]]
        number = view["scored"].count("1")
        assert f"hidden and scored ({number})" in page.inner_text("#legend")
    place = first["steps"].index(max(first["steps"]))
    page.locator(".canvas .token").nth(place).click()
    facts = page.inner_text("#detail")
    for name in ("step", "log-prob", "entropy", "view 4", "Likeliest words when committed"):
        assert name in facts
    shown = words(page, ".words td")
    assert len(shown) == 6
    assert shown[0] == f"{first['alternatives'][place][0][1]:.3f}"
    for grade in ("correct", "wrong"):
        page.locator("#filter button", has_text=re.compile(f"^{grade}$")).click()
        number = sum(row["label"] == grade for row in rows)
        assert page.locator(".row").count() == number
    page.locator("#filter button", has_text=re.compile("^all$")).click()
    page.locator(".row").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.locator('.row[aria-current="true"] .number').inner_text() == "2"


@pytest.mark.browser
def test_a_reader_compares_two_checkpoints_on_one_prompt(page: "Page", evaluated: Path) -> None:
    rows = rows_of(evaluated)
    before, after = rows[:40], rows[40:]
    page.goto(evaluated.as_uri())
    title = "countdown, test split, canvas 16, 16 steps, temperature 0"
    assert page.inner_text("h1") == title
    assert words(page, ".pane h2") == [before[0]["source"], after[0]["source"]]
    differ = [i for i in range(40) if before[i]["label"] != after[i]["label"]]
    assert differ  # the run changed what is solved
    page.locator("#filter button", has_text="differ").click()
    assert words(page, ".row .said") == [before[i]["prompt"] for i in differ]
    page.locator(".row").first.click()
    assert page.inner_text("#prompt") == before[differ[0]]["prompt"]
    shown = [
        "".join(page.locator(".canvas").nth(pane).locator(".token").all_text_contents())
        for pane in range(2)
    ]
    assert shown[0].startswith("".join(before[differ[0]]["tokens"][:8]))
    assert shown[1].startswith("".join(after[differ[0]]["tokens"][:8]))
    grades = words(page, ".pane .mark")
    assert grades == [before[differ[0]]["label"], after[differ[0]]["label"]]
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#step-text").startswith("step 0 / ")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    boxes = [page.locator(".pane").nth(i).bounding_box() for i in range(2)]
    assert boxes[0] and boxes[1] and boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
