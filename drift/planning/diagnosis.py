"""What can be wrong with a checkpoint, checked on the checkpoint itself.

Each check takes a `Inspection` and returns what was found, and whether that is as it must be.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from drift.common import rng
from drift.common.types import Example, PromptBatch, Rollout, Trace
from drift.config.masking import ReplayConfig
from drift.config.model import Dtype
from drift.config.objective import ObjectiveConfig
from drift.config.optim import OptimConfig
from drift.config.rollout import CacheMode, RolloutConfig
from drift.learner.layout import micro_batches
from drift.learner.likelihood import token_logps
from drift.learner.masking import build_views
from drift.learner.objective import k3
from drift.planning.memory import GIB, Sizes, sampling, training, words
from drift.policy.base import Policy
from drift.rollout.decoding import decode

WORST_CACHE_KL = 0.5  # nats a token; beyond it a cached sampler is another model
# what rounding may move a logit or a log-prob by, as a share of the largest logit: several times
# what it does in 32 layers; a real fault moves one by a third of it and more
TOLERANCE = {Dtype.float32: 1e-5, Dtype.bfloat16: 0.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Finding(name="padding", text="largest difference 2e-06", healthy=True)."""

    name: str
    text: str
    healthy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A checkpoint with something to say: encoded examples and how to decode them."""

    policy: Policy
    dtype: Dtype
    examples: list[Example]
    prompts: list[list[int]]
    answers: list[list[int]]  # right ones, as tokens; empty where the task cannot write any
    shown: str  # the first prompt's text as the chat template renders it
    rollout: RolloutConfig
    needs: tuple[Finding, ...] = ()  # memory, from the sizes alone

    @torch.no_grad()
    def prompt_logits(self) -> Tensor:
        """Of the first prompt alone: [L, V] float32."""
        ids = torch.tensor([self.prompts[0]], device=self.policy.device)
        return self.policy.logits(ids)[0].float()

    def rounding(self) -> float:
        """The most that rounding explains between two ways to the same logit or log-prob."""
        return TOLERANCE[self.dtype] * float(self.prompt_logits().abs().max())

    def sample(self, cache: CacheMode) -> Trace:
        plain = {"horizon": None, "refresh_every": None} if cache != self.rollout.cache else {}
        config = replace(self.rollout, temperature=1.0, cache=cache, **plain)
        rows = torch.arange(len(self.prompts))
        return decode(self.policy, self.prompts, rows, config, rng.stream(0, "doctor"))

    def replay(self, trace: Trace) -> Tensor:
        """The learner's log-prob of each token in the state in which it was committed: [B, C]."""
        policy = self.policy
        prompts = PromptBatch(examples=self.examples, ids=self.prompts, first_prompt=0)
        rollout = Rollout.ungraded(prompts, trace)
        views = build_views(trace, rollout.rows_B, ReplayConfig(), 0)
        batches = micro_batches(rollout, views, policy.special, tokens_per_forward=1024)
        logp_BC = torch.zeros_like(trace.logp_BC)
        logp_BC[views.row_N, views.column_N] = token_logps(policy, batches, 1.0).logp_N
        return logp_BC


def network(inspection: Inspection) -> Finding:
    policy = inspection.policy
    config, count = policy.backbone.config, sum(p.numel() for p in policy.parameters())
    blocks = f", blocks of {config.block_length}" if config.block_length else ""
    text = (
        f"{policy.family.name}{blocks}, {count:,} parameters, {config.num_layers} layers of width "
        f"{config.hidden_size}, {config.num_heads} heads ({config.num_kv_heads} for keys), "
        f"vocabulary {config.vocab_size}, {config.max_positions} positions, "
        f"{inspection.dtype.value}"
    )
    return Finding(name="network", text=text, healthy=True)


def special_tokens(inspection: Inspection) -> Finding:
    special, tokenizer = inspection.policy.special, inspection.policy.tokenizer
    named = {
        "mask": special.mask,
        "pad": special.pad,
        **{f"stop {i}": token for i, token in enumerate(special.stop)},
    }
    text = ", ".join(f"{k} {v} {tokenizer.convert_ids_to_tokens(v)!r}" for k, v in named.items())
    return Finding(name="special tokens", text=text, healthy=special.mask not in special.stop)


def mask_token(inspection: Inspection) -> Finding:
    """The tokenizer's text for the mask id must be one token, and that id."""
    tokenizer, mask = inspection.policy.tokenizer, inspection.policy.special.mask
    token = tokenizer.convert_ids_to_tokens(mask)
    encoded = tokenizer(token, add_special_tokens=False)["input_ids"] if token else []
    return Finding(name="mask token", text=f"{token!r} is {encoded}", healthy=encoded == [mask])


def chat_template(inspection: Inspection) -> Finding:
    shown = inspection.shown if len(inspection.shown) < 200 else inspection.shown[:200] + "..."
    return Finding(name="chat template", text=repr(shown), healthy=bool(inspection.shown))


def logits(inspection: Inspection) -> Finding:
    found = inspection.prompt_logits()
    text = f"from {found.min():.1f} to {found.max():.1f} on the prompt"
    return Finding(name="logits", text=text, healthy=bool(found.isfinite().all()))


