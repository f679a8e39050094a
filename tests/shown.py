"""The command lines that the documentation shows."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
)
SHELL = ("bash", "console", "sh", "shell")  # every line of such a block is a command
SILENT = ("python", "yaml", "toml", "json", "text", "html", "mermaid")  # such a block has none
PROGRAMS = (
    "scripts/", r"\.ci/run", "python", "drift ", "torchrun", "accelerate ", "mlflow ", "wandb ",
    "mkdocs ", "pip ", "hf ", "pre-commit ", "pytest", "ruff", "pyright", "lint-imports",
    "sbatch", "srun", "scancel", "scontrol", "squeue", "sinfo", "eval ", "export ", "docker ",
    "git ", "curl ", "apt",
)  # fmt: skip
BEGINS = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:{'|'.join(PROGRAMS)})")
FENCE = re.compile(r"^(\s*)```\s*(\w*)\s*$")
INLINE = re.compile(r"`((?:scripts/\S+|python -m drift\.\w+) [^`]*=[^`]*)`")


@dataclass(frozen=True, slots=True)
class Shown:
    """Shown(page=Path("README.md"), line=12, text="scripts/run python -m drift.train")."""

    page: Path
    line: int
    text: str  # one line, without prompt, comment and `&`

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {self.text}"


def commands_of(page: Path) -> list[Shown]:
    """Every command of a page, in order: in fenced and indented blocks, and in inline code."""
    found: list[Shown] = []
    fence, language, waiting, first = "", "", "", 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if opened := FENCE.match(line):
            fence, language = ("", "") if fence else ("```", opened[2])
            continue
        indented = not fence and line.startswith("    ")
        if not fence and not indented:
            words = [span for span in INLINE.findall(line) if "..." not in span]
            found += [Shown(page, number, word) for word in words]
            continue
        text = line.strip()
        if waiting:
            text = f"{waiting} {text}"
        elif language in SILENT or not is_command(text, language):
            continue
        else:
            first, text = number, text.removeprefix("$ ")
        waiting = text.removesuffix("\\").strip() if text.endswith("\\") else ""
        if not waiting:
            found.append(Shown(page, first, bare(text)))
    return found


def is_command(text: str, language: str) -> bool:
    """Whether a line of a block is one; in a block with prompts those with a prompt are."""
    if text.startswith("$ "):
        return True
    if language == "console" or not text or text.startswith("#"):
        return False
    return language in SHELL or BEGINS.match(text) is not None


def bare(text: str) -> str:
    """Without a comment behind it, and without `&`."""
    return re.sub(r"\s+#\s.*$", "", text).strip().removesuffix("&").strip()
