"""The batches passed between stages, and the one legend of dimension suffixes.

| suffix | dimension |
|---|---|
| P | prompts of a step (on this rank) |
| G | group size: completions of one prompt |
| B | rows: P * G, the rows of a group adjacent |
| L | prompt length, differs by row |
| C | canvas (completion) length |
| S | a row: prompt + canvas, contiguous from position 0, padded at the end |
| K | views of a completion |
| J | states: the views of all rows, a row's adjacent |
| M | the states, or rows, of one network forward |
| N | tokens chosen from a batch |
| V | vocabulary |
| D | width of the network |

A row's prompt of length L stands at positions 0..L-1, its canvas at L..L+C-1. Where attention is
block-causal, the canvas has B - 1 columns more than the answer may have tokens (B: block length):
a row decodes through the whole block that holds its last token.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import cast

import torch
from torch import Tensor

from drift.common import rng


def distinct(value_N: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values in ascending order, and the place among them of each of the N."""
    found = torch.unique(value_N, return_inverse=True)  # pyright: ignore
    return cast("tuple[Tensor, Tensor]", found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One problem of a task.

    Example(key="countdown:3,5,9:11", prompt="3 9 5=11",
            fields={"numbers": [3, 9, 5], "target": 11})
    """

    key: str  # two examples are the same problem iff their keys are equal
    prompt: str  # what the user says; the checkpoint's chat template is put around it later
    fields: dict[str, object]  # what the task needs to grade an answer
    prefix: str = ""  # the answer's beginning, given to the model; graders see what follows it


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a task says of one completion.

    Score(reward=1.0, correct=True, answer="9+5-3", verdict="pass", rewards={"answer": 1.0})
    """

    reward: float  # what the policy is trained on
    correct: bool  # what accuracy counts
    answer: str | None  # the answer found in the text, None if there is none
    verdict: str  # pass | wrong | no_answer | ...: one word that says why
    rewards: dict[str, float] = field(default_factory=dict[str, float])  # by name, unweighted


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBatch:
    """P prompts of one step; `ids[p]` is completed G times by the rows p*G .. p*G+G-1.

    PromptBatch(examples=[e0, e1], ids=[[5, 9, 7], [5, 8, 8, 7]], first_prompt=0)
    """

    examples: list[Example]
    ids: list[list[int]]  # rendered by the chat template
    first_prompt: int  # index of ids[0] among the prompts of the step over all ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What the sampler did on B canvases, enough to replay it token by token.

    One row, canvas of 4, block of 2, where `</s>` (2) ended the row in the second block:
    Trace(prompt_length_B=[3], canvas_BC=[[7, 8, 9, 2]], unmask_step_BC=[[1, 0, 2, 2]],
          logp_BC=[[-0.1, -0.3, -0.2, 0.0]], length_B=[4], finished_B=[True], nfe_B=[3],
          commits_B=[0])
    """

    prompt_length_B: Tensor  # int64; the canvas begins at this position of the row

    canvas_BC: Tensor  # int64; the mask id where nothing was committed
    unmask_step_BC: Tensor  # int64; the row's own step that committed the token, -1 = never
    logp_BC: Tensor  # float32; the sampler's log-prob of the token at that step, 0 where never
    length_B: Tensor  # int64; tokens up to and with the first stop token, C if there is none
    finished_B: Tensor  # bool; a stop token was committed
    nfe_B: Tensor  # int64; denoising steps the row took part in, a network evaluation each
    commits_B: Tensor  # int64; evaluations beside them that kept a finished block's keys and values
    block_length: int = 0  # of block-causal attention, counted from the row's position 0; 0 = full

    @property
    def gen_length(self) -> int:
        """The most tokens that an answer may have."""
        return self.canvas_BC.shape[1] - max(self.block_length - 1, 0)

    @property
    def block_BC(self) -> Tensor:
        """[B, C] int64: which block of the row each column stands in; 0 where attention is full."""
        columns_C = torch.arange(self.canvas_BC.shape[1], device=self.canvas_BC.device)
        position_BC = self.prompt_length_B[:, None] + columns_C
        return position_BC // self.block_length if self.block_length else 0 * position_BC

    @property
    def committed_BC(self) -> Tensor:
        """[B, C] bool: the tokens the sampler chose, the ones that can be trained."""
        return self.unmask_step_BC >= 0

    def pick(self, row_N: Tensor) -> "Trace":
        """Some of the rows, by their int64 numbers."""
        return replace(self, **{name: tensor[row_N] for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """What it holds of each row, by the field's name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def state(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """What the sampler saw as masked at a denoising step, and what it committed there.

        Args:
            step: int64 >= 0 that broadcasts with [B, C], for example [B, 1] or [K, B, 1].

        Returns:
            Two bool tensors of the broadcast shape, the second a subset of the first.
        """
        hidden = (self.unmask_step_BC >= step) | ~self.committed_BC
        return hidden, self.unmask_step_BC == step


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """B = P * G graded completions.

    Rollout(prompts=PromptBatch(...), group_size=2, rows_B=[0, 1], trace=Trace(...),
            texts=["\\\\boxed{9+5-3}", "\\\\boxed{3+9+5}"], scores=[Score(...), Score(...)],
            temperature=1.0, policy_version=17, reward_s=0.01)
    """

    prompts: PromptBatch
    group_size: int
    rows_B: Tensor  # int64; a row's index among the rows of the step over all ranks
    trace: Trace
    texts: list[str]
    scores: list[Score]
    temperature: float  # of the sampler; the learner uses the same
    policy_version: int  # training steps the sampling policy had seen
    reward_s: float  # seconds of grading

    @classmethod
    def ungraded(cls, prompts: PromptBatch, trace: Trace, group_size: int = 1) -> "Rollout":
        """Rows whose texts and grades nobody asks for, numbered from 0, at temperature 1."""
        return cls(
            prompts=prompts,
            group_size=group_size,
            rows_B=torch.arange(len(trace.canvas_BC)),
            trace=trace,
            texts=[],
            scores=[],
            temperature=1.0,
            policy_version=0,
            reward_s=0.0,
        )

    def pick(self, rows: list[int], prompts: PromptBatch, group_size: int) -> "Rollout":
        """Some of the rows, by their places; `prompts` are theirs, in groups of that size."""
        row_N = torch.tensor(rows, dtype=torch.int64, device=self.rows_B.device)
        return replace(
            self,
            prompts=prompts,
            group_size=group_size,
            rows_B=self.rows_B[row_N],
            trace=self.trace.pick(row_N),
            texts=[self.texts[row] for row in rows],
            scores=[self.scores[row] for row in rows],
        )

    def prompt_ids(self, row: int) -> list[int]:
        """The prompt tokens of a local row."""
        return self.prompts.ids[row // self.group_size]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedViews:
    """J states, which are the views of B rows, and N tokens to score in them.

    What a state hides is computed by `hide` when a forward needs it and is never stored, so the
    memory grows with the scored tokens alone. One row of two tokens, two views: the first hides
    both tokens and scores the first one, the second hides and scores the second one:
    MaskedViews(row_J=[0, 0], order_J=[0, 1], hide=..., state_N=[0, 1], column_N=[0, 1],
                candidate_N=[False, False], candidate_min_prob=1.0, length_B=[2], rows_B=[0])
    """

    row_J: Tensor  # int64, ascending; which of the B rows
    # int64; the state's number in its row, from 0, ascending: of the draw; for trace, replay and
    # left_to_right of the step group or token, with gaps where it has nothing to score
    order_J: Tensor
    hide: Callable[[Tensor], Tensor]  # states [M] -> [M, C] bool: shown as the mask token
    state_N: Tensor  # int64, ascending; which of the J states scores the token
    column_N: Tensor  # int64; the token's column in the canvas, hidden in its state
    candidate_N: Tensor  # bool; scored only if the policy gives it candidate_min_prob
    candidate_min_prob: float
    length_B: Tensor  # int64; tokens of the row that may be scored
    rows_B: Tensor  # int64; numbers that name the rows in the random numbers
    # [J] float32: sum over views of weight * (log-probs of the scored tokens) estimates the
    # row's log-likelihood: elbo and quadrature estimate its ELBO, coupled_ratio and block count as
    # their published code does. None: scored tokens count alike, their mean estimates it per token
    weight_J: Tensor | None = None
    prompt_mask_prob: float = 0.0  # of each prompt token, in each state, to be shown as the mask
    key: int = 0  # of the random numbers of prompt masks and mini-batches

    @property
    def row_N(self) -> Tensor:
        """[N] int64: the row of each token."""
        return self.row_J[self.state_N]

    def keep(self, kept_N: Tensor) -> "MaskedViews":
        """The same states with some of the tokens: kept_N [N] bool."""
        return replace(
            self,
            state_N=self.state_N[kept_N],
            column_N=self.column_N[kept_N],
            candidate_N=self.candidate_N[kept_N],
        )

    def hide_prompt(self, state_M: Tensor, length: int) -> Tensor | None:
        """Prompt tokens that are shown as the mask token: [M, length] bool; None: none.

        Each one is hidden with `prompt_mask_prob` in each state (d1, arXiv 2504.12216), the chat
        template's tokens like the others.
        """
        if self.prompt_mask_prob == 0:
            return None
        noise_ML = rng.uniform(
            rng.stream(self.key, "prompt"),
            self.order_J[state_M][:, None],
            self.rows_B[self.row_J[state_M]][:, None],
            torch.arange(length, device=state_M.device),
        )
        return noise_ML < self.prompt_mask_prob


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogps:
    """Log-probs of the N tokens of some views under one policy.

    TokenLogps(logp_N=[-0.7], entropy_N=[0.9])
    """

    logp_N: Tensor  # float32
    entropy_N: Tensor  # float32, nats
    value_N: Tensor | None = None  # float32; of the value head, where the policy has one

    def keep(self, kept_N: Tensor) -> "TokenLogps":
        """Some of the tokens: kept_N [N] bool."""
        value_N = None if self.value_N is None else self.value_N[kept_N]
        return TokenLogps(
            logp_N=self.logp_N[kept_N], entropy_N=self.entropy_N[kept_N], value_N=value_N
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantages:
    """Advantages(values_B=[0.7, -0.7, 0, 0], used_B=[1, 1, 0, 0], zero_variance_groups=1)."""

    values_B: Tensor  # float32
    used_B: Tensor  # bool; False for the rows of a group whose rewards are all equal
    zero_variance_groups: int
    # values_B are the rewards at the end of the traces; the advantage of a step is known when the
    # value model has seen its state (`update`), and every row is used
    at_end: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """The loss of one micro-batch and what is logged of it, as sums to be reduced over ranks.

    LossOutput(loss=tensor(0.3), sums={"loss/policy": 0.3, "loss/clip_frac": 0.0})
    """

    loss: Tensor  # scalar; the micro-batches of all ranks add up to the loss of the batch
    sums: dict[str, Tensor]  # scalars without graph; they add up to the metric of that name


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """Metrics of a step, the same on every rank: StepReport(metrics={"loss/policy": 0.3})."""

    metrics: dict[str, float]
