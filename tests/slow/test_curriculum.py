"""Which prompts are drawn and which groups are kept: hand-made cases, statistics, whole runs."""

import json
import signal
from pathlib import Path

from safetensors.torch import load_file

from drift.config import register
from tests.commands.test_train import ELSEWHERE
from tests.conftest import Run, read_lines
from tests.slow.test_ranks import TWO, differences
from tests.slow.test_train import start, steady, wait_for_lines

register()


CHOSEN = (
    "curriculum=informative", "curriculum.max_rounds=3", "task.train_size=40",
    "rollout.prompts_per_step=8", "rollout.group_size=4", "rollout.temperature=1.5",
    "eval.max_examples=20", "eval.every=2", "checkpoint.every=2", "tracking=off",
    "task.reward.nfe_penalty=0.1",
)  # fmt: skip


def states(run: Path) -> list[dict[str, list[float]]]:
    files = sorted(run.glob("checkpoints/*/curriculum.safetensors"))
    return [{k: v.tolist() for k, v in load_file(file).items()} for file in files]


def test_two_ranks_draw_keep_and_learn_what_one_does(run: Run, tmp_path: Path) -> None:
    run("train", *CHOSEN, "num_steps=4", "hydra.run.dir=one")
    run("train", *CHOSEN, *TWO, "cluster.zero_stage=0", "num_steps=4", "hydra.run.dir=two")
    one, two = tmp_path / "one", tmp_path / "two"
    for step in range(1, 5):
        name = f"rollouts/step_{step:06d}.jsonl"
        lines = [sorted(map(json.dumps, read_lines(folder / name))) for folder in (one, two)]
        assert lines[0] == lines[1]
    assert states(one) == states(two)
    assert states(one)[-1]["extra_prompts"] > 0  # type: ignore[operator]
    metric, weight = differences(one, two)
    assert metric < 1e-5
    assert weight < 1e-5
    metrics = read_lines(one / "metrics.jsonl")[-1]
    missing = {name for name in ELSEWHERE - metrics.keys() if not name.startswith("value/")}
    assert missing == {"kl/k1", "rollout/commits"}
    assert metrics["rollout/drawn_prompts"] == 8 * metrics["rollout/rounds"]  # type: ignore[operator]
    assert len(read_lines(one / "rollouts" / "step_000004.jsonl")) == (
        4 * metrics["rollout/drawn_prompts"]  # type: ignore[operator]
    )


def test_a_killed_run_goes_on_with_the_same_prompts(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    overrides = (*CHOSEN, "num_steps=6")
    assert start(whole, *overrides).wait(timeout=300) == 0
    process = start(killed, *overrides)
    wait_for_lines(killed / "run" / "metrics.jsonl", 5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert start(killed, *overrides).wait(timeout=300) == 0
    a, b = whole / "run", killed / "run"
    assert steady(a / "metrics.jsonl") == steady(b / "metrics.jsonl")
    assert states(a) == states(b)
    last = "checkpoints/step_000006/policy/model.safetensors"
    assert (a / last).read_bytes() == (b / last).read_bytes()
