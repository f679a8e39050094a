"""Runs with a value model, for real: resumed, on several ranks, with an adapter, exported."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from drift.policy.loading import load_policy
from tests.conftest import Run, read_lines
from tests.slow.test_ranks import (
    PER_RUN,
    SMALL as FEW,
    TWO,
    ZERO3,
    differences,
    environment,
    newest,
)

VALUED = ("experiment=tracerl_value", "masking.shrink=1")
SMALL = (*FEW, *VALUED)


def same_files(one: Path, other: Path) -> list[str]:
    """The files of the newest checkpoints, which must be the same bytes."""
    names = sorted(str(p.relative_to(newest(one))) for p in newest(one).rglob("*.safetensors"))
    for name in names:
        assert (newest(one) / name).read_bytes() == (newest(other) / name).read_bytes(), name
    return names


def steady(folder: Path) -> list[dict[str, object]]:
    lines = read_lines(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(PER_RUN)} for line in lines]


@pytest.mark.parametrize("lora", [(), ("model.lora.rank=4",)], ids=["whole", "lora"])
def test_a_resumed_run_goes_on_bit_for_bit(lora: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    run("train", *SMALL, *lora, "num_steps=4", "hydra.run.dir=whole")
    run("train", *SMALL, *lora, "num_steps=2", "hydra.run.dir=parts")
    run("train", *SMALL, *lora, "num_steps=4", "hydra.run.dir=parts")
    names = same_files(tmp_path / "whole", tmp_path / "parts")
    assert "value_head.safetensors" in names
    assert steady(tmp_path / "whole")[3:] == steady(tmp_path / "parts")[3:]
    head = load_file(newest(tmp_path / "whole") / "value_head.safetensors")
    assert head["value_head.weight"].abs().min() > 0


def test_a_run_learns_and_so_does_its_value_model(run: Run, tmp_path: Path) -> None:
    run("train", "experiment=tracerl_value", "num_steps=20", "eval.every=20", "tracking=off",
        "hydra.run.dir=run")  # fmt: skip
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert float(lines[-1]["eval/accuracy"]) > float(lines[0]["eval/accuracy"]) + 0.3  # type: ignore[arg-type]
    explained = [float(line["value/explained_variance"]) for line in lines[1:]]  # type: ignore[arg-type]
    assert sum(explained[10:]) / 10 > 0


def test_an_exported_policy_has_no_head(run: Run, tmp_path: Path) -> None:
    run("train", *SMALL, "num_steps=1", "eval.every=0", "hydra.run.dir=run")
    run("export", f"checkpoint={newest(tmp_path / 'run')}", "output=exported")
    assert load_policy(tmp_path / "exported").value_head is None
    kept = load_file(newest(tmp_path / "run") / "policy" / "model.safetensors").keys()
    assert load_file(tmp_path / "exported" / "model.safetensors").keys() == kept


def test_a_checkpoint_of_another_kind_is_refused(run: Run, tmp_path: Path) -> None:
    run("train", *FEW, "num_steps=1", "eval.every=0", "hydra.run.dir=plain")
    done = run(
        "train", *SMALL, "num_steps=2", f"resume={newest(tmp_path / 'plain')}",
        "hydra.run.dir=run", check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "has another optimizer's state: tensor exp_avg.value_head.bias does not" in done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps by one process."""
    folder = tmp_path_factory.mktemp("alone")
    command = [sys.executable, "-m", "drift.train", *SMALL, "num_steps=3", "hydra.run.dir=run"]
    subprocess.run(command, cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL)
    return folder / "run"


@pytest.mark.parametrize(
    "cluster",
    [
        ("model.gradient_checkpointing=true", "optim.tokens_per_forward=220"),
        (*TWO, "cluster.zero_stage=0"),
        (*TWO, "cluster.zero_stage=1"),
        (*TWO, "cluster.zero_stage=2"),
        ZERO3,
        (*ZERO3, "rollout.weights=gather", "model.gradient_checkpointing=true"),
    ],
    ids=["checkpointing", "ddp", "zero1", "zero2", "zero3", "gather"],
)
def test_however_a_run_is_computed_it_is_the_same(
    cluster: tuple[str, ...], run: Run, tmp_path: Path, alone: Path
) -> None:
    run("train", *SMALL, *cluster, "num_steps=3", "hydra.run.dir=run")
    metric, weight = differences(alone, tmp_path / "run")
    assert metric < 1e-4
    assert weight < 1e-5
    heads = [load_file(newest(f) / "value_head.safetensors") for f in (alone, tmp_path / "run")]
    for name, tensor in heads[0].items():
        assert (tensor - heads[1][name]).abs().max() < 1e-5
        assert tensor.abs().max() > 1e-3
