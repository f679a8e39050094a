"""Supervised fine-tuning: what is kept of it, however it ends, and what is refused."""

from pathlib import Path

import pytest

from drift.common.errors import GradingError
from drift.config.compose import typed
from drift.policy.loading import load_policy
from drift.tasks.countdown import Countdown
from drift.training import sft
from tests.configs import composed

SMALL = (
    "task.train_size=50", "sft.batch_size=4", "sft.log_every=2", "eval.max_examples=2",
    "cluster.threads=1", "hydra.run.dir=sft",
)  # fmt: skip


def test_a_grader_that_fails_at_the_end_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Countdown, "score", broken)
    config = typed(composed(*SMALL[:-1], "num_steps=2", config="sft"))
    config.output_dir = str(tmp_path)
    with pytest.raises(GradingError, match="ZeroDivisionError"):
        sft.run(config)
    load_policy(tmp_path / "policy")
    assert caplog.messages[-1] == f"ended early; the policy saved last is {tmp_path / 'policy'}"
