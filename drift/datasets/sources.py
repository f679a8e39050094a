"""Public data sets: where they come from, and how one of their records becomes one of ours."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift.common.errors import ConfigError, DataError
from drift.config.commands import Dataset
from drift.config.task import Split
from drift.tasks.code_sources import SHOWN_TESTS, humaneval_record, mbpp_record
from drift.tasks.contamination import Problem, plain
from drift.tasks.extract import last_boxed
from drift.tasks.records import BROKEN_GZ, Record, integer, open_data, read_records, string

Fields = dict[str, Any]
SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
SPLIT_WORD = re.compile(r"(?<![a-z])(train|validation|test)(?![a-z])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One upstream file or one split on the hub, with its records.

    Part(name="test.jsonl", split=Split.test, records=...)
    """

    name: str
    split: Split | None  # None where the records themselves say it
    records: Iterator[Record]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a data set comes from.

    `convert` turns a raw record into ours, ValueError('field: reason') if it cannot; what is in
    our format already is left as it is. `split_of` is for sets whose split is not the file's.
    """

    convert: Callable[[Fields], Fields]
    files: str  # names of raw files in a folder: a regular expression
    home: str  # where raw files are found, for people
    hub: str | None = None
    hub_configs: tuple[str | None, ...] = (None,)
    hub_splits: tuple[str, ...] = ()
    split_of: Callable[[Fields], Split | None] | None = None
    written: bool = True  # by people, in words: compared so (contamination.py)


# From a raw record to ours


def gsm8k(raw: Fields) -> Fields:
    """`question`, and `answer`: a solution with its result behind `####`."""
    if "ground_truth_answer" in raw:
        answer = string(raw, "ground_truth_answer")
    else:
        _, mark, answer = string(raw, "answer").rpartition("####")
        answer = answer.strip().replace(",", "")
        if not mark or not answer:
            raise ValueError("answer: no result behind ####")
    return {"question": string(raw, "question"), "ground_truth_answer": answer}


def math(raw: Fields) -> Fields:
    r"""`problem`, and `answer` or a `solution` with its result in the last `\boxed{}`."""
    question = string(raw, "problem" if "problem" in raw else "question")
    for field in ("ground_truth_answer", "answer"):
        if field in raw:
            return {"question": question, "ground_truth_answer": string(raw, field)}
    solution = string(raw, "solution").replace("\\fbox{", "\\boxed{")
    answer = last_boxed(re.sub(r"\\boxed\s+([^\s${}]+)", r"\\boxed{\1}", solution))
    if answer is None:
        raise ValueError("solution: no \\boxed{} with the answer")
    return {"question": question, "ground_truth_answer": answer}


def countdown(raw: Fields) -> Fields:
    """`input` "30,100,93" and `output` "23" (d1), or `nums` and `target` (Countdown-Tasks-3to4)."""
    if "input" in raw:
        numbers, target = string(raw, "input"), string(raw, "output")
        if not re.fullmatch(r"\d+(,\d+)+", numbers) or not re.fullmatch(r"\d+", target):
            raise ValueError(f"input, output: {numbers!r}, {target!r} are not numbers and a target")
        return {"numbers": [int(number) for number in numbers.split(",")], "target": int(target)}
    numbers = integers(raw, "nums" if "nums" in raw else "numbers")
    return {"numbers": numbers, "target": integer(raw, "target", -(10**9), 10**9)}


def integers(raw: Fields, field: str) -> list[int]:
    if not isinstance(raw.get(field), list):
        raise ValueError(f"{field}: {raw.get(field)!r} is not a list")
    return [integer({field: number}, field, 0, 10**9 - 1) for number in raw[field]]


def sudoku(raw: Fields) -> Fields:
    """`Puzzle` and `Solution`, row by row, 0 for an empty cell."""
    raw = {name.lower(): value for name, value in raw.items()}
    answer = "solution" if "solution" in raw else "ground_truth_answer"
    return {"puzzle": string(raw, "puzzle"), "ground_truth_answer": string(raw, answer)}


def mbpp_split(raw: Fields) -> Split | None:
    """MBPP's own split by task id: 11-510 test, 511-600 validation, 601-974 train.

    1-10 are for few-shot prompts (arXiv 2108.07732): in none.
    """
    task_id = raw.get("task_id")
    if not isinstance(task_id, int):
        raise ValueError(f"task_id: {task_id!r} is not an integer")
    for split, ids in (
        (Split.test, range(11, 511)),
        (Split.validation, range(511, 601)),
        (Split.train, range(601, 975)),
    ):
        if task_id in ids:
            return split
    return None


SOURCES: dict[Dataset, Source] = {
    Dataset.gsm8k: Source(
        convert=gsm8k,
        files=r"(gsm8k_)?(train|test)\.jsonl",
        home="https://github.com/openai/grade-school-math",
        hub="openai/gsm8k",
        hub_configs=("main",),
        hub_splits=("train", "test"),
    ),
    Dataset.math: Source(
        convert=math,
        files=r"(math_)?(train|test)\.jsonl?|(.*/)?(train|test)/[a-z_]+/\d+\.json",
        home="https://github.com/hendrycks/math",
        hub="EleutherAI/hendrycks_math",
        hub_configs=SUBJECTS,
        hub_splits=("train", "test"),
    ),
    Dataset.math500: Source(
        convert=math,
        files=r"math_?-?500\.jsonl?|test\.jsonl",
        home="https://github.com/openai/prm800k",
        hub="HuggingFaceH4/MATH-500",
        hub_splits=("test",),
        split_of=lambda raw: Split.test,
    ),
    Dataset.mbpp: Source(
        convert=mbpp_record,
        files=r"mbpp\.jsonl",
        home="https://github.com/google-research/google-research/tree/master/mbpp",
        hub="google-research-datasets/mbpp",
        hub_configs=("full",),
        hub_splits=("train", "validation", "test"),
        split_of=mbpp_split,
    ),
    Dataset.humaneval: Source(
        convert=humaneval_record,
        files=r"humaneval\.jsonl",
        home="https://github.com/openai/human-eval",
        hub="openai/openai_humaneval",
        hub_splits=("test",),
        split_of=lambda raw: Split.test,
    ),
    Dataset.countdown: Source(
        convert=countdown,
        files=r"[^/]*countdown[^/]*\.jsonl?",
        home="https://github.com/dllm-reasoning/d1",
        hub="Jiayi-Pan/Countdown-Tasks-3to4",
        hub_splits=("train",),
        written=False,
    ),
    Dataset.sudoku: Source(
        convert=sudoku,
        files=r"[^/]*sudoku[^/]*\.csv",
        home="https://github.com/dllm-reasoning/d1",
        written=False,
    ),
}


def problem_of(record: Fields) -> Problem:
    """What tells a record of ours from another: see contamination.py; ValueError if it is bad."""
    if "numbers" in record:
        numbers = ",".join(map(str, sorted(integers(record, "numbers"))))
        return Problem(key=f"{numbers}:{integer(record, 'target', -(10**9), 10**9)}", text="")
    if "puzzle" in record:
        return Problem(key=string(record, "puzzle"), text="")
    text = string(record, "question").partition(SHOWN_TESTS)[0]
    return Problem(key=plain(text), text=text)


# Where raw records come from


def parts_of(dataset: Dataset, path: Path) -> list[Part]:
    """The raw files of a data set: one file, or those of a folder.

    Raises:
        ConfigError: there is none, or a file's name does not say which split it is.
    """
    source, setting = SOURCES[dataset], f"source={path}"
    if path.is_dir():
        pattern = re.compile(f"({source.files})(\\.gz)?", re.IGNORECASE)
        files = {str(p.relative_to(path)): p for p in sorted(path.rglob("*")) if p.is_file()}
        files = {name: p for name, p in files.items() if pattern.fullmatch(name)}
        if not files:
            raise ConfigError(
                f"{setting} has no raw file of {dataset} (a name like {source.files}); "
                f"they are at {source.home}"
            )
    elif path.is_file():
        files = {path.name: path}
    else:
        raise ConfigError(f"{setting} is neither a file nor a folder; raw files: {source.home}")
    parts: list[Part] = []
    for name, file in files.items():
        words = SPLIT_WORD.findall(name.lower())
        if not words and source.split_of is None:
            raise ConfigError(
                f"{setting}: {name} does not say which split it is; "
                "its name must have the word train, validation or test"
            )
        split = Split(words[-1]) if words else None
        parts.append(Part(name=name, split=split, records=file_records(file)))
    return parts


def file_records(path: Path) -> Iterator[Record]:
    """Records of a raw file: CSV with a header, one JSON object (MATH), an array or lines."""
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    if plain.suffix.lower() == ".csv":
        yield from csv_records(path)
    elif plain.suffix.lower() == ".json" and plain.stem.isdigit():
        yield Record(place=str(path), line=1, value=json_object(path))
    else:
        yield from read_records(path)


def csv_records(path: Path) -> Iterator[Record]:
    try:
        with open_data(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            for row in reader:
                yield Record(place=f"{path}:{reader.line_num}", line=reader.line_num, value=row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {error}") from None
    except BROKEN_GZ as error:
        raise DataError(f"{path}: not a whole .gz file: {error}") from None


def json_object(path: Path) -> Fields | DataError:
    try:
        with open_data(path, "rt", encoding="utf-8-sig") as file:
            value = json.load(file)
    except BROKEN_GZ as error:
        return DataError(f"{path}: not a whole .gz file: {error}")
    except ValueError as error:  # not UTF-8, or not JSON
        return DataError(f"{path}: not JSON: {error}")
    return value if isinstance(value, dict) else DataError(f"{path}: not a JSON object")


def hub_parts(dataset: Dataset) -> tuple[list[Part], str]:
    """The data set on the Hugging Face hub, and the commit that is read.

    Raises:
        ConfigError: it is not on the hub, or the hub cannot be reached.
    """
    source = SOURCES[dataset]
    if source.hub is None:
        raise ConfigError(
            f"dataset={dataset} is not on the hub; set source=PATH to its raw file ({source.home})"
        )
    import huggingface_hub

    try:
        commit = huggingface_hub.HfApi().dataset_info(source.hub).sha
        assert commit is not None
        parts = [
            hub_part(source.hub, config, split, commit)
            for config in source.hub_configs
            for split in source.hub_splits
        ]
    except Exception as error:  # of the hub's client, of its HTTP library, of `datasets`
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"dataset={dataset}: {source.hub} cannot be read from the hub ({reason}); "
            f"connect, or set source=PATH to the raw files from {source.home}"
        ) from error
    return parts, commit


def hub_part(repo: str, config: str | None, split: str, commit: str | None) -> Part:
    """One split of a data set on the hub; `repo` may be a local folder in its layout."""
    import datasets

    rows = datasets.load_dataset(repo, config, split=split, revision=commit)
    name = "/".join(word for word in (repo, config, split) if word)

    def records() -> Iterator[Record]:
        for number, row in enumerate(rows, start=1):
            yield Record(place=f"{name}:{number}", line=number, value=dict(row))  # pyright: ignore

    return Part(name=name, split=Split(split), records=records())
