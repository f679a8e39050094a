"""Which prompts are drawn and which groups are kept: hand-made cases, statistics, whole runs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st
from scipy.stats import chisquare

from drift.cluster.engine import Engine
from drift.common import rng
from drift.common.errors import CheckpointError
from drift.common.types import Example, PromptBatch, Rollout, Score
from drift.config.cluster import ClusterConfig
from drift.config.commands import RunConfig
from drift.config.compose import typed
from drift.config.curriculum import InformativeConfig
from drift.config.model import Dtype
from drift.config.task import Split
from drift.rollout.evaluate import Problems
from drift.training.curriculum import Curriculum, PassRates
from tests.configs import composed
from tests.conftest import make_rollout, make_trace

G = 2  # completions of a prompt in the tests without a network


def rates_of(*counts: tuple[int, int], floor: float = 0.02, decay: float = 0.5) -> PassRates:
    """Pass rates of prompts with so many right completions of so many."""
    rates = PassRates(len(counts), InformativeConfig(floor=floor, decay=decay))
    rates.correct_N = torch.tensor([right for right, _ in counts], dtype=torch.float64)
    rates.tried_N = torch.tensor([tried for _, tried in counts], dtype=torch.float64)
    return rates


def test_a_weight_is_the_expected_variance_of_a_pass() -> None:
    """Beta(1/2, 1/2): 1/8; 4 of 8: 4.5 * 4.5 / (9 * 10); 0 or 8 of 8: 0.5 * 8.5 / (9 * 10)."""
    rates = rates_of((0, 0), (4, 8), (0, 8), (8, 8))
    expected = [0.125, 0.225, 0.0472222, 0.0472222]
    assert rates.weight_N().tolist() == pytest.approx([w + 0.02 for w in expected], abs=1e-6)
    assert rates.rate_N().tolist() == pytest.approx([0.5, 0.5, 0.5 / 9, 8.5 / 9])


@given(st.integers(0, 50), st.integers(0, 50), st.floats(1e-6, 0.1))
def test_weights_are_bounded_and_treat_right_and_wrong_alike(
    right: int, wrong: int, floor: float
) -> None:
    rates = rates_of((right, right + wrong), (wrong, right + wrong), floor=floor)
    one, other = rates.weight_N().tolist()
    assert one == pytest.approx(other)
    assert floor < one <= 0.25 + floor


def test_older_completions_fade_where_a_prompt_is_completed_again() -> None:
    rates = rates_of((0, 0), (0, 0), (0, 0), decay=0.5)
    rates.record([0, 1], [4, 0], 4)
    rates.record([0, 2], [1, 3], 4)
    assert rates.correct_N.tolist() == [3, 0, 3]  # 0.5 * 4 + 1
    assert rates.tried_N.tolist() == [6, 4, 4]
    rates.record([2, 2], [1, 1], 4)  # twice in one step: they fade once
    assert (rates.correct_N[2], rates.tried_N[2]) == (3.5, 10)


def test_prompts_are_drawn_in_proportion_to_their_weights() -> None:
    """Chi-square of the first draw, and of the second given the first."""
    rates, draws = rates_of((0, 0), (4, 8), (0, 8), (8, 8), (2, 8)), 20_000
    pairs = [rates.draw(rng.stream(0, "test", i), 2) for i in range(draws)]
    chance = (rates.weight_N() / rates.weight_N().sum()).tolist()
    first = [sum(a == i for a, _ in pairs) for i in range(5)]
    assert chisquare(first, [p * draws for p in chance]).pvalue > 0.01
    second = [sum(b == i for a, b in pairs if a == 1) for i in (0, 2, 3, 4)]
    left = [chance[i] / (1 - chance[1]) * sum(second) for i in (0, 2, 3, 4)]
    assert chisquare(second, left).pvalue > 0.01
    assert all(a != b for a, b in pairs)


def test_what_was_always_or_never_solved_is_still_drawn() -> None:
    """Weights 0.02, 0.02 and 0.27: the floor's chances are 0.0645 each."""
    rates = rates_of((0, 10**6), (10**6, 10**6), (5 * 10**5, 10**6))
    seen = [rates.draw(rng.stream(0, "test", i), 1)[0] for i in range(4_000)]
    expected = [4_000 * weight / 0.31 for weight in (0.02, 0.02, 0.27)]
    assert chisquare([seen.count(i) for i in range(3)], expected).pvalue > 0.01


