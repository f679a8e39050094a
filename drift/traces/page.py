"""One self-contained HTML page over denoising traces: what was committed when, and how surely.

The page (viewer.html, viewer.css, viewer.js) asks nothing of a network; the traces stand in it as
JSON that no token's text can leave.
"""

import html
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from drift.common.files import whole_file
from drift.common.types import Advantages, Rollout
from drift.learner.layout import assemble
from drift.policy.base import Policy

HERE = Path(__file__).parent
NUM_ALTERNATIVES = 6  # words of each token on a page
DIGITS = 5  # of the page's log-probs, probabilities and entropies, behind the point
ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}  # nothing in the JSON can end its element

Words = list[tuple[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What one view of the training's masking did with the C tokens of a row.

    Three tokens, the last two hidden, the second scored:
    View(hidden=[False, True, True], scored=[False, True, False])
    """

    hidden: list[bool]  # shown to the network as the mask token
    scored: list[bool]  # counted by the loss


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One completion of C canvas tokens.

    TraceRow(label="correct", prompt="3 9 5=7", tokens=["9", "+", "<|eot_id|>"], steps=[1, 0, 1],
             logps=[-0.1, -0.7, -0.02], length=3, reward=1.0, source="step_000080")

    Raises:
        ValueError: lists of another length than `tokens`, or a length beyond C.
    """

    label: str  # "correct", "wrong", or "" where nothing was graded
    prompt: str  # what the user said; rows of one prompt can be shown side by side
    tokens: list[str]
    steps: list[int]  # denoising step that committed the token, -1 = never
    logps: list[float]  # of the token at that step
    length: int  # tokens up to and with the first stop token
    entropies: list[float] | None = None  # nats, of the network at that step
    alternatives: list[Words] | None = None  # per token, the likeliest words at that step
    advantage: float | None = None
    reward: float | None = None
    views: list[View] | None = None
    source: str = ""  # for example the name of a checkpoint

    def __post_init__(self) -> None:
        lists: dict[str, Sequence[object] | None] = {
            "steps": self.steps,
            "logps": self.logps,
            "entropies": self.entropies,
            "alternatives": self.alternatives,
        }
        for number, view in enumerate(self.views or []):
            lists[f"views[{number}].hidden"] = view.hidden
            lists[f"views[{number}].scored"] = view.scored
        for name, values in lists.items():
            if values is not None and len(values) != len(self.tokens):
                raise ValueError(f"{name} has {len(values)} entries for {len(self.tokens)} tokens")
        if not 0 <= self.length <= len(self.tokens):
            raise ValueError(f"length={self.length} is not within 0..{len(self.tokens)}")
        if min(self.steps, default=0) < -1:
            raise ValueError(f"steps holds {min(self.steps)}; a step is -1 (never) or more")


def write_trace(path: Path, rows: list[TraceRow], *, title: str) -> None:
    """Write a page that shows `rows`, whole or not at all.

    Args:
        path: of the HTML file; its folder exists.
        rows: at least one; those of one prompt and several sources are shown side by side.
        title: of the page.

    Raises:
        ValueError: no rows.
        OSError: the page cannot be written; nothing of it is left.
    """
    if not rows:
        raise ValueError("a trace page needs at least one row")
    data = json.dumps(
        {"title": title, "rows": [packed(row) for row in rows]},
        allow_nan=False,
        separators=(",", ":"),
    ).translate(ESCAPES)
    parts = {
        "title": html.escape(title),
        "style": (HERE / "viewer.css").read_text(encoding="utf-8"),
        "script": (HERE / "viewer.js").read_text(encoding="utf-8"),
        "data": data,
    }
    template = (HERE / "viewer.html").read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], template)
    with whole_file(path) as beside:
        beside.write_bytes(page.encode("utf-8", errors="xmlcharrefreplace"))


def packed(row: TraceRow) -> dict[str, object]:
    """A row as the page reads it: numbers rounded, what is not finite null, views as 0 and 1."""
    alternatives, views = row.alternatives, row.views
    return {
        "label": row.label,
        "source": row.source,
        "prompt": row.prompt,
        "tokens": row.tokens,
        "length": row.length,
        "steps": row.steps,
        "logps": [rounded(p) for p in row.logps],
        "entropies": row.entropies and [rounded(h) for h in row.entropies],
        "alternatives": alternatives and [[(w, rounded(p)) for w, p in a] for a in alternatives],
        "advantage": rounded(row.advantage),
        "reward": rounded(row.reward),
        "views": views and [{"hidden": bits(v.hidden), "scored": bits(v.scored)} for v in views],
    }


def rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, DIGITS)


def bits(values: list[bool]) -> str:
    return "".join("01"[value] for value in values)


