"""Pictures of the maskings for docs/masking.md: what each view hides and scores.

    python scripts/docs/pictures.py      # writes docs/images/masking_*.svg

The views are those of drift.learner.masking on one trace. It is an answer of data/tiny-countdown to
"2 18 15=5" (temperature 1, 16 tokens in blocks of 4, two a step); tests/slow/test_docs_site.py
holds it to the checkpoint. It is written down here, since confidences of nearly 1 on which another
processor rounds otherwise would give another order.
"""

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch

from drift.common import rng
from drift.common.types import MaskedViews, Trace
from drift.config import GROUPS
from drift.config.masking import MaskingConfig
from drift.learner.masking import build_views

FOLDER = ROOT / "docs" / "images"
PROMPT = "2 18 15=5"
NEVER = "<|mdm_mask|>"
TOKENS = ["\\boxed{", *"2+18-15}", "<|eot_id|>", *["<|endoftext|>"] * 2, *[NEVER] * 4]
STEPS = [0, 1, 0, 1, 2, 3, 2, 3, 5, 4, 4, 5, -1, -1, -1, -1]
LOGP = [0.0, 0.0, -0.01, 0.0, 0.0, -4.28, *[0.0] * 10]
WORDS = {"<|eot_id|>": "eot", "<|endoftext|>": "eos", NEVER: ""}
SETTINGS = {"block": {"block_length": 4}, "trace": {"shrink": 2}}  # where defaults are too large
CELL, HEIGHT, GAP, LEFT, MARGIN = 44, 26, 4, 114, 12
LEGEND = {
    "shown": "shown",
    "hidden": "hidden",
    "scored": "hidden, scored",
    "candidate": "hidden, scored if likely",
    "never": "never committed: hidden",
}
STYLE = """
  .page{fill:#fff;stroke:#d0d7de} text{font:13px system-ui,sans-serif;fill:#1f2328}
  .token{font:13px ui-monospace,monospace;text-anchor:middle}
  .small{font-size:11px} .long{font-size:10px}
  .shown{fill:#e6eaef} .hidden{fill:#6e7781} .scored{fill:#0969da} .candidate{fill:#6e7781;
  stroke:#d4770b;stroke-width:3;stroke-dasharray:5 3} .never{fill:none;stroke:#8c959f;
  stroke-dasharray:2 3} .on{fill:#fff}
  @media (prefers-color-scheme:dark){.page{fill:#1b1f26;stroke:#444c56} text{fill:#e6edf3}
  .shown{fill:#373e47} .hidden,.candidate{fill:#768390} .scored{fill:#1f6feb}}
"""


def trace() -> Trace:
    """The completion of the pictures, one row."""
    step_BC = torch.tensor([STEPS])
    length_B = (step_BC >= 0).sum(1)
    return Trace(
        prompt_length_B=torch.tensor([len(PROMPT)]),
        canvas_BC=torch.arange(len(STEPS))[None],  # no masking looks at the words
        unmask_step_BC=step_BC,
        logp_BC=torch.tensor([LOGP]),
        length_B=length_B,
        finished_B=torch.tensor([True]),
        nfe_B=step_BC.amax(1) + 1,
        commits_B=torch.zeros(len(step_BC), dtype=torch.int64),
    )


def views_of(name: str) -> MaskedViews:
    """The views of a masking with its default settings."""
    config: MaskingConfig = GROUPS["masking"][name](**SETTINGS.get(name, {}))
    return build_views(trace(), torch.tensor([0]), config, rng.stream(0, "pictures"))


def kinds(views: MaskedViews, view: int) -> list[str]:
    """Of each token of a view: never, shown, hidden, candidate or scored."""
    said = ["hidden" if hidden else "shown" for hidden in views.hide(torch.tensor([view]))[0]]
    own_N = views.state_N == view
    for i, candidate in zip(views.column_N[own_N], views.candidate_N[own_N], strict=True):
        said[i] = "candidate" if candidate else "scored"
    return [kind if step >= 0 else "never" for kind, step in zip(said, STEPS, strict=True)]


def cell(x: int, y: int, kind: str, word: str) -> str:
    """A box with its word, which only what is shown or scored has."""
    box = f'<rect class="{kind}" x="{x}" y="{y}" width="{CELL}" height="{HEIGHT}" rx="4"/>'
    if not word or kind in ("hidden", "never"):
        return box
    color = "token" if kind == "shown" else "token on"
    color += " long" if len(word) > 3 else ""
    middle = f'x="{x + CELL // 2}" y="{y + 18}"'
    return box + f'<text class="{color}" {middle}>{escape(word)}</text>'


def row(y: int, label: str, cells: list[tuple[str, str]]) -> Iterator[str]:
    """A line of the picture: what it is, then (kind, word) of each token."""
    yield f'<text x="{MARGIN}" y="{y + 18}">{escape(label)}</text>'
    for i, (kind, word) in enumerate(cells):
        yield cell(LEFT + i * (CELL + GAP), y, kind, word)


def legend(y: int, seen: set[str]) -> Iterator[str]:
    """What the boxes of this picture mean."""
    x = LEFT
    for kind, meaning in LEGEND.items():
        if kind in seen:
            yield cell(x, y, kind, "" if kind == "candidate" else "8")
            yield f'<text class="small" x="{x + CELL + 6}" y="{y + 17}">{meaning}</text>'
            x += CELL + 20 + 6 * len(meaning)


def draw(name: str) -> str:
    """The picture of a masking, an SVG."""
    views = views_of(name)
    words = [WORDS.get(token, token) for token in TOKENS]
    committed = ["shown" if step >= 0 else "never" for step in STEPS]
    lines: list[str] = []
    y = MARGIN
    lines += row(y, "answer", list(zip(committed, words, strict=True)))
    y += HEIGHT + 16
    for i, step in enumerate(STEPS):
        if step >= 0:
            x = LEFT + i * (CELL + GAP) + CELL // 2
            lines.append(f'<text class="token small" x="{x}" y="{y}">{step}</text>')
    lines.append(f'<text x="{MARGIN}" y="{y}">step</text>')
    y += 12
    seen = set[str]()
    for k in range(len(views.row_J)):
        here = kinds(views, k)
        seen |= set(here)
        label = f"view {k + 1}"
        if views.weight_J is not None:
            label += f" \u00d7 {views.weight_J[k]:.2f}"
        lines += row(y, label, list(zip(here, words, strict=True)))
        y += HEIGHT + GAP
    y += 8
    lines += legend(y, seen)
    width, height = LEFT + len(TOKENS) * (CELL + GAP) + MARGIN, y + HEIGHT + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img"><title>masking={name}: what each view '
        f"hides and scores</title><style>{STYLE}</style>\n"
        f'<rect class="page" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8"/>\n'
        + "\n".join(lines)
        + "\n</svg>\n"
    )


def main() -> None:
    """Write the pictures of all maskings."""
    FOLDER.mkdir(exist_ok=True)
    for name in GROUPS["masking"]:
        (FOLDER / f"masking_{name}.svg").write_text(draw(name), encoding="utf-8")


if __name__ == "__main__":
    main()