@torch.no_grad()
def shift(inspection: Inspection) -> Finding:
    """Half of a known text is hidden; which alignment of the rows predicts it better?

    The text is a right answer where the task can write one, else the prompt itself. The
    checkpoint's own output would not do: what a wrong alignment sampled, it also finds likely.
    """
    policy = inspection.policy
    losses, count = torch.zeros(2, dtype=torch.float64), 0
    for row, (prompt, answer) in enumerate(
        zip(inspection.prompts, inspection.answers, strict=True)
    ):
        ids = torch.tensor(prompt + answer, device=policy.device)
        may_hide = torch.arange(len(ids)) >= (len(prompt) if answer else 1)
        noise = rng.uniform(rng.stream(0, "doctor", row), torch.arange(len(ids)))
        hidden = (may_hide & (noise < 0.5)).to(ids.device)
        if not hidden.any():
            continue
        rows = policy.backbone(torch.where(hidden, policy.special.mask, ids)[None])
        shifted = torch.cat([rows[:, :1], rows[:, :-1]], dim=1)
        count += int(hidden.sum())
        for i, candidate in enumerate((rows, shifted)):
            scores = policy.denoising_logits(candidate[0, hidden])
            losses[i] += float(F.cross_entropy(scores, ids[hidden], reduction="sum"))
    losses /= max(count, 1)
    text = f"cross-entropy {losses[0]:.2f} unshifted, {losses[1]:.2f} shifted by one"
    if losses.min() >= math.log(policy.backbone.config.vocab_size):
        return Finding(name="shift", text=f"{text}: untrained, no telling", healthy=True)
    healthy = bool(losses[1] < losses[0]) == policy.backbone.config.shift
    return Finding(name="shift", text=text, healthy=healthy)


@torch.no_grad()
def padding(inspection: Inspection) -> Finding:
    """A row alone against the same row in a padded batch."""
    policy, longest = inspection.policy, max(map(len, inspection.prompts)) + 3
    ids = torch.full((len(inspection.prompts), longest), policy.special.pad, device=policy.device)
    for row, prompt in enumerate(inspection.prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt, device=policy.device)
    lengths = torch.tensor([len(p) for p in inspection.prompts], device=policy.device)
    together = policy.logits(ids, lengths)
    largest = max(
        float(
            (together[row, : len(p)] - policy.logits(ids[row : row + 1, : len(p)])[0]).abs().max()
        )
        for row, p in enumerate(inspection.prompts)
    )
    text = f"a row in a padded batch differs by {largest:.1e} from the row alone"
    return Finding(name="padding", text=text, healthy=largest <= inspection.rounding())


def replay(inspection: Inspection) -> Finding:
    """The learner's log-probs of the sampler's own steps (cache none: exact)."""
    trace = inspection.sample(CacheMode.none)
    largest = float((inspection.replay(trace) - trace.logp_BC).abs().max())
    text = f"sampler and learner differ by {largest:.1e} in log-prob, cache none"
    return Finding(name="replay", text=text, healthy=largest <= inspection.rounding())


def caches(inspection: Inspection) -> Finding:
    """How far a cached sampler is from the network: KL a token in its own states (see gap.py).

    Where attention is block-causal the cache is exact: it must sample what no cache samples.
    """
    if inspection.policy.backbone.config.block_length:
        traces = [inspection.sample(cache) for cache in (CacheMode.none, CacheMode.block)]
        apart = float((traces[0].logp_BC - traces[1].logp_BC).abs().max())
        same = torch.equal(traces[0].canvas_BC, traces[1].canvas_BC)
        text = f"block: {'the same tokens' if same else 'OTHER TOKENS'}, log-probs to {apart:.1e}"
        return Finding(name="caches", text=text, healthy=same and apart <= inspection.rounding())
    found: dict[CacheMode, float] = {}
    for cache in (CacheMode.prefix, CacheMode.dual):
        trace = inspection.sample(cache)
        sampler_N = trace.logp_BC[trace.committed_BC].double()
        network_N = inspection.replay(trace)[trace.committed_BC].double()
        found[cache] = float(k3(sampler_N, network_N).mean())
    text = ", ".join(f"{cache}: {kl:.1e} nats a token from exact" for cache, kl in found.items())
    return Finding(name="caches", text=text, healthy=max(found.values()) <= WORST_CACHE_KL)


CHECKS: tuple[Callable[[Inspection], Finding], ...] = (
    network,
    special_tokens,
    mask_token,
    chat_template,
    logits,
    shift,
    padding,
    replay,
    caches,
)


@torch.no_grad()
def examine(inspection: Inspection) -> list[Finding]:
    """Every check, in order."""
    return [*(check(inspection) for check in CHECKS), *inspection.needs]


def memory_needs(
    sizes: Sizes,
    objective: ObjectiveConfig,
    optim: OptimConfig,
    rollout: RolloutConfig,
    available: int,
) -> tuple[Finding, ...]:
    """Memory for rollout and for training on one process, against what the machine has."""
    found: list[Finding] = []
    for name, terms, keys in (
        ("rollout memory", sampling(sizes, rollout), "rollout.max_rows"),
        (
            "training memory",
            training(sizes, objective, optim, rollout),
            "optim.tokens_per_forward, or set model.gradient_checkpointing or model.lora.rank",
        ),
    ):
        fits = sum(terms.values()) <= available
        text = f"{words(terms)} of {available / GIB:.1f}" + ("" if fits else f"; lower {keys}")
        found.append(Finding(name=name, text=text, healthy=fits))
    return tuple(found)
