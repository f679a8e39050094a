"""`python -m drift.eval`: what it writes, and what an interruption costs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from drift.config.task import CodeConfig, MathConfig
from drift.evals.cell import grader_code
from drift.rollout.evaluate import Completion
from drift.tasks import CLASSES
from tests import forkserver
from tests.conftest import ROOT, Run, checked, read_lines
from tests.forkserver import environment
from tests.unit.evals.test_eval import TINY

FEW = ("eval.max_examples=21", "tracking=off")  # an odd number: shares of ranks differ


def results(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "results.json").read_text())


def cells(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("cells/*/*/cell.json"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    settings = ["debug=smoke", "task.train_size=200", "num_steps=2", "tracking=off"]
    settings += ["hydra.run.dir=run", "traces.every=0"]
    checked(forkserver.command, folder, "train", *settings, "optim.lr=1e-3")
    assert not (folder / "run" / "traces").exists()
    return folder / "run" / "checkpoints" / "step_000002"


def test_checkpoints_are_compared_and_nothing_is_run_twice(
    run: Run, tmp_path: Path, trained: Path
) -> None:
    both = (f"checkpoints=[{TINY},{trained}]", "eval.max_examples=20", "hydra.run.dir=evaluated")
    done = run("eval", *both)
    folder = tmp_path / "evaluated"
    (group,) = results(folder)
    assert [cell["checkpoint"] for cell in group["cells"]] == [TINY, str(trained)]
    for cell in group["cells"]:
        assert cell["n"] == 20
        assert cell["ci95"][0] <= cell["accuracy"] <= cell["ci95"][1]
        assert cell["tokens_per_s"] > 0
        assert cell["first_prompt"].endswith("<|eot_id|><|assistant|>")
        assert cell["stop_tokens"] == ["<|endoftext|>", "<|eot_id|>"]
    (pair,) = group["comparisons"]
    assert pair["n"] == 20
    accuracy = [cell["accuracy"] for cell in group["cells"]]
    assert pair["difference"] == pytest.approx(accuracy[1] - accuracy[0])
    assert pair["only_second"] - pair["only_first"] == round(20 * pair["difference"])
    assert group["protocol"]["decoding"]["gen_length"] == 16
    assert group["protocol"]["grader"] == "drift.tasks.countdown.Countdown"
    assert "95 % intervals" in done.stdout
    assert "problem by problem" in done.stdout
    table = (folder / "results.md").read_text()
    assert re.search(rf"\| countdown \| 16 \| 16 \| \w+ \| {TINY} \|", table)
    assert (folder / "traces").exists()
    for path in cells(folder):
        rows = read_lines(path / "completions.jsonl")
        assert len(rows) == 20
        assert rows[0].keys() == Completion.__dataclass_fields__.keys()

    client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "drift")
    runs = client.search_runs([experiment.experiment_id])
    assert {r.data.params["checkpoint"] for r in runs} == {TINY, str(trained)}
    for r in runs:
        assert (r.info.status, r.data.tags["kind"]) == ("FINISHED", "eval")
        assert r.data.params["rollout.steps"] == "16"
        assert r.data.metrics["eval/accuracy"] in accuracy
        assert {f.path for f in client.list_artifacts(r.info.run_id)} == {"cell.json", "results.md"}

    again = run("eval", *both)
    assert again.stdout.count("finished, not run again") == 2
    assert "problem by problem" in again.stdout
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_a_sweep_has_one_table_and_grows(run: Run, tmp_path: Path, trained: Path) -> None:
    grid = ("-m", *FEW, "rollout.gen_length=16,32", "rollout.steps=8,16", "hydra.sweep.dir=grid")
    run("eval", *grid)
    first = results(tmp_path / "grid")
    sizes = [(g["protocol"]["decoding"]["gen_length"], g["protocol"]["decoding"]["steps"])
             for g in first]  # fmt: skip
    assert sorted(sizes) == [(16, 8), (16, 16), (32, 8), (32, 16)]
    assert (tmp_path / "grid" / "results.md").read_text().count("| countdown | ") == 4
    done = run("eval", *FEW, "task=sudoku", "results=grid", "hydra.run.dir=sudoku")
    assert [g["protocol"]["task"] for g in results(tmp_path / "grid")] == ["countdown"] * 4 + [
        "sudoku"
    ]
    assert "sudoku" in done.stdout
    again = run("eval", *FEW, "rollout.steps=8", "results=grid", "hydra.run.dir=again")
    assert "finished, not run again" in again.stdout
    run("eval", *FEW, f"checkpoints=[{trained}]", "rollout.steps=8", "results=grid",
        "hydra.run.dir=more")  # fmt: skip
    (pair,) = results(tmp_path / "grid")[0]["comparisons"]
    assert (pair["first"], pair["second"]) == (first[0]["cells"][0]["checkpoint"], str(trained))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("eval.samples=2",), "eval.samples=2 at rollout.temperature=0 are one completion"),
        (("eval.chunk_size=0",), "eval.chunk_size=0 must be a whole number of at least 1"),
        (("eval.every=5",), "eval.every: no such option; options here: max_examples, samples"),
        (("checkpoints=[nowhere]",), "model.path=nowhere is not a folder"),
        (("checkpoints=[data/tiny-countdown,.]",), ". has no config.json"),
        (("checkpoints=[data/tiny-countdown,mute]",), "mute has no tokenizer with a chat template"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    run: Run, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    shutil.copytree(ROOT / "data" / "tiny-countdown", tmp_path / "mute")
    (tmp_path / "mute" / "chat_template.jinja").unlink()
    done = run("eval", *FEW, *overrides, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.rglob("cells")) == []


# ---- the protocol


def test_every_source_that_grades_is_in_the_protocol_whatever_its_line_ends(tmp_path: Path) -> None:
    def elsewhere() -> str:
        code = "from drift import tasks; from drift.evals.cell import grader_code; "
        code += "print(grader_code(tasks.Math))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True,
            env=environment() | {"PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        return done.stdout.strip()

    shutil.copytree(ROOT / "drift", tmp_path / "drift", ignore=shutil.ignore_patterns("*.pyc"))
    changed = tmp_path / "drift" / "graders" / "compare.py"
    changed.write_bytes(changed.read_bytes().replace(b"\n", b"\r\n"))
    assert elsewhere() == grader_code(CLASSES[MathConfig]) != grader_code(CLASSES[CodeConfig])
    changed.write_text(changed.read_text() + "\n# another grader\n")
    assert elsewhere() != grader_code(CLASSES[MathConfig])
