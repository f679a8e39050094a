"""What the presets compute, against the published code (tests/published.py), step by step.

The same masks, weights and rewards go to `update` and to the restatement. Rows differ in length and
in the number of their steps, views in what they score; the policy moves between the steps.
"""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from drift.cluster.engine import Engine
from drift.common import rng
from drift.common.types import MaskedViews, Rollout
from drift.config.cluster import ClusterConfig
from drift.config.masking import SequentialConfig
from drift.config.model import Dtype
from drift.config.rollout import ThresholdConfig
from drift.learner.advantage import estimate
from drift.learner.masking import draw_views
from drift.learner.update import parts, update
from drift.policy.base import Policy
from drift.rollout.decoding import decode
from tests.conftest import make_policy, make_rollout, rollout_config
from tests.published import LOSSES, State, Step
from tests.unit.learner.test_presets import composed

GROUP = 4
REWARDS = [1.0, 0.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.0]
KEY = rng.stream(5, "published")
SIZE = 8


def toy(seed: int = 7) -> Policy:
    """Twelve words and the mask; it ends sequences often enough for short rows."""
    policy = make_policy("llada", seed=seed).double()
    with torch.no_grad():
        policy.backbone.head.weight.mul_(3)
    return policy


def sampled(policy: Policy) -> Rollout:
    prompts = [[5, 6, 7], [4, 8]]
    config = rollout_config(ThresholdConfig, gen_length=SIZE, block_length=4, threshold=0.5)
    rows = torch.arange(2 * GROUP)
    each = [prompt for prompt in prompts for _ in range(GROUP)]
    return make_rollout(prompts, decode(policy, each, rows, config, KEY), group_size=GROUP)


def states_of(views: MaskedViews, rollout: Rollout, mask: int, whole: bool) -> list[State]:
    """The states for the restatement; of a mini-batch those with something to score."""
    found: list[State] = []
    for j in range(len(views.row_J)) if whole else views.state_N.unique().tolist():
        row, own_N = int(views.row_J[j]), views.state_N == j
        prompt, canvas = rollout.prompt_ids(row), rollout.trace.canvas_BC[row].tolist()
        hidden = views.hide(torch.tensor([j]))[0].tolist()
        masks = views.hide_prompt(torch.tensor([j]), len(prompt))
        if masks is not None:
            prompt = [mask if m else i for i, m in zip(prompt, masks[0].tolist(), strict=True)]
        found.append(
            State(
                row=row,
                order=int(views.order_J[j]),
                prompt=prompt,
                canvas=[mask if h else i for i, h in zip(canvas, hidden, strict=True)],
                scored=views.column_N[own_N & ~views.candidate_N].tolist(),
                candidates=views.column_N[own_N & views.candidate_N].tolist(),
                weight=None if views.weight_J is None else float(views.weight_J[j]),
            )
        )
    return found


def gradient(loss: Tensor, policy: Policy) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, [*policy.parameters()])])


CASES = [
    *((name, ()) for name in LOSSES),
    *((name, ("num_updates=2",)) for name in ("llada_math", "dream_math", "bgpo")),
    ("tracerl", ("num_minibatches=1",)),
]


@pytest.mark.parametrize("tokens", [30, 10_000])
@pytest.mark.parametrize(("name", "changes"), CASES)
def test_every_optimizer_step_of_a_preset_is_the_published_codes(
    name: str, changes: tuple[str, ...], tokens: int
) -> None:
    two_updates = "num_updates=2" in changes and name != "bgpo"
    config = composed(
        f"experiment={name}",
        *(["model=tiny", "task=countdown"] if name.startswith(("llada", "dream")) else []),
        *(["objective=ppo_clip"] if two_updates else []),  # RLDF: a ratio from two updates on
        f"rollout.gen_length={SIZE}",
        "rollout.block_length=4",
        *(["rollout.steps=8"] if name.startswith(("llada", "dream")) else []),
        *(["masking.shrink=2"] if name == "tracerl" else []),
        *(f"objective.{change}" for change in changes),
    )
    masking, objective = config.masking, config.objective
    if isinstance(masking, SequentialConfig):
        masking.low_prob_threshold = 0.08  # some candidates are scored, others are not
    before, reference = toy(), toy(seed=2)
    rollout, policy = sampled(before), toy()
    config.optim = replace(config.optim, lr=5e-3, tokens_per_forward=tokens)
    moved: list[dict[str, Tensor]] = []
    found: list[Tensor] = []

    class Watched(Engine):
        def step(self, scale: float = 1.0) -> float:
            moved.append(copy.deepcopy(policy.state_dict()))
            grads = [p.grad.flatten() for p in policy.parameters()]  # type: ignore[union-attr]
            found.append(scale * torch.cat(grads))
            return super().step(scale)

    engine = Watched(ClusterConfig(name="local"), Dtype.float32)
    engine.prepare(policy, config.optim, objective.num_steps)
    advantages = estimate(torch.tensor(REWARDS), GROUP, objective.advantage)
    draws = draw_views(rollout.trace, rollout.rows_B, config, KEY)
    frozen = reference if objective.kl_coef else None
    report = update(engine, policy, frozen, rollout, advantages, draws, config)
    steps = [
        (views, part_N)
        for update_number in range(objective.num_updates)
        for views in [draws[update_number % len(draws)]]
        for part_N in parts(views, objective.num_minibatches)
        if part_N.any()
    ]
    totals: list[float] = []
    for (views, part_N), weights, by_update in zip(steps, moved, found, strict=True):
        current = toy()
        current.load_state_dict(weights)
        step = Step(
            policy=current,
            old=before,
            reference=reference,
            states=states_of(
                views.keep(part_N),
                rollout,
                current.special.mask,
                whole=objective.num_minibatches == 1,
            ),
            targets=rollout.trace.canvas_BC.tolist(),
            lengths=views.length_B.tolist(),
            rewards=REWARDS,
            group=GROUP,
            temperature=1.0,
            min_prob=views.candidate_min_prob,
            iterations=objective.num_updates,
        )
        loss = LOSSES[name](step)
        expected = gradient(loss, current)
        assert (by_update - expected).norm() < 1e-4 * expected.norm()  # log-probs are float32
        assert expected.norm() > 1e-4
        totals.append(loss.item())
    mean = sum(totals) / len(totals)
    assert report.metrics["loss/total"] == pytest.approx(mean, rel=1e-4, abs=1e-5)


def test_the_toy_has_what_the_comparison_needs() -> None:
    before = toy()
    trace = sampled(before).trace
    steps = [len({s for s in row if s >= 0}) for row in trace.unmask_step_BC.tolist()]
    assert min(steps) < 4 <= max(steps)  # rows of fewer steps than views
    assert trace.finished_B.any() and (~trace.finished_B).any()
    committed = trace.committed_BC.sum(1)
    assert (committed > trace.length_B).any()  # tokens after the stop token
