"""The lab's toy against the real sampler and the real learner, and what it says of the maskings."""

from collections import Counter
from dataclasses import asdict
from functools import cache

import pytest
import torch
from torch import Tensor

from drift.common import rng
from drift.config.commands import LabConfig, ToyConfig
from drift.config.masking import (
    AllConfig,
    CoupledConfig,
    ElboConfig,
    LeftToRightConfig,
    QuadratureConfig,
    RandomConfig,
    ReplayConfig,
    SequentialConfig,
    Times,
    TraceConfig,
)
from drift.config.objective import AdvantageEstimator, Normalization, PpoClipConfig, ReinforceConfig
from drift.config.rollout import (
    FactorConfig,
    RolloutConfig,
    StaticConfig,
    ThresholdConfig,
)
from drift.learner.layout import micro_batches
from drift.learner.likelihood import score
from drift.learner.masking import build_views
from drift.policy.base import Policy
from drift.rollout.decoding import decode
from drift.toy.estimates import measure_masking, measure_objective
from drift.toy.model import (
    Space,
    enumerate_trajectories,
    gradients,
    make_toy,
    reward,
    space_of,
    table,
    word_logps,
)
from drift.toy.report import averaged, basic_maskings, other_maskings, report
from drift.toy.truth import Truth, as_rollout, count
from tests.conftest import rollout_config, says

TOY = ToyConfig(fit_steps=0)
KEY = rng.stream(0, "test")


def decoding(kind: type[RolloutConfig] = StaticConfig, **changes: object) -> RolloutConfig:
    values: dict[str, object] = {"gen_length": 4, "block_length": 4, "steps": 4, "max_rows": 4096}
    return rollout_config(kind, **(values | changes))


def toy(length: int = 4, seed: int = 1) -> tuple[Policy, Space]:
    return make_toy(TOY, length, seed), space_of(TOY, length)


@cache
def truth(confidence: str = "probability", patterns: int = 1) -> Truth:
    policy, space = toy(3)
    config = decoding(gen_length=3, block_length=3, steps=3, confidence=confidence)
    return count(policy, space, config, patterns, policy)


RULES = {
    "one block": decoding(),
    "two blocks": decoding(block_length=2),
    "two tokens a step": decoding(steps=2),
    "threshold": decoding(ThresholdConfig, threshold=0.6),
    "factor": decoding(FactorConfig, factor=0.8, confidence="margin"),
    "random order": decoding(confidence="random"),
    "temperature": decoding(temperature=0.5, confidence="entropy"),
}


@pytest.mark.parametrize("name", RULES)
def test_enumeration_gives_the_real_samplers_frequencies(name: str) -> None:
    config, rows = RULES[name], 8_000
    policy, space = toy()
    own = table(policy, space, config.temperature)
    found = enumerate_trajectories(own, table(policy, space, 1.0), space, config)
    assert found.prob_B.sum().item() == pytest.approx(1, abs=1e-5)
    trace = decode(policy, [space.prompt] * rows, torch.arange(rows), config, KEY)

    def names(canvas_BC: Tensor, step_BC: Tensor) -> list[tuple[int, ...]]:
        return [tuple(row) for row in torch.cat([canvas_BC, step_BC], dim=1).tolist()]

    known = names(found.trace.canvas_BC, found.trace.unmask_step_BC)
    expected = dict(zip(known, found.prob_B.tolist(), strict=True))
    seen = names(trace.canvas_BC, trace.unmask_step_BC)
    counts = Counter(seen)
    assert set(counts) <= set(expected)
    likely = {one: p for one, p in expected.items() if p * rows >= 5}
    chi_square = sum((counts[one] - p * rows) ** 2 / (p * rows) for one, p in likely.items())
    assert chi_square < len(likely) + 5 * (2 * len(likely)) ** 0.5
    logps = dict(zip(known, found.trace.logp_BC, strict=True))
    for b in range(0, rows, 500):
        torch.testing.assert_close(trace.logp_BC[b], logps[seen[b]], atol=1e-5, rtol=0)


def test_the_tables_gradients_are_the_networks() -> None:
    policy, space = toy(3)
    found = gradients(policy, space, 1.0, num_patterns=4)
    state = 2 * space.num_canvases + 7  # the second prompt token is hidden, digits 3 1 0
    logp = word_logps(policy, space, torch.tensor([state]), 1.0)[0, 2, 1]
    expected = torch.cat(
        [g.flatten() for g in torch.autograd.grad(logp, list(policy.parameters()))]
    )
    torch.testing.assert_close(found[state, 2, 1].double(), expected, atol=1e-5, rtol=1e-4)
    assert (found[state, 0] == 0).all()  # shown


