"""Every masking against hand-made traces."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from drift.common import rng
from drift.common.types import MaskedViews, Trace
from drift.config.commands import RunConfig
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
    Tail,
    Times,
    TraceConfig,
)
from drift.config.objective import PpoClipConfig
from drift.learner.masking import build_views, draw_views, views as of_views
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
from tests.conftest import ROOT, bools, dense, make_trace, objective, planes

ROWS = torch.tensor([0])
KEY = rng.stream(0, "test")


def drawn(views: MaskedViews, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the views hide, score and may score (candidates): [K, B, C] bool each."""
    found = planes(views, int(views.order_J.max()) + 1, size)
    return found["hidden"], found["scored"], found["candidate"]


def scored(views: MaskedViews, size: int) -> Tensor:
    """What the views score, candidates left out: [K, B, C] bool."""
    return dense(~views.candidate_N, views, int(views.order_J.max()) + 1, size)


def weights(views: MaskedViews) -> Tensor:
    """The weights of K views of every row: [K, B]."""
    assert views.weight_J is not None
    return views.weight_J.view(len(views.length_B), -1).T


def token_weights(views: MaskedViews, num_views: int, size: int) -> Tensor:
    """The weights of the views that score a token, added up: [B, C]."""
    assert views.weight_J is not None
    return dense(views.weight_J[views.state_N], views, num_views, size).sum(0)


def test_all_hides_and_scores_every_committed_token() -> None:
    trace = make_trace([[0, 1, 1, -1]])
    views = all_(trace, ROWS, AllConfig(), KEY)
    hidden_KBC, scored_KBC, _ = drawn(views, 4)
    assert hidden_KBC.tolist() == [[[True, True, True, True]]]
    assert scored_KBC.tolist() == [[[True, True, True, False]]]
    assert not views.candidate_N.any()


def test_sequential_view_shows_what_the_sampler_saw_at_its_step() -> None:
    # commit order: position 2 at step 0, positions 0 and 3 at step 1, position 1 at step 2
    trace = make_trace([[1, 2, 0, 1]])
    config = SequentialConfig(num_views=3, temperature=math.inf)
    views = sequential(trace, ROWS, config, KEY)
    seen = {
        (tuple(h), tuple(s), tuple(c))
        for h, s, c in zip(*(x[:, 0].int().tolist() for x in drawn(views, 4)), strict=True)
    }
    assert seen == {
        ((1, 1, 1, 1), (0, 0, 1, 0), (1, 1, 0, 1)),  # step 0
        ((1, 1, 0, 1), (1, 0, 0, 1), (0, 1, 0, 0)),  # step 1
        ((0, 1, 0, 0), (0, 1, 0, 0), (0, 0, 0, 0)),  # step 2
    }


def test_sequential_keeps_the_uncommitted_tail_hidden_and_unscored() -> None:
    trace = make_trace([[0, 1, -1, -1]])
    views = sequential(trace, ROWS, SequentialConfig(num_views=2), KEY)
    hidden_KBC, scored_KBC, candidate_KBC = drawn(views, 4)
    assert hidden_KBC[:, 0, 2:].all()
    assert not scored_KBC[:, 0, 2:].any()
    assert not candidate_KBC[:, 0, 2:].any()


def test_threshold_one_scores_the_step_alone() -> None:
    trace = make_trace([[0, 1, 2, 3]])
    views = sequential(trace, ROWS, SequentialConfig(low_prob_threshold=1.0), KEY)
    assert not views.candidate_N.any()
    assert scored(views, 4).sum() == 4


def test_step_surprisal_is_the_mean_of_minus_log_p() -> None:
    trace = make_trace([[0, 1, 1, -1]], logp=[[-0.5, -1.0, -3.0, -9.0]])
    surprisal, real = step_surprisal(trace, trace.committed_BC, 3)
    assert surprisal.tolist() == [[0.5, 2.0, 0.0]]
    assert real.tolist() == [[True, True, False]]
    surprisal, real = step_surprisal(trace, bools([[0, 0, 1, 0]]), 3)
    assert surprisal.tolist() == [[0.0, 3.0, 0.0]]
    assert real.tolist() == [[False, True, False]]


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
    hidden_KBC, scored_KBC, _ = drawn(views, 10)
    assert scored_KBC.sum(2).tolist() == [[2]] * 5  # floor(0.3 * 7)
    assert hidden_KBC.sum(2).tolist() == [[5]] * 5  # and the 3 that were never committed
    assert len({tuple(v) for v in scored_KBC[:, 0].tolist()}) > 1