@given(st.integers(1, 9), st.integers(1, 30))
def test_a_draw_takes_every_prompt_before_it_takes_one_again(size: int, count: int) -> None:
    drawn = PassRates(size, InformativeConfig()).draw(rng.stream(0, "test", size), count)
    assert len(drawn) == count
    for begin in range(0, count, size):
        part = drawn[begin : begin + size]
        assert len(set(part)) == len(part)


def curriculum_of(*overrides: str, size: int = 10, prompts: int = 4) -> Curriculum:
    config = typed(composed(f"rollout.prompts_per_step={prompts}", *overrides))
    assert isinstance(config, RunConfig)
    examples = [Example(key=str(i), prompt=str(i), fields={}) for i in range(size)]
    train = Problems(split=Split.train, examples=examples, ids=[[i] for i in range(size)])
    return Curriculum(config, Engine(ClusterConfig(name="local"), Dtype.float32), train)


def completed(prompts: PromptBatch, right: dict[int, int]) -> Rollout:
    """G completions of each prompt, of which `right[prompt]` are right."""
    flags = [row < right.get(ids[0], 0) for ids in prompts.ids for row in range(G)]
    scores = [Score(reward=float(f), correct=f, answer=None, verdict="") for f in flags]
    rollout = make_rollout(prompts.ids, make_trace([[0, 1]] * len(flags)), group_size=G)
    rows_B = prompts.first_prompt * G + torch.arange(len(flags))
    return replace(rollout, prompts=prompts, scores=scores, rows_B=rows_B, reward_s=0.5)


def test_by_default_prompts_come_in_the_order_of_the_epochs() -> None:
    curriculum = curriculum_of()
    found = [number for step in range(5) for number in curriculum.numbers(step, 0)]
    epochs = [rng.permutation(rng.stream(0, "order", epoch), 10) for epoch in (0, 1)]
    assert found == epochs[0] + epochs[1]
    drawn = curriculum.sample(0, lambda prompts: completed(prompts, {}))
    assert curriculum.select(drawn) is drawn
    assert curriculum.metrics(drawn, drawn) == {}
    assert curriculum.state() == {}


@pytest.mark.parametrize(("num_varied", "rounds"), [(0, 3), (3, 3), (4, 2), (8, 1), (10, 1)])
def test_a_step_draws_until_enough_groups_vary_or_the_rounds_are_used(
    num_varied: int, rounds: int
) -> None:
    """Of ten prompts, four a round; those that vary are the last of the epoch's order."""
    curriculum = curriculum_of("curriculum.max_rounds=3", size=12)
    order = rng.permutation(rng.stream(0, "order", 0), 12)
    varied = {0: [], 3: order[9:], 4: order[4:8], 8: order[:8], 10: order[:10]}[num_varied]
    batches: list[PromptBatch] = []

    def complete(prompts: PromptBatch) -> Rollout:
        batches.append(prompts)
        return completed(prompts, dict.fromkeys(varied, 1))

    drawn = curriculum.sample(0, complete)
    assert [ids[0] for batch in batches for ids in batch.ids] == order[: 4 * rounds]
    assert [batch.first_prompt for batch in batches] == [0, 4, 8][:rounds]
    assert drawn.rows_B.tolist() == list(range(4 * G * rounds))
    assert drawn.reward_s == 0.5 * rounds
    assert curriculum.extra_prompts == 4 * (rounds - 1)
    following = order + rng.permutation(rng.stream(0, "order", 1), 12)
    assert curriculum.numbers(1, 0) == following[4 * rounds : 4 * rounds + 4]


