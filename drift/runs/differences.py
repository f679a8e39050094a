"""What runs differ in: settings that tell them apart, and those that decide their test problems.

Settings are a run's params, flat: {"masking": "all", "optim.lr": "0.0002", ...}. An option is named
by its group, its settings follow: "masking", "masking.num_views".
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from drift.config.explain import SET_BY_OPTION

Settings = dict[str, str]
Value = TypeVar("Value")

CHOICES = ("model", "task", "masking", "rollout")
CHOSEN = "choices."  # before the options in config.yaml
RENAMED = {  # keys of config.yaml, and of params of earlier versions -> as they are now
    "model.name": "model",
    "task.name": "task",
    "cluster.name": "cluster",
    **SET_BY_OPTION,
}
DROPPED = ("optim.rows_per_forward",)  # of earlier versions; they do not affect training
ONLY_WITH = {  # settings that every option of their group had, and those that have them now
    "rollout.threshold": ("threshold", "dynamic"),
    "rollout.factor": ("factor",),
    "objective.clip_low": ("ppo_clip", "self_normalized"),
    "objective.clip_high": ("ppo_clip", "self_normalized"),
    "objective.bound_exponent": ("sandwich",),
    "objective.bound_share": ("sandwich",),
}
SAME: dict[str, dict[str, Any]] = {  # values of a setting -> others that sample the same
    "rollout.cache": {"none": "auto"},  # which is exact, and was not there in earlier versions
}
BOOKKEEPING = ("checkpoint.", "cluster", "eval.every", "traces.")  # they do not affect training
PRIVATE = ("output_dir", "seed", "tracking")  # no settings to compare runs by
NOT_TEST = tuple(  # of a task: without influence on which test problems it has
    f"task.{name}"
    for name in (
        "prompt",
        "system",
        "gen_length",
        "block_length",
        "long_prompts",
        "reward.",
        "train_size",
        "validation_size",
        "files.train",
        "files.validation",
        "workers",
        "time_limit_s",
        "memory_mb",
        "partial",
        "allow_unsafe",
    )
)


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as `group.field` pairs."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield f"{prefix}{key}", value


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config.yaml as params, whichever version of drift wrote it."""
    return as_now(dict(flat(settings)))


def as_now(params: Mapping[str, Value]) -> dict[str, Value]:
    """Flat settings under their present names, without what their options no longer have."""
    known = {
        RENAMED.get(key, key.removeprefix(CHOSEN)): SAME[key].get(str(value), value)
        if key in SAME
        else value
        for key, value in params.items()
        if key not in DROPPED
    }

    def applies(key: str) -> bool:
        option = known.get(key.partition(".")[0])
        return key not in ONLY_WITH or option is None or option in ONLY_WITH[key]

    return {key: value for key, value in known.items() if applies(key)}


def comparable(params: Settings) -> Settings:
    """Without what says nothing of a run's results."""
    return {key: value for key, value in params.items() if not key.startswith(PRIVATE)}


def tested_on(params: Settings) -> frozenset[tuple[str, str]]:
    """What decides which problems a run is tested on: accuracies on others do not compare."""
    return frozenset(
        (key, value)
        for key, value in params.items()
        if key in ("eval.max_examples", "task")
        or (key.startswith("task.") and not key.startswith(NOT_TEST))
    )


def importance(key: str) -> tuple[int, bool, bool, str]:
    """Sorts settings: choices, then names of config groups, what is learned with, bookkeeping."""
    place = CHOICES.index(key) if key in CHOICES else len(CHOICES)
    return place, key.startswith(BOOKKEEPING), "." in key, key


def differing(settings: list[Settings]) -> list[str]:
    """The keys whose values are not the same in all, the most important first."""
    keys = {key for own in settings for key in own}
    return sorted((k for k in keys if len({own.get(k) for own in settings}) > 1), key=importance)


def unnamed(settings: list[Settings], columns: list[str]) -> list[str]:
    """Of `differing` what may tell in the results, and columns do not say.

    Without bookkeeping, without what only some options have (`masking.ratio`), and without what
    comes with a column's choice: `masking.num_views` with `masking`, anything with `experiment`.
    """

    def is_said(key: str) -> bool:
        group = key.partition(".")[0]
        return any(
            column.partition(".")[0] in (group, "experiment")
            and len({(own.get(column), own.get(key)) for own in settings})
            == len({own.get(column) for own in settings})
            for column in columns
        )

    return [
        key
        for key in differing(settings)
        if not key.startswith(BOOKKEEPING)
        and all(key in own for own in settings)
        and not is_said(key)
    ]


def telling(settings: list[Settings]) -> list[str]:
    """The settings that tell runs apart, as few as do it.

    `masking.num_views` is left out where it differs only with `masking`.
    """
    chosen: list[str] = []
    apart = 1
    for name in sorted({key for own in settings for key in own}, key=importance):
        kinds = len({tuple(own.get(key) for key in [*chosen, name]) for own in settings})
        if kinds > apart:
            chosen, apart = [*chosen, name], kinds
    return chosen
