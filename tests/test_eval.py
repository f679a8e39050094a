"""`python -m drift.eval`: what it writes, and what an interruption costs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from drift.cluster.engine import Engine
from drift.common import rng, terminal
from drift.common.errors import CheckpointError, ConfigError
from drift.config import ClusterConfig, Dtype, Split
from drift.evals.cell import Cell, Progress, grader_code, position_in, protocol
from drift.evals.results import done_cells
from drift.policy.loading import load_policy
from drift.rollout.evaluate import Completion, Problems, complete
from drift.tasks import TASKS, build_task
from tests import forkserver
from tests.conftest import ROOT, Run, checked, read_lines, rollout_config
from tests.test_config import composed, typed

TINY = "data/tiny-countdown"
FEW = ("eval.max_examples=21", "tracking=off")  # an odd number: shares of ranks differ
SAMPLED = ("eval.samples=4", "rollout.temperature=1.5", "eval.chunk_size=5", "model.path=" + TINY)


def results(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "results.json").read_text())


def cells(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("cells/*/*/cell.json"))


def completions(folder: Path) -> bytes:
    """Every completion of the only cell."""
    (cell,) = cells(folder)
    return (cell / "completions.jsonl").read_bytes()


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "drift.eval", *FEW, *overrides]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    settings = ["debug=smoke", "num_steps=2", "tracking=off", "hydra.run.dir=run", "traces.every=0"]
    checked(forkserver.command, folder, "train", *settings, "optim.lr=1e-3")
    assert not (folder / "run" / "traces").exists()
    return folder / "run" / "checkpoints" / "step_000002"


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


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


@pytest.mark.slow
def test_an_interrupted_cell_goes_on_at_its_last_whole_chunk(run: Run, tmp_path: Path) -> None:
    settings = ("eval.samples=2", "rollout.temperature=1", "eval.max_examples=600",
                "eval.chunk_size=20", f"model.path={TINY}")  # fmt: skip
    process = subprocess.Popen(
        command(*settings, "hydra.run.dir=killed"), cwd=tmp_path, env=environment(),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not cells(tmp_path / "killed"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (cell,) = cells(tmp_path / "killed")
    before = json.loads((cell / "cell.json").read_text())
    assert 0 < before["done"] < 600
    assert before["done"] % 20 == 0
    with (cell / "completions.jsonl").open("a") as file:
        file.write('{"key": "half a li')  # what a kill leaves of a chunk
    kept = (cell / "completions.jsonl").read_bytes()[: before["size"]]
    run("eval", *FEW, *settings, "hydra.run.dir=killed")
    run("eval", *FEW, *settings, "hydra.run.dir=whole")
    assert completions(tmp_path / "killed") == completions(tmp_path / "whole")
    assert completions(tmp_path / "killed").startswith(kept)
    mine, theirs = (results(tmp_path / name)[0]["cells"][0] for name in ("killed", "whole"))
    assert mine["accuracy"] == theirs["accuracy"]
    assert mine["pass_at"] == theirs["pass_at"]
    assert mine["decode_s"] > before["decode_s"] > 0


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_no_completion_is_lost(run: Run, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    settings = ("tracking=off", "eval.max_examples=600", "eval.chunk_size=20",
                "eval.trace_problems=1", f"hydra.run.dir={disk}/ev")  # fmt: skip
    try:
        done = run("eval", *settings, check=False)
        assert done.returncode == 1
        assert done.stderr.endswith("the same command goes on behind it\n")
        assert "completions.jsonl: No space left on device" in done.stderr
        (cell,) = cells(disk / "ev")
        known = json.loads((cell / "cell.json").read_text())
        assert 0 < known["done"] < 600
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        run("eval", *settings)
        assert completions(disk / "ev").count(b"\n") == results(disk / "ev")[0]["cells"][0]["n"]
        run("eval", *settings, "eval.chunk_size=256", "hydra.run.dir=whole")
        assert completions(disk / "ev") == completions(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_two_ranks_find_what_one_finds_in_chunks_of_any_size(run: Run, tmp_path: Path) -> None:
    run("eval", *FEW, *SAMPLED, "hydra.run.dir=one")
    run("eval", *FEW, *SAMPLED, "cluster.num_processes=2", "cluster.threads=1", "hydra.run.dir=two")
    run("eval", *FEW, *SAMPLED, "eval.chunk_size=256", "rollout.max_rows=3", "hydra.run.dir=whole")
    assert completions(tmp_path / "one") == completions(tmp_path / "two")
    assert completions(tmp_path / "one") == completions(tmp_path / "whole")
    drawn = {
        row["completion"] for row in read_lines(cells(tmp_path / "one")[0] / "completions.jsonl")
    }
    assert len(drawn) > 21  # the samples of a problem differ


@pytest.mark.slow
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
        (("eval.chunk_size=0",), "eval.chunk_size=0 must be greater than 0"),
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
        code = "from drift import cells, tasks; print(cells.grader_code(tasks.TASKS['math']))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True,
            env=environment() | {"PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        return done.stdout.strip()

    shutil.copytree(ROOT / "drift", tmp_path / "drift", ignore=shutil.ignore_patterns("*.pyc"))
    changed = tmp_path / "drift" / "graders" / "compare.py"
    changed.write_bytes(changed.read_bytes().replace(b"\n", b"\r\n"))
    assert elsewhere() == grader_code(TASKS["math"]) != grader_code(TASKS["code"])
    changed.write_text(changed.read_text() + "\n# another grader\n")
    assert elsewhere() != grader_code(TASKS["math"])


def test_the_packages_that_grade_are_in_the_protocol() -> None:
    config = typed(composed("task=math500", config="eval"))
    content = protocol(config, build_task(config.task), [])
    assert content["grader_packages"]["sympy"] == version("sympy")
    assert None not in content["grader_packages"].values()


# ---- a cell's files


def new(**changes: Any) -> Progress:
    values: dict[str, Any] = {"checkpoint": "a", "path": "a", "position": 0}
    return Progress(**(values | changes))


def line(sample: int) -> Completion:
    return Completion(
        key="k\u2028", prompt="p", sample=sample, completion="\u2028\n", answer=None, correct=False,
        verdict="no_answer", nfe=1, length=1, tokens=1, finished=True,
    )  # fmt: skip


def test_a_cell_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    cell = Cell(tmp_path / "cell", new())
    with cell.sole_user():
        cell.add([line(0), line(1)], 1, 0.5)
        busy = pytest.raises(ConfigError, match="is being evaluated by another process")
        with busy, Cell(tmp_path / "cell", new()).sole_user():
            pass
    again = Cell(tmp_path / "cell", new(position=3))
    assert again.read() == [line(0), line(1)]
    assert (again.progress.done, again.progress.decode_s, again.progress.position) == (1, 0.5, 0)


def test_a_checkpoint_that_comes_later_stands_behind(tmp_path: Path) -> None:
    for folder in ("base-1", "a-new-1", "base-2"):
        name = folder[:-2]  # the checkpoint of base-2 is base, with other files
        position = position_in(tmp_path, name)
        (tmp_path / folder).mkdir()
        Cell(tmp_path / folder, new(checkpoint=name, position=position, summary={})).save()
    found = [cell.progress for cell in done_cells(tmp_path)]
    assert [(cell.checkpoint, cell.position) for cell in found] == [("base", 0), ("a-new", 1)]


def test_a_cell_whose_completions_are_lost_is_made_again(tmp_path: Path) -> None:
    cell = Cell(tmp_path / "cell", new())
    with cell.sole_user():
        cell.add([line(0)], 1, 0.5)
    os.truncate(cell.completions, 5)
    again = Cell(tmp_path / "cell", new())
    with again.sole_user():
        assert (again.progress.done, again.progress.size) == (0, 0)
    assert cell.completions.read_bytes() == b""


def test_a_cell_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "cell.json").write_text('{"checkpoint": "a", "color": "red"}')
    with pytest.raises(CheckpointError, match=r"cell\.json is of another version: .*'color'"):
        Cell(tmp_path)


def test_a_part_has_the_completions_of_the_whole_and_no_problems_are_none() -> None:
    config = typed(composed("task=countdown", config="eval"))
    task = build_task(config.task)
    examples = task.examples(Split.test)[:3]
    policy = load_policy(ROOT / TINY)
    ids = [policy.tokenizer(e.prompt, add_special_tokens=False)["input_ids"] for e in examples]
    problems = Problems(split=Split.test, examples=examples, ids=ids)
    engine = Engine(ClusterConfig(), Dtype.float32)
    rollout = rollout_config(temperature=1.5)
    key = rng.stream(0, "eval")
    terminal.alive_at = 0.0
    whole = complete(engine, policy, task, problems, rollout, key=key, samples=2)
    assert terminal.alive_at > 0  # a denoising step is a sign of life
    part = complete(
        engine, policy, task, problems.part(1, 3), rollout, key=key, samples=2, first_row=2
    )
    assert part.rows == whole.rows[2:]
    assert [row.sample for row in whole.rows] == [0, 1] * 3
    assert torch.equal(part.rollout.rows_B, torch.arange(2, 6))
    none = complete(engine, policy, task, problems.part(3, 3), rollout, key=key)
    assert (none.rows, none.rollout.texts) == ([], [])
