"""The picture of docs/architecture.md: the folders of drift/, their layers and imports.

    python scripts/docs/structure.py     # writes docs/images/structure.svg

Layers are those of the import contract in pyproject.toml, arrows are read from the imports. An
arrow that others already imply (a -> b -> c implies a -> c) is not drawn.
"""

import ast
import tomllib
from html import escape
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "drift"
PICTURE = ROOT / "docs" / "images" / "structure.svg"
TOP = "commands"
WIDTH, HEIGHT, MARGIN, BOX_W, BOX_H, ROW_H = 1000, 720, 16, 150, 44, 88
STYLE = """
  .page{fill:#fff;stroke:#d0d7de} text{font:14px system-ui,sans-serif;fill:#1f2328;
  text-anchor:middle} .small{font-size:11px;fill:#57606a} .box{fill:#ddf4ff;stroke:#0969da}
  .arrow{stroke:#8c959f;fill:none} .head{fill:#8c959f}
  @media (prefers-color-scheme:dark){.page{fill:#1b1f26;stroke:#444c56} text{fill:#e6edf3}
  .small{fill:#9ea7b3} .box{fill:#12304f;stroke:#388bfd} .arrow{stroke:#768390} .head{fill:#768390}}
"""


def part_of(module: str) -> str:
    """`drift.rollout.decoding` -> rollout; a file at the top of drift/ is a command."""
    name = module.split(".")[1] if "." in module else ""
    return name if (PACKAGE / name).is_dir() and name else TOP


def layers() -> list[list[str]]:
    """The parts of each layer, the commands first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    rows = [[part_of(name.strip()) for name in row.split("|")] for row in contract]
    return [list(dict.fromkeys(row)) for row in rows]


def files_of(part: str) -> list[Path]:
    if part == TOP:
        return [path for path in sorted(PACKAGE.glob("*.py")) if path.name != "__init__.py"]
    return sorted((PACKAGE / part).rglob("*.py"))


def imports() -> set[tuple[str, str]]:
    """(part, part that it imports), wherever in a file the import is."""
    found: set[tuple[str, str]] = set()
    for part in [part for row in layers() for part in row]:
        for path in files_of(part):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module == "drift":
                    found |= {(part, part_of(f"drift.{alias.name}")) for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("drift."):
                    found.add((part, part_of(str(node.module))))
    return {(one, other) for one, other in found if one != other and other != TOP}


def reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Without the edges that a longer way implies."""
    reach = set(edges)
    parts = sorted({part for edge in edges for part in edge})
    for middle, one, other in product(parts, repeat=3):
        if (one, middle) in reach and (middle, other) in reach:
            reach.add((one, other))
    return {
        (one, other)
        for one, other in edges
        if not any((one, middle) in reach and (middle, other) in reach for middle in parts)
    }


def draw() -> str:
    """The SVG."""
    rows = layers()
    place: dict[str, tuple[float, float]] = {}
    for depth, row in enumerate(rows):
        for number, part in enumerate(row):
            x = WIDTH * (number + 0.5) / len(row)
            place[part] = (x, MARGIN + 24 + depth * ROW_H)
    found = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>The folders of drift/ and their imports</title>",
        f'<style>{STYLE}</style><rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker>',
    ]
    for one, other in sorted(reduced(imports())):
        (x, y), (u, v) = place[one], place[other]
        found.append(
            f'<path class="arrow" marker-end="url(#head)" d="M{x:g} {y + BOX_H:g}L{u:g} {v:g}"/>'
        )
    for part, (x, y) in place.items():
        files = files_of(part)
        title = part if part != TOP else "drift.COMMAND"
        found.append(
            f'<rect class="box" x="{x - BOX_W / 2:g}" y="{y:g}" width="{BOX_W}" height="{BOX_H}" '
            f'rx="6"/><text x="{x:g}" y="{y + 19:g}">{escape(title)}</text>'
            f'<text class="small" x="{x:g}" y="{y + 35:g}">{len(files)} files</text>'
        )
    return "\n".join([*found, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
