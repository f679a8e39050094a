"""Advantages with numbers worked out by hand."""

import pytest
import torch

from drift.config.objective import AdvantageEstimator
from drift.learner.advantage import (
    estimate,
    group_centered,
    group_normalized,
    leave_one_out,
    z_score,
)


def test_centered_is_reward_minus_group_mean() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 2.0, 4.0, 6.0, 8.0])
    assert group_centered(rewards, 4).tolist() == [0.75, -0.25, -0.25, -0.25, -3, -1, 1, 3]


def test_normalized_divides_by_the_sample_standard_deviation() -> None:
    # (1, 0, 0, 0): mean 1/4, sample variance (9/16 + 3/16) / 3 = 1/4, std 1/2
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert group_normalized(rewards, 4).tolist() == [1.5, -0.5, -0.5, -0.5]


def test_normalized_never_divides_by_less_than_a_hundredth() -> None:
    rewards = torch.tensor([1.0, 1.001])
    assert group_normalized(rewards, 2).tolist() == pytest.approx([-0.05, 0.05], rel=1e-3)


def test_z_score_divides_by_the_population_standard_deviation_without_a_floor() -> None:
    # (1, 0, 0, 0): mean 1/4, variance (9/16 + 3/16) / 4 = 3/16
    std = 3**0.5 / 4
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 2.0, 4.0, 6.0, 8.0])
    expected = [0.75 / std, *[-0.25 / std] * 3, *[0.0] * 4]
    expected += [x / 5**0.5 for x in (-3, -1, 1, 3)]
    assert z_score(rewards, 4).tolist() == pytest.approx(expected)
    close = torch.tensor([0.0, 2**-12])  # group_normalized gives less than 0.02 here
    assert z_score(close, 2).tolist() == [-1, 1]


@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, -7.3])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_z_score_of_equal_rewards_is_zero(reward: float, size: int) -> None:
    rewards = torch.full((2 * size,), reward)
    rewards[-1] += 1
    advantages = estimate(rewards, size, AdvantageEstimator.z_score)
    assert advantages.values_B[:size].tolist() == [0] * size
    assert z_score(rewards[:size], size).tolist() == [0] * size


def test_leave_one_out_compares_with_the_mean_of_the_others() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.5])
    expected = [1 - 0.25, 0 - 0.75, 0.5 - 0.5]
    assert leave_one_out(rewards, 3).tolist() == pytest.approx(expected)


COMPARING = [e for e in AdvantageEstimator if e != AdvantageEstimator.gae]


@pytest.mark.parametrize("estimator", COMPARING)
def test_zero_variance_groups_are_left_out_and_counted(estimator: AdvantageEstimator) -> None:
    rewards = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    advantages = estimate(rewards, 2, estimator)
    assert advantages.zero_variance_groups == 2
    assert advantages.used_B.tolist() == [False, False, True, True, False, False]
    assert advantages.values_B[[0, 1, 4, 5]].tolist() == [0, 0, 0, 0]
    assert advantages.values_B[3] > 0 > advantages.values_B[2]


def test_with_a_value_model_every_row_is_used_and_keeps_its_reward() -> None:
    rewards = torch.tensor([1.0, 1.0, 0.0, 1.0])
    advantages = estimate(rewards, 2, AdvantageEstimator.gae)
    assert advantages.at_end
    assert advantages.zero_variance_groups == 1
    assert advantages.used_B.tolist() == [True] * 4
    assert advantages.values_B.tolist() == rewards.tolist()


def test_rewards_that_do_not_make_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="5 rewards do not make groups of 2"):
        group_centered(torch.zeros(5), 2)
