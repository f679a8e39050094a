"""Runs of several ranks, for real: ZeRO and DDP on CPU processes, every way to start them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.commands.test_own_task import TINY
from tests.conftest import ROOT, Run, checked, read_lines
from tests.forkserver import command
from tests.unit.tasks.test_own_task import block

# thresholds 0: else a small model stays gathered, and a missing gather is not noticed
STRICT = f"cluster.deepspeed={ROOT / 'tests' / 'strict_zero.json'}"
TWO = ("cluster.num_processes=2", "cluster.threads=1")
ZERO3 = (*TWO, "cluster.zero_stage=3", STRICT)
SMALL = (
    "rollout.prompts_per_step=8",
    "rollout.group_size=4",
    "task.train_size=200",
    "rollout.temperature=1.5",  # so that a few groups hold right and wrong answers
    "eval.max_examples=21",  # an odd number: the ranks' shares differ
    "eval.every=2",
    "checkpoint.every=2",
    "tracking=off",
)
SLOWER = "rollout.max_rows=1"  # changes no sample; time to be killed in
LAST = "eval/test_accuracy"  # logged where a run ends, also one that is taken up again
PER_RUN = ("time/", "mem/", "rollout/tokens_per_s", "unix_s", "optim/padding_frac")


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step_*"))


def differences(one: Path, other: Path) -> tuple[float, float]:
    """The largest difference of a metric, and of a weight of the newest checkpoints."""
    lines = list(
        zip(read_lines(one / "metrics.jsonl"), read_lines(other / "metrics.jsonl"), strict=True)
    )
    metric = max(
        abs(float(a[key]) - float(b[key]))  # type: ignore[arg-type]
        for a, b in lines
        for key in a.keys() | b.keys()
        if not key.startswith(PER_RUN) and key != LAST
    )
    file = newest(one) / "policy" / "model.safetensors"
    if not file.exists():
        file = newest(one) / "policy" / "adapter_model.safetensors"
    mine, theirs = load_file(file), load_file(newest(other) / "policy" / file.name)
    assert mine.keys() == theirs.keys()
    return metric, max(float((mine[k] - theirs[k]).abs().max()) for k in mine)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps by one process."""
    folder = tmp_path_factory.mktemp("alone")
    checked(command, folder, "train", *SMALL, "num_steps=4", "hydra.run.dir=run")
    return folder / "run"


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    "cluster",
    [
        (*TWO, "cluster.zero_stage=0"),
        (*TWO, "cluster.zero_stage=1"),
        (*TWO, "cluster.zero_stage=2"),
        ZERO3,
        (*ZERO3, "rollout.weights=gather"),
        (*ZERO3, "model.gradient_checkpointing=true", "optim.tokens_per_forward=220"),
        (*ZERO3, "cluster.offload_optimizer=true"),
    ],
    ids=["ddp", "zero1", "zero2", "zero3", "gather", "checkpointing", "offload"],
)
def test_two_ranks_do_what_one_does(
    cluster: tuple[str, ...], run: Run, tmp_path: Path, alone: Path
) -> None:
    done = run("train", *SMALL, *cluster, "num_steps=4", "hydra.run.dir=run")
    assert "each completes 4 of 8 prompts" in done.stdout
    metric, weight = differences(alone, tmp_path / "run")
    assert metric < 1e-4
    assert weight < 1e-5
    for step in (1, 4):
        name = f"rollouts/step_{step:06d}.jsonl"
        assert read_lines(alone / name) == read_lines(tmp_path / "run" / name)


@pytest.fixture(scope="module")
def by_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The loss's one denominator is known when the candidates of all views are chosen."""
    folder = tmp_path_factory.mktemp("by_token")
    checked(command, folder, "train", *SMALL, *BY_TOKEN, "hydra.run.dir=run")
    lines = read_lines(folder / "run" / "metrics.jsonl")[1:]
    assert any(line["masking/scored_tokens"] for line in lines)
    return folder / "run"


