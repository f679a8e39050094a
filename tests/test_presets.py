"""Each preset's loss and gradient against its published formula, written out with loops."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from drift import rng
from drift.advantage import estimate
from drift.cli import CONF, typed
from drift.config import Level, RunConfig, register
from drift.errors import ConfigError
from drift.masking import build_views
from drift.objective import ScoredTokens, Weights, policy_objective, row_sizes, weigh
from drift.row_objective import ScoredRows, row_objective, upper_bound
from drift.types import MaskedViews, TokenLogps, Trace
from drift.update import restrict, settle_scored
from drift.validate import validate
from tests.conftest import ROOT, make_trace

PAPERS = sorted(
    path.stem
    for path in (CONF / "experiment").glob("*.yaml")
    if not path.stem.startswith(("llada", "dream"))
)
LOSSES = ["reinforce", "grpo", "dr_grpo", "rloo", "gspo"]
GROUP, CANVAS = 4, 6
register()


def composed(*overrides: str) -> RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = typed(compose("train", overrides=list(overrides)))
    validate(config)
    return config


@dataclass(kw_only=True)
class Batch:
    """Three groups of four completions of different lengths; the last group's rewards are equal."""

    config: RunConfig
    trace: Trace
    rewards_B: Tensor
    views: MaskedViews
    logp: Tensor  # [K, B, C], with graph
    old: Tensor
    reference: Tensor

    @property
    def used(self) -> list[int]:
        return list(range(2 * GROUP))

    def length(self, b: int) -> int:
        return int(self.trace.committed_BC[b].sum())

    def hidden(self, k: int, b: int) -> list[int]:
        return self.views.scored_KBC[k, b].nonzero()[:, 0].tolist()

    def group(self, b: int) -> Tensor:
        first = b // GROUP * GROUP
        return self.rewards_B[first : first + GROUP].double()

    def once(self, logp: Tensor, b: int) -> Tensor:
        """The log-probs of a row's tokens, each of which exactly one view scores."""
        scored = self.views.scored_KBC[:, b]
        assert (scored.sum(0) == self.trace.committed_BC[b]).all()
        return (logp[:, b] * scored).sum(0)[self.trace.committed_BC[b]]


def random_batch(*overrides: str) -> Batch:
    config = composed("rollout.gen_length=6", "rollout.block_length=2", *overrides)
    generator = torch.Generator().manual_seed(7)
    lengths = [6, 6, 4, 6, 2, 6, 6, 4, 6, 6, 6, 6]
    steps = [
        [int(s) for s in torch.randperm(n, generator=generator)] + [-1] * (CANVAS - n)
        for n in lengths
    ]
    trace = make_trace(steps)
    views = build_views(trace, torch.arange(12), config.masking, rng.stream(3, "presets"))
    shape = views.hidden_KBC.shape
    old, reference, current = (
        torch.rand(shape, generator=generator, dtype=torch.float64).log().clamp(min=-3)
        for _ in range(3)
    )
    current = (old + 0.6 * (current - current.mean())).clamp(max=-0.01)
    rewards = torch.tensor([1.0, 0, 0, 0.5, 0, 0, 1, 1, 1, 1, 1, 1])
    return Batch(
        config=config,
        trace=trace,
        rewards_B=rewards,
        views=views,
        logp=current.requires_grad_(),
        old=old,
        reference=reference,
    )


def by_parts(batch: Batch) -> Tensor:
    """The loss as `update` puts it together."""
    objective = batch.config.objective
    advantages = estimate(batch.rewards_B, GROUP, objective.advantage)
    views = restrict(batch.views, advantages.used_B)
    scored_KBC = settle_scored(views, TokenLogps(logp_KBC=batch.old, entropy_KBC=batch.old * 0))
    length_B = batch.trace.committed_BC.sum(1) * advantages.used_B
    size_B = row_sizes(scored_KBC, views.weight_KB, length_B)
    num_rows, num_tokens = int((size_B > 0).sum()), int(size_B.sum())
    weights = weigh(
        scored_KBC, views.weight_KB, length_B, objective.normalization, num_rows, num_tokens
    )
    if objective.level != Level.view:
        rows = ScoredRows(
            logp_KBC=batch.logp * scored_KBC,
            old_logp_KBC=batch.old * scored_KBC,
            reference_logp_KBC=batch.reference * scored_KBC,
            advantage_B=advantages.values_B,
            weights=weights,
            group_size=GROUP,
        )
        return row_objective(rows, objective).loss
    tokens = ScoredTokens(
        logp_N=batch.logp[scored_KBC],
        entropy_N=torch.zeros(int(scored_KBC.sum())),
        old_logp_N=batch.old[scored_KBC],
        reference_logp_N=batch.reference[scored_KBC],
        advantage_N=advantages.values_B[:, None].expand_as(scored_KBC)[scored_KBC],
        weight_N=weights.token_KBC[scored_KBC],
    )
    return policy_objective(tokens, objective).loss


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def k3(logp: Tensor, reference: Tensor) -> Tensor:
    return (reference - logp).exp() - (reference - logp) - 1