def test_random_hides_at_least_one_token() -> None:
    views = random_(make_trace([[0, 1]]), ROWS, RandomConfig(num_views=1, ratio=0.1), KEY)
    assert scored(views, 2).sum() == 1


def test_coupled_scores_every_token_once_in_a_pair() -> None:
    trace = make_trace([[0, 1, 2, 3, 4, -1]])
    views = coupled(trace, ROWS, CoupledConfig(num_views=4), KEY)
    hidden_KBC, scored_KBC, _ = drawn(views, 6)
    for pair in (scored_KBC[:2, 0], scored_KBC[2:, 0]):
        assert pair.int().sum(0).tolist() == [1, 1, 1, 1, 1, 0]
        assert pair.sum(1).tolist() == [2, 3]
    assert hidden_KBC[:, 0, 5].all()


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
    for of_three_KBC, of_one_KBC in zip(drawn(together, 4), drawn(alone, 4), strict=True):
        assert torch.equal(of_three_KBC[:, 1:2], of_one_KBC)
    assert (together.weight_J is None) == (alone.weight_J is None)
    if alone.weight_J is not None:
        assert torch.equal(weights(together)[:, 1:2], weights(alone))


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
    hidden_KBC, scored_KBC, candidate_KBC = drawn(views, len(steps[0]))
    used_KBC = scored_KBC | candidate_KBC
    assert used_KBC.sum() == len(views.state_N)  # no token twice in a state
    assert not (used_KBC & ~hidden_KBC).any()
    assert not (used_KBC & ~trace.committed_BC).any()
    assert (hidden_KBC | trace.committed_BC).all()  # what was never committed stays hidden
    assert (views.row_J.diff() >= 0).all()
    assert (views.state_N.diff() >= 0).all()
    if views.weight_J is None:
        assert used_KBC.any(2).any(0).all()  # every row teaches something
    else:
        assert views.weight_J.isfinite().all()
        assert (views.weight_J >= 0).all()


@pytest.mark.parametrize("name", MASKINGS.schemas)
def test_tokens_are_found_however_many_states_are_looked_at_together(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = make_trace([[0, 1, 2, 3, 4], [3, 1, 0, -1, -1], [1, 0, -1, -1, -1]])
    whole = build_views(trace, torch.arange(3), EVERY[name], KEY)
    for chunk in (1, 5, 2 * 5 + 1, 4 * 5):
        monkeypatch.setattr(of_views, "CHUNK", chunk)
        views = build_views(trace, torch.arange(3), EVERY[name], KEY)
        for part in ("state_N", "column_N", "candidate_N"):
            assert torch.equal(getattr(views, part), getattr(whole, part))


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
    total_BC = token_weights(views, config.num_views, 5)
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
    scored_KBC = scored(views, 4)
    for pair in (scored_KBC[:2], scored_KBC[2:]):
        assert pair.sum(0).tolist() == [[1, 1, 1, 0]] * 50


def test_exact_count_is_uniform_over_none_to_all_and_weighs_espos_weights() -> None:
    rows = 8_000
    config = ElboConfig(num_views=1, times=Times.independent, exact_count=True)
    views = elbo(make_trace([[0, 1, 2]] * rows), torch.arange(rows), config, KEY)
    count_B = scored(views, 3)[0].sum(1)
    shares = torch.bincount(count_B, minlength=4) / rows
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.025)
    weight_of = {int(c): w.item() for c, w in zip(count_B, weights(views)[0], strict=True)}
    assert weight_of == pytest.approx({0: 0.0, 1: 4.0, 2: 2.0, 3: 4 / 3})  # (n + 1) / count


def test_quadrature_integrates_polynomials_exactly() -> None:
    config = QuadratureConfig(num_views=3)
    views = quadrature(make_trace([[0]]), ROWS, config, KEY)
    points = [(1 - math.sqrt(0.6)) / 2, 0.5, (1 + math.sqrt(0.6)) / 2]
    expected = [5 / 18 / points[0], 8 / 18 / points[1], 5 / 18 / points[2]]
    assert weights(views)[:, 0].tolist() == pytest.approx(expected)


