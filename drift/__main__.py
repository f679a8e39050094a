"""The list of commands: `python -m drift`, or `drift` where the package is installed.

`drift train ...` is `python -m drift.train ...`, with shell completion: `drift -sc install=bash`.
"""

import difflib
import os
import runpy
import sys

from drift.cli.help import docstring
from drift.config.compose import CONF, PACKAGE


def commands() -> dict[str, str]:
    """Each command with its line: those that have a file in conf/ and one in drift/."""
    names = sorted(path.stem for path in CONF.glob("*.yaml"))
    names = [name for name in names if (PACKAGE / f"{name}.py").exists()]
    return {name: docstring(name).splitlines()[0].partition(": `")[0] for name in names}


def complete(known: dict[str, str]) -> None:
    """Hydra's shell completion, `-sc install=SHELL` and `-sc query=SHELL`, behind a command's name.

    The shell asks with the line that is typed so far in COMP_LINE.
    """
    words = os.environ.get("COMP_LINE", "drift train ").split(maxsplit=1)
    rest = words[1] if len(words) > 1 else ""
    name = rest.split()[0] if rest.split() else ""
    if " " not in rest:  # the command itself is being typed
        print(*known)
    elif name in known:
        os.environ["COMP_LINE"] = rest
        runpy.run_module(f"drift.{name}", run_name="__main__")


def main() -> None:
    known = commands()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, known))
        print("python -m drift.COMMAND [key=value ...]; --help lists a command's settings\n")
        for command, words in known.items():
            print(f"  {command:{width}}  {words}")
    elif name in ("-sc", "--shell-completion"):
        complete(known)
    elif name in known:
        del sys.argv[1]
        runpy.run_module(f"drift.{name}", run_name="__main__", alter_sys=True)
    else:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}" if near else ""
        listed = ", ".join(known)
        print(f"drift: {name}: no such command{hint}; commands: {listed}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
