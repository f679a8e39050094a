"""What `--help` says, from the files it speaks of: a command's docstring, the options in conf/.

The line that describes an option is the first comment of its yaml file.
"""

import ast
import difflib
import io
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from textwrap import dedent

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from drift.config.compose import PACKAGE

NOTES = """
    Flags
      -m, --multirun  a sweep: key=a,b,c runs a job for each value (docs/sweeps.md)
      --cfg job       print the composed settings and leave
      --hydra-help    Hydra's own groups and flags
    Completion with Tab of `drift {command}`: eval "$(drift -sc install=bash)"; also zsh, fish
"""
NOT_SETTINGS = ("hydra", "output_dir")


def register() -> None:
    """Let conf/base.yaml take the text of `--help` from here."""
    OmegaConf.register_new_resolver("drift_help", help_template, replace=True)


def help_template(command: str, *, _root_: DictConfig) -> str:
    """The text of `--help` for a composed command, a template of Hydra's."""
    lines = list(group_lines(_root_))
    if lines:
        lines = ["Groups: choose with group=option; * is what is chosen now", *lines, ""]
    about = "\n".join([docstring(command), "", *lines])
    settings = OmegaConf.masked_copy(
        _root_, [str(key) for key in _root_ if key not in NOT_SETTINGS]
    )
    text = (
        f"{about}{dedent(NOTES).strip().format(command=command)}\n\n"
        "Settings as they are now: change one with key=value\n"
        f"{OmegaConf.to_yaml(settings, resolve='--resolve' in sys.argv)}"
    )
    return text.replace("$", "$$")


def docstring(command: str) -> str:
    """Of drift/<command>.py, which is not imported for it."""
    tree = ast.parse((PACKAGE / f"{command}.py").read_text(encoding="utf-8"))
    return ast.get_docstring(tree) or ""


def group_lines(root: DictConfig) -> Iterator[str]:
    """A line for each group that the command has, and one for each of its options."""
    folders = [Path(s.path) for s in root.hydra.runtime.config_sources if s.schema == "file"]
    for group, chosen in sorted(root.hydra.runtime.choices.items()):
        if group.startswith(("hydra", "schema")):
            continue
        yield f"  {group}"
        options = described(folders, group)
        width = max(map(len, options), default=0)
        for name, words in sorted(options.items()):
            mark = "*" if name == chosen else " "
            yield f"   {mark}{name:{width}}  {words}".rstrip()


def described(folders: list[Path], group: str) -> dict[str, str]:
    """The options of a group, the first folder's first, each with its description."""
    options: dict[str, str] = {}
    for folder in folders:
        for path in sorted((folder / group).glob("*.yaml")):
            options.setdefault(path.stem, description(path))
    return options


def description(path: Path) -> str:
    """The first comment of a yaml file, empty without one."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return ""
        words = line.lstrip("# ").strip()
        if not words.startswith("@package"):
            return words
    return ""


def wrong_flag(words: list[str]) -> str | None:
    """`unrecognized arguments: --hepl; did you mean --help`; None if the flags can be read."""
    parser = get_args_parser()
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            parser.parse_args([word for word in words if word != "--version"])
    except SystemExit:
        reason = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        flags = [flag for action in parser._actions for flag in action.option_strings]
        given = [word for word in words if word.startswith("-") and word not in flags]
        near = [close for word in given for close in difflib.get_close_matches(word, flags, n=1)]
        if not near and reason.startswith("unrecognized arguments:") and "=" in reason:
            return f"{reason}; put flags, as -m, before or behind all settings"
        return reason + (f"; did you mean {near[0]}" if near else "; see --help")
    return None


def refuse_wrong_flags(words: list[str]) -> None:
    """Leave with exit code 2 and one line where Hydra would print its usage."""
    mistake = wrong_flag(words)
    if mistake is not None:
        print(f"drift: {mistake}", file=sys.stderr)
        sys.exit(2)
