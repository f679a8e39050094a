"""Trace pages of training and of evaluation: what is on them, and what a reader does there."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from drift.policy.loading import load_policy
from tests.conftest import ROOT, Run, checked
from tests.forkserver import command
from tests.unit.traces.test_viewer import embedded

SMALL = ("rollout.prompts_per_step=8", "rollout.group_size=4", "rollout.temperature=1.5",
         "eval.max_examples=10", "checkpoint.every=0",
         "tracking=off")  # fmt: skip


# ---- runs


def rows_of(page: Path) -> list[dict[str, Any]]:
    return embedded(page.read_text(encoding="utf-8"))["rows"]  # type: ignore[return-value]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, with pages after the first and every second."""
    folder = tmp_path_factory.mktemp("traced")
    more = ("traces.every=2", "traces.rows=6", "optim.lr=2e-3", "hydra.run.dir=run")
    checked(command, folder, "train", *SMALL, "num_steps=4", *more)
    return folder / "run"


@pytest.fixture(scope="module")
def evaluated(trained: Path) -> Path:
    """The page of an evaluation of the checkpoint before and after that run."""
    after = trained / "checkpoints" / "step_000004"
    both = f"checkpoints=[data/tiny-countdown,{after}]"
    more = ("eval.max_examples=60", "eval.trace_problems=40", "hydra.run.dir=ev")
    checked(command, trained.parent, "eval", both, "tracking=off", *more)
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
