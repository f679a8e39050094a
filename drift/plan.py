"""Estimate a run's memory, traffic and arithmetic: `python -m drift.plan model=llada task=math`.

Takes every setting of drift.train. One setting with several values, such as
`cluster.num_machines=1,2,8`, makes a table with a line for each. No weights are read.
"""

import sys

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from drift.cli.command import run_command
from drift.config.commands import PlanConfig


def run(config: PlanConfig) -> None:
    """Print what the run needs."""
    from drift.planning.tables import run

    run(config)


def as_overrides(words: list[str]) -> list[str]:
    """`cluster.num_machines=1,8` as the setting and the values that are compared."""
    parser, found, swept = OverridesParser.create(), [], []
    for word in words:
        try:
            override = None if word.startswith("-") else parser.parse_override(word)
        except OverrideParseException:
            override = None  # told when Hydra composes
        if override is not None and override.is_sweep_override():
            key = override.get_key_element()
            values = ",".join(str(value) for value in override.sweep_string_iterator())
            swept.append((key, f"plan.over={key}", f"plan.values=[{values}]"))
        elif word not in ("-m", "--multirun"):
            found.append(word)
    if len(swept) > 1:
        keys = " and ".join(key for key, *_ in swept)
        sys.exit(f"drift: {keys} have several values; compare the values of one setting at a time")
    return [*found, *(word for _, *both in swept for word in both)]


if __name__ == "__main__":
    sys.argv[1:] = as_overrides(sys.argv[1:])
    run_command("plan", run)
