"""What a reader sees and does on the trace page, in a real browser."""

import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drift.traces.page import TraceRow, View, write_trace
from tests.unit.traces.test_viewer import NASTY

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def open_rows(page: "Page", path: Path, rows: list[TraceRow], title: str = "Traces") -> None:
    write_trace(path / "trace.html", rows, title=title)
    page.goto((path / "trace.html").as_uri())


def words(page: "Page", selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def canvas(page: "Page", pane: int = 0) -> list[str]:
    return page.locator(".canvas").nth(pane).locator(".token").all_text_contents()


FOUR = TraceRow(
    label="correct",
    prompt="3 9 5=7",
    tokens=["9", " +", "\n", "<|eot_id|>"],
    steps=[1, 0, 2, 1],
    logps=[math.log(0.95), math.log(0.45), math.log(0.05), -0.2],
    length=4,
    entropies=[0.25, 1.5, 2.0, 0.5],
    alternatives=[
        [("9", 0.95), ("3", 0.05)], [(" +", 0.45), (" -", 0.4)], [("\n", 0.05)], [("x", 0.1)]
    ],
    advantage=0.75,
    reward=1.0,
    views=[
        View(hidden=[True, False, True, True], scored=[True, False, False, True]),
        View(hidden=[False, False, True, False], scored=[False, False, True, False]),
    ],
)  # fmt: skip


def test_steps_show_what_was_committed(page: "Page", tmp_path: Path) -> None:
    open_rows(page, tmp_path, [FOUR])
    assert canvas(page) == ["9", " +", "↵\n", "<|eot_id|>"]
    assert page.inner_text("#step-text") == "step 2 / 2"
    page.keyboard.press("ArrowLeft")
    assert canvas(page) == ["9", " +", "·\n", "<|eot_id|>"]
    page.keyboard.press("Home")
    assert canvas(page) == ["·", " ·", "·\n", "··········"]
    assert page.inner_text("#step-text") == "start"
    assert page.locator(".canvas .masked").count() == 4
    page.keyboard.press("ArrowRight")
    assert canvas(page) == ["·", " +", "·\n", "··········"]
    assert page.locator(".canvas .now").count() == 1
    page.keyboard.press("End")
    assert page.locator(".canvas .masked").count() == 0
    page.locator("#step").fill("1")
    assert canvas(page)[2] == "·\n"


def test_play_runs_to_the_end_and_space_pauses(page: "Page", tmp_path: Path) -> None:
    open_rows(page, tmp_path, [FOUR])
    page.click("#play")
    assert page.inner_text("#play") == "Pause"
    page.locator("#step-text", has_text="step 2 / 2").wait_for()
    assert page.inner_text("#play") == "Play"
    page.locator("h1").click()
    page.keyboard.press("Space")
    assert page.inner_text("#play") == "Pause"
    page.keyboard.press("Space")
    assert page.inner_text("#play") == "Play"
    assert page.inner_text("#step-text") == "start"


def test_probability_is_a_shade_with_a_legend(page: "Page", tmp_path: Path) -> None:
    open_rows(page, tmp_path, [FOUR])
    shades = [
        re.findall(r"\bp\d\b", c or "")
        for c in page.locator(".canvas .token").evaluate_all("ts => ts.map(t => t.className)")
    ]
    assert shades == [["p5"], ["p2"], ["p0"], ["p4"]]
    assert words(page, "#legend .scale .token") == ["≥ 0.9", "0.7", "0.5", "0.3", "0.1", "< 0.1"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_shades_can_be_told_apart_and_read_by_every_eye(
    page: "Page", tmp_path: Path, scheme: str
) -> None:
    """Luminance alone orders them, and the text on each has WCAG's contrast of 4.5."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    open_rows(page, tmp_path, [FOUR])
    found = page.locator("#legend .scale .token").evaluate_all(
        "ts => ts.map(t => [getComputedStyle(t).backgroundColor, getComputedStyle(t).color])"
    )
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    shades = [luminance(paper if "0, 0, 0, 0" in shade else shade) for shade, _ in found]
    assert shades == sorted(shades, reverse=scheme == "light")
    for one, other in pairwise(shades):
        assert contrast(one, other) > 1.1
    for shade, (_, text) in zip(shades, found, strict=True):
        assert contrast(shade, luminance(text)) >= 4.5


def luminance(colour: str) -> float:
    """WCAG's relative luminance of `rgb(28, 28, 26)`."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_a_token_tells_what_the_network_thought(page: "Page", tmp_path: Path) -> None:
    open_rows(page, tmp_path, [FOUR])
    page.locator(".canvas .token").nth(1).click()
    told = dict(zip(words(page, "#detail dt"), words(page, "#detail dd"), strict=True))
    assert told == {
        "position": "2 of 4",
        "step": "0",
        "log-prob": "−0.799",
        "probability": "0.450",
        "entropy": "1.500 nats",
        "view 1": "shown",
        "view 2": "shown",
    }
    assert page.inner_text("#detail .text") == "␣+"
    assert words(page, "#detail th") == ["␣+", "␣-"]
    assert words(page, "#detail td") == ["0.450", "0.400"]
    page.keyboard.press("Shift+ArrowRight")
    assert page.inner_text("#detail .text") == "↵"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#detail dd").nth(1).inner_text() == "2, masked so far"
    page.keyboard.press("Escape")
    assert page.locator("#detail .text").count() == 0


def test_a_view_shades_what_it_hid_and_scored(page: "Page", tmp_path: Path) -> None:
    open_rows(page, tmp_path, [FOUR])
    page.select_option("#shade", label="view 1 of 2")
    classes = page.locator(".canvas .token").evaluate_all("ts => ts.map(t => t.className)")
    assert classes == ["token scored", "token", "token hid", "token scored"]
    assert "hidden and scored (2)" in page.inner_text("#legend")
    page.select_option("#shade", label="view 2 of 2")
    assert "hidden and scored (1)" in page.inner_text("#legend")


def test_rows_are_filtered_searched_and_walked(page: "Page", tmp_path: Path) -> None:
    rows = [
        replace(FOUR, prompt=f"problem {i}", label=["correct", "wrong"][i % 2], reward=i / 4)
        for i in range(4)
    ]
    open_rows(page, tmp_path, rows, title="Four <b>problems</b>")
    assert page.inner_text("h1") == page.title() == "Four <b>problems</b>"
    assert words(page, ".row .said") == [f"problem {i}" for i in range(4)]
    assert "reward 0.75" in page.locator(".row").nth(3).inner_text()
    assert words(page, "#filter button") == ["all", "correct", "wrong"]
    page.click("#filter >> text=wrong")
    assert words(page, ".row .said") == ["problem 1", "problem 3"]
    assert page.inner_text("#count") == "2 of 4 completions"
    page.locator(".row").nth(0).click()
    assert page.inner_text("#prompt") == "problem 1"
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#prompt") == "problem 3"
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#prompt") == "problem 3"
    page.keyboard.press("ArrowUp")
    assert page.locator('.row[aria-current="true"] .said').inner_text() == "problem 1"
    page.fill("#search", "PROBLEM 3")
    assert words(page, ".row .said") == ["problem 3"]
    page.fill("#search", "nothing like it")
    assert page.inner_text("#count") == "No completion matches"


def test_two_sources_stand_side_by_side(page: "Page", tmp_path: Path) -> None:
    def group(source: str) -> list[TraceRow]:
        return [
            replace(FOUR, prompt=prompt, source=source, tokens=[f"{source}{i}", "b", "c", "d"])
            for prompt in ("p", "q")
            for i in range(2)
        ]

    open_rows(page, tmp_path, [*group("before"), *group("after")])
    assert words(page, ".row .said") == ["p", "p", "q", "q"]  # of the first source
    page.locator(".row").nth(3).click()
    assert words(page, ".pane h2") == ["before", "after"]
    assert (canvas(page, 0)[0], canvas(page, 1)[0]) == ("before1", "after1")
    boxes = [page.locator(".pane").nth(i).bounding_box() for i in range(2)]
    assert boxes[0] and boxes[1] and boxes[0]["y"] == boxes[1]["y"]
    page.keyboard.press("Home")
    assert page.locator(".canvas .masked").count() == 8
    page.locator(".canvas").nth(1).locator(".token").nth(0).click()
    assert "after" in page.locator("#detail h2").inner_text()
    page.select_option("#compare", label="after · completion 7 · correct")
    assert canvas(page, 1)[0] == "after0"
    page.select_option("#compare", "none")
    assert page.locator(".pane").count() == 1
    page.keyboard.press("ArrowUp")
    assert page.locator(".pane").count() == 1
    page.select_option("#source", "after")
    assert words(page, ".row .number") == ["5", "6", "7", "8"]


def test_prompts_on_which_two_sources_differ_can_be_picked(page: "Page", tmp_path: Path) -> None:
    labels = {"before": ("correct", "wrong"), "after": ("correct", "correct")}
    rows = [
        replace(FOUR, prompt=f"problem {i}", source=source, label=label)
        for source, pair in labels.items()
        for i, label in enumerate(pair)
    ]
    open_rows(page, tmp_path, rows)
    page.locator("#filter button", has_text="differ").click()
    assert words(page, ".row .said") == ["problem 1"]
    page.keyboard.press("ArrowDown")
    assert words(page, ".pane .mark") == ["wrong", "correct"]
    page.select_option("#source", "after")
    assert words(page, ".row .number") == ["4"]


def test_markup_in_texts_stays_text(page: "Page", tmp_path: Path) -> None:
    size = len(NASTY) - 1  # without the lone surrogate, which no browser can show
    tokens = NASTY[:size]
    nasty = TraceRow(
        label="wrong",
        prompt="".join(tokens),
        tokens=tokens,
        steps=[0] * size,
        logps=[-0.1] * size,
        length=size,
        alternatives=[[(token, 0.5)] for token in tokens],
        source="<b>source</b>",
    )
    page.on("dialog", lambda dialog: pytest.fail(f"a token's text was run: {dialog.message}"))
    open_rows(page, tmp_path, [nasty], title="</title><script>alert(1)</script>")
    assert page.title() == "</title><script>alert(1)</script>"
    assert page.locator("img").count() == 0
    shown = canvas(page)
    assert shown[0] == "</script>"
    assert shown[3] == "↵\n"
    assert shown[4] == "<img src=x onerror=alert(1)>"
    for i in range(size):
        page.locator(".canvas .token").nth(i).click()
    assert page.locator(".pane h2").inner_text() == "<b>source</b>"


def test_colours_follow_the_system_and_the_button(page: "Page", tmp_path: Path) -> None:
    def paper() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    open_rows(page, tmp_path, [FOUR])
    light = paper()
    page.emulate_media(color_scheme="dark")
    dark = paper()
    assert light != dark
    assert page.inner_text("#theme") == "Light"
    page.click("#theme")
    assert paper() == light
    assert page.inner_text("#theme") == "Dark"


def test_tab_visits_each_control_once(page: "Page", tmp_path: Path) -> None:
    open_rows(page, tmp_path, [replace(FOUR, source=s, prompt="p") for s in ("a", "b") * 20])
    visited = []
    for _ in range(13):
        page.keyboard.press("Tab")
        visited.append(
            page.evaluate(
                "(e => e.id || e.className.split(' ')[0] || e.textContent)(document.activeElement)"
            )
        )
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert visited == [
        "theme", "search", "source", "all", "correct", "differ", "row", "play", "step", "shade",
        "compare", "token", "token",
    ]  # fmt: skip
    assert page.locator("#detail .text").count() == 1  # the focus chose the token


def test_a_phone_scrolls_in_one_direction_only(page: "Page", tmp_path: Path) -> None:
    def wide() -> int:
        return page.evaluate("document.documentElement.scrollWidth")

    long = replace(FOUR, prompt="word " * 200 + "x" * 400, tokens=["y" * 300, " +", "\n", "z"])
    page.set_viewport_size({"width": 360, "height": 740})
    open_rows(page, tmp_path, [replace(long, source=s) for s in ("one", "two" * 40)])
    assert wide() == 360
    boxes = [page.locator(".pane").nth(i).bounding_box() for i in range(2)]
    assert boxes[0] and boxes[1] and boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
    page.locator(".canvas .token").nth(1).click()
    box = page.locator("#detail").bounding_box()
    assert box and box["y"] + box["height"] == 740
    assert wide() == 360
    page.click("#close")
    assert not page.locator("#detail").is_visible()
    assert not page.locator("#rows").is_visible()
    page.click("#open-list")
    assert page.locator("#rows").is_visible()
    assert wide() == 360
    page.locator(".row").nth(0).click()
    assert not page.locator("#rows").is_visible()


def test_512_tokens_in_64_rows_keep_the_layout(page: "Page", tmp_path: Path) -> None:
    size = 512
    tokens = [[" word", "\n", " a", "x" * 30, "="][i % 5] for i in range(size)]
    steps = [i // 4 for i in range(size)]
    rows = [
        TraceRow(
            label="wrong",
            prompt=f"problem {i}",
            tokens=tokens,
            steps=steps,
            logps=[-0.1] * size,
            length=size,
        )
        for i in range(64)
    ]
    open_rows(page, tmp_path, rows)
    assert page.locator(".canvas .token").count() == size
    height = page.locator(".canvas").bounding_box()
    page.keyboard.press("Home")
    assert page.locator(".canvas .masked").count() == size
    assert page.locator(".canvas").bounding_box() == height  # nothing moves when tokens appear
    for _ in range(63):
        page.keyboard.press("ArrowDown")
    assert page.inner_text("#prompt") == "problem 63"
    current = page.locator('.row[aria-current="true"]').bounding_box()
    assert current and 0 < current["y"] < 900
    for width in (360, 768, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
