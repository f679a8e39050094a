"""Where the answer stands in a completion."""

import re


def last_boxed(text: str) -> str | None:
    r"""Content of the last non-empty `\boxed{...}`, braces matched; None if there is none."""
    for match in reversed(list(re.finditer(r"\\boxed\{", text))):
        depth, start = 1, match.end()
        for position in range(start, len(text)):
            depth += (text[position] == "{") - (text[position] == "}")
            if depth == 0:
                content = text[start:position].strip()
                if content:
                    return content
                break
    return None


def last_tag(text: str, tag: str) -> str | None:
    """Content of the last `<tag>...</tag>` that is not empty; None if there is none."""
    for content in reversed(re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)):
        if content.strip():
            return content.strip()
    return None
