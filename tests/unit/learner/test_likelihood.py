"""The learner sees what the sampler saw; its gradients against brute force."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from drift.cluster.engine import Engine
from drift.common import rng
from drift.common.types import Advantages, MaskedViews, Rollout
from drift.config.cluster import ClusterConfig
from drift.config.commands import RunConfig
from drift.config.masking import (
    MASKINGS as NAMES,
    AllConfig,
    CoupledConfig,
    MaskingConfig,
    RandomConfig,
    SequentialConfig,
)
from drift.config.model import Dtype, ModelConfig
from drift.config.objective import Normalization, PpoClipConfig
from drift.config.optim import OptimConfig
from drift.learner.layout import cut, micro_batches
from drift.learner.likelihood import score, token_logps
from drift.learner.masking import build_views
from drift.learner.update import likely, padding, update
from drift.policy.base import Policy
from drift.rollout.decoding import decode
from tests.conftest import (
    dense,
    make_policy,
    make_rollout,
    make_trace,
    objective,
    planes,
    replay_views,
    rollout_config,
)
from tests.unit.learner.test_masking import EVERY
from tests.unit.rollout.test_decoding import EXACT

KEY = rng.stream(3, "test")
PROMPTS = [[5, 6, 7], [4], [9, 8, 7, 6, 5, 4], [3, 3]]


BATCHES = [PROMPTS * 4, PROMPTS[:1], [[5, 6]] * 16]
REPLAYED = [  # every config, and every batch in every size of forward
    *((name, BATCHES[0], 3) for name in EXACT if name != "two a step"),
    *(("two a step", prompts, rows) for prompts in BATCHES for rows in (3, 64)),
]


@pytest.mark.parametrize(("name", "prompts", "rows_per_forward"), REPLAYED)
def test_replaying_a_trace_gives_the_samplers_log_probs(
    policy: Policy, name: str, prompts: list[list[int]], rows_per_forward: int
) -> None:
    config = EXACT[name]
    trace = decode(policy, prompts, torch.arange(len(prompts)), config, KEY)
    temperature = config.temperature or 1.0  # greedy records the log-prob at 1
    rollout = make_rollout(prompts, trace, temperature=temperature)
    views, longest = replay_views(rollout), max(map(len, prompts)) + 8
    batches = micro_batches(rollout, views, policy.special, rows_per_forward * longest)
    logps = token_logps(policy, batches, temperature)
    steps = int(trace.unmask_step_BC.max()) + 1
    logp_BC = dense(logps.logp_N, views, steps, 8).sum(0)
    torch.testing.assert_close(logp_BC, trace.logp_BC, atol=1e-5, rtol=0)


def toy() -> Policy:
    """Four words (0, 2, 3, 4; 0 ends a sequence) and the mask, in float64."""
    return make_policy(vocab_size=5, seed=1).double()


def dense_logps(policy: Policy, rollout: Rollout, hidden_KBC: Tensor) -> Tensor:
    """Every canvas token's log-prob by one full forward per view-row, with loops: [K, B, C]."""
    out = []
    for view in hidden_KBC:
        for row, hidden in enumerate(view):
            prompt = rollout.prompt_ids(row)
            canvas = rollout.trace.canvas_BC[row]
            shown = torch.where(hidden, policy.special.mask, canvas)
            logits = policy.logits(torch.cat([torch.tensor(prompt), shown])[None])[0].double()
            logits[:, policy.special.mask] = -torch.inf
            logps = (logits / rollout.temperature).log_softmax(-1)[len(prompt) :]
            out.append(torch.stack([logps[i, token] for i, token in enumerate(canvas)]))
    return torch.stack(out).view(hidden_KBC.shape)


MASKINGS: list[MaskingConfig] = [
    SequentialConfig(num_views=2),
    RandomConfig(ratio=0.7),
    CoupledConfig(),
    AllConfig(),
]