def flat_gradient(known: Truth, coefficients_E: Tensor, policy: Policy) -> Tensor:
    """A gradient by its coefficients, over all weights."""
    jacobian = gradients(policy, known.space, known.temperature, 1)
    real = jacobian.abs().amax(-1) > 0
    return coefficients_E @ jacobian[real].double()


@pytest.mark.parametrize("confidence", ["probability", "random"])
def test_the_exact_gradient_is_the_slope_of_the_expected_reward(confidence: str) -> None:
    policy, space = toy(3)
    known = truth(confidence)
    gradient = flat_gradient(known, known.exact_E, policy)
    config = decoding(gen_length=3, block_length=3, steps=3, confidence=confidence)
    direction = gradient / gradient.norm()

    def expected_reward(shift: float) -> float:
        moved, _ = toy(3)
        start = 0
        with torch.no_grad():
            for weight in moved.parameters():
                part = direction[start : start + weight.numel()].view_as(weight)
                weight.add_(shift * part)
                start += weight.numel()
        own = table(moved, space, 1.0)
        found = enumerate_trajectories(own, own, space, config)
        return float((found.prob_B * reward(space, found.digits_BC)).sum())

    # a larger step meets a jump: two confidences swap, and with them the order of two positions
    slope = (expected_reward(3e-5) - expected_reward(-3e-5)) / 6e-5
    assert slope == pytest.approx(gradient.norm().item(), rel=5e-3)


def test_the_samplers_gradient_is_what_the_learner_makes_of_replay() -> None:
    # the real views, micro-batches and network, summed over every trajectory
    policy, _ = toy(3)
    known = truth()
    rollout = as_rollout(known, torch.arange(len(known.prob_B)), 1)
    views = build_views(rollout.trace, rollout.rows_B, ReplayConfig(), KEY)
    value_B = known.prob_B * (known.reward_B - known.mean_reward)
    row = len(rollout.prompt_ids(0)) + 3
    for batch in micro_batches(rollout, views, policy.special, 64 * row):
        logp_N, *_ = score(policy, batch, 1.0)
        (logp_N * value_B[views.row_N[batch.token_N]]).sum().backward()
    found = torch.cat([weight.grad.flatten() for weight in policy.parameters()])  # type: ignore[union-attr]
    expected = flat_gradient(known, known.trace_E, policy)
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_hidden_prompt_tokens_reach_the_network() -> None:
    policy, space = toy(3)
    known = truth(patterns=4)
    rollout = as_rollout(known, torch.arange(len(known.prob_B)), 1)
    config = AllConfig(prompt_mask_prob=0.5)
    views = build_views(rollout.trace, rollout.rows_B, config, KEY)
    masks = views.hide_prompt(torch.arange(len(known.prob_B)), len(space.prompt))
    assert masks is not None
    assert 0.4 < masks.float().mean() < 0.6
    batches = micro_batches(rollout, views, policy.special, 99_999)
    shown = torch.cat([batch.ids_MS[:, : len(space.prompt)] for batch in batches])
    assert torch.equal(shown == policy.special.mask, masks)


def test_a_fitted_toy_speaks_more_alike_in_every_order() -> None:
    # the probabilities of an answer in its orders, by the random-order sampler's trajectories
    spreads = []
    for steps in (0, 150):
        config = ToyConfig(fit_steps=steps)
        policy, space = make_toy(config, 3, 1), space_of(config, 3)
        decoded = decoding(gen_length=3, block_length=3, steps=3, confidence="random")
        own = table(policy, space, 1.0)
        found = enumerate_trajectories(own, own, space, decoded)
        total_B = found.trace.logp_BC.double().sum(1)
        answer_B = space.number(found.digits_BC)
        spreads.append(
            sum(float(total_B[answer_B == one].std()) for one in answer_B.unique())
            / len(answer_B.unique())
        )
    assert spreads[1] < 0.5 * spreads[0]


def test_replay_has_no_bias_against_the_samplers_own_gradient() -> None:
    report = measure_masking(truth(), ReplayConfig(), 2, KEY)
    assert report.trace_bias < 1e-6
    assert report.masking_std == pytest.approx(0, abs=1e-3)
    assert report.bias > 0.01  # the choice of positions depends on the weights, too
    one_step_groups = measure_masking(truth(), TraceConfig(shrink=1), 2, KEY)
    assert one_step_groups == report


def test_replay_is_exact_where_the_order_does_not_depend_on_the_words() -> None:
    report = measure_masking(truth("random"), ReplayConfig(), 2, KEY)
    assert report.bias < 1e-5
    assert report.cosine == pytest.approx(1, abs=1e-6)
    assert report.norm == pytest.approx(1, abs=1e-5)


def test_left_to_right_is_exact_for_a_sampler_from_left_to_right() -> None:
    policy, space = toy(3)
    config = decoding(gen_length=3, block_length=1, steps=3)
    known = count(policy, space, config, 1, policy)
    report = measure_masking(known, LeftToRightConfig(), 2, KEY)
    assert report.bias < 1e-5
    assert report.loglik_rms < 1e-5
    assert report.loglik_std < 1e-5


