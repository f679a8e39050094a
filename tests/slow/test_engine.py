"""The optimizer: schedules, resumed settings, gradients that are not finite."""

import os
import subprocess
import sys

import pytest
import torch

from drift.cluster.engine import Engine
from drift.cluster.zero import WEIGHT
from drift.common.errors import TrainingError
from drift.config.cluster import ClusterConfig
from drift.config.model import Dtype
from drift.config.optim import OptimConfig
from tests.conftest import ROOT, make_policy


def zero_refuses_nan(stage: int) -> None:
    """As above under ZeRO, in a process of its own."""
    engine, policy = (
        Engine(ClusterConfig(name="cpu", zero_stage=stage), Dtype.bfloat16),
        make_policy(),
    )
    policy.split = stage == 3
    engine.prepare(policy, OptimConfig(lr=1.0), 1)

    def weights() -> list[torch.Tensor]:
        return [engine.full(name, WEIGHT).clone() for name in engine.shapes]

    before, row, column = weights(), torch.tensor([0]), torch.tensor([2])
    with engine.micro_batch(last=True):
        ids, target = torch.tensor([[5, 6, 1]]), torch.tensor([7])
        logp, *_ = engine.model(ids, torch.tensor([3]), row, column, target, 1.0)
        engine.backward(float("nan") * logp.sum())
    with pytest.raises(TrainingError, match="the gradient's norm is"):
        engine.step()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(), strict=True))
    print("refused", flush=True)
    os._exit(0)  # gloo's threads sometimes abort the interpreter's own exit


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_gradient_that_is_not_finite_changes_nothing_under_zero(stage: int) -> None:
    code = f"from tests.slow.test_engine import zero_refuses_nan; zero_refuses_nan({stage})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("refused\n"), done.stderr
