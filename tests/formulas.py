"""The published loss of every preset, written out with loops over completions, views and tokens."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drift.common.types import MaskedViews, Trace
from drift.config.commands import RunConfig
from tests.conftest import planes

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

    @functools.cached_property
    def scored(self) -> Tensor:
        """[K, B, C] bool."""
        return planes(self.views, len(self.logp), CANVAS)["scored"]

    @property
    def used(self) -> list[int]:
        return list(range(2 * GROUP))

    def length(self, b: int) -> int:
        return int(self.views.length_B[b])

    def hidden(self, k: int, b: int) -> list[int]:
        return self.scored[k, b].nonzero()[:, 0].tolist()

    def group(self, b: int) -> Tensor:
        first = b // GROUP * GROUP
        return self.rewards_B[first : first + GROUP].double()

    def once(self, logp: Tensor, b: int) -> Tensor:
        """The log-probs of a row's tokens, each of which exactly one view scores."""
        scored = self.scored[:, b]
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
    """arXiv 2509.06949 with a value model, 0.1 of its loss; groups of equal rewards count too.

    Policy: the mean over groups of steps, the KL to the old policy summed over each. Value: the
    mean over completions.
    """
    rows, states = [], []
    for b in range(len(batch.rewards_B)):
        views = [k for k in range(len(batch.logp)) if batch.hidden(k, b)]
        places = [(k, i) for k in views for i in batch.hidden(k, b)]
        returns, advantages = step_estimates(
            [batch.old_value[k, b, batch.hidden(k, b)].tolist() for k in views],
            float(batch.rewards_B[b]), 1.0, 1.0,
        )  # fmt: skip
        wanted = [r for k, r in zip(views, returns, strict=True) for _ in batch.hidden(k, b)]
        flat = [a for step in advantages for a in step]
        errors, policies = [], {k: [] for k in views}
        for (k, i), wish, advantage in zip(places, wanted, flat, strict=True):
            new, old = batch.logp[k, b, i], batch.old[k, b, i]
            value, before = batch.value[k, b, i], batch.old_value[k, b, i]
            near = torch.maximum(torch.minimum(value, before + 0.2), before - 0.2)
            errors.append(torch.maximum((value - wish) ** 2, (near - wish) ** 2) / 2)
            policy = clipped((new - old).exp(), torch.tensor(advantage), 0.2, 0.2)
            policies[k].append((-policy, k3(new, old)))
        for terms in policies.values():
            loss, divergence = (torch.stack(part) for part in zip(*terms, strict=True))
            states.append(loss.mean() + 0.01 * divergence.sum())
        rows.append(mean(errors))
    return mean(states) + 0.1 * mean(rows)


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


FORMULAS: dict[str, Callable[[Batch], Tensor]] = {
    "reinforce": reinforce,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "gspo": gspo,
    "wd1": wd1,
    "spg": spg,
    "stable_drl": stable_drl,
    "tracerl_value": tracerl_value,
}