def standardized(batch: Batch, b: int) -> Tensor:
    group = batch.group(b)
    return (group[b % GROUP] - group.mean()) / group.std()


def centered(batch: Batch, b: int) -> Tensor:
    group = batch.group(b)
    return group[b % GROUP] - group.mean()


def against_others(batch: Batch, b: int) -> Tensor:
    group = batch.group(b)
    return group[b % GROUP] - (group.sum() - group[b % GROUP]) / (GROUP - 1)


def token_grpo(
    batch: Batch, b: int, advantage: Tensor, low: float, high: float, beta: float
) -> Tensor:
    """A completion's sum over tokens of the clipped ratio minus the KL."""
    new, old, ref = (batch.once(x, b) for x in (batch.logp, batch.old, batch.reference))
    return (clipped((new - old).exp(), advantage, low, high) - beta * k3(new, ref)).sum()


def reinforce(batch: Batch) -> Tensor:
    return -mean([standardized(batch, b) * batch.once(batch.logp, b).mean() for b in batch.used])


def grpo(batch: Batch) -> Tensor:
    """arXiv 2402.03300, eq. 3: 1/G sum_i 1/|o_i| sum_t (min(...) - beta KL)."""
    return -mean(
        [
            token_grpo(batch, b, standardized(batch, b), 0.2, 0.2, 0.04) / batch.length(b)
            for b in batch.used
        ]
    )


def dr_grpo(batch: Batch) -> Tensor:
    """arXiv 2503.20783: without std and 1/|o_i|, over a constant length."""
    return -mean(
        [token_grpo(batch, b, centered(batch, b), 0.2, 0.2, 0.0) / CANVAS for b in batch.used]
    )


def rloo(batch: Batch) -> Tensor:
    """arXiv 2402.14740: 1/k sum_i (R_i - mean of the others) log p(y_i)."""
    return -mean([against_others(batch, b) * batch.once(batch.logp, b).sum() for b in batch.used])


def gspo(batch: Batch) -> Tensor:
    """arXiv 2507.18071: s_i = (p(y_i) / p_old(y_i))^(1/|y_i|)."""
    rows = []
    for b in batch.used:
        difference = batch.once(batch.logp, b) - batch.once(batch.old, b)
        rows.append(clipped(difference.mean().exp(), standardized(batch, b), 3e-4, 4e-4))
    return -mean(rows)


def diffu_grpo(batch: Batch) -> Tensor:
    """arXiv 2504.12216: GRPO on one-step log-probs, A = R - mean."""
    return -mean(
        [
            token_grpo(batch, b, centered(batch, b), 0.5, 0.5, 0.04) / batch.length(b)
            for b in batch.used
        ]
    )


def tracerl(batch: Batch) -> Tensor:
    """arXiv 2509.06949: PPO on the tokens of each group of steps, over the completion's tokens."""
    return -mean(
        [
            token_grpo(batch, b, standardized(batch, b), 0.2, 0.2, 0.01) / batch.length(b)
            for b in batch.used
        ]
    )


def coupled_grpo(batch: Batch) -> Tensor:
    """arXiv 2506.20639: log p of a token = (log p_all + w log p of the view that hides it) / 2."""
    assert batch.views.weight_KB is not None
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b in batch.used:
        u = 1 / (2 * batch.views.weight_KB[1, b].double())
        for i in batch.hidden(0, b):
            in_part = i in batch.hidden(1, b)
            view, weight = (1, 1 / u) if in_part else (2, 1 / (1 - u))
            new, old, ref = (
                (x[0, b, i] + weight * x[view, b, i]) / 2
                for x in (batch.logp, batch.old, batch.reference)
            )
            policy = clipped((new - old).exp(), against_others(batch, b), 0.2, 0.2)
            total = total - policy + 0.01 * k3(new, ref)
            count += 1
    return total / count