@pytest.mark.parametrize("masking", MASKINGS, ids=NAMES.name)
def test_micro_batches_score_what_dense_logits_say(masking: MaskingConfig) -> None:
    policy = make_policy("dream", seed=4).double()
    trace = decode(policy, PROMPTS, torch.arange(4), rollout_config(), KEY)
    rollout = make_rollout(PROMPTS, trace, temperature=0.5)
    views = build_views(trace, rollout.rows_B, masking, KEY)
    num_views = int(views.order_J.max()) + 1
    found = planes(views, num_views, 8)
    asked_KBC = found["scored"] | found["candidate"]
    batches = micro_batches(rollout, views, policy.special, 3 * 14)
    logp_N = token_logps(policy, batches, 0.5).logp_N
    expected = dense_logps(policy, rollout, found["hidden"])
    assert len(logp_N) == asked_KBC.sum() > 0
    logp_KBC = dense(logp_N, views, num_views, 8).double()
    torch.testing.assert_close(logp_KBC[asked_KBC], expected[asked_KBC], atol=1e-5, rtol=0)


def test_entropy_is_minus_sum_p_log_p() -> None:
    policy = toy()
    rollout = make_rollout([[3]], make_trace([[0, 1, 2]], canvas=[[2, 3, 4]]))
    views = build_views(rollout.trace, rollout.rows_B, AllConfig(), KEY)
    (batch,) = micro_batches(rollout, views, policy.special, 8 * 4)
    _, entropy_N, _ = score(policy, batch, 1.0)
    logits = policy.logits(torch.tensor([[3, 1, 1, 1]]))[0, 1:].double()
    probs = logits[:, [0, 2, 3, 4]].softmax(-1)
    expected = -(probs * probs.log()).sum(-1)
    torch.testing.assert_close(entropy_N.double(), expected, atol=1e-5, rtol=0)


def all_answers(left_to_right: bool) -> Rollout:
    """All 4^3 answers to one prompt, committed all at once or from left to right."""
    answers = [list(words) for words in itertools.product((0, 2, 3, 4), repeat=3)]
    step = [[0, 1, 2] if left_to_right else [0, 0, 0]] * len(answers)
    return make_rollout([[3, 4]], make_trace(step, canvas=answers), group_size=len(answers))


