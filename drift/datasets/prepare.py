"""A public data set is converted, split and written."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from drift import __version__
from drift.common.errors import ConfigError, DataError
from drift.common.files import file_digest, whole_folder, write_json
from drift.config.commands import Dataset, PrepareConfig
from drift.config.data import OnError
from drift.config.task import Split
from drift.datasets.sources import SOURCES, Part, hub_parts, parts_of, problem_of
from drift.tasks.base import held_out
from drift.tasks.contamination import Problem, matches
from drift.tasks.records import read_records
from drift.tasks.scoring import load_task

log = logging.getLogger("drift")

Fields = dict[str, Any]
Splits = dict[Split, list[Fields]]
SHOWN = 5  # bad records named in the log


def load(config: PrepareConfig) -> tuple[list[Part], Fields]:
    """The raw parts, and what the manifest says of their origin."""
    if config.source is None:
        parts, commit = hub_parts(config.dataset)
        return parts, {"hub": SOURCES[config.dataset].hub, "commit": commit}
    path = Path(config.source).expanduser()
    parts = parts_of(config.dataset, path)
    folder = path if path.is_dir() else path.parent
    return parts, {"files": {part.name: file_digest(folder / part.name) for part in parts}}


def convert(
    parts: list[Part], dataset: Dataset, on_error: OnError
) -> tuple[Splits, dict[str, list[str]]]:
    """Raw records in our format by split, and those that are left out.

    A record gets an `id`: its task id, or its place in the upstream split, counted from 0.

    Raises:
        DataError: a record is bad and `on_error` does not say to skip it.
    """

    source, task = SOURCES[dataset], load_task(dataset)
    splits: Splits = {split: [] for split in Split}
    bad: list[str] = []
    unused: list[str] = []
    seen: Counter[Split | None] = Counter()
    for part in parts:
        for raw in part.records:
            number, seen[part.split] = seen[part.split], seen[part.split] + 1
            try:
                if isinstance(raw.value, DataError):
                    raise raw.value
                name = identity(dataset, raw.value, part.split, number)
                split = source.split_of(raw.value) if source.split_of else part.split
                if split is None:
                    unused.append(name)
                    continue
                ours = {"id": name, **source.convert(raw.value)}
                task.example(ours)  # what the task could not read is not written
                splits[split].append(ours)
            except ValueError as error:
                fault = fault_of(error, raw.place)
                if on_error == OnError.refuse:
                    raise DataError(fault) from None
                bad.append(fault)
    for fault in bad[:SHOWN]:
        log.warning("left out: %s", fault)
    return splits, {"bad": bad, "in_no_split": unused}


def fault_of(error: Exception, place: str) -> str:
    """`file:line: field: reason`"""
    return str(error) if isinstance(error, DataError) else f"{place}: {error}"


def identity(dataset: Dataset, raw: Fields, split: Split | None, number: int) -> str:
    """`HumanEval/0`, `mbpp/11`, `gsm8k/train/17`, `math500/3`"""
    task_id = raw.get("task_id")
    if isinstance(task_id, str):
        return task_id
    place = number if split is None else f"{split}/{number}"
    return f"{dataset}/{place if task_id is None else task_id}"


def problems_in(paths: list[str]) -> list[Problem]:
    """The problems of prepared files.

    Raises:
        DataError: a file cannot be read, or a record is not in the data format.
    """

    found: list[Problem] = []
    for path in paths:
        for record in read_records(Path(path)):
            if isinstance(record.value, DataError):
                raise record.value
            try:
                found.append(problem_of(record.value))
            except ValueError as error:
                raise DataError(fault_of(error, record.place)) from None
    return found


def separate(splits: Splits, excluded: list[Problem], written: bool) -> dict[str, list[str]]:
    """Hold out a validation set where there is none, and keep train apart from what is held out.

    Args:
        splits: changed in place.
        excluded: problems that must not be in train, beside those of validation and test.
        written: whether people wrote the problems (contamination.py).

    Returns:
        The ids that were taken out of train, by reason.
    """

    def take_out(held: list[Problem]) -> list[str]:
        train = splits[Split.train]
        pairs = matches([problem_of(record) for record in train], held, written=written)
        leaks = {pair.train for pair in pairs}
        splits[Split.train] = [record for i, record in enumerate(train) if i not in leaks]
        return [train[i]["id"] for i in sorted(leaks)]

    left_out = {
        "in_test": take_out([problem_of(record) for record in splits[Split.test]]),
        "in_exclude": take_out(excluded),
    }
    if not splits[Split.validation]:
        train = splits[Split.train]
        keys = [problem_of(record).key for record in train]
        chosen = held_out(keys)
        for split in (Split.train, Split.validation):
            splits[split] = [
                record
                for record, key in zip(train, keys, strict=True)
                if (key in chosen) == (split == Split.validation)
            ]
    left_out["in_validation"] = take_out([problem_of(r) for r in splits[Split.validation]])
    return left_out


def written_before(folder: Path) -> Fields | None:
    """The manifest of a folder that this command wrote and nobody changed; None if it is empty.

    Raises:
        ConfigError: the folder holds anything else, which would be lost.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    advice = "choose another output, or move it away"
    try:
        manifest: Fields = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files: Fields = manifest["files"]
        names = sorted([*files, "manifest.json"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"output={folder} was not written by drift.prepare; {advice}") from None
    found = sorted(path.name for path in folder.iterdir())
    if found != names:
        raise ConfigError(f"output={folder} holds {found}, not only {names}; {advice}")
    for name, entry in files.items():
        if file_digest(folder / name) != {key: entry[key] for key in ("bytes", "sha256")}:
            raise ConfigError(f"{folder / name} was changed since it was prepared; {advice}")
    return manifest


def write(folder: Path, splits: Splits, manifest: Fields) -> Fields:
    """Write the splits and the manifest beside, then put them in the folder's place.

    Returns:
        The manifest with its `files`.
    """
    files: Fields = {}
    with whole_folder(folder) as beside:
        for split, records in splits.items():
            if records:
                path = beside / f"{split}.jsonl"
                lines = (json.dumps(record) + "\n" for record in records)
                with path.open("w", encoding="utf-8") as file:
                    file.writelines(lines)
                files[path.name] = {"n": len(records), **file_digest(path)}
        manifest = {**manifest, "files": files}
        write_json(beside / "manifest.json", manifest)
    return manifest


def run(config: PrepareConfig) -> None:
    """Load, convert, separate, write, and say what was written."""
    dataset, folder = config.dataset, Path(config.output).expanduser()
    before = written_before(folder)
    excluded = problems_in(config.exclude)
    parts, origin = load(config)
    splits, left_out = convert(parts, dataset, config.data.on_error)
    if not any(splits.values()):
        raise DataError(f"source={config.source} has no record of {dataset}")
    if dataset == Dataset.math and not splits[Split.test] and not excluded:
        raise ConfigError(
            f"source={config.source} has no test problems of MATH, so those of MATH500 could be in "
            "train; prepare them first (`python -m drift.prepare dataset=math500`) and set "
            "exclude=[outputs/data/math500/test.jsonl]"
        )
    left_out |= separate(splits, excluded, SOURCES[dataset].written)
    manifest = {
        "dataset": dataset.value,
        "drift": __version__,
        "source": origin,
        "exclude": {path: file_digest(Path(path)) for path in config.exclude},
        "left_out": left_out,
    }
    manifest = write(folder, splits, manifest)
    for reason, names in left_out.items():
        if names:
            log.info("left out, %s: %d records (listed in manifest.json)", reason, len(names))
    sizes = ", ".join(f"{split} {len(records)}" for split, records in splits.items() if records)
    log.info("%s: %s%s", folder, sizes, " (unchanged)" if manifest == before else "")
