"""The loss on numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from drift.config.objective import (
    KLEstimator,
    KLReduction,
    Level,
    Normalization,
    PpoClipConfig,
)
from drift.learner.objective import (
    Counts,
    ScoredTokens,
    k1,
    k2,
    k3,
    kl_weights,
    local_counts,
    policy_objective,
    ppo_clip,
    weigh,
)
from drift.learner.sequence_objective import ScoredRows, sequence_objective
from tests.conftest import as_views, bools, dense, objective


def tokens(
    logp: list[float],
    advantage: list[float],
    *,
    old: list[float] | None = None,
    reference: list[float] | None = None,
    entropy: list[float] | None = None,
    kl_share: float = 1.0,
) -> ScoredTokens:
    logp_N = torch.tensor(logp, requires_grad=True)
    return ScoredTokens(
        logp_N=logp_N,
        entropy_N=torch.tensor(entropy or [0.0] * len(logp)),
        old_logp_N=logp_N.detach() if old is None else torch.tensor(old),
        reference_logp_N=None if reference is None else torch.tensor(reference),
        advantage_N=torch.tensor(advantage),
        weight_N=torch.full((len(logp),), 1 / len(logp)),
        kl_weight_N=torch.full((len(logp),), kl_share / len(logp)),
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
    weight_KB: Tensor | None = None,
    length_B: Tensor = LENGTH,
    counts: Counts | None = None,
) -> Tensor:
    """What every token of a canvas of 4 counts: [K, B, 4]; counts: of all ranks."""
    views = as_views(scored_KBC, weight_KB=weight_KB, length_B=length_B)
    counts = local_counts(views, length_B) if counts is None else counts
    weights = weigh(views, length_B, normalization, counts, 4)
    return dense(weights.token_N, views, len(scored_KBC), 4)


def test_counts_are_those_of_rows_tokens_states_and_views() -> None:
    two_views = torch.cat([SCORED, bools([[0, 1, 0, 0], [0, 0, 0, 0]])[None]])
    counts = local_counts(as_views(two_views), LENGTH)
    assert counts == Counts(rows=2, size=5, tokens=5, states=3, order_tokens=[4, 1])
    weighted = as_views(two_views, weight_KB=torch.ones(2, 2))
    expected = Counts(rows=2, size=6, tokens=5, states=3, order_tokens=[4, 1])
    assert local_counts(weighted, LENGTH) == expected


def test_token_normalization_weighs_every_token_the_same() -> None:
    weights = token_weights(SCORED, Normalization.token)
    assert weights[0].tolist() == [[0.25, 0.25, 0.25, 0], [0.25, 0, 0, 0]]


def test_sample_normalization_weighs_every_completion_the_same() -> None:
    weights = token_weights(SCORED, Normalization.sample)
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
    token = token_weights(SCORED, Normalization.token, weight_KB=weight_KB)
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
            views = as_views(scored, weight_KB=weight_KB)
            counts = local_counts(views, length_B)
            weights = weigh(views, length_B, normalization, counts, 4)
            assert counts.rows == 1
            assert weights.row_B[1] == 0
            assert weights.row_B.isfinite().all()
            assert weights.token_N.isfinite().all()
            assert (weights.token_N > 0).all()
            assert weights.mean_B.tolist() == [1, 0]


def test_nothing_to_score_weighs_nothing() -> None:
    none = torch.zeros(2, 2, 4, dtype=torch.bool)
    for normalization in Normalization:
        assert not token_weights(none, normalization, length_B=torch.tensor([0, 0])).any()


def test_a_row_is_averaged_over_all_its_views() -> None:
    two_views = bools([[1, 1, 0, 0], [0, 0, 1, 1]])[:, None]
    weights = token_weights(two_views, Normalization.sample, length_B=torch.tensor([4]))
    assert weights.sum().item() == 1
    assert weights[0, 0].tolist() == [0.25, 0.25, 0, 0]


# row 0: 2 tokens, 1 and none in its views; row 1: 1, none and 1
THREE_VIEWS = torch.stack(
    [
        bools([[1, 1, 0, 0], [1, 0, 0, 0]]),
        bools([[0, 0, 1, 0], [0, 0, 0, 0]]),
        bools([[0, 0, 0, 0], [0, 1, 0, 0]]),
    ]
)


def test_view_normalization_weighs_every_view_with_tokens_the_same() -> None:
    weights = token_weights(THREE_VIEWS, Normalization.view)
    assert weights[:, 0].tolist() == [[0.125, 0.125, 0, 0], [0, 0, 0.25, 0], [0] * 4]
    assert weights[:, 1].tolist() == [[0.25, 0, 0, 0], [0] * 4, [0, 0.25, 0, 0]]


def test_view_token_normalization_is_the_mean_over_views_of_their_mean_over_all_rows() -> None:
    weights = token_weights(THREE_VIEWS, Normalization.view_token)
    ninth, third = pytest.approx(1 / 9), pytest.approx(1 / 3)
    assert weights[:, 0].tolist() == [[ninth, ninth, 0, 0], [0, 0, third, 0], [0] * 4]
    assert weights[:, 1].tolist() == [[ninth, 0, 0, 0], [0] * 4, [0, third, 0, 0]]


@pytest.mark.parametrize("normalization", [Normalization.view, Normalization.view_token])
def test_a_weighted_masking_counts_by_its_weights_and_not_by_views(
    normalization: Normalization,
) -> None:
    weight_KB = torch.tensor([[2.0, 0.5], [1.0, 3.0], [1.0, 1.0]])
    found, sample = (
        token_weights(THREE_VIEWS, one, weight_KB=weight_KB)
        for one in (normalization, Normalization.sample)
    )
    assert torch.equal(found, sample)


def test_a_kl_is_a_mean_or_the_sum_over_its_view() -> None:
    views = as_views(THREE_VIEWS)
    weight_N = weigh(views, LENGTH, Normalization.view, local_counts(views, LENGTH), 4).token_N
    assert torch.equal(kl_weights(views, weight_N, KLReduction.mean), weight_N)
    summed = dense(kl_weights(views, weight_N, KLReduction.sum), views, 3, 4)
    assert torch.equal(summed, 0.25 * THREE_VIEWS)  # a quarter of each of four views' sums


def test_the_kl_has_weights_of_its_own() -> None:
    batch = tokens([-1.0, -1.0], [0.0, 0.0], reference=[-1.0, -2.0], kl_share=3.0)
    output = policy_objective(batch, objective(kl_coef=0.1, kl_estimator=KLEstimator.k2))
    assert output.loss.item() == pytest.approx(3 * 0.1 * (0.0 + 0.5) / 2)
    assert output.sums["kl/k2"].item() == pytest.approx(0.25)  # a mean is logged


@pytest.mark.parametrize("importance", [1.0, 0.3])  # a factor of every token's weight
def test_what_is_logged_is_a_mean_whatever_a_token_weighs(importance: float) -> None:
    # four scored tokens: entropy 0.4 on average, KL k2 of 0.08, one of them clipped
    views = as_views(THREE_VIEWS[:2])
    seen: list[float] = []
    for normalization in Normalization:
        weights = weigh(views, LENGTH, normalization, local_counts(views, LENGTH), 4)
        weight_N = importance * weights.token_N
        batch = ScoredTokens(
            logp_N=torch.tensor([-1.0, -1.0, -1.0, -0.5]),
            entropy_N=torch.tensor([0.1, 0.2, 0.3, 1.0]),
            old_logp_N=torch.tensor([-1.0] * 4),
            reference_logp_N=torch.tensor([-1.4] * 3 + [-0.9]),
            advantage_N=torch.ones(4),
            weight_N=weight_N,
            kl_weight_N=weight_N,
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
    views = as_views(SCORED, length_B=LENGTH)
    moved_N = torch.tensor([0.5, 0.0])[views.row_N]
    rows = ScoredRows(
        logp_N=moved_N,
        old_logp_N=torch.zeros(4),
        reference_logp_N=moved_N + 0.1,
        advantage_B=torch.ones(2),
        views=views,
        weights=weigh(views, LENGTH, normalization, local_counts(views, LENGTH), 4),
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


@pytest.mark.parametrize("scored_KBC", [SCORED, THREE_VIEWS], ids=["one view", "three views"])
@pytest.mark.parametrize("normalization", list(Normalization))
def test_halves_of_a_batch_add_up_to_the_whole(
    normalization: Normalization, scored_KBC: Tensor
) -> None:
    whole = token_weights(scored_KBC, normalization)
    counts = local_counts(as_views(scored_KBC), LENGTH)
    halves = [
        token_weights(
            scored_KBC[:, i : i + 1], normalization, length_B=LENGTH[i : i + 1], counts=counts
        )
        for i in range(2)
    ]
    assert torch.equal(torch.cat(halves, dim=1), whole)