BY_TOKEN = ("objective.normalization=token", "num_steps=3")
STAGES = [
    (*TWO, "cluster.zero_stage=0"),
    (*TWO, "cluster.zero_stage=1"),
    (*TWO, "cluster.zero_stage=2"),
    ZERO3,
]


@pytest.mark.parametrize("cluster", STAGES, ids=["ddp", "zero1", "zero2", "zero3"])
def test_a_gradient_is_scaled_before_the_step_on_all_ranks(
    cluster: tuple[str, ...], run: Run, tmp_path: Path, by_token: Path
) -> None:
    run("train", *SMALL, *cluster, *BY_TOKEN, "hydra.run.dir=run")
    metric, weight = differences(by_token, tmp_path / "run")
    assert metric < 1e-4
    assert weight < 1e-5


@pytest.mark.parametrize("stage", [1, 3])  # DeepSpeed has an optimizer of its own for 1
def test_a_bfloat16_gradient_is_scaled_too(
    stage: int, run: Run, tmp_path: Path, by_token: Path
) -> None:
    cluster = ZERO3 if stage == 3 else (*TWO, f"cluster.zero_stage={stage}")
    run("train", *SMALL, *cluster, *BY_TOKEN, "model.dtype=bfloat16", "hydra.run.dir=run")
    key, files = "optim/grad_norm", (tmp_path / "run", by_token)
    mine, theirs = ([x[key] for x in read_lines(f / "metrics.jsonl") if key in x] for f in files)
    assert mine[0] == pytest.approx(theirs[0], rel=0.1)


def test_mini_batches_and_views_drawn_anew_are_the_same_on_two_ranks(
    run: Run, tmp_path: Path
) -> None:
    for name, more in {
        "experiment=diffu_grpo": ("objective.num_updates=3",),
        "experiment=tracerl": ("objective.num_minibatches=3", "objective.num_updates=2"),
    }.items():
        common = (*SMALL, name, *more, "num_steps=2")
        folders = [f"{name[11:]}-{number}" for number in ("one", "two")]
        run("train", *common, f"hydra.run.dir={folders[0]}")
        run("train", *common, *ZERO3, f"hydra.run.dir={folders[1]}")
        metric, weight = differences(*(tmp_path / folder for folder in folders))
        assert metric < 1e-3  # KL to the start is summed over few tokens
        assert weight < 1e-5


def test_a_reference_that_follows_is_saved_and_the_same_on_two_ranks(
    run: Run, tmp_path: Path
) -> None:
    common = (*SMALL, "experiment=coupled_grpo", "objective.follow_every=4")
    run("train", *common, "num_steps=4", "hydra.run.dir=whole")
    run("train", *common, "num_steps=2", "hydra.run.dir=parts")
    run("train", *common, "num_steps=4", "hydra.run.dir=parts")
    assert differences(tmp_path / "whole", tmp_path / "parts") == (0.0, 0.0)
    run("train", *common, *ZERO3, "num_steps=4", "hydra.run.dir=ranks")
    metric, weight = differences(tmp_path / "whole", tmp_path / "ranks")
    assert metric < 1e-4
    assert weight < 1e-5
    start, moved = (
        load_file(newest(tmp_path / folder) / "reference" / "model.safetensors")
        for folder in ("parts", "whole")
    )
    policy = load_file(newest(tmp_path / "whole") / "policy" / "model.safetensors")
    assert all(torch.equal(start[name], moved[name]) for name in start)
    assert any(not torch.equal(policy[name], moved[name]) for name in moved)


def test_a_checkpoint_is_resumed_by_another_number_of_ranks(
    run: Run, tmp_path: Path, alone: Path
) -> None:
    for name, first, then in (("down", ZERO3, ()), ("up", (), ZERO3)):
        run("train", *SMALL, *first, "num_steps=2", f"hydra.run.dir={name}")
        run("train", *SMALL, *then, "num_steps=4", f"hydra.run.dir={name}")
        lines = read_lines(tmp_path / name / "metrics.jsonl")
        assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
        kept = read_lines(alone / "metrics.jsonl")
        for mine, theirs in zip(lines, kept, strict=True):
            for key in ("reward/mean", "loss/policy", "optim/grad_norm"):
                if key in theirs:
                    assert mine[key] == pytest.approx(theirs[key], abs=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])  # DeepSpeed has an optimizer of its own for 1
