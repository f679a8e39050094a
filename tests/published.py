"""The losses of published code, restated with loops over optimizer steps, views, rows and tokens.

Each function takes what one optimizer step saw and gives its loss. Sources: the code of the papers
named in each, read and written anew; docs/algorithm.md says where this project differs from it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from drift.policy.base import Policy

Loss = Callable[["Step"], Tensor]


@dataclass(kw_only=True)
class State:
    """One view of a row: what it hides of prompt and canvas, and what it scores."""

    row: int
    order: int
    prompt: list[int]  # as the network sees it
    canvas: list[int]
    scored: list[int]  # columns
    candidates: list[int]  # columns that are scored if they are likely enough
    weight: float | None


@dataclass(kw_only=True)
class Step:
    """What one optimizer step knows. Rows of a group are adjacent."""

    policy: Policy  # with graph
    old: Policy  # before the first step on this rollout
    reference: Policy
    states: list[State]  # of all rows, or of this step's mini-batch
    targets: list[list[int]]  # of each row, its canvas
    lengths: list[int]  # of each row, tokens that are scored at most
    rewards: list[float]
    group: int
    temperature: float
    min_prob: float = 1.0
    iterations: int = 1
    known: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def logp(self, policy: Policy, state: State, column: int) -> Tensor:
        """log p(token at a column | what the state shows), the mask token excluded."""
        asked = (id(policy), id(state))
        if asked not in self.known:
            logits = policy.logits(torch.tensor([state.prompt + state.canvas]))[0].double()
            logits = logits[len(state.prompt) :] / self.temperature
            keep = torch.ones(logits.shape[1], dtype=torch.bool)
            keep[policy.special.mask] = False
            self.known[asked] = logits - logits[:, keep].logsumexp(1, keepdim=True)
        return self.known[asked][column, self.targets[state.row][column]]

    def new(self, state: State, column: int) -> Tensor:
        return self.logp(self.policy, state, column)

    def before(self, state: State, column: int) -> Tensor:
        return self.logp(self.old, state, column).detach()

    def start(self, state: State, column: int) -> Tensor:
        return self.logp(self.reference, state, column).detach()

    def rewards_of(self, row: int) -> tuple[float, list[float]]:
        first = row // self.group * self.group
        return self.rewards[row], self.rewards[first : first + self.group]

    def view(self, row: int, order: int) -> State:
        (found,) = [s for s in self.states if (s.row, s.order) == (row, order)]
        return found

    @property
    def rows(self) -> range:
        return range(len(self.targets))

    @property
    def orders(self) -> list[int]:
        return sorted({state.order for state in self.states})


def average(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def deviation(values: list[float], bessel: bool) -> float:
    middle = sum(values) / len(values)
    return math.sqrt(sum((v - middle) ** 2 for v in values) / (len(values) - bessel))


def normalized(step: Step, row: int) -> float:
    """(R - mean) / max(std, 0.01), sample std."""
    own, group = step.rewards_of(row)
    return (own - sum(group) / len(group)) / max(deviation(group, True), 0.01)


def z_score(step: Step, row: int) -> float:
    own, group = step.rewards_of(row)
    return (own - sum(group) / len(group)) / deviation(group, False)


def centered(step: Step, row: int) -> float:
    own, group = step.rewards_of(row)
    return own - sum(group) / len(group)


def against_others(step: Step, row: int) -> float:
    own, group = step.rewards_of(row)
    return own - (sum(group) - own) / (len(group) - 1)


def ppo(ratio: Tensor, advantage: float, low: float, high: float) -> Tensor:
    clipped = ratio.clamp(1 - low, 1 + high)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def dual(loss: Tensor, advantage: float, c: float) -> Tensor:
    return torch.minimum(loss, torch.tensor(-c * advantage)) if advantage < 0 else loss


def k3(new: Tensor, reference: Tensor) -> Tensor:
    return (reference - new).exp() - (reference - new) - 1


def rldf(step: Step, beta: float, per_sample: bool) -> Tensor:
    """RLDF (arXiv 2605.25638): one forward a view over all rows, each with its own mean."""
    views: list[Tensor] = []
    for order in step.orders:
        rows: list[list[Tensor]] = []
        for row in step.rows:
            state, terms = step.view(row, order), []
            for column in sorted(state.scored + state.candidates):
                new, old = step.new(state, column), step.before(state, column)
                judged = new.detach() if step.iterations == 1 else old
                if column in state.candidates and judged.exp() < step.min_prob:
                    continue
                advantage = normalized(step, row)
                policy = -new * advantage
                if step.iterations > 1:
                    policy = ppo((new - old).exp(), advantage, 0.2, 0.2)
                terms.append(policy + beta * k3(new, step.start(state, column)))
            rows.append(terms)
        if per_sample:
            views.append(average([torch.stack(terms).sum() / max(1, len(terms)) for terms in rows]))
        else:
            views.append(average([term for terms in rows for term in terms]))
    return average(views)


def d1(step: Step) -> Tensor:
    """diffu-GRPO (arXiv 2504.12216): tokens of all rows pooled; a prompt mask for each update."""
    terms: list[Tensor] = []
    for state in step.states:
        for column in state.scored:
            new, old = step.new(state, column), step.before(state, column)
            policy = ppo((new - old).exp(), centered(step, state.row), 0.5, 0.5)
            terms.append(policy + 0.04 * k3(new, step.start(state, column)))
    return average(terms)


def coupled_grpo(step: Step) -> Tensor:
    """coupled-GRPO (arXiv 2506.20639): (log p_all + w log p_own) / 2 of each token, pooled."""
    terms: list[Tensor] = []
    for row in step.rows:
        everything, part, rest = (step.view(row, order) for order in range(3))
        assert part.weight is not None
        u = 1 / (2 * part.weight)  # three views: w / 2 is the weight
        for column in everything.scored:
            own, weight = (part, 1 / u) if column in part.scored else (rest, 1 / (1 - u))
            new, old, start = (
                (value(everything, column) + weight * value(own, column)) / 2
                for value in (step.new, step.before, step.start)
            )
            policy = ppo((new - old).exp(), against_others(step, row), 0.5, 0.5)
            terms.append(policy + 0.01 * k3(new, start))
    return average(terms)


def tracerl(step: Step) -> Tensor:
    """TraceRL (arXiv 2509.06949): every group of steps is a training row; KL summed over it."""
    rows: list[Tensor] = []
    for state in step.states:
        policy, divergence = [], []
        for column in state.scored:
            new, old = step.new(state, column), step.before(state, column)
            policy.append(ppo((new - old).exp(), z_score(step, state.row), 0.2, 0.2))
            divergence.append(k3(new, old))
        rows.append(average(policy) + 0.01 * torch.stack(divergence).sum())
    return average(rows)


def espo(step: Step) -> Tensor:
    """ESPO (arXiv 2512.03759): ELBO by masks and complements, the ratio per token of the answer."""

    def elbo(row: int, value: Callable[[State, int], Tensor]) -> Tensor:
        n, draws = step.lengths[row], []
        for first in step.orders[::2]:
            total = torch.zeros((), dtype=torch.float64)
            for order in (first, first + 1):
                for state in [s for s in step.states if (s.row, s.order) == (row, order)]:
                    for column in state.scored:
                        total = total + value(state, column) * (n + 1) / len(state.scored)
            draws.append(total / 2)
        return average(draws)

    rows: list[Tensor] = []
    for row in step.rows:
        n = step.lengths[row]
        new, old, start = (elbo(row, value) for value in (step.new, step.before, step.start))
        policy = ppo(((new - old) / n).exp(), against_others(step, row), 0.2, 0.2)
        rows.append(policy + 1e-3 * (new - start) ** 2 / 2 / n)
    return average(rows)


def bgpo(step: Step) -> Tensor:
    """BGPO (arXiv 2510.11683): each draw's own ratio, linear for A > 0, clipped twice."""
    rows: list[Tensor] = []
    for row in step.rows:
        n, (own, group) = step.lengths[row], step.rewards_of(row)
        advantage = (own - sum(group) / len(group)) / (deviation(group, True) + 1e-6)
        draws: list[Tensor] = []
        for order in range(16):
            difference = torch.zeros((), dtype=torch.float64)
            for state in [s for s in step.states if (s.row, s.order) == (row, order)]:
                for column in state.scored:
                    change = step.new(state, column) - step.before(state, column)
                    difference = difference + change * n / len(state.scored) / n
            ratio = 1 + difference if advantage > 0 else difference.exp()
            draws.append(dual(ppo(ratio, advantage, 0.2, 0.2), advantage, 3.0))
        rows.append(average(draws))
    return average(rows)


LOSSES: dict[str, Loss] = {
    "llada_math": lambda step: rldf(step, 0.01, per_sample=False),
    "llada_code": lambda step: rldf(step, 0.01, per_sample=False),
    "dream_math": lambda step: rldf(step, 0.04, per_sample=True),
    "dream_code": lambda step: rldf(step, 0.04, per_sample=True),
    "diffu_grpo": d1,
    "coupled_grpo": coupled_grpo,
    "tracerl": tracerl,
    "espo": espo,
    "bgpo": bgpo,
}
