"""The list of commands, `--help`, wrong words, and what the shell is told to complete."""

from pathlib import Path

import pytest

from drift.cli.help import description, wrong_flag
from drift.config.compose import CONF

OPTIONS = sorted(p for p in CONF.glob("*/*.yaml"))


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_option_has_a_line_that_describes_it(path: Path) -> None:
    assert 5 < len(description(path)) < 110
    assert not description(path).endswith((",", ";", ":"))
    _, _, behind = path.read_text().partition(f"# {description(path)}\n")
    assert not behind.startswith("#") or description(path).endswith(".")  # it does not go on


def test_a_description_is_the_first_comment_that_hydra_does_not_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# @package _global_\n# Mine\n# more\nseed: 1\n")
    assert description(path) == "Mine"
    path.write_text("seed: 1  # no\n# late\n")
    assert description(path) == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hepl"], "unrecognized arguments: --hepl; did you mean --help"),
        (["--cfg"], "argument --cfg/-c: expected one argument; see --help"),
        (
            ["seed=0", "-m", "masking=all"],
            "unrecognized arguments: masking=all; put flags, as -m, before or behind all settings",
        ),
        (["-m", "seed=0,1"], None),
        (["seed=0,1", "-m"], None),
        (["--help"], None),
        (["--version"], None),
    ],
)
def test_a_wrong_flag_names_the_near_one(words: list[str], said: str | None) -> None:
    assert wrong_flag(words) == said
