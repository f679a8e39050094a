"""A run that is killed again and again, and disks that are full or broken."""

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from drift.common.files import make_room, read_json
from drift.runs.checkpoints import check, drop_after, prune
from tests.conftest import ROOT, Run, read_lines

SMALL = (
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    "task.train_size=200",
    "rollout.temperature=1.5",
    "eval.max_examples=8",
    "eval.every=4",
    "checkpoint.every=1",
)
NUM_KILLS, NUM_WRITING, NUM_STEPS = 20, 3, 60
GATHER = (
    "cluster.num_processes=2",
    "cluster.zero_stage=3",
    "cluster.threads=1",
    "rollout.weights=gather",
)
PER_RUN = ("time/", "mem/", "rollout/tokens_per_s", "unix_s")


def start(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    steps = f"num_steps={NUM_STEPS}"
    command = [sys.executable, "-m", "drift.train", *SMALL, steps, *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "hydra.run.dir=run"], cwd=folder, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
    )  # fmt: skip


def comparable(run: Path) -> list[dict[str, object]]:
    """The lines of metrics.jsonl without what two equal runs differ in."""
    return [
        {k: v for k, v in line.items() if not k.startswith(PER_RUN)}
        for line in read_lines(run / "metrics.jsonl")
    ]


def writing(run: Path) -> set[tuple[Path, int]]:
    """The files of checkpoints that are not whole, each with its time."""
    found: set[tuple[Path, int]] = set()
    with contextlib.suppress(FileNotFoundError):  # it becomes whole while we look
        for path in (run / "checkpoints").glob(".writing-*/*"):
            found.add((path, path.stat().st_mtime_ns))
    return found


def num_lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def kill_somewhere(
    process: subprocess.Popen[bytes], run: Path, luck: random.Random, in_write: bool
) -> str:
    """Kill while a checkpoint is written, or at a random moment; says which it was."""
    left, lines = writing(run), num_lines(run)  # by the kills before
    if in_write:
        while process.poll() is None:
            if writing(run) - left:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return "writing" if writing(run) - left else "between"
    end, most = time.monotonic() + luck.uniform(1.0, 12.0), luck.randint(1, 4)
    while time.monotonic() < end and process.poll() is None and num_lines(run) < lines + most:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return "between"


