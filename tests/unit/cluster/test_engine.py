"""The optimizer: schedules, resumed settings, gradients that are not finite."""

from pathlib import Path

import pytest
import torch

from drift.cluster.engine import Engine
from drift.cluster.zero import MOMENTS
from drift.common.errors import TrainingError
from drift.config.cluster import ClusterConfig
from drift.config.model import Dtype
from drift.config.optim import OptimConfig, Schedule
from drift.runs.checkpoints import restore, write_moments
from tests.conftest import make_policy


def prepared(num_updates: int, **settings: object) -> Engine:
    engine = Engine(ClusterConfig(name="local"), Dtype.float32)
    policy = make_policy()
    engine.prepare(policy, OptimConfig(**({"lr": 1.0} | settings)), num_updates)  # type: ignore[arg-type]
    return engine


def one_update(engine: Engine, scale: float = 1.0) -> float:
    assert engine.model is not None
    loss = sum((p.square().sum() for p in engine.model.parameters()), torch.zeros(()))
    engine.backward(scale * loss)
    return engine.step()


def test_linear_schedule_ends_at_the_last_update() -> None:
    engine = prepared(4, schedule=Schedule.linear)
    rates = []
    for _ in range(4):
        rates.append(engine.lr)
        engine.skip_step()
    assert rates == [1.0, 0.75, 0.5, 0.25]
    assert engine.lr == 0


def test_warmup_counts_updates() -> None:
    engine = prepared(10, warmup_steps=2)
    rates = []
    for _ in range(4):
        rates.append(engine.lr)
        engine.skip_step()
    assert rates == [0.0, 0.5, 1.0, 1.0]


def test_gradient_norm_is_that_before_clipping() -> None:
    engine = prepared(1, max_grad_norm=1e-3)
    assert engine.model is not None
    expected = 2 * sum(float(p.detach().square().sum()) for p in engine.model.parameters()) ** 0.5
    assert one_update(engine) == pytest.approx(expected, rel=1e-5)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    engine = prepared(1)
    assert engine.model is not None
    before = [p.clone() for p in engine.model.parameters()]
    with pytest.raises(TrainingError, match="the gradient's norm is nan"):
        one_update(engine, scale=float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, engine.model.parameters(), strict=True))


def test_resumed_optimizer_keeps_its_moments_and_takes_the_new_settings(tmp_path: Path) -> None:
    first = prepared(4, lr=1e-3, schedule=Schedule.linear)
    one_update(first)
    write_moments(tmp_path, first)
    second = prepared(4, lr=1e-2, beta1=0.5, schedule=Schedule.linear)
    restore(tmp_path, {"engine": first.progress()}, second)
    (group,) = second.optimizer.param_groups
    assert group["betas"] == (0.5, 0.999)
    assert second.lr == 0.75e-2
    assert {float(state["step"]) for state in second.optimizer.state.values()} == {1.0}
    for name in first.shapes:
        for key in MOMENTS:
            assert torch.equal(first.full(name, key), second.full(name, key))
