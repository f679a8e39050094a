"""Public data sets: raw records to ours, splits, the folder that is written, what is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from drift.common.errors import ConfigError, DataError
from drift.common.files import file_digest
from drift.config.commands import Dataset, PrepareConfig
from drift.config.data import DataConfig, OnError
from drift.config.task import CountdownConfig, FilesConfig, Split
from drift.datasets.prepare import run as prepare
from drift.datasets.sources import SOURCES, hub_part, hub_parts, mbpp_split, parts_of, problem_of
from drift.tasks import build_task
from drift.tasks.contamination import matches
from drift.tasks.scoring import load_task
from tests.conftest import read_lines
from tests.unit.tasks.test_contamination import DATA, needs_data


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def prepared(dataset: Dataset, source: Path | str, output: Path, **settings: Any) -> dict[str, Any]:
    """Prepare a data set; its manifest."""
    prepare(PrepareConfig(dataset=dataset, source=str(source), output=str(output), **settings))
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    for name, entry in manifest["files"].items():
        assert entry == {"n": len(read_lines(output / name)), **file_digest(output / name)}
    assert sorted(p.name for p in output.iterdir()) == sorted([*manifest["files"], "manifest.json"])
    assert not list(output.parent.glob(".*"))
    return manifest


# One raw record


@pytest.mark.parametrize(
    ("dataset", "raw", "ours"),
    [
        (
            "gsm8k",
            {"question": "How many?", "answer": "16-3=<<16-3=13>>13\n#### 70,013"},
            {"question": "How many?", "ground_truth_answer": "70013"},
        ),
        (
            "math",
            {"problem": "1/2+1/2?", "solution": "So \\boxed{0} or\n$\\boxed{\\frac{2}{2}}$."},
            {"question": "1/2+1/2?", "ground_truth_answer": "\\frac{2}{2}"},
        ),
        (
            "math",
            {"problem": "1+1?", "solution": "It is $\\boxed 2$."},
            {"question": "1+1?", "ground_truth_answer": "2"},
        ),
        (
            "math",
            {"problem": "1+1?", "solution": "It is \\fbox{2}."},
            {"question": "1+1?", "ground_truth_answer": "2"},
        ),
        (
            "math500",
            {"problem": "1+1?", "solution": "\\boxed{3}", "answer": "2", "unique_id": "x"},
            {"question": "1+1?", "ground_truth_answer": "2"},
        ),
        (
            "countdown",
            {"input": "30,100,93", "output": "23"},
            {"numbers": [30, 100, 93], "target": 23},
        ),
        (
            "countdown",
            {"nums": [44, 19, 35], "target": 98},
            {"numbers": [44, 19, 35], "target": 98},
        ),
        (
            "sudoku",
            {"Puzzle": "3102200002100320", "Solution": "3142243142131324"},
            {"puzzle": "3102200002100320", "ground_truth_answer": "3142243142131324"},
        ),
    ],
)  # fmt: skip
def test_a_raw_record_becomes_ours_and_ours_stays(
    dataset: str, raw: dict[str, Any], ours: dict[str, Any]
) -> None:
    convert = SOURCES[Dataset(dataset)].convert
    assert convert(raw) == ours
    assert convert(ours) == ours


@pytest.mark.parametrize(
    ("dataset", "raw", "reason"),
    [
        ("gsm8k", {"answer": "#### 3"}, "question: missing"),
        ("gsm8k", {"question": "?", "answer": "3"}, "answer: no result behind ####"),
        ("gsm8k", {"question": "?", "answer": "3 #### "}, "answer: no result behind ####"),
        ("math", {"problem": "?", "solution": "2"}, "solution: no \\boxed{} with the answer"),
        ("math", {"problem": "?"}, "solution: missing"),
        ("countdown", {"input": "3", "output": "3"}, "input, output: '3', '3' are not numbers"),
        ("countdown", {"nums": [3, 4.5], "target": 3}, "nums: 4.5 is not an integer"),
        ("countdown", {"target": 3}, "numbers: None is not a list"),
        ("sudoku", {"Puzzle": ""}, "puzzle: '' is not a non-empty string"),
    ],
)
def test_what_cannot_be_converted_is_named(dataset: str, raw: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        SOURCES[Dataset(dataset)].convert(raw)
    assert str(caught.value).startswith(reason)


def test_mbpps_split_is_by_task_id() -> None:
    splits = [mbpp_split({"task_id": i}) for i in range(1, 975)]
    assert splits[:10] == [None] * 10
    assert splits[10:510] == [Split.test] * 500
    assert splits[510:600] == [Split.validation] * 90
    assert splits[600:] == [Split.train] * 374
    with pytest.raises(ValueError, match="task_id: 'x' is not an integer"):
        mbpp_split({"task_id": "x"})


# A whole set


def gsm8k(folder: Path, train: int = 100, test: int = 5) -> Path:
    """Raw files of so many problems; they share no words."""
    for split, size in (("train", train), ("test", test)):
        records = [
            {"question": f"{split} {i}?", "answer": f"so\n#### {i}"} for i in range(size)
        ]  # fmt: skip
        write(folder / f"{split}.jsonl", *records)
    return folder


def test_a_set_is_split_and_written_with_its_hashes(tmp_path: Path) -> None:
    raw = gsm8k(tmp_path / "raw")
    output = tmp_path / "data" / "gsm8k"
    manifest = prepared(Dataset.gsm8k, raw, output)
    assert {name: entry["n"] for name, entry in manifest["files"].items()} == {
        "train.jsonl": 93, "validation.jsonl": 7, "test.jsonl": 5,
    }  # fmt: skip
    assert manifest["dataset"] == "gsm8k"
    names = ("train.jsonl", "test.jsonl")
    assert manifest["source"] == {"files": {name: file_digest(raw / name) for name in names}}
    lines = {split: read_lines(output / f"{split}.jsonl") for split in Split}
    assert lines[Split.test][3] == {
        "id": "gsm8k/test/3", "question": "test 3?", "ground_truth_answer": "3",
    }  # fmt: skip
    both = [*lines[Split.train], *lines[Split.validation]]
    assert sorted(str(line["question"]) for line in both) == sorted(
        f"train {i}?" for i in range(100)
    )


def test_preparing_again_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw, output = gsm8k(tmp_path / "raw"), tmp_path / "out"
    with caplog.at_level("INFO"):
        first = prepared(Dataset.gsm8k, raw, output)
        assert "unchanged" not in caplog.text
        assert prepared(Dataset.gsm8k, raw, output) == first
        assert f"{output}: train 93, validation 7, test 5 (unchanged)" in caplog.messages
    gsm8k(raw, test=6)
    assert prepared(Dataset.gsm8k, raw, output)["files"]["test.jsonl"]["n"] == 6


def test_one_file_of_a_set_can_be_prepared(tmp_path: Path) -> None:
    raw = gsm8k(tmp_path / "raw")
    manifest = prepared(Dataset.gsm8k, raw / "test.jsonl", tmp_path / "out")
    assert set(manifest["files"]) == {"test.jsonl"}


def test_train_is_kept_apart_from_what_is_held_out(tmp_path: Path) -> None:
    raw = gsm8k(tmp_path / "raw")
    leaked = {"question": "TEST  3?", "answer": "#### 3"}
    with (raw / "train.jsonl").open("a") as file:
        file.write(json.dumps(leaked))
    other = write(tmp_path / "other.jsonl", {"question": "Train 8", "ground_truth_answer": "8"})
    manifest = prepared(Dataset.gsm8k, raw, tmp_path / "out", exclude=[str(other)])
    assert manifest["left_out"] == {
        "bad": [],
        "in_no_split": [],
        "in_test": ["gsm8k/train/100"],
        "in_exclude": ["gsm8k/train/8"],
        "in_validation": [],
    }
    assert manifest["exclude"] == {str(other): file_digest(other)}
    assert manifest["files"]["train.jsonl"]["n"] + manifest["files"]["validation.jsonl"]["n"] == 99


def test_bad_records_are_refused_or_listed(tmp_path: Path) -> None:
    raw, output = gsm8k(tmp_path / "raw"), tmp_path / "out"
    with (raw / "test.jsonl").open("a") as file:
        file.write('{"question": "?"}\nno JSON\n')
    reason = f"{raw}/test.jsonl:6: answer: missing"
    with pytest.raises(DataError) as caught:
        prepared(Dataset.gsm8k, raw, output)
    assert str(caught.value) == reason
    assert not output.exists()
    manifest = prepared(Dataset.gsm8k, raw, output, data=DataConfig(on_error=OnError.skip))
    assert manifest["left_out"]["bad"][0] == reason
    assert manifest["left_out"]["bad"][1].startswith(f"{raw}/test.jsonl:7: not JSON")
    assert manifest["files"]["test.jsonl"]["n"] == 5


def math_folder(folder: Path) -> Path:
    """MATH as it is published: a file for each problem."""
    for split, size in (("train", 20), ("test", 3)):
        for i in range(size):
            path = folder / "MATH" / split / "algebra" / f"{i}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            record = {"problem": f"{split} {i}", "solution": f"\\boxed{{{i}}}"}
            path.write_text(json.dumps(record, indent=4))
    return folder


def test_math_is_read_from_its_folder_of_files(tmp_path: Path) -> None:
    manifest = prepared(Dataset.math, math_folder(tmp_path), tmp_path / "out")
    sizes = {name: entry["n"] for name, entry in manifest["files"].items()}
    assert sizes == {"train.jsonl": 19, "validation.jsonl": 1, "test.jsonl": 3}


def test_math_without_its_test_set_must_know_math500(tmp_path: Path) -> None:
    """248 questions of MATH500 stand in a training file that was published."""
    questions = [{"problem": f"Find $x^{i}$.", "answer": str(i)} for i in range(700)]
    train = write(tmp_path / "train.jsonl", *questions)
    with pytest.raises(ConfigError, match=r"set exclude=\[outputs/data/math500/test\.jsonl\]$"):
        prepared(Dataset.math, train, tmp_path / "out")
    raw = write(tmp_path / "MATH500.jsonl", *questions[:248], {"problem": "new", "answer": "1"})
    prepared(Dataset.math500, raw, tmp_path / "math500")
    manifest = prepared(
        Dataset.math, train, tmp_path / "out", exclude=[str(tmp_path / "math500" / "test.jsonl")]
    )
    assert len(manifest["left_out"]["in_exclude"]) == 248
    assert manifest["files"]["train.jsonl"]["n"] == 700 - 248 - 31


def test_a_set_without_test_problems_is_split_by_problem(tmp_path: Path) -> None:
    records = [{"nums": [i, i + 1, i + 2], "target": i} for i in range(200)]
    turned = [{"nums": [i + 2, i, i + 1], "target": i} for i in range(200)]
    raw = write(tmp_path / "countdown_train.jsonl", *records, *turned)
    manifest = prepared(Dataset.countdown, raw, tmp_path / "out")
    sizes = {name: entry["n"] for name, entry in manifest["files"].items()}
    assert sizes == {"train.jsonl": 2 * 186, "validation.jsonl": 2 * 14}
    files = FilesConfig(train=f"{tmp_path}/out/train.jsonl")
    files.validation = f"{tmp_path}/out/validation.jsonl"
    config = CountdownConfig(name="countdown", prompt="{numbers}={target}", gen_length=8)
    config.files = files
    task = build_task(config)
    train, validation = (
        {example.key for example in task.examples(split)}
        for split in (Split.train, Split.validation)
    )
    assert (len(train), len(validation), train & validation) == (186, 14, set())


def test_csv_and_gz_files_are_read(tmp_path: Path) -> None:
    raw = "Puzzle,Solution\n3102200002100320,3142243142131324\n"
    (tmp_path / "sudoku_test.csv").write_bytes(b"\xef\xbb\xbf" + raw.encode())
    prepared(Dataset.sudoku, tmp_path, tmp_path / "out")
    (line,) = read_lines(tmp_path / "out" / "test.jsonl")
    assert line["puzzle"] == "3102200002100320"
    file = tmp_path / "packed_test.csv.gz"
    file.write_bytes(gzip.compress(raw.encode()))
    prepared(Dataset.sudoku, file, tmp_path / "out_of_packed")
    assert read_lines(tmp_path / "out_of_packed" / "test.jsonl") == [line]
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match=f"{file}: not a whole .gz file"):
        prepared(Dataset.sudoku, file, tmp_path / "out_of_damaged")
    (tmp_path / "math500.jsonl.gz").write_bytes(gzip.compress(b'{"problem": "?", "answer": "1"}'))
    prepared(Dataset.math500, tmp_path, tmp_path / "math500")
    (line,) = read_lines(tmp_path / "math500" / "test.jsonl")
    assert line == {"id": "math500/0", "question": "?", "ground_truth_answer": "1"}


def test_packed_problems_of_math_one_a_file_are_read(tmp_path: Path) -> None:
    problem = {"problem": "1+1?", "answer": "2"}
    packed = gzip.compress(json.dumps(problem, indent=1).encode())
    (tmp_path / "test" / "algebra").mkdir(parents=True)
    file = tmp_path / "test" / "algebra" / "7.json.gz"
    for data, value in ((packed, f"{problem}"), (packed[:-9], f"{file}: not a whole .gz file")):
        file.write_bytes(data)
        (part,) = parts_of(Dataset.math, tmp_path)
        assert [str(record.value).startswith(value) for record in part.records] == [True]


def test_a_split_on_the_hub_is_read_through_datasets(tmp_path: Path) -> None:
    """`datasets` reads a local folder as it reads a repository."""
    write(tmp_path / "set" / "test.jsonl", {"question": "?", "answer": "#### 3"})
    part = hub_part(str(tmp_path / "set"), None, "test", None)
    (record,) = part.records
    assert (part.split, record.value) == (Split.test, {"question": "?", "answer": "#### 3"})
    assert record.place == f"{tmp_path}/set/test:1"


# What is refused


@pytest.mark.parametrize(
    ("dataset", "name", "message"),
    [
        ("gsm8k", "none", "is neither a file nor a folder; raw files: https://github.com/openai/"),
        ("gsm8k", "empty", "has no raw file of gsm8k (a name like "),
        ("gsm8k", "mine.jsonl", "mine.jsonl does not say which split it is; its name must have"),
        ("math500", "blank.jsonl", "blank.jsonl: the data file is empty"),
        ("gsm8k", "test.csv", "test.csv:2: answer: missing"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(
    tmp_path: Path, dataset: str, name: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "mine.jsonl", {"question": "?", "answer": "#### 3"})
    write(tmp_path / "blank.jsonl")
    (tmp_path / "test.csv").write_text("question\nHow many?\n")
    with pytest.raises((ConfigError, DataError)) as caught:
        prepared(Dataset(dataset), tmp_path / name, tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_of_what_the_hub_says_the_first_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("404 Client Error.\n\nIf the repo is private, log in.")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    with pytest.raises(ConfigError, match=r"from the hub \(404 Client Error\.\); connect, or"):
        hub_parts(Dataset.gsm8k)


def test_what_others_wrote_is_never_replaced(tmp_path: Path) -> None:
    raw, output = gsm8k(tmp_path / "raw"), tmp_path / "out"
    write(output / "train.jsonl", {"question": "mine", "ground_truth_answer": "1"})
    with pytest.raises(ConfigError, match=r"was not written by drift\.prepare; choose another"):
        prepared(Dataset.gsm8k, raw, output)
    (output / "train.jsonl").unlink()
    prepared(Dataset.gsm8k, raw, output)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds \[.*'notes\.txt'.*\], not only \["):
        prepared(Dataset.gsm8k, raw, output)
    (output / "notes.txt").unlink()
    with (output / "test.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ConfigError, match=r"out/test\.jsonl was changed since it was prepared"):
        prepared(Dataset.gsm8k, raw, output)


# The real files


SIZES = {
    "gsm8k": {"train": 6961, "validation": 500, "test": 1319},
    "math500": {"test": 500},
    "countdown": {"test": 256},
    "sudoku": {"test": 500},
    "mbpp": {"train": 357, "validation": 90, "test": 500},
    "humaneval": {"test": 164},
}


@needs_data
@pytest.mark.parametrize("name", SIZES)
def test_a_real_set_has_its_sizes_and_no_leak(name: str, tmp_path: Path) -> None:
    assert DATA is not None
    manifest = prepared(Dataset(name), DATA, tmp_path / name)
    sizes = {file.removesuffix(".jsonl"): entry["n"] for file, entry in manifest["files"].items()}
    assert sizes == SIZES[name]
    found = {split: [problem_of(r) for r in read_lines(tmp_path / name / f"{split}.jsonl")]
             for split in sizes}  # fmt: skip
    for split in {"validation", "test"} & sizes.keys():
        assert matches(found.get("train", []), found[split], written=True) == []


@needs_data
@pytest.mark.parametrize("name", SIZES)
def test_every_problem_of_a_real_set_is_read_by_its_task(name: str, tmp_path: Path) -> None:
    assert DATA is not None
    prepared(Dataset(name), DATA, tmp_path / "out")
    task = load_task(name, f"task.files.test={tmp_path}/out/test.jsonl")
    assert len(task.examples(Split.test)) == SIZES[name]["test"]
