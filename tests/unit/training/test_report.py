"""What a run says of itself."""

import logging
from typing import Any

import pytest

from drift.config.compose import typed
from drift.training.report import SILENT_STEPS, Report
from tests.configs import composed


def warnings_of(caplog: pytest.LogCaptureFixture, fractions: list[float], *overrides: str) -> int:
    """How many steps with these shares of groups of equal rewards are warned of."""
    caplog.clear()
    nothing: Any = None
    report = Report(typed(composed(*overrides)), nothing, nothing)
    with caplog.at_level(logging.WARNING, "drift"):
        for step, fraction in enumerate(fractions, start=1):
            report.warn_of_silence(
                step, {"reward/zero_variance_frac": fraction, "reward/mean": 0.25}
            )
    return len(caplog.messages)


def test_steps_that_teach_nothing_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    silent = [1.0] * SILENT_STEPS
    assert warnings_of(caplog, silent[1:]) == 0
    assert warnings_of(caplog, [*silent[1:], 0.9, *silent[1:]]) == 0
    assert warnings_of(caplog, silent * 3) == 1
    assert "same reward (mean 0.250); read some in " in caplog.messages[0]
    assert caplog.messages[0].endswith(f"rollouts/step_{SILENT_STEPS:06d}.jsonl")


def test_a_value_model_learns_of_equal_rewards_too(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(caplog, [1.0] * SILENT_STEPS, "objective.advantage=gae") == 0
