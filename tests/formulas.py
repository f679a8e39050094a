"""The published loss of every preset, written out with loops over completions, views and tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drift.common.types import MaskedViews, Trace
from drift.config.commands import RunConfig

GROUP, CANVAS = 4, 6


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
    value: Tensor  # [K, B, C], with graph
    old_value: Tensor

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


def step_estimates(
    steps: list[list[float]], reward: float, gamma: float, gae_lambda: float
) -> tuple[list[float], list[list[float]]]:
    """TraceRL's returns of the steps and advantages of their tokens, as sums over later steps.

    steps: the old values of each step's tokens; the reward comes at the last step.
    """
    last = len(steps) - 1
    value = [sum(step) / len(step) for step in steps] + [0.0]
    rewards = [reward if t == last else 0.0 for t in range(last + 1)]
    delta = [rewards[t] - value[t] + gamma * value[t + 1] for t in range(last + 1)]
    gae = [
        sum((gamma * gae_lambda) ** (s - t) * delta[s] for s in range(t, last + 1))
        for t in range(last + 2)
    ]
    returns = [
        sum(gamma ** (s - t) * rewards[s] for s in range(t, last + 1)) for t in range(last + 1)
    ]
    advantages = [
        [rewards[t] - v + gamma * value[t + 1] + gamma * gae_lambda * gae[t + 1] for v in steps[t]]
        for t in range(last + 1)
    ]
    return returns, advantages


def tracerl_value(batch: Batch) -> Tensor:
    """arXiv 2509.06949 with a value model, 0.1 of its loss; groups of equal rewards count too."""
    rows = []
    for b in range(len(batch.rewards_B)):
        views = [k for k in range(len(batch.logp)) if batch.hidden(k, b)]
        places = [(k, i) for k in views for i in batch.hidden(k, b)]
        returns, advantages = step_estimates(
            [batch.old_value[k, b, batch.hidden(k, b)].tolist() for k in views],
            float(batch.rewards_B[b]), 1.0, 1.0,
        )  # fmt: skip
        wanted = [r for k, r in zip(views, returns, strict=True) for _ in batch.hidden(k, b)]
        flat = [a for step in advantages for a in step]
        terms = []
        for (k, i), wish, advantage in zip(places, wanted, flat, strict=True):
            new, old, ref = (x[k, b, i] for x in (batch.logp, batch.old, batch.reference))
            value, before = batch.value[k, b, i], batch.old_value[k, b, i]
            near = torch.maximum(torch.minimum(value, before + 0.2), before - 0.2)
            error = torch.maximum((value - wish) ** 2, (near - wish) ** 2) / 2
            policy = clipped((new - old).exp(), torch.tensor(advantage), 0.2, 0.2)
            terms.append(-policy + 0.01 * k3(new, ref) + 0.1 * error)
        rows.append(mean(terms))
    return mean(rows)


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
    "tracerl_value": tracerl_value,
}
