"""Where the answer stands in a completion."""

import re


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
    for content in reversed(re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)):
        if content.strip():
            return content.strip()
    return None
