"""From hidden states to tokens: draw one at each position, and say how sure the network is.

Logits are made in float32, in chunks of bounded memory, at the given positions only.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from drift.common.errors import RolloutError
from drift.config.rollout import ConfidenceFrom, RolloutConfig
from drift.config.task import EndSuppression
from drift.policy.base import Policy

CHUNK = 256  # words summed together in `invert`
LAST = -1e9  # a confidence below all others


def draw(
    policy: Policy, hidden_ND: Tensor, noise_N: Tensor, config: RolloutConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """A token at each position.

    `top_k`, `top_p` and `suppress_end=token` narrow the choice and nothing else: the log-prob is
    that of the network at the temperature, as in the learner. With `confidence_from=drawn` the
    confidence is of the narrowed choice, too; a greedy token is narrowed for its confidence alone.

    Args:
        policy: its head makes the logits.
        hidden_ND: [N, D], aligned.
        noise_N: [N] float64 in (0, 1).
        config: temperature (0 = the most likely token), top_k, top_p, suppress_end, confidence,
            confidence_from.

    Returns:
        tokens [N] int64; their log-probs at the temperature (at 1 when greedy) [N] float32; the
        confidences [N] float32.

    Raises:
        RolloutError: the logits are not finite.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    chunk = policy.head_chunk()
    for hidden, noise in zip(hidden_ND.split(chunk), noise_N.split(chunk), strict=True):
        logits = policy.denoising_logits(hidden)
        parts.append(draw_chunk(logits, noise, config, policy.special.stop))
    tokens, logps, confidences = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logps), torch.cat(confidences)