def test_bfloat16_under_zero_keeps_its_master_weights(stage: int, run: Run, tmp_path: Path) -> None:
    cluster = ZERO3 if stage == 3 else (*TWO, f"cluster.zero_stage={stage}")
    common = (*SMALL, *cluster, "model.dtype=bfloat16")
    run("train", *common, "num_steps=4", "hydra.run.dir=whole")
    run("train", *common, "num_steps=2", "hydra.run.dir=parts")
    saved = load_file(newest(tmp_path / "parts") / "policy" / "model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
    assert any(not torch.equal(t, t.bfloat16().float()) for t in saved.values())
    run("train", *common, "num_steps=4", "hydra.run.dir=parts")
    assert differences(tmp_path / "whole", tmp_path / "parts") == (0.0, 0.0)


def test_an_adapter_trains_under_zero3(run: Run, tmp_path: Path) -> None:
    common = (*SMALL, "model.lora.rank=4", "objective.kl_coef=0.1", "num_steps=3")
    run("train", *common, "hydra.run.dir=one")
    run("train", *common, *ZERO3, "hydra.run.dir=two")
    metric, weight = differences(tmp_path / "one", tmp_path / "two")
    assert metric < 1e-4
    assert weight < 1e-5


def started(command: list[str], folder: Path, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=folder, env=environment() | more, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate launch", "two machines"])
def test_every_launcher_gives_the_same_run(launcher: str, tmp_path: Path, alone: Path) -> None:
    python, train = sys.executable, ["drift.train", *SMALL, "num_steps=4", "hydra.run.dir=run"]
    zero = ["cluster.zero_stage=3", "cluster.threads=1", STRICT]
    bin_folder = Path(python).parent
    if launcher == "torchrun":
        commands = [
            [
                str(bin_folder / "torchrun"),
                "--standalone",
                "--nproc-per-node=2",
                "-m",
                *train,
                *zero,
            ]
        ]
    elif launcher == "accelerate launch":
        commands = [
            [
                # --multi_gpu: what it chooses by itself where there are GPUs
                str(bin_folder / "accelerate"), "launch", "--multi_gpu", "--num_processes=2",
                "--num_machines=2", f"--machine_rank={rank}", "--main_process_ip=127.0.0.1",
                "--main_process_port=29613", "--mixed_precision=no", "--dynamo_backend=no",
                "-m", *train, *zero,
            ]
            for rank in (0, 1)
        ]  # fmt: skip
    else:
        settings = [
            *zero,
            "cluster.num_processes=1",
            "cluster.num_machines=2",
            "cluster.main_port=29617",
        ]
        commands = [
            [python, "-m", *train, *settings, f"cluster.machine_rank={rank}"] for rank in (0, 1)
        ]
    runs = [started(command, tmp_path) for command in commands]
    for process in runs:
        out, err = process.communicate(timeout=280)
        assert process.returncode == 0, out[-2000:] + err[-2000:]
    assert differences(alone, tmp_path / "run")[0] < 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def wait_until(condition: Any, seconds: float = 200.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The ranks that a run has started, in order."""
    found = psutil.Process(process.pid).children()
    return [p for p in found if "spawn_main" in " ".join(p.cmdline())]


@pytest.mark.parametrize("cluster", [ZERO3, (*TWO, "cluster.zero_stage=0")], ids=["zero3", "ddp"])
def test_a_killed_rank_ends_the_others_and_the_run_goes_on(
    cluster: tuple[str, ...], run: Run, tmp_path: Path, alone: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "drift.train",
        *SMALL,
        *cluster,
        SLOWER,
        "num_steps=4",
        "hydra.run.dir=run",
    ]
    process = started(command, tmp_path)
    wait_until((tmp_path / "run" / "checkpoints" / "step_000002").exists)  # it is whole
    ranks = workers(process)
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - killed < 15
    assert process.returncode == 1
    assert err.splitlines()[0] == "drift: rank 1 was killed by SIGKILL"
    assert not any(rank.is_running() for rank in ranks)
    run("train", *SMALL, *cluster, "num_steps=4", "hydra.run.dir=run")
    metric, weight = differences(alone, tmp_path / "run")
    assert metric < 1e-5
    assert weight < 1e-5


@pytest.mark.parametrize(
    ("signum", "cluster"),
    [(signal.SIGTERM, ZERO3), (signal.SIGUSR1, ()), (signal.SIGUSR2, ())],
    ids=["TERM, zero3", "USR1, alone", "USR2, alone"],
)
def test_a_signal_saves_all_ranks_and_the_run_goes_on(
    signum: signal.Signals, cluster: tuple[str, ...], run: Run, tmp_path: Path, alone: Path
) -> None:
    command = [sys.executable, "-m", "drift.train", *SMALL, *cluster, SLOWER, "checkpoint.every=0",
               "num_steps=4", "hydra.run.dir=run"]  # fmt: skip
    process = started(command, tmp_path)
    wait_until(lambda: num_lines(tmp_path / "run" / "metrics.jsonl") >= 1)
    process.send_signal(signum)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 143
    assert f"{signum.name}: the run is saved; go on with hydra.run.dir=" in err.splitlines()[0]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "preempted"
    run("train", *SMALL, *cluster, "checkpoint.every=0", "num_steps=4", "hydra.run.dir=run")
    assert differences(alone, tmp_path / "run")[0] < 1e-5


def test_a_rank_that_stands_still_ends_the_run_with_all_stacks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "drift.train", *SMALL, *ZERO3, "num_steps=100000",
               "cluster.timeout_s=20", "hydra.run.dir=run"]  # fmt: skip
    process = started(command, tmp_path)
    wait_until(lambda: num_lines(tmp_path / "run" / "metrics.jsonl") >= 2)
    stopped = workers(process)[1]
    stopped.suspend()
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1, out
    assert "drift: rank 0: nothing has happened for" in err
    assert "cluster.timeout_s) in step " in err
    assert "most recent call first" in err
    assert not stopped.is_running()


def test_a_grader_that_hangs_on_one_rank_is_found_in_its_stack(tmp_path: Path) -> None:
    hang = '        time.sleep(600 * (os.environ["RANK"] == "1"))\n'
    code = block("python").replace(
        "        answer = last_boxed", hang + "        answer = last_boxed"
    )
    (tmp_path / "ones.py").write_text("import os\nimport time\n" + code)
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "ones.yaml").write_text(block("yaml"))
    command = [sys.executable, "-m", "drift.train", "--config-dir", "conf", "task=ones",
               TINY, *SMALL, *TWO, "cluster.timeout_s=15", "num_steps=1"]  # fmt: skip
    _, err = started(command, tmp_path).communicate(timeout=280)
    for rank in (0, 1):
        assert re.search(rf"^drift: rank {rank}: .* step 1, phase eval; its stacks:$", err, re.M)
    assert re.search(r'File ".*/ones.py", line \d+ in score', err)


def test_rewards_whose_names_differ_by_rank_are_named(tmp_path: Path, run: Run) -> None:
    rewards = 'rewards={"steps": 0.5} if os.environ["RANK"] == "1" else {}'
    code = block("python").replace("reward=", f"{rewards}, reward=")
    (tmp_path / "ones.py").write_text("import os\n" + code)
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "ones.yaml").write_text(block("yaml"))
    done = run("train", "--config-dir", "conf", "task=ones", TINY, *SMALL, *TWO, "num_steps=1",
               check=False)  # fmt: skip
    assert re.search(r"the names of their rewards: .*rank 1: .*'steps'", done.stderr), done.stderr
