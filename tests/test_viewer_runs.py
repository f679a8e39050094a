"""Trace pages of training and of evaluation: what is on them, and what a reader does there."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from drift.cluster.engine import Engine
from drift.common import rng
from drift.common.types import Advantages, MaskedViews, Rollout, Score
from drift.config import (
    AllConfig,
    ClusterConfig,
    CoupledConfig,
    Dtype,
    MaskingConfig,
    MaskingStrategy,
    OptimConfig,
    RandomConfig,
    RolloutWeights,
    RunConfig,
    SequentialConfig,
)
from drift.learner.masking import build_views
from drift.learner.update import prepare, restrict
from drift.policy.base import Policy
from drift.policy.loading import load_policy
from drift.rollout.decoding import decode
from drift.traces.rows import pick_rows, training_rows
from tests.conftest import ROOT, Run, make_rollout, masking, rollout_config
from tests.test_config import composed, typed
from tests.test_viewer import embedded

if TYPE_CHECKING:
    from playwright.sync_api import Page

SMALL = ("rollout.prompts_per_step=8", "rollout.group_size=4", "rollout.temperature=1.5",
         "eval.max_examples=10", "checkpoint.every=0", "tracking=off")  # fmt: skip
PROMPTS = ["3 9 5=7", "12 4=8", "19 16 5=8"]


def sampled() -> tuple[Policy, Rollout, Advantages]:
    """Three groups of two rows; the second group's rewards are equal."""
    policy = load_policy(ROOT / "data" / "tiny-countdown")
    ids = [policy.tokenizer(p, add_special_tokens=False)["input_ids"] for p in PROMPTS]
    config = rollout_config(temperature=1.5)
    repeated = [row for row in ids for _ in range(2)]
    trace = decode(policy, repeated, torch.arange(6), config, rng.stream(0, "test"))
    rollout = make_rollout(ids, trace, group_size=2, temperature=1.5)
    scores = [
        Score(reward=r, correct=r == 1, answer=None, verdict="pass" if r else "wrong")
        for r in (1.0, 0.0, 1.0, 1.0, 0.0, 1.0)
    ]
    advantages = Advantages(
        values_B=torch.tensor([0.5, -0.5, 0.0, 0.0, -0.5, 0.5]),
        used_B=torch.tensor([True, True, False, False, True, True]),
        zero_variance_groups=1,
    )
    return policy, replace(rollout, scores=scores), advantages


MASKINGS = [
    masking(SequentialConfig, strategy=MaskingStrategy.sequential, low_prob_threshold=0.5),
    masking(RandomConfig, strategy=MaskingStrategy.random),
    masking(CoupledConfig, strategy=MaskingStrategy.coupled),
    masking(AllConfig, strategy=MaskingStrategy.all),
]


def scored_by_the_loss(
    policy: Policy, rollout: Rollout, advantages: Advantages, views: MaskedViews
) -> torch.Tensor:
    """[K, B, C] bool, from the weights of the update itself."""
    engine = Engine(ClusterConfig(), Dtype.float32)
    engine.prepare(policy, OptimConfig(lr=1e-3), 1)
    config = typed(composed())
    assert isinstance(config, RunConfig)
    views = restrict(views, advantages.used_B)
    work = prepare(engine, policy, None, rollout, views, advantages, config)
    return work.token_KBC > 0


@pytest.mark.parametrize("config", MASKINGS, ids=lambda config: config.strategy.value)
def test_a_page_shows_what_the_loss_scores(config: MaskingConfig) -> None:
    policy, rollout, advantages = sampled()
    views = build_views(rollout.trace, rollout.rows_B, config, 0)
    scored_KBC = scored_by_the_loss(policy, rollout, advantages, views)
    if config.strategy == MaskingStrategy.sequential:
        assert (scored_KBC & ~views.scored_KBC).any()  # some candidates are likely enough
        assert (views.candidate_KBC & ~scored_KBC).any()  # and some are not
    rows = training_rows(policy, rollout, advantages, views, 6)
    for b, row in enumerate(rows):
        assert row.views is not None
        assert [view.hidden for view in row.views] == views.hidden_KBC[:, b].tolist()
        assert [view.scored for view in row.views] == scored_KBC[:, b].tolist()
        assert any(any(view.scored) for view in row.views) == bool(advantages.used_B[b])
        assert row.advantage == advantages.values_B[b]
        assert row.entropies is not None
        assert row.alternatives is not None


def test_rows_that_teach_come_first() -> None:
    policy, rollout, advantages = sampled()
    views = build_views(rollout.trace, rollout.rows_B, MASKINGS[3], 0)
    rows = training_rows(policy, rollout, advantages, views, 4)
    assert [row.advantage for row in rows] == [0.5, -0.5, -0.5, 0.5]
    assert [row.label for row in rows] == ["correct", "wrong", "wrong", "correct"]
    assert len(training_rows(policy, rollout, advantages, views, 5)) == 5
    assert len(training_rows(policy, rollout, advantages, views, 50)) == 6