def draw_chunk(
    logits_NV: Tensor, noise_N: Tensor, config: RolloutConfig, stop: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """`draw` of one chunk, from its logits [N, V] float32, which are lost."""
    temperature, drawn = config.temperature or 1.0, config.confidence_from == ConfidenceFrom.drawn
    needed = temperature != 1 or config.suppress_end == EndSuppression.token
    probs_NV = torch.softmax(logits_NV, -1, out=None if needed else logits_NV)  # no second [N, V]
    if not bool(probs_NV[:, 0].isfinite().all()):  # one bad logit spoils its whole row
        raise RolloutError(
            "the network's logits are not finite: its weights are broken, or training diverged; "
            "go on from an earlier checkpoint with a lower optim.lr"
        )
    tempered_NV = probs_NV if temperature == 1 else (logits_NV / temperature).softmax(-1)
    choice_NV = tempered_NV
    if config.suppress_end == EndSuppression.token:
        ends = torch.tensor(stop, device=logits_NV.device)
        choice_NV = (logits_NV / temperature).index_fill_(1, ends, -torch.inf).softmax(-1)
    narrows = config.top_k is not None or config.top_p is not None
    if narrows and (config.temperature or drawn):
        choice_NV = nucleus(choice_NV, config.top_k, config.top_p)
    if config.temperature == 0:
        token_N1 = choice_NV.argmax(-1, keepdim=True)
    else:
        token_N1 = invert(choice_NV, noise_N)[:, None]
    if drawn:
        probs_NV = choice_NV.div_(choice_NV.sum(-1, keepdim=True)) if narrows else choice_NV
    confidence_N = CONFIDENCES[config.confidence](probs_NV, token_N1)
    token_N = token_N1[:, 0]
    if config.suppress_end == EndSuppression.commit:
        is_stop_N = torch.isin(token_N, torch.tensor(stop, device=token_N.device))
        confidence_N = confidence_N.masked_fill(is_stop_N, LAST)
    # a word that is only drawn because the likely ones are suppressed may have probability 0
    tiny = torch.finfo(tempered_NV.dtype).tiny
    return token_N, tempered_NV.gather(1, token_N1)[:, 0].clamp(min=tiny).log(), confidence_N


def nucleus(weights_NV: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Weights with 0 for the words outside the `top_k` likeliest, then the `top_p` nucleus.

    The nucleus is the shortest run of the likeliest words whose probability reaches `top_p`
    (arXiv 1904.09751). Equal weights: the smaller id counts as likelier.
    """
    sorted_NV, order_NV = weights_NV.sort(dim=-1, descending=True, stable=True)
    keep_NV = torch.ones_like(sorted_NV, dtype=torch.bool)
    if top_k is not None:
        keep_NV[:, top_k:] = False
    if top_p is not None:
        kept_NV = sorted_NV.double() * keep_NV
        before_NV = kept_NV.cumsum(-1) - kept_NV
        keep_NV &= before_NV < top_p * kept_NV.sum(-1, keepdim=True)
    return torch.zeros_like(weights_NV).scatter(1, order_NV, sorted_NV * keep_NV)


def invert(weights_NV: Tensor, noise_N: Tensor) -> Tensor:
    """Draw by inversion: the word whose share of the cumulative sum holds the noise.

    One uniform number decides a position, so the cost of randomness does not grow with the
    vocabulary (Gumbel-max, which draws the same distribution, needs one number for each word).
    Sums run in float64 over chunks of words, then inside the chosen chunk.

    Args:
        weights_NV: [N, V] >= 0, not all 0; need not sum to 1.
        noise_N: [N] float64 in (0, 1).

    Returns:
        [N] int64; never a word of weight 0.
    """
    missing = -weights_NV.shape[1] % CHUNK
    if missing:
        weights_NV = F.pad(weights_NV, (0, missing))
    chunked = weights_NV.unflatten(1, (-1, CHUNK))
    chunk_N, rest_N = locate(chunked.sum(-1), noise_N.double())
    rows = torch.arange(len(weights_NV), device=weights_NV.device)
    word_N, _ = locate(chunked[rows, chunk_N], rest_N)
    return chunk_N * CHUNK + word_N


def locate(weights_NK: Tensor, share_N: Tensor) -> tuple[Tensor, Tensor]:
    """The entry that holds a share of the cumulative sum, and the share left inside it."""
    weights_NK = weights_NK.double()
    cumulative_NK = weights_NK.cumsum(-1)
    total_N1 = cumulative_NK[:, -1:]
    below_N1 = torch.nextafter(total_N1, torch.zeros_like(total_N1))
    target_N1 = torch.minimum(share_N[:, None] * total_N1, below_N1)
    index_N1 = torch.searchsorted(cumulative_NK, target_N1, right=True)
    weight_N1 = weights_NK.gather(1, index_N1)
    start_N1 = cumulative_NK.gather(1, index_N1) - weight_N1
    rest_N1 = ((target_N1 - start_N1) / weight_N1).clamp(0, 1)
    return index_N1[:, 0], rest_N1[:, 0]


def probability(probs_NV: Tensor, token_N1: Tensor) -> Tensor:
    """Of the drawn token (LLaDA, arXiv 2502.09992)."""
    return probs_NV.gather(1, token_N1)[:, 0]


def margin(probs_NV: Tensor, token_N1: Tensor) -> Tensor:
    """Likeliest minus second likeliest word (Dream's `topk_margin`)."""
    del token_N1
    best_N2 = probs_NV.topk(2, dim=-1).values
    return best_N2[:, 0] - best_N2[:, 1]


def negative_entropy(probs_NV: Tensor, token_N1: Tensor) -> Tensor:
    """sum p log p in nats, 0 log 0 = 0; 0 where one token has probability 1 (Dream's `entropy`)."""
    del token_N1
    return -torch.special.entr(probs_NV).sum(-1)


def nothing(probs_NV: Tensor, token_N1: Tensor) -> Tensor:
    """Every position alike; the order is drawn in decoding."""
    return torch.zeros_like(token_N1[:, 0], dtype=probs_NV.dtype)


CONFIDENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "probability": probability,
    "margin": margin,
    "entropy": negative_entropy,
    "random": nothing,
}