def test_block_view_shows_what_precedes_its_block_and_nothing_behind_it() -> None:
    config = BlockConfig(num_views=2, block_length=2)
    trace = make_trace([[0, 1, 2, 3, 4, 5], [0, 1, 2, -1, -1, -1]])
    for key in range(30):
        views = block(trace, torch.tensor([0, 1]), config, key)
        scored_KBC, weight_KB = scored(views, 6), weights(views)
        for k in range(2):
            for row, length in enumerate((6, 3)):
                hidden = scored_KBC[k, row].tolist()
                first = hidden.index(True) // 2
                assert all(hidden[2 * (first + 1) : length])
                share = sum(hidden) / length
                assert weight_KB[k, row].item() == pytest.approx(1 / (2 * share))
        firsts = scored_KBC[:, 1].int().argmax(1) // 2
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
        total_BC = token_weights(views, num_views, size)
        error_C = total_BC.std(0) / rows**0.5
        assert ((total_BC.mean(0) - expected).abs() <= 5 * error_C).all()


def test_coupled_ratio_weights_are_those_of_its_parts() -> None:
    views = coupled_ratio(
        make_trace([[0, 1, 2, 3]] * 9), torch.arange(9), CoupledRatioConfig(), KEY
    )
    everything, part, rest = scored(views, 4)
    assert everything.all()
    assert torch.equal(part, ~rest)
    w_all, w_part, w_rest = weights(views).double()
    assert w_all.tolist() == [0.5] * 9
    u = 1 / (2 * w_part)
    assert torch.allclose(w_rest, 1 / (2 * (1 - u)))
    assert ((u > 0.2) & (u < 0.8)).all()