def exact_objective(policy: Policy, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """The probability of every answer and the expected reward: [64], scalar."""
    steps = planes(replay_views(rollout), int(rollout.trace.unmask_step_BC.max()) + 1, 3)
    logps = dense_logps(policy, rollout, steps["hidden"])
    probs = (logps * steps["scored"]).sum(dim=(0, 2)).exp()
    rewards = (rollout.trace.canvas_BC == torch.tensor([4, 2, 3])).double().sum(1)
    return probs, (probs * rewards).sum()


@pytest.mark.parametrize("left_to_right", [False, True])
def test_expected_policy_gradient_equals_the_gradient_by_enumeration(left_to_right: bool) -> None:
    # the learner's REINFORCE gradient, summed over all 64 answers with weight p(answer) reward
    policy = toy()
    rollout = all_answers(left_to_right)
    masking: MaskingConfig
    if left_to_right:
        masking = SequentialConfig(num_views=3, low_prob_threshold=1.0)
    else:
        masking = AllConfig()
    views = build_views(rollout.trace, rollout.rows_B, masking, KEY)
    probs, expected_reward = exact_objective(policy, rollout)
    assert probs.sum().item() == pytest.approx(1.0)
    names = [name for name, _ in policy.named_parameters()]
    exact = torch.autograd.grad(expected_reward, list(policy.parameters()))

    rewards = (rollout.trace.canvas_BC == torch.tensor([4, 2, 3])).double().sum(1)
    values_B = (probs * rewards).detach() * 64 * 3  # undo 1 / (rows * tokens of a row)
    gradient = learner_gradient(policy, rollout, views, values_B.float())
    for name, found, wanted in zip(names, gradient, exact, strict=True):
        torch.testing.assert_close(-found, wanted, atol=1e-5, rtol=1e-4, msg=name)


def learner_gradient(
    policy: Policy, rollout: Rollout, views: MaskedViews, values_B: Tensor
) -> list[Tensor]:
    """The gradient that `update` gives to the optimizer."""
    captured: list[Tensor] = []

    class Capture(Engine):
        def step(self, scale: float = 1.0) -> float:
            captured.extend(scale * p.grad for p in policy.parameters())  # type: ignore[operator]
            return super().step(scale)

    engine = Capture(ClusterConfig(name="local"), Dtype.float32)
    optim = OptimConfig(lr=1e-9, tokens_per_forward=7 * 5)
    engine.prepare(policy, optim, 1)
    advantages = Advantages(
        values_B=values_B,
        used_B=torch.ones(len(values_B), dtype=torch.bool),
        zero_variance_groups=0,
    )
    config = RunConfig(
        model=ModelConfig(name="toy"), objective=objective(), optim=optim, rollout=rollout_config()
    )
    update(engine, policy, None, rollout, advantages, [views], config)
    return captured


@pytest.mark.parametrize("masking", MASKINGS, ids=NAMES.name)
def test_gradient_does_not_depend_on_the_micro_batch(masking: MaskingConfig) -> None:
    norms = []
    for rows in (1, 3, 64):
        policy = toy()
        rollout = all_answers(left_to_right=True)
        views = build_views(rollout.trace, rollout.rows_B, masking, KEY)
        engine = Engine(ClusterConfig(name="local"), Dtype.float32)
        optim = OptimConfig(lr=1e-3, tokens_per_forward=rows * 5)
        engine.prepare(policy, optim, 1)
        values_B = torch.linspace(-1, 1, 64)
        advantages = Advantages(
            values_B=values_B, used_B=values_B.abs() > 0.2, zero_variance_groups=0
        )
        config = RunConfig(objective=objective(), optim=optim, rollout=rollout_config())
        report = update(engine, policy, None, rollout, advantages, [views], config)
        norms.append((report.metrics["optim/grad_norm"], report.metrics["masking/scored_tokens"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert norms[0] == pytest.approx(norms[2], rel=1e-5)


def test_padding_is_what_short_rows_need_in_their_forward() -> None:
    policy = make_policy()  # prompts of 3, 1, 6 and 2 tokens, a canvas of 8: rows of 11, 9, 14, 10
    rollout = make_rollout(PROMPTS, decode(policy, PROMPTS, torch.arange(4), rollout_config(), KEY))
    views = build_views(rollout.trace, rollout.rows_B, AllConfig(), KEY)
    batches = micro_batches(rollout, views, policy.special, tokens_per_forward=2 * 14)
    assert [len(batch.ids_MS) for batch in batches] == [2, 2]
    engine = Engine(ClusterConfig(name="local"), Dtype.float32)
    assert padding(engine, batches) == pytest.approx((1 + 3) / (10 + 10 + 14 + 14))


@given(
    lengths=st.lists(st.integers(1, 40), max_size=60),
    tokens_per_forward=st.integers(1, 200),
)
def test_rows_are_cut_into_forwards_of_as_many_as_the_tokens_allow(
    lengths: list[int], tokens_per_forward: int
) -> None:
    lengths.sort()
    ends, padded = cut(np.array(lengths, dtype=np.int64), tokens_per_forward)
    forwards = [lengths[a:b] for a, b in itertools.pairwise([0, *ends])]
    assert sum(forwards, []) == lengths  # noqa: RUF017
    assert all(forwards)
    for rows, later in itertools.zip_longest(forwards, forwards[1:]):
        assert len(rows) == 1 or len(rows) * max(rows) <= tokens_per_forward
        if later is not None:  # one more row would have been too many
            assert (len(rows) + 1) * later[0] > tokens_per_forward
    assert padded == sum(len(rows) * max(rows) for rows in forwards)


@pytest.mark.parametrize("tokens_per_forward", [1, 14, 27, 28, 45, 60, 10_000])
@pytest.mark.parametrize("name", EVERY)
def test_every_token_is_in_one_forward_of_no_more_tokens_than_allowed(
    name: str, tokens_per_forward: int
) -> None:
    policy = make_policy()  # prompts of 3, 1, 6 and 2 tokens, a canvas of 8
    trace = decode(policy, PROMPTS * 2, torch.arange(8), rollout_config(), KEY)
    rollout = make_rollout(PROMPTS * 2, trace)
    views = build_views(trace, rollout.rows_B, replace(EVERY[name], prompt_mask_prob=0.3), KEY)
    batches = micro_batches(rollout, views, policy.special, tokens_per_forward)
    assert len(batches) == len(list(batches)) > 0
    seen: list[int] = []
    real = padded = 0
    for batch in batches:
        rows, size = batch.ids_MS.shape
        assert rows == 1 or rows * size <= tokens_per_forward
        assert size == batch.length_M.max()
        real, padded = real + int(batch.length_M.sum()), padded + rows * size
        seen += batch.token_N.tolist()
        state_N = views.state_N[batch.token_N]
        # a state is one row of the forward, and no row is there for nothing
        assert len(set(zip(state_N.tolist(), batch.row_N.tolist(), strict=True))) == rows
        assert set(batch.row_N.tolist()) == set(range(rows))
        row_N, column_N = views.row_N[batch.token_N], views.column_N[batch.token_N]
        assert torch.equal(batch.target_N, trace.canvas_BC[row_N, column_N])
        assert torch.equal(batch.position_N, trace.prompt_length_B[row_N] + column_N)
        for m in range(rows):
            (state,) = set(state_N[batch.row_N == m].tolist())
            assert batch.ids_MS[m].tolist() == plain_input(rollout, views, state, size)
    assert sorted(seen) == list(range(len(views.state_N)))
    assert (batches.num_tokens, batches.num_padded) == (real, padded)


def plain_input(rollout: Rollout, views: MaskedViews, state: int, size: int) -> list[int]:
    """What the network sees of a state, padded to `size`; the mask is 1, the padding 0."""
    row = int(views.row_J[state])
    prompt, canvas = rollout.prompt_ids(row), rollout.trace.canvas_BC[row].tolist()
    masks = views.hide_prompt(torch.tensor([state]), len(prompt))
    assert masks is not None
    hidden = [*masks[0].tolist(), *views.hide(torch.tensor([state]))[0].tolist()]
    shown = [1 if h else word for h, word in zip(hidden, prompt + canvas, strict=True)]
    return shown + [0] * (size - len(shown))


def test_forwards_without_tokens_make_up_for_those_of_other_ranks() -> None:
    policy = make_policy()
    rollout = make_rollout(PROMPTS, decode(policy, PROMPTS, torch.arange(4), rollout_config(), KEY))
    views = build_views(rollout.trace, rollout.rows_B, AllConfig(), KEY)
    plain = micro_batches(rollout, views, policy.special, tokens_per_forward=2 * 14)
    batches = micro_batches(rollout, views, policy.special, tokens_per_forward=2 * 14)
    batches.pad(1)  # fewer than there are
    assert len(batches) == 2
    batches.pad(4)
    assert len(batches) == len(list(batches)) == 4
    with pytest.raises(IndexError):
        batches[4]
    logps, expected = (token_logps(policy, b, 1.0).logp_N for b in (batches, plain))
    assert torch.equal(logps, expected)
    for empty in (batches[2], batches[3]):
        logp_N, *_ = score(policy, empty, 1.0)
        assert len(logp_N) == 0
        policy.zero_grad()
        logp_N.sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in policy.parameters())
    none = micro_batches(rollout, views.keep(views.column_N < 0), policy.special, 28)
    assert list(none) == []
    none.pad(2)
    assert len(list(none)) == 2


def test_candidates_are_scored_when_the_old_policy_finds_them_likely() -> None:
    trace = make_trace([[0, 1, 1, 1]])
    config = SequentialConfig(num_views=1, temperature=0.0, low_prob_threshold=0.6)
    views = build_views(replace(trace), torch.tensor([0]), config, KEY)
    logp_N = torch.tensor([math.log(p) for p in (0.1, 0.59, 0.61, 0.99)])
    assert views.column_N.tolist() == [0, 1, 2, 3]
    assert likely(views, logp_N).tolist() == [True, False, True, True]
    assert likely(views.keep(~views.candidate_N), logp_N[:1]).all()


def test_a_batch_without_anything_to_learn_updates_nothing() -> None:
    policy = toy()
    before = [p.clone() for p in policy.parameters()]
    rollout = all_answers(left_to_right=False)
    views = build_views(rollout.trace, rollout.rows_B, MASKINGS[3], KEY)
    engine = Engine(ClusterConfig(name="local"), Dtype.float32)
    optim = OptimConfig(lr=1e-3)
    engine.prepare(policy, optim, 1)
    nothing = Advantages(
        values_B=torch.zeros(64), used_B=torch.zeros(64, dtype=torch.bool), zero_variance_groups=1
    )
    config = RunConfig(objective=objective(), optim=optim, rollout=rollout_config())
    report = update(engine, policy, None, rollout, nothing, [views], config)
    assert report.metrics == {"masking/scored_tokens": 0.0, "optim/lr": 1e-3}
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


@pytest.mark.parametrize("full", [0, 1])
def test_a_draw_without_tokens_is_a_step_that_is_left_out(full: int) -> None:
    """Views that are drawn anew may hide nothing at all, in the first pass or in a later one."""
    policy = toy()
    rollout = all_answers(left_to_right=False)
    views = build_views(rollout.trace, rollout.rows_B, MASKINGS[3], KEY)
    draws = [views.keep(torch.zeros_like(views.candidate_N))] * 2
    draws[full] = views
    engine = Engine(ClusterConfig(name="local"), Dtype.float32)
    optim = OptimConfig(lr=1e-3)
    engine.prepare(policy, optim, 2)
    advantages = Advantages(
        values_B=torch.linspace(-1, 1, 64),
        used_B=torch.ones(64, dtype=torch.bool),
        zero_variance_groups=0,
    )
    config = RunConfig(
        objective=objective(PpoClipConfig, num_updates=2),
        optim=optim,
        rollout=rollout_config(),
        masking=AllConfig(redraw=True),
    )
    report = update(engine, policy, None, rollout, advantages, draws, config)
    assert report.metrics["optim/padding_frac"] == 0
    assert report.metrics["masking/scored_tokens"] == 64 * 3 / 2
    assert (engine.updates, engine.adam_steps) == (2, 1)


def test_the_states_of_a_row_are_in_one_forward_where_they_fit() -> None:
    rows = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3]
    lengths = np.array([4, 4, 4, 4, 4, 5, 5, 5, 5, 6])
    ends, padded = cut(lengths, 20, np.array(rows))
    parts = [rows[first:last] for first, last in zip([0, *ends], ends, strict=False)]
    assert parts == [[0, 0, 0, 1, 1], [2, 2, 2, 2], [3]]
    assert padded == 20 + 20 + 6
    ends, _ = cut(lengths, 17, np.array(rows))  # a fourth state would be of a row that is cut
    assert list(ends)[:2] == [3, 5]
    ends, _ = cut(lengths, 9, np.array(rows))  # rows 0 and 2 do not fit
    assert list(ends) == [2, 3, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("normalization", list(Normalization))
@pytest.mark.parametrize("tokens", [13, 60])
def test_candidates_are_chosen_on_the_way_where_their_count_is_known(
    normalization: Normalization, tokens: int
) -> None:
    forwards = 0

    class Counted(Policy):
        def forward(self, *inputs: object) -> tuple[Tensor, Tensor, Tensor | None]:
            nonlocal forwards
            forwards += 1
            return super().forward(*inputs)  # type: ignore[arg-type]

    policy = make_policy(seed=1)
    policy.__class__ = Counted
    trace = decode(policy, PROMPTS, torch.arange(4), rollout_config(), KEY)
    rollout = make_rollout(PROMPTS, trace)
    config = RunConfig(
        masking=SequentialConfig(num_views=4, low_prob_threshold=0.09),
        objective=objective(normalization=normalization),
        optim=OptimConfig(lr=1e-9, tokens_per_forward=tokens),
        rollout=rollout_config(),
    )
    engine = Engine(ClusterConfig(name="local"), Dtype.float32)
    engine.prepare(policy, config.optim, 1)
    advantages = Advantages(
        values_B=torch.ones(4), used_B=torch.ones(4, dtype=torch.bool), zero_variance_groups=0
    )
    views = build_views(trace, rollout.rows_B, config.masking, KEY)
    update(engine, policy, None, rollout, advantages, [views], config)
    fits = tokens >= 4 * (8 + 6)  # the four views of the longest row
    known = normalization in (Normalization.view, Normalization.token) or (
        fits and normalization != Normalization.view_token
    )
    alone = len(micro_batches(rollout, views, policy.special, tokens, whole_rows=fits))
    assert forwards == (alone if known else 2 * alone)