def trace_rows(
    policy: Policy,
    rollout: Rollout,
    *,
    source: str = "",
    advantages: Advantages | None = None,
    views: list[list[View]] | None = None,
    num_alternatives: int = 0,
) -> list[TraceRow]:
    """The rows of a rollout, ready for `write_trace`.

    Args:
        policy: gives the tokens' texts; with `num_alternatives` it must be the sampler itself, as
            it was.
        rollout: graded or not.
        source: shown with the rows, for example the name of a checkpoint.
        advantages: of the rows.
        views: of the training's masking, for each row (see rows.py).
        num_alternatives: words kept for each token; 0 = neither words nor entropies. More replays
            the denoising, each state of each row once.
    """
    trace, words = rollout.trace, Decoder(policy)
    entropy_BC = alternatives = None
    if num_alternatives:
        entropy_BC, probs_BCA, ids_BCA = replay(policy, rollout, num_alternatives)
        alternatives = [
            [list(zip(words.of(i), p, strict=True)) for i, p in zip(*row, strict=True)]
            for row in zip(ids_BCA.tolist(), probs_BCA.tolist(), strict=True)
        ]
    rows: list[TraceRow] = []
    for b, canvas in enumerate(trace.canvas_BC.tolist()):
        score = rollout.scores[b] if rollout.scores else None
        rows.append(
            TraceRow(
                label="" if score is None else "correct" if score.correct else "wrong",
                prompt=rollout.prompts.examples[b // rollout.group_size].prompt,
                tokens=words.of(canvas),
                steps=trace.unmask_step_BC[b].tolist(),
                logps=trace.logp_BC[b].tolist(),
                length=int(trace.length_B[b]),
                entropies=None if entropy_BC is None else entropy_BC[b].tolist(),
                alternatives=None if alternatives is None else alternatives[b],
                advantage=None if advantages is None else float(advantages.values_B[b]),
                reward=None if score is None else score.reward,
                views=None if views is None else views[b],
                source=source,
            )
        )
    return rows


class Decoder:
    """The text of single tokens, each looked up once."""

    def __init__(self, policy: Policy):
        self.tokenizer = policy.tokenizer
        self.known: dict[int, str] = {}

    def of(self, ids: list[int]) -> list[str]:
        new = sorted(set(ids) - self.known.keys())
        if new:  # nothing decodes to one empty text
            texts = self.tokenizer.batch_decode([[i] for i in new])
            self.known |= zip(new, texts, strict=True)
        return [self.known[i] for i in ids]


@torch.no_grad()
def replay(
    policy: Policy, rollout: Rollout, num_words: int, rows_per_forward: int = 32
) -> tuple[Tensor, Tensor, Tensor]:
    """What the network said at each token's place when the token was committed.

    The state of step s is the row with everything hidden that was committed at s or later. Without
    a cache that is what the sampler saw; with one, what it would have seen.

    Args:
        policy: the sampler.
        rollout: of B rows; its temperature (1 if greedy) divides the logits.
        num_words: A, the likeliest words that are kept.
        rows_per_forward: of one network evaluation.

    Returns:
        entropies [B, C] float32 in nats; probabilities [B, C, A] float32, descending, and their
        words' ids [B, C, A] int64; all 0 where nothing was committed. On the CPU.
    """
    step_BC = rollout.trace.unmask_step_BC
    rows_B = torch.arange(len(step_BC), device=step_BC.device)
    ids_BS, prompt_length_B = assemble(rollout, rows_B, policy.special.pad)
    columns_C = torch.arange(step_BC.shape[1], device=step_BC.device)
    position_BC = prompt_length_B[:, None] + columns_C
    num_words = min(num_words, policy.backbone.config.vocab_size)
    entropy_BC = torch.zeros(step_BC.shape)
    probs_BCA = torch.zeros(*step_BC.shape, num_words)
    words_BCA = torch.zeros(*step_BC.shape, num_words, dtype=torch.int64)
    for b_M, step_M in states(step_BC, rows_per_forward):
        hidden_MC = (step_BC[b_M] >= step_M[:, None]) | (step_BC[b_M] < 0)
        seen_MC = rollout.trace.canvas_BC[b_M].masked_fill(hidden_MC, policy.special.mask)
        ids_MS = ids_BS[b_M].scatter(1, position_BC[b_M], seen_MC)
        lengths_M = prompt_length_B[b_M] + len(columns_C)
        hidden_MCD = policy.hidden_at(ids_MS, lengths_M, position_BC[b_M])
        m_N, c_N = (step_BC[b_M] == step_M[:, None]).nonzero(as_tuple=True)
        place = (b_M[m_N].cpu(), c_N.cpu())
        found = describe(policy, hidden_MCD[m_N, c_N], rollout.temperature or 1.0, num_words)
        for whole, part in zip((entropy_BC, probs_BCA, words_BCA), found, strict=True):
            whole[place] = part.cpu()
    return entropy_BC, probs_BCA, words_BCA


def states(step_BC: Tensor, rows_per_forward: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows [M] and steps [M] at which they committed something, M at most rows_per_forward."""
    pairs = [
        (b, step) for b, row in enumerate(step_BC.tolist()) for step in sorted(set(row) - {-1})
    ]
    for first in range(0, len(pairs), rows_per_forward):
        part = torch.tensor(pairs[first : first + rows_per_forward], device=step_BC.device)
        yield part[:, 0], part[:, 1]


def describe(
    policy: Policy, hidden_ND: Tensor, temperature: float, num_words: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy [N], and the likeliest words: probabilities and ids, both [N, num_words]."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for hidden in hidden_ND.split(policy.head_chunk()):
        probs_NV = (policy.denoising_logits(hidden) / temperature).softmax(-1)
        best = probs_NV.topk(num_words)
        parts.append((torch.special.entr(probs_NV).sum(-1), best.values, best.indices))
    entropies, probs, words = zip(*parts, strict=True)
    return torch.cat(entropies), torch.cat(probs), torch.cat(words)
