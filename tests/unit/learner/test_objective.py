"""The loss on numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from drift.config.objective import KLEstimator, Level, Normalization, PpoClipConfig
from drift.learner.objective import ScoredTokens, k1, k2, k3, policy_objective, ppo_clip, weigh
from drift.learner.sequence_objective import ScoredRows, sequence_objective
from tests.conftest import bools, objective


def tokens(
    logp: list[float],
    advantage: list[float],
    *,
    old: list[float] | None = None,
    reference: list[float] | None = None,
    entropy: list[float] | None = None,
) -> ScoredTokens:
    logp_N = torch.tensor(logp, requires_grad=True)
    return ScoredTokens(
        logp_N=logp_N,
        entropy_N=torch.tensor(entropy or [0.0] * len(logp)),
        old_logp_N=logp_N.detach() if old is None else torch.tensor(old),
        reference_logp_N=None if reference is None else torch.tensor(reference),
        advantage_N=torch.tensor(advantage),
        weight_N=torch.full((len(logp),), 1 / len(logp)),
        num_tokens=len(logp),
    )


def test_reinforce_is_minus_advantage_times_log_prob() -> None:
    batch = tokens([-1.0, -2.0], [0.5, -1.0])
    output = policy_objective(batch, objective())
    assert output.loss.item() == pytest.approx((0.5 * 1.0 - 1.0 * 2.0) / 2)
    output.loss.backward()
    assert batch.logp_N.grad is not None
    assert batch.logp_N.grad.tolist() == [-0.25, 0.5]


def test_first_ppo_update_has_the_gradient_of_reinforce() -> None:
    first, second = tokens([-1.0, -2.0], [0.5, -1.0]), tokens([-1.0, -2.0], [0.5, -1.0])
    policy_objective(first, objective()).loss.backward()
    policy_objective(second, objective(PpoClipConfig)).loss.backward()
    assert torch.equal(first.logp_N.grad, second.logp_N.grad)  # type: ignore[arg-type]


def test_clip_stops_the_gradient_only_where_the_step_was_already_taken() -> None:
    # ratio 2 and 0.5, each with a good and a bad advantage; clip 0.2 below and 0.3 above
    log2 = math.log(2)
    logp = torch.tensor([log2, log2, -log2, -log2], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    config = objective(PpoClipConfig, clip_low=0.2, clip_high=0.3)
    loss, clipped = ppo_clip(logp, torch.zeros(4), advantage, config)
    assert loss.tolist() == pytest.approx([-1.3, 2.0, -0.5, 0.8])
    assert clipped.tolist() == [True, False, False, True]
    loss.sum().backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([0.0, 2.0, -0.5, 0.0])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (k1, math.log(0.5 / 0.25)),
        (k2, math.log(0.5 / 0.25) ** 2 / 2),
        (k3, 0.25 / 0.5 - 1 - math.log(0.25 / 0.5)),
    ],
)
def test_kl_estimators_at_p_one_half_and_q_one_quarter(estimator, expected: float) -> None:
    p, q = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert estimator(p, q).item() == pytest.approx(expected)


def test_k1_and_k3_are_unbiased_for_the_exact_kl() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact = (p * (p / q).log()).sum().item()
    for estimator in (k1, k3):
        assert (p * estimator(p.log(), q.log())).sum().item() == pytest.approx(exact, abs=1e-6)
    assert (k3(p.log(), q.log()) >= 0).all()


@pytest.mark.parametrize("estimator", list(KLEstimator))
def test_kl_to_oneself_is_zero_and_missing_reference_is_refused(estimator: KLEstimator) -> None:
    config = objective(kl_coef=0.1, kl_estimator=estimator)
    output = policy_objective(tokens([-1.0], [0.0], reference=[-1.0]), config)
    assert output.sums[f"kl/{estimator}"].item() == 0
    with pytest.raises(ValueError, match="no reference"):
        policy_objective(tokens([-1.0], [0.0]), config)


def test_kl_and_entropy_enter_with_their_coefficients() -> None:
    batch = tokens([-1.0, -1.0], [0.0, 0.0], reference=[-1.0, -2.0], entropy=[0.5, 1.5])
    config = objective(kl_coef=0.1, kl_estimator=KLEstimator.k2, entropy_coef=0.01)
    output = policy_objective(batch, config)
    assert output.loss.item() == pytest.approx(0.1 * (0.0 + 0.5) / 2 - 0.01 * (0.5 + 1.5) / 2)
    assert output.sums["policy/entropy"].item() == pytest.approx(1.0)


SCORED = bools([[1, 1, 1, 0], [1, 0, 0, 0]])[None]  # two rows, 3 and 1 scored tokens
LENGTH = torch.tensor([4, 2])  # of 4 and 2 committed ones


def token_weights(
    scored_KBC: Tensor,
    normalization: Normalization,
    *,
    num_rows: int = 2,
    num_tokens: int = 4,
    weight_KB: Tensor | None = None,
    length_B: Tensor = LENGTH,
) -> Tensor:
    return weigh(scored_KBC, weight_KB, length_B, normalization, num_rows, num_tokens).token_KBC


def test_token_normalization_weighs_every_token_the_same() -> None:
    weights = token_weights(SCORED, Normalization.token, num_rows=2, num_tokens=4)
    assert weights[0].tolist() == [[0.25, 0.25, 0.25, 0], [0.25, 0, 0, 0]]


def test_sample_normalization_weighs_every_completion_the_same() -> None:
    weights = token_weights(SCORED, Normalization.sample, num_rows=2, num_tokens=4)
    assert weights[0, 0].tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 0])
    assert weights[0, 1].tolist() == [0.5, 0, 0, 0]


def test_sequence_normalization_weighs_a_row_by_its_length() -> None:
    # the mean log-prob of a row's scored tokens, times its length, over two rows
    weights = token_weights(SCORED, Normalization.sequence)
    assert weights[0].tolist() == [pytest.approx([4 / 6, 4 / 6, 4 / 6, 0]), [1.0, 0, 0, 0]]


def test_canvas_normalization_divides_that_by_the_canvas() -> None:
    weights = token_weights(SCORED, Normalization.canvas)
    assert weights[0].tolist() == [pytest.approx([1 / 6, 1 / 6, 1 / 6, 0]), [0.25, 0, 0, 0]]


def test_a_weighted_view_counts_by_its_weight_over_the_rows_length() -> None:
    # row 0: 3 tokens of weight 2 stand for the 4 it has; row 1: 1 of weight 0.5 for 2
    weight_KB = torch.tensor([[2.0, 0.5]])
    sample = token_weights(SCORED, Normalization.sample, weight_KB=weight_KB)
    assert sample[0].tolist() == [[0.25, 0.25, 0.25, 0], [0.125, 0, 0, 0]]
    token = token_weights(SCORED, Normalization.token, num_tokens=6, weight_KB=weight_KB)
    assert token[0].tolist() == [
        pytest.approx([1 / 3, 1 / 3, 1 / 3, 0]),
        pytest.approx([1 / 12, 0, 0, 0]),
    ]
    sequence = token_weights(SCORED, Normalization.sequence, weight_KB=weight_KB)
    assert sequence[0].tolist() == [[1, 1, 1, 0], [0.25, 0, 0, 0]]


def test_rows_that_are_left_out_weigh_nothing() -> None:
    scored = SCORED & bools([[1], [0]])
    for weight_KB in (None, torch.ones(1, 2)):
        for normalization in Normalization:
            length_B = torch.tensor([4, 0])
            weights = weigh(scored, weight_KB, length_B, normalization, 1, 3)
            assert weights.row_B[1] == 0
            assert weights.token_KBC.isfinite().all()


def test_a_row_is_averaged_over_all_its_views() -> None:
    two_views = bools([[1, 1, 0, 0], [0, 0, 1, 1]])[:, None]
    weights = token_weights(two_views, Normalization.sample, num_rows=1, length_B=torch.tensor([4]))
    assert weights.sum().item() == 1
    assert weights[0, 0].tolist() == [0.25, 0.25, 0, 0]


@pytest.mark.parametrize("importance", [1.0, 0.3])  # a factor of every token's weight
def test_what_is_logged_is_a_mean_whatever_a_token_weighs(importance: float) -> None:
    # four scored tokens: entropy 0.4 on average, KL k2 of 0.08, one of them clipped
    seen: list[float] = []
    for normalization in Normalization:
        weight_N = importance * token_weights(SCORED, normalization)[SCORED]
        batch = ScoredTokens(
            logp_N=torch.tensor([-1.0, -1.0, -1.0, -0.5]),
            entropy_N=torch.tensor([0.1, 0.2, 0.3, 1.0]),
            old_logp_N=torch.tensor([-1.0] * 4),
            reference_logp_N=torch.tensor([-1.4] * 3 + [-0.9]),
            advantage_N=torch.ones(4),
            weight_N=weight_N,
            num_tokens=4,
        )
        config = objective(PpoClipConfig, kl_coef=0.1, kl_estimator=KLEstimator.k2)
        sums = policy_objective(batch, config).sums
        assert sums["policy/entropy"].item() == pytest.approx(0.4)
        assert sums["kl/k2"].item() == pytest.approx(0.08)
        assert sums["loss/clip_frac"].item() == pytest.approx(0.25)
        seen.append(round(sums["loss/policy"].item(), 4))
    assert len(set(seen)) == len(Normalization)  # the loss has the weights


@pytest.mark.parametrize("normalization", list(Normalization))
def test_of_whole_rows_too_a_mean_is_logged(normalization: Normalization) -> None:
    # of 4 and 2 tokens; the first has moved by 0.5 a token and is clipped, the second by 0
    moved_BC = torch.tensor([[0.5], [0.0]]).expand(2, 4) * SCORED[0]
    rows = ScoredRows(
        logp_KBC=moved_BC[None],
        old_logp_KBC=torch.zeros(1, 2, 4),
        reference_logp_KBC=(moved_BC + 0.1 * SCORED[0])[None],
        advantage_B=torch.ones(2),
        weights=weigh(SCORED, None, LENGTH, normalization, 2, 4),
        group_size=2,
    )
    config = objective(
        PpoClipConfig, level=Level.sequence, kl_coef=0.1,
        kl_estimator=KLEstimator.k2,
    )  # fmt: skip
    sums = sequence_objective(rows, config).sums
    assert sums["loss/clip_frac"].item() == pytest.approx(0.5)
    kl = ((4 * 0.1) ** 2 / 2 / 4 + (2 * 0.1) ** 2 / 2 / 2) / 2
    assert sums["kl/k2"].item() == pytest.approx(kl)


@pytest.mark.parametrize("normalization", list(Normalization))
def test_halves_of_a_batch_add_up_to_the_whole(normalization: Normalization) -> None:
    whole = token_weights(SCORED, normalization)
    halves = [
        token_weights(SCORED[:, i : i + 1], normalization, length_B=LENGTH[i : i + 1])
        for i in range(2)
    ]
    assert torch.equal(torch.cat(halves, dim=1), whole)
