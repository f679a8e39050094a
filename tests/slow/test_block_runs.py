"""Whole runs of a block-causal network: ranks, adapters, resuming, what is done with a checkpoint.

The network has random weights; its task rewards digits, so that completions differ.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT, checked, read_lines
from tests.forkserver import command
from tests.unit.policy.test_loading import BLANK_TINY, import_script

TASK = '''
"""Write digits."""

import random

from drift.common.types import Example, Score
from drift.tasks.base import GeneratedTask


class Digits(GeneratedTask):
    def example(self, record):
        return Example(key=record["a"], prompt=self.render(record), fields=record)

    def generate(self, rng: random.Random):
        return self.example({"a": "a" * rng.randint(1, 9) + str(rng.randint(0, 999))})

    def score(self, example, text):
        share = sum(c in "0123456789" for c in text) / 16
        return Score(reward=share, correct=share > 0.1, answer=text, verdict="pass")

    def demonstration(self, example, *, habit):
        return "12"
'''
MODEL = ("model=sdar", "model.dtype=float32")
SIZES = (
    "task=own", "task.name=digits", "task.module=digits.py", "task.prompt='{a}='",
    "task.gen_length=16", "task.train_size=60", "task.validation_size=5", "task.test_size=7",
    *MODEL, "model.path=blank", "optim.lr=2e-4", "rollout.prompts_per_step=8",
    "rollout.group_size=4",
    "eval.every=2", "checkpoint.every=2", "tracking=off", "traces.every=2", "cluster.threads=1",
)  # fmt: skip
ZERO3 = (
    "cluster.num_processes=2", "cluster.zero_stage=3",
    f"cluster.deepspeed={ROOT / 'tests' / 'strict_zero.json'}",
)  # fmt: skip
PER_RUN = ("time/", "mem/", "rollout/tokens_per_s", "unix_s", "optim/padding_frac")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the task, the network and a run of four steps by one process."""
    from drift.policy.loading import save_policy

    folder = tmp_path_factory.mktemp("blocks")
    (folder / "digits.py").write_text(TASK)
    save_policy(import_script(BLANK_TINY).make_policy("sdar", seed=0), folder / "blank")
    train(folder, "run", "num_steps=4", "masking=replay")
    return folder


def train(folder: Path, name: str, *settings: str) -> list[dict[str, object]]:
    checked(command, folder, "train", *SIZES, *settings, f"hydra.run.dir={name}")
    return read_lines(folder / name / "metrics.jsonl")


def apart(one: Path, other: Path) -> float:
    """The largest difference of a metric and of a weight, both relative to 1."""
    lines = zip(read_lines(one / "metrics.jsonl"), read_lines(other / "metrics.jsonl"), strict=True)
    metric = max(
        abs(float(a[key]) - float(b[key]))  # type: ignore[arg-type]
        for a, b in lines
        for key in a.keys() | b.keys()
        if not key.startswith(PER_RUN) and key != "eval/test_accuracy"
    )
    file = Path("checkpoints/step_000004/policy/model.safetensors")
    mine, theirs = load_file(one / file), load_file(other / file)
    return max(metric, *(float((mine[k] - theirs[k]).abs().max()) for k in mine))


def test_a_run_learns_and_its_sampler_is_exact(place: Path) -> None:
    lines = [line for line in read_lines(place / "run" / "metrics.jsonl") if "gap/kl" in line]
    assert len(lines) == 4
    for line in lines:
        assert float(line["gap/kl"]) < 1e-9  # type: ignore[arg-type]
        assert float(line["optim/grad_norm"]) > 0  # type: ignore[arg-type]
        assert float(line["rollout/commits"]) > 0  # type: ignore[arg-type]
    page = next((place / "run" / "traces").glob("*.html")).read_text()
    assert "digits" in page or len(page) > 10_000


@pytest.mark.parametrize("masking", ["sequential", "trace", "all", "elbo"])
def test_two_ranks_do_what_one_does(place: Path, masking: str) -> None:
    more = ("num_steps=4", f"masking={masking}", "optim.tokens_per_forward=400")
    train(place, f"one-{masking}", *more)
    train(place, f"two-{masking}", *more, *ZERO3)
    assert apart(place / f"one-{masking}", place / f"two-{masking}") < 2e-4


def test_a_run_goes_on_where_it_was(place: Path) -> None:
    train(place, "parts", "num_steps=2", "masking=replay")
    train(place, "parts", "num_steps=4", "masking=replay")
    assert apart(place / "run", place / "parts") == 0


def test_an_adapter_trains_under_zero_3_and_is_merged(place: Path) -> None:
    lora = ("model.lora.rank=4", "num_steps=2", "masking=sequential")
    lines = train(place, "lora", *lora, *ZERO3)
    assert any(float(line.get("optim/grad_norm", 0)) > 0 for line in lines)  # type: ignore[arg-type]
    checked(command, place, "export", "checkpoint=lora/checkpoints/step_000002", "output=merged")
    assert json.loads((place / "merged" / "config.json").read_text())["block_length"] == 4


def test_what_is_done_with_a_checkpoint(place: Path) -> None:
    path = "run/checkpoints/step_000004/policy"
    said = checked(command, place, "generate", *MODEL, f"model.path={path}",
                   "prompt=aaa1=", "rollout.gen_length=16", "chat=false")  # fmt: skip
    assert "commits" in said.stdout + said.stderr
    checked(command, place, "eval", *SIZES[:6], "task.test_size=7", *MODEL,
            f"model.path={path}", "tracking=off", "hydra.run.dir=evaluated")  # fmt: skip
    said = checked(command, place, "doctor", *SIZES[:6], "task.test_size=7", *MODEL,
                   f"model.path={path}", "hydra.run.dir=doctor", check=False)  # fmt: skip
    assert "block: the same tokens" in said.stdout + said.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("rollout.cache=dual",), "rollout.cache=dual approximates full attention"),
        (("rollout.block_length=8",), "the network's attention has blocks of 4"),
        (("rollout.gen_length=18", "rollout.steps=18"), "use gen_length=20"),
        (("model.block_length=8",), "config.json has block_length=4"),
        (("masking=all", "masking.prompt_mask_prob=0.1"), "masking.prompt_mask_prob=0.1 would"),
    ],
)
def test_what_does_not_go_with_the_network_is_refused(
    place: Path, settings: tuple[str, ...], said: str
) -> None:
    done = command(place, "drift.train", *SIZES, *settings, "hydra.run.dir=refused")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert not (place / "refused" / "metrics.jsonl").exists()