def test_replay_scores_every_token_where_the_sampler_committed_it() -> None:
    views = replay(make_trace([[1, 2, 0, 1, -1]]), ROWS, ReplayConfig(), KEY)
    hidden_KBC, scored_KBC, _ = drawn(views, 5)
    assert hidden_KBC[:, 0].int().tolist() == [
        [1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [0, 1, 0, 0, 1],
    ]  # fmt: skip
    assert scored_KBC[:, 0].int().tolist() == [
        [0, 0, 1, 0, 0], [1, 0, 0, 1, 0], [0, 1, 0, 0, 0],
    ]  # fmt: skip


def test_trace_views_are_groups_of_steps() -> None:
    # steps 0 1 | 2 3 | 4: the first group's tokens are scored with everything hidden
    views = trace_groups(make_trace([[4, 3, 2, 1, 0]]), ROWS, TraceConfig(shrink=2), KEY)
    hidden_KBC, scored_KBC, _ = drawn(views, 5)
    assert hidden_KBC[:, 0].int().tolist() == [
        [1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0],
    ]  # fmt: skip
    assert scored_KBC[:, 0].int().tolist() == [
        [0, 0, 0, 1, 1], [0, 1, 1, 0, 0], [1, 0, 0, 0, 0],
    ]  # fmt: skip


def test_left_to_right_shows_what_stands_before() -> None:
    views = left_to_right(make_trace([[2, 0, 1, -1]]), ROWS, LeftToRightConfig(), KEY)
    hidden_KBC, scored_KBC, _ = drawn(views, 4)
    assert hidden_KBC[:, 0].int().tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
    assert scored_KBC[:, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_prompt_tokens_are_hidden_with_their_probability_and_by_row_alone() -> None:
    trace, rows = make_trace([[0], [0]] * 200), torch.arange(400)
    config = AllConfig(num_views=2, prompt_mask_prob=0.15)
    views = build_views(trace, rows, config, KEY)
    masks_JL = views.hide_prompt(torch.arange(800), 40)
    assert masks_JL is not None
    assert masks_JL.shape == (800, 40)
    assert masks_JL.float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert not torch.equal(masks_JL[::2], masks_JL[1::2])
    alone = build_views(trace.pick(rows[7:8]), rows[7:8], config, KEY)
    shorter_JL = alone.hide_prompt(torch.arange(2), 9)
    assert shorter_JL is not None
    assert torch.equal(shorter_JL, masks_JL[14:16, :9])
    assert build_views(trace, rows, AllConfig(), KEY).hide_prompt(torch.arange(400), 40) is None


# ---- what the maskings gave when views were whole planes


GOLDEN = json.loads((ROOT / "tests" / "golden" / "views.json").read_text(encoding="utf-8"))


def bits(values: Tensor) -> str:
    return "".join(str(int(value)) for value in values)


def told(views: MaskedViews, state: int) -> dict[str, object]:
    """A state as the file has it: one of a prompt of 4 tokens, or of 7 in rows 4 to 7."""
    row, own_N = int(views.row_J[state]), views.state_N == state
    state_M = torch.tensor([state])
    hidden_C = views.hide(state_M)[0]
    column_N, candidate_N = views.column_N[own_N], views.candidate_N[own_N]
    scored_C, candidate_C = (torch.zeros_like(hidden_C) for _ in range(2))
    scored_C[column_N[~candidate_N]] = True
    candidate_C[column_N[candidate_N]] = True
    prompt_ML = views.hide_prompt(state_M, 7)
    return {
        "row": row,
        "order": int(views.order_J[state]),
        "hidden": bits(hidden_C),
        "scored": bits(scored_C),
        "candidate": bits(candidate_C),
        "weight": None if views.weight_J is None else round(float(views.weight_J[state]), 6),
        "prompt": None if prompt_ML is None else bits(prompt_ML[0, : [4, 7][row // 4]]),
    }


each_saved = pytest.mark.parametrize(
    "saved", GOLDEN["maskings"], ids=lambda m: f"{m['name']} {json.dumps(m['settings'])}"
)


def config_of(saved: dict[str, Any]) -> MaskingConfig:
    chosen = dict(saved["settings"])
    if "times" in chosen:
        chosen["times"] = Times(chosen["times"])
    return MASKINGS.schemas[saved["name"]](**chosen)


@each_saved
def test_the_states_with_tokens_are_those_of_the_golden_file(saved: dict[str, Any]) -> None:
    trace = make_trace(GOLDEN["unmask_step"], logp=GOLDEN["logp"])
    views = build_views(trace, torch.tensor(GOLDEN["rows"]), config_of(saved), GOLDEN["key"])
    assert [told(views, state) for state in views.state_N.unique().tolist()] == saved["states"]


def test_every_masking_is_in_the_golden_file() -> None:
    assert {saved["name"] for saved in GOLDEN["maskings"]} == set(MASKINGS.schemas)


# ---- tail=exclude: what was committed after the first stop token


STEPS = [
    [0, 1, 2, 3, 4, 6, 5, 7],  # every token of the tail at a step of its own
    [0, 1, 0, 1, 3, 2, 2, 3],  # at steps of other tokens
    [1, 3, 2, 0, -1, -1, -1, -1],  # before all others
    [7, 6, 5, 4, 3, 2, 1, 0],  # no stop token
]
LENGTH = torch.tensor([5, 6, 3, 8])  # up to and with the stop token
TAIL_BC = torch.arange(8) >= LENGTH[:, None]


def with_tail() -> Trace:
    logp = [[-0.1 * (1 + (3 * b + 5 * c) % 7) for c in range(8)] for b in range(4)]
    return replace(make_trace(STEPS, logp=logp), length_B=LENGTH)


@each_saved
def test_without_the_tail_a_masking_scores_as_if_it_had_never_been_committed(
    saved: dict[str, Any],
) -> None:
    trace, rows, config = with_tail(), torch.tensor([3, 4, 5, 6]), config_of(saved)
    never = replace(trace, unmask_step_BC=trace.unmask_step_BC.masked_fill(TAIL_BC, -1))
    for key in range(20):
        views = build_views(trace, rows, replace(config, tail=Tail.exclude), key)
        expected = build_views(never, rows, config, key)
        assert views.length_B.tolist() == LENGTH.tolist()
        assert not TAIL_BC[views.row_N, views.column_N].any()
        for part in ("row_J", "order_J", "state_N", "column_N", "candidate_N", "length_B"):
            assert torch.equal(getattr(views, part), getattr(expected, part)), part
        assert views.candidate_min_prob == expected.candidate_min_prob
        assert (views.weight_J is None) == (expected.weight_J is None)
        if views.weight_J is not None and expected.weight_J is not None:
            assert torch.equal(views.weight_J, expected.weight_J)
        every_J = torch.arange(len(views.row_J))
        before_JC = ~TAIL_BC[views.row_J]
        hidden_JC, expected_JC = views.hide(every_J), expected.hide(every_J)
        assert torch.equal(hidden_JC & before_JC, expected_JC & before_JC)
        assert hidden_JC[views.state_N, views.column_N].all()


SHOWN_BEFORE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # by steps [J, C], orders [J, 1]
    "trace": lambda step_JC, order_J1: step_JC // 2 < order_J1,
    "replay": lambda step_JC, order_J1: step_JC < order_J1,
}


@pytest.mark.parametrize("name", MASKINGS.schemas)
def test_without_the_tail_a_state_still_shows_what_the_sampler_saw(name: str) -> None:
    trace, rows = with_tail(), torch.arange(4)
    sampled, without = (
        build_views(trace, rows, replace(EVERY[name], tail=tail), KEY) for tail in Tail
    )
    hidden_JC, tail_JC = without.hide(torch.arange(len(without.row_J))), TAIL_BC[without.row_J]
    step_JC = trace.unmask_step_BC[without.row_J]
    if name in SHOWN_BEFORE:
        shown_JC = SHOWN_BEFORE[name](step_JC, without.order_J[:, None]) & (step_JC >= 0)
        assert torch.equal(hidden_JC, ~shown_JC)
        assert (shown_JC & tail_JC).any()  # a tail that was committed early is context
        # the same states and tokens as with the tail, but for the tail's
        place = {
            (int(sampled.row_J[j]), int(sampled.order_J[j]), int(c))
            for j, c in zip(sampled.state_N, sampled.column_N, strict=True)
            if not TAIL_BC[sampled.row_J[j], c]
        }
        assert place == {
            (int(without.row_J[j]), int(without.order_J[j]), int(c))
            for j, c in zip(without.state_N, without.column_N, strict=True)
        }
    elif name == "sequential":
        for state in range(len(without.row_J)):
            own_N = (without.state_N == state) & ~without.candidate_N
            (step,) = set(step_JC[state, without.column_N[own_N]].tolist())
            steps = step_JC[state].tolist()
            assert hidden_JC[state].tolist() == [not 0 <= s < step for s in steps]
    else:
        assert hidden_JC[tail_JC].all()


def test_without_the_tail_its_steps_are_never_drawn_and_its_surprisal_does_not_count() -> None:
    trace, rows = with_tail(), torch.arange(4)
    config = SequentialConfig(num_views=8, tail=Tail.exclude)
    for key in range(50):
        step_KB = draw_steps(trace, rows, config, key)
        assert set(step_KB[:, 0].tolist()) == {0, 1, 2, 3, 4}  # 5, 6 and 7 are the tail's
        assert set(step_KB[:, 1].tolist()) == {0, 1, 2, 3}
        assert set(step_KB[:, 3].tolist()) == set(range(8))
    # step 2 is the most surprising one by its token of the tail alone
    logp = [[-1.0, -2.0, -0.5, -9.0]]
    short = replace(make_trace([[0, 1, 2, 2]], logp=logp), length_B=torch.tensor([3]))
    for tail, expected in ((Tail.exclude, [1, 0, 2]), (Tail.sampled, [2, 1, 0])):
        config = SequentialConfig(num_views=3, temperature=0.0, tail=tail)
        assert draw_steps(short, ROWS, config, KEY)[:, 0].tolist() == expected


# ---- redraw


@pytest.mark.parametrize("name", MASKINGS.schemas)
def test_redraw_gives_every_pass_views_of_its_own(name: str) -> None:
    trace, rows = make_trace([list(range(12))] * 6), torch.arange(6)

    def said(views: MaskedViews) -> list[list[object]]:
        hidden_JC = views.hide(torch.arange(len(views.row_J)))
        parts = (views.row_J, views.order_J, hidden_JC, views.state_N, views.column_N)
        return [part.tolist() for part in parts]

    masking = replace(EVERY[name], prompt_mask_prob=0.5)
    config = RunConfig(masking=masking, objective=objective(PpoClipConfig, num_updates=3))
    first = build_views(trace, rows, masking, KEY)
    (only,) = draw_views(trace, rows, config, KEY)
    assert said(only) == said(first)
    config.masking = replace(masking, redraw=True)
    draws = draw_views(trace, rows, config, KEY)
    assert len(draws) == 3
    assert said(draws[0]) == said(first)
    assert draws[0].key == first.key
    assert len({views.key for views in draws}) == 3
    always_the_same = name in ("all", "trace", "replay", "left_to_right")
    assert len({json.dumps(said(views)) for views in draws}) == (1 if always_the_same else 3)
    assert [said(views) for views in draw_views(trace, rows, config, KEY)] == list(map(said, draws))
