"""Every strategy against hand-made traces."""

import math

import pytest
import torch

from drift import rng
from drift.config import AllConfig, CoupledConfig, RandomConfig, SequentialConfig
from drift.masking import all_, coupled, draw_steps, random_, sequential, step_surprisal
from tests.conftest import bools, make_trace

ROWS = torch.tensor([0])
KEY = rng.stream(0, "test")


def test_all_hides_and_scores_every_committed_token() -> None:
    trace = make_trace([[0, 1, 1, -1]])
    views = all_(trace, ROWS, AllConfig(), KEY)
    assert views.hidden_KBC.tolist() == [[[True, True, True, True]]]
    assert views.scored_KBC.tolist() == [[[True, True, True, False]]]
    assert not views.candidate_KBC.any()


def test_sequential_view_shows_what_the_sampler_saw_at_its_step() -> None:
    # commit order: position 2 at step 0, positions 0 and 3 at step 1, position 1 at step 2
    trace = make_trace([[1, 2, 0, 1]])
    config = SequentialConfig(num_views=3, temperature=math.inf)
    views = sequential(trace, ROWS, config, KEY)
    seen = {
        (tuple(h), tuple(s), tuple(c))
        for h, s, c in zip(
            views.hidden_KBC[:, 0].int().tolist(),
            views.scored_KBC[:, 0].int().tolist(),
            views.candidate_KBC[:, 0].int().tolist(),
            strict=True,
        )
    }
    assert seen == {
        ((1, 1, 1, 1), (0, 0, 1, 0), (1, 1, 0, 1)),  # step 0
        ((1, 1, 0, 1), (1, 0, 0, 1), (0, 1, 0, 0)),  # step 1
        ((0, 1, 0, 0), (0, 1, 0, 0), (0, 0, 0, 0)),  # step 2
    }


def test_sequential_keeps_the_uncommitted_tail_hidden_and_unscored() -> None:
    trace = make_trace([[0, 1, -1, -1]])
    views = sequential(trace, ROWS, SequentialConfig(num_views=2), KEY)
    assert views.hidden_KBC[:, 0, 2:].all()
    assert not views.scored_KBC[:, 0, 2:].any()
    assert not views.candidate_KBC[:, 0, 2:].any()


def test_threshold_one_scores_the_step_alone() -> None:
    trace = make_trace([[0, 1, 2, 3]])
    views = sequential(trace, ROWS, SequentialConfig(low_prob_threshold=1.0), KEY)
    assert not views.candidate_KBC.any()
    assert views.scored_KBC.sum() == 4


def test_step_surprisal_is_the_mean_of_minus_log_p() -> None:
    trace = make_trace([[0, 1, 1, -1]], logp=[[-0.5, -1.0, -3.0, -9.0]])
    surprisal, real = step_surprisal(trace, 3)
    assert surprisal.tolist() == [[0.5, 2.0, 0.0]]
    assert real.tolist() == [[True, True, False]]


def test_temperature_zero_takes_the_most_surprising_steps_in_order() -> None:
    trace = make_trace([[0, 1, 2, 3]], logp=[[-1.0, -4.0, -2.0, -3.0]])
    config = SequentialConfig(num_views=3, temperature=0.0)
    assert draw_steps(trace, ROWS, config, KEY)[:, 0].tolist() == [1, 3, 2]


def test_fewer_steps_than_views_are_taken_again() -> None:
    trace = make_trace([[0, 0, 1, 1]], logp=[[-1.0, -1.0, -2.0, -2.0]])
    config = SequentialConfig(num_views=4, temperature=0.0)
    assert draw_steps(trace, ROWS, config, KEY)[:, 0].tolist() == [1, 0, 1, 0]


def test_steps_that_committed_nothing_are_never_drawn() -> None:
    trace = make_trace([[0, 5, 5, 5]])
    steps = draw_steps(trace, ROWS, SequentialConfig(num_views=4), KEY)
    assert set(steps[:, 0].tolist()) == {0, 5}


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, math.exp(2) / (math.exp(2) + math.exp(1))), (math.inf, 0.5)],
)
def test_steps_are_drawn_from_the_softmax_of_their_surprisal(
    temperature: float, expected: float
) -> None:
    rows = 4000
    trace = make_trace([[0, 1]] * rows, logp=[[-1.0, -2.0]] * rows)
    config = SequentialConfig(num_views=1, temperature=temperature)
    share = draw_steps(trace, torch.arange(rows), config, KEY)[0].double().mean().item()
    assert share == pytest.approx(expected, abs=4 * math.sqrt(0.25 / rows))


def test_random_hides_the_given_share_of_the_committed_tokens() -> None:
    trace = make_trace([[0, 1, 2, 3, 4, 5, 6, -1, -1, -1]])
    views = random_(trace, ROWS, RandomConfig(num_views=5, ratio=0.3), KEY)
    assert views.scored_KBC.sum(2).tolist() == [[2]] * 5  # floor(0.3 * 7)
    assert views.hidden_KBC.sum(2).tolist() == [[5]] * 5  # and the 3 that were never committed
    assert len({tuple(v) for v in views.scored_KBC[:, 0].tolist()}) > 1


def test_random_hides_at_least_one_token() -> None:
    views = random_(make_trace([[0, 1]]), ROWS, RandomConfig(num_views=1, ratio=0.1), KEY)
    assert views.scored_KBC.sum() == 1


def test_coupled_scores_every_token_once_in_a_pair() -> None:
    trace = make_trace([[0, 1, 2, 3, 4, -1]])
    views = coupled(trace, ROWS, CoupledConfig(num_views=4), KEY)
    for pair in (views.scored_KBC[:2, 0], views.scored_KBC[2:, 0]):
        assert pair.int().sum(0).tolist() == [1, 1, 1, 1, 1, 0]
        assert pair.sum(1).tolist() == [2, 3]
    assert views.hidden_KBC[:, 0, 5].all()


def test_a_row_gets_the_same_views_in_any_batch() -> None:
    trace = make_trace([[0, 1, 2, 3]] * 3)
    alone = make_trace([[0, 1, 2, 3]])
    for strategy, config in (
        (random_, RandomConfig()),
        (coupled, CoupledConfig()),
        (sequential, SequentialConfig(num_views=2)),
    ):
        together = strategy(trace, torch.tensor([7, 8, 9]), config, KEY).scored_KBC[:, 1:2]
        single = strategy(alone, torch.tensor([8]), config, KEY).scored_KBC
        assert torch.equal(together, single)


def test_scored_tokens_are_hidden_and_committed() -> None:
    trace = make_trace([[0, 0, 1, 2, -1, -1], [3, 2, 1, 0, 4, 4]])
    rows = torch.tensor([0, 1])
    for strategy, config in (
        (all_, AllConfig()),
        (random_, RandomConfig()),
        (coupled, CoupledConfig()),
        (sequential, SequentialConfig()),
    ):
        views = strategy(trace, rows, config, KEY)
        used = views.scored_KBC | views.candidate_KBC
        assert not (used & ~views.hidden_KBC).any()
        assert not (used & (bools([[0, 0, 0, 0, 1, 1], [0] * 6]))).any()