def test_twenty_kills_cost_no_step(tmp_path: Path) -> None:
    luck, run = random.Random(3), tmp_path / "run"
    moments: list[str] = []
    # a checkpoint is written in 30 ms, which is often over before the signal comes
    while len(moments) < NUM_KILLS or moments.count("writing") < NUM_WRITING:
        in_write = luck.random() < 0.5 or len(moments) >= NUM_KILLS
        moments.append(kill_somewhere(start(tmp_path), run, luck, in_write))
        assert len(moments) < 2 * NUM_KILLS
        for path in (run / "checkpoints").glob("step_*"):
            check(path)  # whole, or not there
    assert start(tmp_path).wait(timeout=300) == 0

    whole = tmp_path / "whole"
    whole.mkdir()
    assert start(whole).wait(timeout=300) == 0
    assert comparable(run) == comparable(whole / "run")
    client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'drift'")
    (only,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(only.info.run_id, "reward/mean")
    assert [metric.step for metric in history] == list(range(1, NUM_STEPS + 1))
    assert only.info.status == "FINISHED"


REMOVING = """
import os
from pathlib import Path
from drift.runs import checkpoints

def killed(*args, unlink=os.unlink, **named):
    unlink(*args, **named)
    os._exit(9)

os.unlink = killed
checkpoints.{removal}
"""


@pytest.mark.parametrize(
    ("removal", "left"),
    [
        ("prune(Path(), keep=1, best_step=None)", ["step_000001", "step_000003"]),
        ("drop_after(Path(), step=1)", ["step_000001", "step_000002"]),
    ],
)
def test_a_kill_while_checkpoints_are_removed_leaves_no_half_one(
    removal: str, left: list[str], tmp_path: Path
) -> None:
    for step in (1, 2, 3):
        folder = tmp_path / f"step_{step:06d}"
        folder.mkdir()
        for name in ("state.json", "optimizer.safetensors"):
            (folder / name).touch()
    code = REMOVING.format(removal=removal)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 9
    whole = sorted(path.parent.name for path in tmp_path.glob("step_*/state.json"))
    assert whole == sorted(path.name for path in tmp_path.glob("step_*"))
    assert whole == left


def test_a_checkpoint_that_cannot_go_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def held(path: str, *, dir_fd: int | None = None) -> None:
        """NFS keeps a folder in which a file is open."""
        if path == "policy":
            raise OSError(errno.ENOTEMPTY, "Directory not empty", path)
        rmdir(path, dir_fd=dir_fd)

    rmdir, beside = os.rmdir, tmp_path / ".writing-step_000003"
    for _ in range(2):  # the same steps again
        for name in ("step_000001", "step_000002", "step_000003", beside.name):
            (tmp_path / name / "policy").mkdir(parents=True)
        with monkeypatch.context() as patch:
            patch.setattr("os.rmdir", held)
            prune(tmp_path, keep=2, best_step=None)
            drop_after(tmp_path, step=2)
            make_room(beside)
        assert [path.name for path in tmp_path.glob("step_*")] == ["step_000002"]
        assert not list(beside.iterdir())
        shutil.rmtree(tmp_path / "step_000002")
        beside.rmdir()
    assert [record.getMessage().count("the next save tries") for record in caplog.records] == [
        1
    ] * 4
    make_room(beside)
    assert list(tmp_path.iterdir()) == [beside]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_noticed(damage: str, run: Run, tmp_path: Path) -> None:
    common = (*SMALL, "tracking=off", "hydra.run.dir=run")
    run("train", *common, "num_steps=2")
    file = tmp_path / "run" / "checkpoints" / "step_000002" / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-1])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    done = run("train", *common, "num_steps=3")
    assert "optimizer.safetensors is not what was written; trying the checkpoint before" in (
        done.stdout
    )
    assert "step_000001 at step 1" in done.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for two checkpoints of the tiny model, and no more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_checkpoints_and_never_the_last_one(run: Run, small_disk: Path) -> None:
    command = (
        "train", *SMALL, "checkpoint.keep=9", "num_steps=6", "tracking=off",
        f"hydra.run.dir={small_disk}/run",
    )  # fmt: skip
    done = run(*command, check=False)
    assert "has no checkpoint, the run goes on" in done.stdout
    assert "No space left on device" in done.stdout
    assert done.returncode == 1
    assert "the last step is not saved: make room" in done.stderr
    kept = sorted((small_disk / "run" / "checkpoints").glob("*"))
    assert 1 <= len(kept) < 6
    for path in kept:
        check(path)
    steps = [line["step"] for line in read_lines(small_disk / "run" / "metrics.jsonl")]
    assert steps == list(range(7))
    subprocess.run(["mount", "-o", "remount,size=70m", str(small_disk)], check=True)
    run(*command)
    check(small_disk / "run" / "checkpoints" / "step_000006")


@pytest.mark.parametrize("cluster", [("eval.max_examples=200",), GATHER], ids=["alone", "gather"])
def test_a_signal_in_an_evaluation_puts_it_off(cluster: tuple[str, ...], tmp_path: Path) -> None:
    slow = ("rollout.max_rows=1", "eval.every=2", "checkpoint.every=0", *cluster)
    run, whole = tmp_path / "run", tmp_path / "whole"
    whole.mkdir()
    process = start(tmp_path, *slow, "num_steps=3")
    second = run / "rollouts" / "step_000002.jsonl"
    while not second.exists():  # its evaluation is next
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=200) == 143
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == [0, 1]
    check(run / "checkpoints" / "step_000002")
    for folder in (tmp_path, whole):
        assert start(folder, *slow, "num_steps=3").wait(timeout=300) == 0
    assert comparable(run) == comparable(whole / "run")
    summaries = [read_json(folder / "summary.json") for folder in (run, whole / "run")]
    assert summaries[0]["eval"] == summaries[1]["eval"]
