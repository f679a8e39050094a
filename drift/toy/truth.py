"""What can be counted of a toy (model.py): likelihoods, the exact gradient, the sampler's own."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drift.common.types import Example, MaskedViews, PromptBatch, Rollout, Score, TokenLogps
from drift.config.rollout import RolloutConfig
from drift.policy.base import Policy
from drift.toy.model import Space, Trajectories, enumerate_trajectories, gradients, reward, table


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What can be counted of a toy: Truth(table_TCW=..., gram_EE=..., ...).

    A gradient is known by its coefficients over the E numbers of the table that have one, and the
    inner product of two gradients by the Gram matrix of the numbers' own.
    """

    space: Space
    temperature: float
    table_TCW: Tensor  # [states, C, W] float64
    entry_TCW: Tensor  # int64: which of the E, 0 where the state shows the position
    gram_EE: Tensor  # float64
    trajectories: Trajectories
    reward_B: Tensor  # float64, of each trajectory
    exact_E: Tensor  # of the gradient of the expected reward
    trace_E: Tensor  # of the sampler's own: the reward times the gradient of its tokens' log-probs
    loglik_B: Tensor  # log p(answer) of each trajectory's answer

    @property
    def prob_B(self) -> Tensor:
        return self.trajectories.prob_B

    @property
    def mean_reward(self) -> float:
        return float((self.prob_B * self.reward_B).sum())

    def product(self, first_E: Tensor, second_E: Tensor) -> float:
        """The inner product of two gradients."""
        return float(first_E @ self.gram_EE @ second_E)


def count(
    policy: Policy, space: Space, config: RolloutConfig, num_patterns: int, sampler: Policy
) -> Truth:
    """The truth of a policy, about what a sampler (itself, or an earlier state of it) writes.

    Args:
        policy: whose gradients and likelihoods are estimated.
        space: of its canvases.
        config: of the decoding.
        num_patterns: 2^L to have states with hidden prompt tokens too, else 1.
        sampler: whose trajectories are weighed; the exact gradient is the policy's own.
    """
    temperature = config.temperature
    table_TCW = table(policy, space, temperature, num_patterns)
    jacobian = gradients(policy, space, temperature, num_patterns)
    real_TCW = jacobian.abs().amax(-1) > 0
    gradient_EP = jacobian[real_TCW].double()
    entry_TCW = torch.zeros(real_TCW.shape, dtype=torch.int64)
    entry_TCW[real_TCW] = torch.arange(len(gradient_EP))

    leaf_SCW = table_TCW[: space.num_canvases].clone().requires_grad_()
    own = enumerate_trajectories(leaf_SCW, table(policy, space, 1.0), space, config)
    reward_B = reward(space, own.digits_BC).double()
    (exact_SCW,) = torch.autograd.grad((own.prob_B * reward_B).sum(), leaf_SCW)
    own = detached(own)
    seen = own
    if sampler is not policy:
        old_SCW, plain_SCW = (table(sampler, space, t) for t in (temperature, 1.0))
        seen = enumerate_trajectories(old_SCW, plain_SCW, space, config)
    shown_SCW = real_TCW[: space.num_canvases]
    exact_E = torch.zeros(len(gradient_EP), dtype=torch.float64)
    exact_E[entry_TCW[: space.num_canvases][shown_SCW]] = exact_SCW[shown_SCW]
    answer_prob = torch.zeros(space.num_canvases, dtype=torch.float64).index_add(
        0, space.number(own.digits_BC), own.prob_B
    )
    return Truth(
        space=space,
        temperature=temperature,
        table_TCW=table_TCW,
        entry_TCW=entry_TCW,
        gram_EE=gradient_EP @ gradient_EP.T,
        trajectories=seen,
        reward_B=reward(space, seen.digits_BC).double(),
        exact_E=exact_E,
        trace_E=sampler_gradient(own, space, entry_TCW, len(gradient_EP)),
        loglik_B=answer_prob[space.number(seen.digits_BC)].log(),
    )


def detached(trajectories: Trajectories) -> Trajectories:
    """The same without graph."""
    return replace(trajectories, prob_B=trajectories.prob_B.detach())


def sampler_gradient(own: Trajectories, space: Space, entry_TCW: Tensor, size: int) -> Tensor:
    """E[(R - E[R]) sum over steps of grad log p(tokens committed | what the sampler saw)]: [E].

    The score function of the tokens alone. How the weights change which positions are committed is
    not in it, so it is the exact gradient only where the order does not depend on the words.
    """
    reward_B = reward(space, own.digits_BC).double()
    value_B = own.prob_B * (reward_B - (own.prob_B * reward_B).sum())
    total_E = torch.zeros(size, dtype=torch.float64)
    for step in range(int(own.trace.nfe_B.max())):
        hidden_BC, committed_BC = own.trace.state(torch.tensor(step))
        state_B = space.number(torch.where(hidden_BC, 0, own.digits_BC))
        b, c = committed_BC.nonzero(as_tuple=True)
        total_E.index_add_(0, entry_TCW[state_B[b], c, own.digits_BC[b, c] - 1], value_B[b])
    return total_E


def as_rollout(truth: Truth, chosen_B: Tensor, group_size: int) -> Rollout:
    """Trajectories as the batch that the trainer would hold."""
    picked = truth.trajectories.trace.pick(chosen_B)
    prompts = len(chosen_B) // group_size
    example = Example(key="toy", prompt="", fields={})
    score = Score(reward=0.0, correct=False, answer=None, verdict="wrong")
    return Rollout(
        prompts=PromptBatch(
            examples=[example] * prompts, ids=[truth.space.prompt] * prompts, first_prompt=0
        ),
        group_size=group_size,
        rows_B=torch.arange(len(chosen_B)),
        trace=picked,
        texts=[""] * len(chosen_B),
        scores=[score] * len(chosen_B),
        temperature=truth.temperature,
        policy_version=0,
        reward_s=0.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """Where the log-probs of some views' tokens are in the table, [N] each."""

    state_N: Tensor
    column_N: Tensor
    word_N: Tensor

    def logps(self, table_TCW: Tensor) -> TokenLogps:
        """As `likelihood.token_logps`, from the table."""
        logp_N = table_TCW[self.place()].float()
        return TokenLogps(logp_N=logp_N, entropy_N=torch.zeros_like(logp_N))

    def place(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.state_N, self.column_N, self.word_N


def look_up(truth: Truth, rollout: Rollout, views: MaskedViews) -> Lookup:
    """The states of the network that the views show, and the words of their tokens."""
    space, states_J = truth.space, torch.arange(len(views.row_J))
    digits_BC = space.digits_of(rollout.trace.canvas_BC)
    state_J = space.number(torch.where(views.hide(states_J), 0, digits_BC[views.row_J]))
    masks_JL = views.hide_prompt(states_J, len(space.prompt))
    if masks_JL is not None:
        pattern_J = (masks_JL.long() << torch.arange(masks_JL.shape[1])).sum(1)
        state_J = state_J + pattern_J * space.num_canvases
    return Lookup(
        state_N=state_J[views.state_N],
        column_N=views.column_N,
        word_N=digits_BC[views.row_N, views.column_N] - 1,
    )