def wd1(batch: Batch) -> Tensor:
    """arXiv 2507.08838: sum_i (-w+_i + w-_i) log p(y_i), softmax weights; the mean over prompts."""
    groups = []
    for first in (0, GROUP):
        a = torch.stack([centered(batch, b) for b in range(first, first + GROUP)])
        rows = torch.stack([batch.once(batch.logp, b).sum() for b in range(first, first + GROUP)])
        groups.append((-a.softmax(0) * rows + (-a).softmax(0) * rows).sum())
    return mean(groups)


def spg(batch: Batch) -> Tensor:
    """arXiv 2510.09541: ELBO for A >= 0, else the mixture with the EUBO, beta 1.5, omega 0.5."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    views = range(len(batch.logp))
    for b in batch.used:
        n = batch.length(b)
        lower = mean([batch.logp[k, b, batch.hidden(k, b)].mean() for k in views])
        upper = []
        for i in range(n):
            terms = [
                batch.logp[k, b, i].exp() ** 1.5 / (len(batch.hidden(k, b)) / n)
                for k in views
                if i in batch.hidden(k, b)
            ]
            if terms:
                upper.append((torch.stack(terms).sum() / len(views)).log() / 1.5)
        a = centered(batch, b)
        bound = lower if a >= 0 else 0.5 * mean(upper) + 0.5 * lower
        total, tokens = total - n * a * bound, tokens + n
    return total / tokens


def exact_elbo(batch: Batch, logp: Tensor, k: int, b: int) -> Tensor:
    """One draw with a count of hidden tokens uniform over 0..n: (n + 1) / count times their sum."""
    hidden, n = batch.hidden(k, b), batch.length(b)
    return (n + 1) / max(len(hidden), 1) * logp[k, b, hidden].sum()


def espo(batch: Batch) -> Tensor:
    """arXiv 2512.03759: rho = exp((L - L_old) / n), KL = (L - L_ref)^2 / 2 over n."""
    rows = []
    for b in batch.used:
        n = batch.length(b)
        new, old, ref = (
            (exact_elbo(batch, x, 0, b) + exact_elbo(batch, x, 1, b)) / 2
            for x in (batch.logp, batch.old, batch.reference)
        )
        policy = clipped(((new - old) / n).exp(), against_others(batch, b), 0.2, 0.2)
        rows.append(-policy + 0.01 * (new - ref) ** 2 / 2 / n)
    return mean(rows)


def stable_drl(batch: Batch) -> Tensor:
    """arXiv 2603.06743: sum_j clip(rho_j) A_j log p_j / sum_j clip(rho_j), the weights constant."""
    groups = []
    for first in (0, GROUP):
        weights, terms = [], []
        for b in range(first, first + GROUP):
            new, old = (
                mean([x[k, b, batch.hidden(k, b)].mean() for k in range(len(x))])
                for x in (batch.logp, batch.old)
            )
            weights.append(((new - old).exp()).clamp(0.8, 1.2).detach())
            terms.append(weights[-1] * centered(batch, b) * new)
        groups.append(-sum(terms) / sum(weights))  # type: ignore[arg-type]
    return mean(groups)


def bgpo(batch: Batch) -> Tensor:
    """arXiv 2510.11683: A >= 0: mean_k (1 + l_k - l_old,k); A < 0: mean_k exp(l_k - l_old,k)."""
    rows = []
    for b in batch.used:
        differences = torch.stack(
            [
                (exact_elbo(batch, batch.logp, k, b) - exact_elbo(batch, batch.old, k, b))
                / batch.length(b)
                for k in range(len(batch.logp))
            ]
        )
        a = standardized(batch, b)
        rows.append(-a * ((1 + differences) if a >= 0 else differences.exp()).mean())
    return mean(rows)


FORMULAS: dict[str, Callable[[Batch], Tensor]] = {
    "reinforce": reinforce,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "gspo": gspo,
    "diffu_grpo": diffu_grpo,
    "coupled_grpo": coupled_grpo,
    "wd1": wd1,
    "spg": spg,
    "espo": espo,
    "stable_drl": stable_drl,
    "bgpo": bgpo,
    "tracerl": tracerl,
}


@pytest.mark.parametrize("name", [*LOSSES, *PAPERS])
def test_a_presets_loss_and_gradient_are_its_published_formula(name: str) -> None:
    choice = [f"experiment={name}"] if name in PAPERS else [f"objective={name}", "masking=replay"]
    batch = random_batch(*choice)
    found, expected = by_parts(batch), FORMULAS[name](batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-7)
    (by_loss,) = torch.autograd.grad(found, batch.logp)
    (by_formula,) = torch.autograd.grad(expected, batch.logp)
    torch.testing.assert_close(by_loss, by_formula, atol=1e-7, rtol=1e-5)
    assert by_loss.abs().max() > 1e-3  # something is learned


def test_bgpo_is_the_ratio_where_the_policy_has_not_moved() -> None:
    batch = random_batch("experiment=bgpo")
    batch.logp = batch.old.clone().requires_grad_()
    (found,) = torch.autograd.grad(by_parts(batch), batch.logp)
    ratio = random_batch("experiment=bgpo", "objective.policy_loss=ppo_clip")
    ratio.logp = ratio.old.clone().requires_grad_()
    (expected,) = torch.autograd.grad(by_parts(ratio), ratio.logp)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-6)
    assert by_parts(batch).item() == pytest.approx(by_parts(ratio).item(), abs=1e-7)


def test_the_upper_bound_is_above_the_lower_and_has_a_gradient_where_nothing_is_hidden() -> None:
    # weights of a token's views that add up to 1: Jensen; the last token is hidden in no view
    generator = torch.Generator().manual_seed(0)
    logp = torch.rand(3, 5, 4, generator=generator).log().requires_grad_()
    share = torch.rand(3, 5, 4, generator=generator)
    share = share / share.sum(0) / 3
    share[:, :, 3] = 0
    length = torch.full((5,), 3)
    rows = ScoredRows(
        logp_KBC=logp,
        old_logp_KBC=logp.detach(),
        reference_logp_KBC=None,
        advantage_B=torch.zeros(5),
        weights=Weights(share_KBC=share, row_B=torch.ones(5), length_B=length),
        group_size=5,
    )
    upper = upper_bound(rows, 1.5)
    assert (upper > rows.means(logp)).all()
    (gradient,) = torch.autograd.grad(upper.sum(), logp)
    assert gradient.isfinite().all()
    assert (gradient[:, :, 3] == 0).all()


@pytest.mark.parametrize(
    "path",
    [
        *(ROOT / "drift" / "policy").glob("*.py"),
        *(ROOT / "drift" / f"{name}.py" for name in ("trainer", "decoding", "rollout", "update")),
        *(ROOT / "drift" / f"{name}.py" for name in ("likelihood", "engine", "gap", "train")),
    ],
    ids=lambda path: path.name,
)
def test_no_presets_name_stands_where_training_happens(path) -> None:
    names = {*PAPERS, *LOSSES} - {"reinforce"}
    found = re.findall(rf"(?i)\b({'|'.join(sorted(names))})\b", path.read_text())
    assert not found


def test_every_preset_has_a_formula_and_names_its_source() -> None:
    assert set(FORMULAS) == {*LOSSES, *PAPERS}
    for name in PAPERS:
        assert "arXiv" in (CONF / "experiment" / f"{name}.yaml").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["objective.level=sequence"],
            "objective.level=sequence does not go with objective.policy_loss=reinforce; "
            "use level=view",
        ),
        (
            ["experiment=spg", "masking=coupled"],
            "objective.policy_loss=sandwich bounds the likelihood by views at several t, which "
            "masking=coupled has not; use masking=elbo, quadrature or block",
        ),
        (["experiment=spg", "objective.bound_exponent=1"], "objective.bound_exponent=1.0 must be"),
        (["objective.bound_share=0.5"], "objective.bound_share=0.5 applies to"),
        (["experiment=spg", "objective.num_updates=2"], "objective.num_updates=2 needs a ratio"),
        (
            ["objective=gspo", "objective.policy_loss=boundary", "masking=replay"],
            "objective.policy_loss=boundary needs views that each estimate the whole likelihood, "
            "which those of masking=replay do not; use masking=elbo, block, random or all",
        ),
        (
            ["objective=gspo", "objective.kl_coef=0.1"],
            "objective.kl_estimator=k3 is the exponential of a whole completion's log-ratio",
        ),
        (
            ["experiment=stable_drl", "objective.normalization=token"],
            "objective.normalization=token does not apply to objective.policy_loss=self_normalized",
        ),
        (
            ["objective=gspo", "objective.importance=truncated"],
            "objective.importance=truncated weighs each token in its view",
        ),
        (["experiment=espo", "masking.num_views=3"], "masking.num_views=3 must be even for"),
        (["masking=coupled_ratio", "masking.num_views=2"], "must be a multiple of 3"),
        (["masking=coupled_ratio", "masking.max_ratio=1"], "0 < min_ratio <= max_ratio < 1"),
        (["masking=block", "masking.block_length=5"], "masking.block_length=5 must divide"),
        (["masking=trace", "masking.shrink=0"], "masking.shrink=0 must be greater than 0"),
        (["masking.prompt_mask_prob=1"], "masking.prompt_mask_prob=1.0 must be from 0 to below 1"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