def test_uniform_steps_without_candidates_have_no_bias_and_more_noise() -> None:
    config = SequentialConfig(num_views=1, temperature=float("inf"), low_prob_threshold=1.0)
    report = measure_masking(truth("random"), config, 200, KEY)
    assert report.bias < 4 * report.bias_se
    assert report.masking_std > 0.5


@pytest.mark.parametrize(
    "config",
    [
        *(
            ElboConfig(num_views=4, times=times, exact_count=exact)
            for times in Times
            for exact in (False, True)
        ),
        QuadratureConfig(num_views=2),
    ],
    ids=lambda c: f"{type(c).__name__} {asdict(c)}",
)
def test_elbo_views_estimate_the_mean_over_orders(config) -> None:
    # with one token a step in random order, the ELBO of an answer is the mean of log p(order)
    known = truth("random")
    trace = known.trajectories.trace
    total_B = trace.logp_BC.double().sum(1)
    answer_B = known.space.number(known.trajectories.digits_BC)
    zeros = torch.zeros(known.space.num_canvases, dtype=torch.float64)
    orders = zeros.index_add(0, answer_B, torch.ones_like(total_B)).clamp(min=1)
    elbo_B = (zeros.index_add(0, answer_B, total_B) / orders)[answer_B]
    exact_bias = float((known.prob_B * (elbo_B - known.loglik_B)).sum())
    draws = 200
    report = measure_masking(known, config, draws, KEY)
    error = report.loglik_std / draws**0.5 * 4  # the draws of one answer's rows only
    assert report.loglik_bias == pytest.approx(exact_bias, abs=error)
    assert exact_bias < 0  # it is a lower bound


def test_more_views_mean_less_noise_and_the_same_bias() -> None:
    known = truth()
    for make in (
        lambda k: RandomConfig(num_views=k, ratio=0.5),
        lambda k: CoupledConfig(num_views=k),
        lambda k: ElboConfig(num_views=k, exact_count=True),
    ):
        few, many = (measure_masking(known, make(k), 64, KEY) for k in (2, 8))
        assert many.masking_std < 0.75 * few.masking_std
        assert many.bias == pytest.approx(few.bias, abs=4 * (few.bias_se + many.bias_se))


def test_one_step_estimates_have_no_noise_and_much_bias() -> None:
    known = truth("random")
    report = measure_masking(known, AllConfig(), 2, KEY)
    assert report.masking_std == pytest.approx(0, abs=1e-3)
    assert report.bias > 0.3
    assert report.loglik_rms > 0.5


def test_at_ratio_one_a_clipped_ratio_has_the_gradient_of_reinforce() -> None:
    known, masking = truth("random"), ReplayConfig()
    reports = [
        measure_objective(
            known,
            known.table_TCW,
            masking,
            loss(
                advantage=AdvantageEstimator.leave_one_out,
                normalization=Normalization.sequence,
            ),
            group_size=4,
            groups=4000,
            key=KEY,
        )
        for loss in (ReinforceConfig, PpoClipConfig)
    ]
    assert asdict(reports[0]) == pytest.approx(asdict(reports[1]), rel=1e-5)
    # leave-one-out is unbiased; groups of equal rewards are in no denominator
    varied = 1 - known.mean_reward**4 - (1 - known.mean_reward) ** 4
    error = 4 * reports[0].std / 4000**0.5
    assert reports[0].cosine == pytest.approx(1, abs=error)
    assert reports[0].norm * varied == pytest.approx(1, abs=error)


def test_every_masking_of_the_report_is_measured_at_no_more_than_its_forwards() -> None:
    known = truth(patterns=4)
    for name, configs in (basic_maskings() | other_maskings(3)).items():
        for config in configs:
            report = measure_masking(known, config, 2, KEY)
            views = build_views(
                known.trajectories.trace, torch.arange(len(known.prob_B)), config, KEY
            )
            most = int(views.order_J.max()) + 1
            assert 0 < report.forwards <= most + 1e-6, name


def test_averages_reach_every_number() -> None:
    found = averaged([{"a": [{"b": 1.0}]}, {"a": [{"b": 3.0}]}])
    assert found == {"a": [{"b": 2.0}]}


def test_the_page_says_how_the_toys_were_sampled() -> None:
    config = LabConfig(rollout=RULES["factor"])
    toy = dict.fromkeys(
        ("trajectories", "mean_reward", "entropy", "trace_cosine", "trace_norm"), 1.0
    )
    page = report(config, {"toy": toy, "basic": {}, "other": {}})
    says(page, "4 tokens in blocks of 4, 4 steps, `rollout=factor`, `rollout.confidence=margin`")