def test_the_first_groups_that_vary_are_kept_and_the_first_others_fill_up() -> None:
    curriculum = curriculum_of("curriculum.max_rounds=2", size=8)
    order = rng.permutation(rng.stream(0, "order", 0), 8)
    right = {order[1]: 1, order[4]: 1, order[5]: 2, order[7]: 1}
    drawn = curriculum.sample(0, lambda prompts: completed(prompts, right))
    kept = curriculum.select(drawn)
    assert [ids[0] for ids in kept.prompts.ids] == [order[0], order[1], order[4], order[7]]
    assert [example.key for example in kept.prompts.examples] == [
        str(order[i]) for i in (0, 1, 4, 7)
    ]
    assert kept.rows_B.tolist() == [0, 1, 2, 3, 8, 9, 14, 15]
    assert [score.reward for score in kept.scores] == [0, 0, 1, 0, 1, 0, 1, 0]
    assert kept.trace.canvas_BC.shape == (8, 2)
    assert curriculum.metrics(drawn, kept) == {
        "rollout/rounds": 2,
        "rollout/drawn_prompts": 8,
        "reward/kept_mean": 3 / 8,  # of all that were drawn it is 5 / 16
        "curriculum/varied_groups": 3,
        "curriculum/surplus_groups": 0,
    }


def test_groups_beyond_the_batch_are_dropped_and_counted() -> None:
    curriculum = curriculum_of("curriculum.max_rounds=2", size=8)
    order = rng.permutation(rng.stream(0, "order", 0), 8)
    right = dict.fromkeys(order[1:], 1)
    drawn = curriculum.sample(0, lambda prompts: completed(prompts, right))
    kept = curriculum.select(drawn)
    assert [ids[0] for ids in kept.prompts.ids] == order[1:5]
    metrics = curriculum.metrics(drawn, kept)
    assert metrics["curriculum/varied_groups"] == 4
    assert metrics["curriculum/surplus_groups"] == 3


def test_pass_rates_count_all_that_was_drawn_and_the_next_step_draws_by_them() -> None:
    curriculum = curriculum_of("curriculum=informative", "curriculum.max_rounds=2", size=8)
    first = curriculum.numbers(0, 0) + curriculum.numbers(0, 1)
    assert sorted(first) == list(range(8))  # no prompt twice in a step
    drawn = curriculum.sample(0, lambda prompts: completed(prompts, {3: 1, 6: 2}))
    assert curriculum.rates is not None
    assert curriculum.rates.tried_N.tolist() == [G] * 8
    assert curriculum.rates.correct_N.tolist() == [0, 0, 0, 1, 0, 0, 2, 0]
    metrics = curriculum.metrics(drawn, curriculum.select(drawn))
    assert metrics["curriculum/seen_frac"] == 1
    assert metrics["curriculum/pass_rate"] == pytest.approx((6 * 0.5 + 1.5 + 2.5) / 3 / 8)
    again = curriculum_of("curriculum=informative", "curriculum.max_rounds=2", size=8)
    again.load(curriculum.state())
    assert [again.numbers(step, 0) for step in (1, 2)] == [
        curriculum.numbers(step, 0) for step in (1, 2)
    ]
    other = curriculum_of("curriculum=informative", size=9)
    with pytest.raises(CheckpointError, match="pass rates of 8 training prompts, the task has 9"):
        other.load(curriculum.state())


def test_an_even_draw_is_over_all_prompts_and_an_uneven_one_over_fewer() -> None:
    assert rates_of((0, 1), (1, 1)).metrics()["curriculum/effective_frac"] == pytest.approx(1)
    uneven = rates_of((5 * 10**5, 10**6), *[(0, 10**6)] * 9, floor=1e-9).metrics()
    assert uneven["curriculum/effective_frac"] == pytest.approx(0.1, abs=1e-3)
