"""What mkdocs does beside rendering docs/: pages from elsewhere, settings, links out of docs/.

The Markdown stays as it is read in the repository; what differs in the site is changed here.
"""

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts" / "docs")]

from reference import reference

PAGES = {
    "index.md": "README.md",
    "data.md": "data/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
}
# lines of 100 characters, names of settings in one piece
STYLE = ".md-grid {max-width: 78rem} .md-typeset td:first-child code {white-space: nowrap}\n"
SETTINGS = re.compile(r"<!-- settings: begin -->.*<!-- settings: end -->", re.DOTALL)
FENCE = r"^ *```.*?^ *```$"
LINK = re.compile(
    rf"(?P<code>{FENCE}|`[^`\n]+`)|(?P<image>!?)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)",
    re.DOTALL | re.MULTILINE,
)
LIST = re.compile(r"([-*]|1\.) ")  # its beginning
IN_LIST = re.compile(r"([-*]|\d+\.) | ")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take in what is no file of docs/."""
    files.append(File.generated(config, "drift.css", content=STYLE))
    for page, source in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the settings in their place and point the links at what is in the site."""
    if SETTINGS.search(markdown):
        markdown = SETTINGS.sub(lambda _: reference(), markdown)
    source = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return loosen_lists(relink(markdown, source, page.file.src_uri))


def relink(markdown: str, source: str, here: str) -> str:
    """The links of a file of the repository, for its page.

    Args:
        markdown: the file's text.
        source: its path in the repository.
        here: the page's path in the site.

    Returns:
        The text with links to pages of the site; what exists but is no page becomes plain text. A
        link to nothing is left for mkdocs to complain of.
    """
    page_of = {path: page for page, path in PAGES.items()}

    def replace(found: re.Match[str]) -> str:
        target = found["target"]
        if found["code"] or re.match(r"[a-z]+:|#", target):
            return found[0]
        path, hash_, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        page = page_of.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if page is not None:
            link = posixpath.relpath(page, posixpath.dirname(here) or ".")
            return f"{found['image']}[{found['text']}]({link}{hash_}{anchor})"
        return plain(found["text"]) if (ROOT / path).exists() else found[0]

    return LINK.sub(replace, markdown)


def plain(text: str) -> str:
    """The words of a link that leads out of the site: a path as code."""
    return f"`{text}`" if "/" in text and "`" not in text else text


def loosen_lists(markdown: str) -> str:
    """An empty line before each list: CommonMark does without, Python-Markdown does not."""
    lines: list[str] = []
    fenced = False
    for line in markdown.splitlines():
        behind_text = lines and lines[-1] and not IN_LIST.match(lines[-1])
        if LIST.match(line) and behind_text and not fenced:
            lines.append("")
        fenced ^= line.lstrip().startswith("```")
        lines.append(line)
    return "\n".join(lines) + "\n"