def test_picked_rows_are_rows_of_the_rollout() -> None:
    _, rollout, _ = sampled()
    few = pick_rows(rollout, torch.tensor([1, 4]))
    assert [few.prompt_ids(0), few.prompt_ids(1)] == [rollout.prompt_ids(1), rollout.prompt_ids(4)]
    assert torch.equal(few.trace.canvas_BC, rollout.trace.canvas_BC[[1, 4]])
    assert few.rows_B.tolist() == [1, 4]


# ---- runs


def rows_of(page: Path) -> list[dict[str, Any]]:
    return embedded(page.read_text(encoding="utf-8"))["rows"]  # type: ignore[return-value]


def start(command: str, folder: Path, *overrides: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", f"drift.{command}", *overrides]
    subprocess.run(line, cwd=folder, env=environment, check=True, capture_output=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, with pages after the first and every second."""
    folder = tmp_path_factory.mktemp("traced")
    start("train", folder, *SMALL, "num_steps=4", "traces.every=2", "traces.rows=6",
          "optim.lr=2e-3", "hydra.run.dir=run")  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def evaluated(trained: Path) -> Path:
    """The page of an evaluation of the checkpoint before and after that run."""
    after = trained / "checkpoints" / "step_000004"
    start("eval", trained.parent, f"checkpoints=[data/tiny-countdown,{after}]", "tracking=off",
          "eval.max_examples=60", "eval.trace_problems=40", "hydra.run.dir=ev")  # fmt: skip
    (page,) = (trained.parent / "ev" / "traces").iterdir()
    return page


def test_training_writes_a_page_when_one_is_due(trained: Path) -> None:
    pages = sorted(path.name for path in (trained / "traces").iterdir())
    assert pages == ["step_000001.html", "step_000002.html", "step_000004.html"]
    sampled = [
        json.loads(line)
        for line in (trained / "rollouts" / "step_000002.jsonl").read_text().splitlines()
    ]
    rows = rows_of(trained / "traces" / "step_000002.html")
    assert len(rows) == 6
    known = {(line["prompt"], line["reward"], line["length"]) for line in sampled}
    assert {(row["prompt"], row["reward"], row["length"]) for row in rows} <= known
    taught = [row for row in rows if row["advantage"]]
    assert taught
    assert all(len(row["views"]) == 4 for row in rows)
    assert all("1" in "".join(view["scored"] for view in row["views"]) for row in taught)
    for row in rows:  # the words at commit are the sampler's: the one it took has its log-prob
        columns = zip(row["tokens"], row["steps"], row["logps"], row["alternatives"], strict=True)
        for token, step, logp, found in columns:
            if step >= 0 and token in dict(found):
                assert math.exp(logp) == pytest.approx(dict(found)[token], abs=1e-4)


def test_pages_change_nothing_of_a_run(trained: Path, run: Run, tmp_path: Path) -> None:
    run("train", *SMALL, "num_steps=4", "traces.every=0", "optim.lr=2e-3", "hydra.run.dir=run")
    for name in ("step_000001.jsonl", "step_000004.jsonl"):
        mine = (tmp_path / "run" / "rollouts" / name).read_text()
        assert mine == (trained / "rollouts" / name).read_text()
    assert not (tmp_path / "run" / "traces").exists()


@pytest.mark.slow
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


def test_a_full_disk_costs_the_page_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "traces").write_text("a file where the folder should be")
    done = run("train", *SMALL, "num_steps=1", "hydra.run.dir=run")
    assert "step_000001.html is not written: " in done.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


def test_evaluation_shows_the_first_problems_of_every_checkpoint(evaluated: Path) -> None:
    rows = rows_of(evaluated)
    sources = [row["source"] for row in rows]
    assert len(set(sources)) == 2
    assert sources == [sources[0]] * 40 + [sources[-1]] * 40
    assert [row["prompt"] for row in rows[:40]] == [row["prompt"] for row in rows[40:]]
    saved = sorted((evaluated.parents[1] / "cells").glob("*/data-tiny*/completions.jsonl"))
    lines = [json.loads(line) for line in saved[0].read_text().splitlines()]
    assert [row["prompt"] for row in rows[:40]] == [line["prompt"] for line in lines[:40]]
    policy = load_policy(ROOT / "data" / "tiny-countdown")
    stop = set(policy.tokenizer.convert_ids_to_tokens(list(policy.special.stop)))
    for row, line in zip(rows[:40], lines[:40], strict=True):
        text = "".join(t for t in row["tokens"][: row["length"]] if t not in stop)
        assert text == line["completion"]
        assert (row["label"] == "correct") == line["correct"]


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
