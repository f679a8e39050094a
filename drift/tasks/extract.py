"""Where the answer stands in a completion."""

import re
from enum import StrEnum


def last_boxed(text: str) -> str | None:
    r"""Content of the last non-empty `\boxed{...}`, braces matched; None if there is none."""
    opened: list[int | None] = []  # where each open brace's box begins, None for a bare brace
    last, found = -1, None
    for brace in re.finditer(r"(\\boxed)?\{|\}", text):
        if brace[0] != "}":
            opened.append(brace.end() if brace[1] else None)
        elif opened and (start := opened.pop()) is not None and start > last:
            content = text[start : brace.start()].strip()
            if content:
                last, found = start, content
    return found


def last_tag(text: str, tag: str) -> str | None:
    """Content of the last `<tag>...</tag>` that is not empty; None if there is none."""
    start, found = None, None
    for mark in re.finditer(rf"<(/?){tag}>", text):
        if not mark[1]:
            start = mark.end()
        elif start is not None:
            found = text[start : mark.start()].strip() or found
            start = None
    return found


def after_hashes(text: str) -> str | None:
    """What follows the last `####` on its line, as in GSM8K; None if there is nothing."""
    _, hashes, rest = text.rpartition("####")
    line = rest.strip().partition("\n")[0].strip()
    return line if hashes and line else None


def without_special_tokens(text: str) -> str:
    """The text without `<|...|>`."""
    return re.sub(r"<\|[^<>|]{1,64}\|>", "", text)


class Block(StrEnum):
    """Where a task asks for the answer."""

    box = "box"  # `\\boxed{...}`
    answer = "answer"  # `<answer>...</answer>`
    code = "code"  # a fenced block


FRAME = re.compile(r"(?:\s|\$|\\\)|\\\]|\.|</answer>)*")
CODE = re.compile(r"```[^\n`]*\n.*?\S.*?```", re.DOTALL)


def _behind_brace(text: str) -> str:
    """What stands behind the brace that closes one opened before the text."""
    depth = 1
    for brace in re.finditer(r"[{}]", text):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[brace.end() :]
    return text


def is_well_formed(text: str, block: Block) -> bool:
    """Exactly one block of the kind asked for, not empty, and nothing behind it.

    Behind a box its own frame may follow: `$`, `\\)`, `\\]`, a full stop, `</answer>`.
    """
    text = without_special_tokens(text).rstrip()
    match block:
        case Block.box:
            _, box, rest = text.partition("\\boxed{")
            behind = _behind_brace(rest)
            one = last_boxed(text) is not None and "\\boxed{" not in rest
            return bool(box) and one and FRAME.fullmatch(behind) is not None
        case Block.answer:
            marks = re.findall(r"</?answer>", text)
            one = marks == ["<answer>", "</answer>"] and text.endswith("</answer>")
            return one and last_tag(text, "answer") is not None
        case Block.code:
            return text.count("```") == 2 and text.endswith("```") and bool(CODE.search(text))
