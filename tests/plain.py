"""Plain decoders, the oracles of the engine: loops for one row, and what a first version does.

`plain_decode` follows the definitions position by position, with every rule and every cache.
`naive_decode` is the straightforward batch decoder that scripts/bench measures against: whole rows,
the head and float64 sampling on every position, no row leaves early.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from drift.common import rng
from drift.config.rollout import (
    CacheMode,
    ConfidenceFrom,
    DynamicConfig,
    RolloutConfig,
    Schedule,
    StaticConfig,
    ThresholdConfig,
)
from drift.config.task import EndSuppression
from drift.policy.base import Policy
from tests.oracles import rms_norm, rope, swiglu

Logits = Callable[[Tensor], Tensor]  # ids [S] -> [S, V] float64, position i speaks of position i


class PlainCache:
    """Keys and values of one row, layer by layer, in float64; recomputes only chosen positions."""

    def __init__(self, policy: Policy):
        self.policy = policy
        self.weights = {k: v.double() for k, v in policy.backbone.state_dict().items()}
        self.keys: list[dict[int, Tensor]] = [{} for _ in policy.backbone.blocks]
        self.values: list[dict[int, Tensor]] = [{} for _ in policy.backbone.blocks]

    def linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.weights.get(f"{name}.bias", torch.zeros(1, dtype=torch.float64))
        return x @ self.weights[f"{name}.weight"].T + bias

    def turn(self, x_H: Tensor, position: int) -> Tensor:
        padded = torch.zeros(position + 1, len(x_H), dtype=torch.float64)
        padded[position] = x_H
        return rope(padded, self.policy.backbone.config.rope_theta)[position]

    def recompute(self, ids_S: Tensor, positions: list[int]) -> dict[int, Tensor]:
        """Hidden states of some positions; their keys and values replace the old ones."""
        c = self.policy.backbone.config
        x = {p: self.weights["embed.weight"][ids_S[p]] for p in positions}
        for i in range(c.num_layers):
            name = f"blocks.{i}"
            norm = self.weights[f"{name}.attn_norm.weight"]
            h = {p: rms_norm(x[p][None], norm, c.norm_eps)[0] for p in positions}
            for p in positions:
                k = self.linear(f"{name}.attn.k_proj", h[p]).view(c.num_kv_heads, -1)
                self.keys[i][p] = torch.stack([self.turn(head, p) for head in k])
                v = self.linear(f"{name}.attn.v_proj", h[p])
                self.values[i][p] = v.view(c.num_kv_heads, -1)
            for p in positions:
                x[p] = x[p] + self.attend(i, h[p], p, len(ids_S))
                normed = rms_norm(x[p][None], self.weights[f"{name}.mlp_norm.weight"], c.norm_eps)
                mlp = (self.weights[f"{name}.{w}_proj.weight"] for w in ("gate", "up", "down"))
                x[p] = x[p] + swiglu(normed, *mlp)[0]
        final = self.weights["norm.weight"]
        return {p: rms_norm(x[p][None], final, c.norm_eps)[0] for p in positions}

    def attend(self, layer: int, h: Tensor, position: int, size: int) -> Tensor:
        c = self.policy.backbone.config
        name = f"blocks.{layer}.attn"
        queries = self.linear(f"{name}.q_proj", h).view(c.num_heads, -1)
        mixed = []
        for i, query in enumerate(queries):
            shared = i // (c.num_heads // c.num_kv_heads)
            keys = torch.stack([self.keys[layer][p][shared] for p in range(size)])
            values = torch.stack([self.values[layer][p][shared] for p in range(size)])
            scores = keys @ self.turn(query, position) / math.sqrt(len(query))
            mixed.append(scores.softmax(0) @ values)
        return self.linear(f"{name}.out_proj", torch.cat(mixed))


def block_logits(
    policy: Policy, cache: PlainCache | None, ids: Tensor, block: range, whole: bool,
    config: RolloutConfig,
) -> dict[int, Tensor]:  # fmt: skip
    """Float64 logits at the positions of a block, the mask token impossible."""
    if cache is None:
        rows = policy.logits(ids[None])[0].double()
        found = {p: rows[p] for p in block}
    else:
        if whole:
            cache.recompute(ids, list(range(len(ids))))
        horizon = 0 if config.cache == CacheMode.dual else config.horizon
        end = len(ids) if horizon is None else min(block.stop + horizon, len(ids))
        back = 1 if policy.backbone.config.shift else 0
        hidden = cache.recompute(ids, list(range(block.start - back, end)))
        head = cache.weights["head.weight"]
        found = {p: hidden[p - back] @ head.T for p in block}
    for logits in found.values():
        logits[policy.special.mask] = -torch.inf
    return found


def narrowed(probs: Tensor, config: RolloutConfig, stop: tuple[int, ...]) -> Tensor:
    """The probabilities that a token is drawn from: not normalised."""
    probs = probs.clone()
    if config.suppress_end == EndSuppression.token:
        probs[list(stop)] = 0
    if config.temperature == 0 and config.confidence_from == ConfidenceFrom.network:
        return probs
    order = sorted(range(len(probs)), key=lambda v: (-float(probs[v]), v))
    order = order[: config.top_k] if config.top_k else order
    kept, total = 0.0, float(probs[order].sum())
    out = torch.zeros_like(probs)
    for v in order:
        if config.top_p is not None and kept >= config.top_p * total:
            break
        out[v] = probs[v]
        kept += float(probs[v])
    return out


def confidence_of(probs: Tensor, token: int, config: RolloutConfig, stop: tuple[int, ...]) -> float:
    if config.suppress_end == EndSuppression.commit and token in stop:
        return -1e9
    if config.confidence == "probability":
        return float(probs[token])
    best = sorted(probs.tolist(), reverse=True)
    if config.confidence == "margin":
        return best[0] - best[1]
    return sum(p * math.log(p) for p in best if p > 0)


def chosen_positions(sure: dict[int, float], steps_left: int, config: RolloutConfig) -> list[int]:
    best_first = sorted(sure, key=lambda i: (-sure[i], i))
    if isinstance(config, StaticConfig) and config.schedule == Schedule.equal:
        return best_first[: math.ceil(len(sure) / steps_left)]
    if steps_left == 1:
        return best_first
    if isinstance(config, DynamicConfig) or (
        isinstance(config, StaticConfig) and config.schedule == Schedule.sdar
    ):
        size, steps = config.block_length, config.steps * config.block_length // config.gen_length
        shares = [size // steps + (step < size % steps) for step in range(steps)]
        scheduled = best_first[: shares[steps - steps_left]]
        if isinstance(config, StaticConfig):
            return scheduled
        sure_ones = [i for i in best_first if sure[i] > config.threshold]
        return sure_ones if len(sure_ones) >= shares[steps - steps_left] else scheduled
    if isinstance(config, StaticConfig):
        steps = config.steps * config.block_length // config.gen_length
        t, s = (1 - (1 - 1e-3) * (steps - left) / steps for left in (steps_left, steps_left - 1))
        return best_first[: int(len(sure) * (1 - s / t))]
    if isinstance(config, ThresholdConfig):
        assert config.threshold is not None
        return [i for i in best_first if sure[i] >= config.threshold] or best_first[:1]
    assert config.factor is not None
    largest = 1
    for n in range(1, len(best_first) + 1):
        if (n + 1) * (1 - sure[best_first[n - 1]]) < config.factor:
            largest = n
    return best_first[:largest]


@torch.no_grad()
def plain_decode(
    policy: Policy, prompt: list[int], row: int, config: RolloutConfig, key: int
) -> tuple[list[int], list[int], list[float]]:
    """One row, one position at a time: canvas, unmask steps, log-probs."""
    mask, size, stop = policy.special.mask, config.block_length, policy.special.stop
    canvas, step_of = [mask] * config.gen_length, [-1] * config.gen_length
    logp_of, step = [0.0] * config.gen_length, 0
    cache = None if config.cache_for(0) == CacheMode.none else PlainCache(policy)
    for first in range(0, config.gen_length, size):
        limit = steps_left = config.steps * size // config.gen_length
        while any(s < 0 for s in step_of[first : first + size]):
            taken = limit - steps_left
            whole = taken % (config.refresh_every or config.gen_length) == 0
            ids = torch.tensor(prompt + canvas)
            block = range(len(prompt) + first, len(prompt) + first + size)
            logits = block_logits(policy, cache, ids, block, whole, config)
            tokens: dict[int, int] = {}
            sure: dict[int, float] = {}
            logps: dict[int, float] = {}
            for i in range(first, first + size):
                if step_of[i] >= 0:
                    continue
                row_logits = logits[len(prompt) + i]
                used = (row_logits / (config.temperature or 1.0)).softmax(-1)
                choice = narrowed(used, config, stop)
                if config.temperature == 0:
                    tokens[i] = int(choice.argmax())
                else:
                    noise = rng.uniform(key, *(torch.tensor(c) for c in (row, step, i)))
                    tokens[i] = int((choice.cumsum(0) < noise * choice.sum()).sum())
                logps[i] = math.log(used[tokens[i]])
                probs = row_logits.softmax(-1)
                if config.confidence_from == ConfidenceFrom.drawn:
                    probs = choice / choice.sum()
                sure[i] = confidence_of(probs, tokens[i], config, stop)
                if config.position_temperature or config.confidence == "random":
                    counters = (row, step, i, 1)
                    noise = float(rng.uniform(key, *(torch.tensor(c) for c in counters)))
                    start = 0.0 if config.confidence == "random" else sure[i]
                    sure[i] = start / (config.position_temperature or 1.0)
                    sure[i] -= math.log(-math.log(noise))
            for i in chosen_positions(sure, steps_left, config):
                canvas[i], logp_of[i], step_of[i] = tokens[i], logps[i], step
            step, steps_left = step + 1, steps_left - 1
        if any(token in stop for token in canvas[first : first + size]):
            break
    return canvas, step_of, logp_of


@torch.no_grad()
def naive_decode(
    policy: Policy, prompts: list[list[int]], config: RolloutConfig, key: int, gumbel: bool = False
) -> Tensor:
    """Canvases [B, C] of equally long prompts: static rule, temperature 1, stop tokens as others.

    Draws by inversion with the engine's own numbers, so that the tokens can be compared; or with
    Gumbel noise over every word, as the field's decoders do (LLaDA's generate.py).
    """
    batch, start, size = len(prompts), len(prompts[0]), config.block_length
    mask = policy.special.mask
    ids = torch.full((batch, start + config.gen_length), mask, device=policy.device)
    ids[:, :start] = torch.tensor(prompts, device=policy.device)
    canvas = torch.arange(ids.shape[1], device=policy.device) - start
    rows = torch.arange(batch, device=policy.device)[:, None]
    steps = config.steps * size // config.gen_length
    for step in range(config.steps):
        logits = policy.logits(ids).double()
        logits[..., mask] = -torch.inf
        probs = logits.softmax(-1)
        if gumbel:
            noise = -torch.log(torch.rand_like(logits))
            tokens = (logits.exp() / noise).argmax(-1)
        else:
            shares = probs.cumsum(-1)
            noise = rng.uniform(key, rows, torch.tensor(step, device=policy.device), canvas)
            target = noise[..., None] * shares[..., -1:]
            tokens = torch.searchsorted(shares, target, right=True)[..., 0]
            tokens = tokens.clamp(max=probs.shape[-1] - 1)
        confidence = probs.gather(-1, tokens[..., None])[..., 0]
        block = (canvas // size == step // steps) & (canvas >= 0)
        confidence = confidence.masked_fill(~((ids == mask) & block), -1.0)
        best = confidence.argsort(dim=1, descending=True, stable=True)[:, : size // steps]
        ids.scatter_(1, best, tokens.gather(1, best))
    return ids[:, start:]
