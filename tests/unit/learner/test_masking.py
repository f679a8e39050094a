"""Every masking against hand-made traces."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from drift.common import rng
from drift.config.masking import (
    MASKINGS,
    AllConfig,
    BlockConfig,
    CoupledConfig,
    CoupledRatioConfig,
    ElboConfig,
    LeftToRightConfig,
    MaskingConfig,
    QuadratureConfig,
    RandomConfig,
    ReplayConfig,
    SequentialConfig,
    Times,
    TraceConfig,
)
from drift.learner.masking import build_views, prompt_masks
from drift.learner.masking.basic import all_, coupled, coupled_ratio, random_
from drift.learner.masking.elbo import block, draw_times, elbo, quadrature
from drift.learner.masking.states import (
    draw_steps,
    left_to_right,
    replay,
    sequential,
    step_surprisal,
    trace_groups,
)
from tests.conftest import make_rollout, make_trace

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


EVERY: dict[str, MaskingConfig] = {
    "all": AllConfig(),
    "random": RandomConfig(),
    "coupled": CoupledConfig(),
    "coupled_ratio": CoupledRatioConfig(),
    "sequential": SequentialConfig(num_views=2),
    "trace": TraceConfig(shrink=2),
    "replay": ReplayConfig(),
    "elbo": ElboConfig(),
    "quadrature": QuadratureConfig(),
    "block": BlockConfig(block_length=2),
    "left_to_right": LeftToRightConfig(),
}


@pytest.mark.parametrize("name", MASKINGS.schemas)
def test_a_row_gets_the_same_views_in_any_batch(name: str) -> None:
    config = EVERY[name]
    build = MASKINGS.function(config)
    together = build(make_trace([[0, 1, 2, 3]] * 3), torch.tensor([7, 8, 9]), config, KEY)
    alone = build(make_trace([[0, 1, 2, 3]]), torch.tensor([8]), config, KEY)
    assert torch.equal(together.scored_KBC[:, 1:2], alone.scored_KBC)
    if alone.weight_KB is not None and together.weight_KB is not None:
        assert torch.equal(together.weight_KB[:, 1:2], alone.weight_KB)


@st.composite
def rows_of_steps(draw: st.DrawFn) -> list[list[int]]:
    """Unmask steps of some rows of one canvas; each row is committed up to some token."""
    size = draw(st.integers(1, 7))
    rows = draw(st.integers(1, 3))
    lengths = [draw(st.integers(1, size)) for _ in range(rows)]
    return [
        [draw(st.integers(0, 9)) for _ in range(length)] + [-1] * (size - length)
        for length in lengths
    ]


@pytest.mark.parametrize("name", MASKINGS.schemas)
@given(steps=rows_of_steps(), key=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_scored_tokens_are_hidden_and_committed(
    name: str, steps: list[list[int]], key: int
) -> None:
    trace = make_trace(steps)
    views = MASKINGS.function(EVERY[name])(trace, torch.arange(len(steps)), EVERY[name], key)
    used_KBC = views.scored_KBC | views.candidate_KBC
    assert not (used_KBC & ~views.hidden_KBC).any()
    assert not (used_KBC & ~trace.committed_BC).any()
    assert (views.hidden_KBC | trace.committed_BC).all()  # what was never committed stays hidden
    if views.weight_KB is None:
        assert used_KBC.any(2).any(0).all()  # every row teaches something
    else:
        assert views.weight_KB.isfinite().all()
        assert (views.weight_KB >= 0).all()


@pytest.mark.parametrize(
    ("strategy", "config"),
    [
        *((elbo, ElboConfig(times=times, exact_count=e)) for times in Times for e in (False, True)),
        (quadrature, QuadratureConfig(num_views=3)),
    ],
)
def test_the_weights_of_a_token_add_up_to_one_on_average(strategy, config) -> None:
    # sum_k w_k 1[hidden in view k] has mean 1: a likelihood that were a product is found exactly
    rows = 20_000
    trace = make_trace([[0, 1, 2, 3, -1]] * rows)
    views = strategy(trace, torch.arange(rows), config, KEY)
    assert views.weight_KB is not None
    total_BC = (views.scored_KBC * views.weight_KB[:, :, None]).sum(0)
    assert torch.equal(total_BC[:, 4], torch.zeros(rows))  # never committed
    error = total_BC.std(0) / rows**0.5
    assert ((total_BC.mean(0) - 1).abs() <= 5 * error)[:4].all()


def test_times_are_drawn_together_as_they_say() -> None:
    rows = torch.arange(10_000)
    means = dict.fromkeys(Times, [0.5] * 4)
    means[Times.stratified] = [0.125, 0.375, 0.625, 0.875]
    for times in Times:
        drawn = draw_times(rows, 4, times, KEY)
        assert drawn.mean(1).tolist() == pytest.approx(means[times], abs=0.02)
        assert ((drawn > 0) & (drawn < 1)).all()
    stratified = draw_times(rows, 4, Times.stratified, KEY)
    assert (stratified * 4).floor().T.unique(dim=0).tolist() == [[0, 1, 2, 3]]
    antithetic = draw_times(rows, 4, Times.antithetic, KEY)
    assert torch.allclose(antithetic[0] + antithetic[1], torch.ones(len(rows)).double())


@pytest.mark.parametrize("exact_count", [False, True])
def test_antithetic_views_score_every_token_once_in_a_pair(exact_count: bool) -> None:
    config = ElboConfig(num_views=4, times=Times.antithetic, exact_count=exact_count)
    views = elbo(make_trace([[0, 1, 2, -1]] * 50), torch.arange(50), config, KEY)
    for pair in (views.scored_KBC[:2], views.scored_KBC[2:]):
        assert pair.sum(0).tolist() == [[1, 1, 1, 0]] * 50


def test_exact_count_is_uniform_over_none_to_all_and_weighs_espos_weights() -> None:
    rows = 8_000
    config = ElboConfig(num_views=1, times=Times.independent, exact_count=True)
    views = elbo(make_trace([[0, 1, 2]] * rows), torch.arange(rows), config, KEY)
    assert views.weight_KB is not None
    count_B = views.scored_KBC[0].sum(1)
    shares = torch.bincount(count_B, minlength=4) / rows
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.025)
    weight_of = {int(c): w.item() for c, w in zip(count_B, views.weight_KB[0], strict=True)}
    assert weight_of == pytest.approx({0: 0.0, 1: 4.0, 2: 2.0, 3: 4 / 3})  # (n + 1) / count


def test_quadrature_integrates_polynomials_exactly() -> None:
    config = QuadratureConfig(num_views=3)
    views = quadrature(make_trace([[0]]), ROWS, config, KEY)
    assert views.weight_KB is not None
    points = [(1 - math.sqrt(0.6)) / 2, 0.5, (1 + math.sqrt(0.6)) / 2]
    expected = [5 / 18 / points[0], 8 / 18 / points[1], 5 / 18 / points[2]]
    assert views.weight_KB[:, 0].tolist() == pytest.approx(expected)


def test_block_view_shows_what_precedes_its_block_and_nothing_behind_it() -> None:
    config = BlockConfig(num_views=2, block_length=2)
    trace = make_trace([[0, 1, 2, 3, 4, 5], [0, 1, 2, -1, -1, -1]])
    for key in range(30):
        views = block(trace, torch.tensor([0, 1]), config, key)
        assert views.weight_KB is not None
        for k in range(2):
            for row, length in enumerate((6, 3)):
                hidden = views.scored_KBC[k, row].tolist()
                first = hidden.index(True) // 2
                assert all(hidden[2 * (first + 1) : length])
                share = sum(hidden) / length
                assert views.weight_KB[k, row].item() == pytest.approx(1 / (2 * share))
        firsts = views.scored_KBC[:, 1].int().argmax(1) // 2
        assert sorted(firsts.tolist()) == [0, 1]  # both of its blocks, none twice


def test_a_token_of_a_later_block_weighs_more_on_average() -> None:
    rows, size, length = 20_000, 8, 2
    expected = torch.zeros(size)  # over the drawn block and how many of its tokens are hidden
    for first in range(0, size, length):
        for here in range(1, length + 1):
            behind = size - first - length
            chance_C = torch.tensor([0.0] * first + [here / length] * length + [1.0] * behind)
            expected += chance_C * (size / (here + behind)) / size  # size/2 blocks, 2 counts
    assert expected[::2].tolist() == pytest.approx([0.196, 0.535, 1.051, 2.218], abs=1e-3)
    for num_views in (1, 2, 5):
        config = BlockConfig(num_views=num_views, block_length=length)
        trace = make_trace([list(range(size))] * rows)
        views = block(trace, torch.arange(rows), config, KEY)
        assert views.weight_KB is not None
        total_BC = (views.scored_KBC * views.weight_KB[:, :, None]).sum(0)
        error_C = total_BC.std(0) / rows**0.5
        assert ((total_BC.mean(0) - expected).abs() <= 5 * error_C).all()


def test_coupled_ratio_weights_are_those_of_its_parts() -> None:
    views = coupled_ratio(
        make_trace([[0, 1, 2, 3]] * 9), torch.arange(9), CoupledRatioConfig(), KEY
    )
    assert views.weight_KB is not None
    everything, part, rest = views.scored_KBC
    assert everything.all()
    assert torch.equal(part, ~rest)
    w_all, w_part, w_rest = views.weight_KB.double()
    assert w_all.tolist() == [0.5] * 9
    u = 1 / (2 * w_part)
    assert torch.allclose(w_rest, 1 / (2 * (1 - u)))
    assert ((u > 0.2) & (u < 0.8)).all()


def test_replay_scores_every_token_where_the_sampler_committed_it() -> None:
    views = replay(make_trace([[1, 2, 0, 1, -1]]), ROWS, ReplayConfig(), KEY)
    assert views.hidden_KBC[:, 0].int().tolist() == [
        [1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [0, 1, 0, 0, 1],
    ]  # fmt: skip
    assert views.scored_KBC[:, 0].int().tolist() == [
        [0, 0, 1, 0, 0], [1, 0, 0, 1, 0], [0, 1, 0, 0, 0],
    ]  # fmt: skip


def test_trace_views_are_groups_of_steps() -> None:
    # steps 0 1 | 2 3 | 4: the first group's tokens are scored with everything hidden
    views = trace_groups(make_trace([[4, 3, 2, 1, 0]]), ROWS, TraceConfig(shrink=2), KEY)
    assert views.hidden_KBC[:, 0].int().tolist() == [
        [1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0],
    ]  # fmt: skip
    assert views.scored_KBC[:, 0].int().tolist() == [
        [0, 0, 0, 1, 1], [0, 1, 1, 0, 0], [1, 0, 0, 0, 0],
    ]  # fmt: skip


def test_left_to_right_shows_what_stands_before() -> None:
    views = left_to_right(make_trace([[2, 0, 1, -1]]), ROWS, LeftToRightConfig(), KEY)
    assert views.hidden_KBC[:, 0].int().tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
    assert views.scored_KBC[:, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_prompt_tokens_are_hidden_with_their_probability_and_by_row_alone() -> None:
    rollout = make_rollout([[5] * 40, [5] * 7], make_trace([[0], [0]] * 200), group_size=200)
    config = AllConfig(num_views=2, prompt_mask_prob=0.15)
    masks = prompt_masks(build_views(rollout.trace, rollout.rows_B, config, KEY), rollout)
    assert masks is not None
    assert masks.shape == (2, 400, 40)
    assert masks.float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert not torch.equal(masks[0], masks[1])
    off = AllConfig()
    assert prompt_masks(build_views(rollout.trace, rollout.rows_B, off, KEY), rollout) is None
