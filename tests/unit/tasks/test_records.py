"""Data files: what is read, and the one line that says what is wrong with the rest."""

import gzip
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from drift.common.errors import DataError
from drift.config.task import CountdownConfig, FilesConfig, Split, SudokuConfig, TaskConfig
from drift.tasks import Task, build_task
from drift.tasks.records import integer, read_records, string

RECORDS = [
    {"numbers": [3, 9, 5], "target": 11},
    {"numbers": [20, 1], "target": 19, "source": "façade ≤ 数"},
    {"numbers": [0, 999999999], "target": -1000000000},
]
SOLVED = "1234341221434321"
PUZZLE = "0034341221434300"
ROWS = "1234" * 4


def countdown(**files: str) -> Task:
    return build_task(
        CountdownConfig(
            name="countdown",
            prompt="{numbers}={target}",
            gen_length=16,
            files=FilesConfig(**files),
        )
    )


def sudoku(**files: str) -> Task:
    return build_task(
        SudokuConfig(name="sudoku", prompt="{puzzle}", gen_length=24, files=FilesConfig(**files))
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "train.json"


def error_of(file: Path, content: str | bytes, task: Any = countdown) -> str:
    """What is said of the file after its path."""
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        task(train=str(file)).examples(Split.train)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{file}:")
    return message.removeprefix(f"{file}:")


def line(**changes: object) -> str:
    """A good Countdown record with changes; None removes a field."""
    record = {"numbers": [3, 9, 5], "target": 11} | changes
    return json.dumps({field: value for field, value in record.items() if value is not None})


# What is read


def test_an_array_and_lines_give_the_same_examples(tmp_path: Path) -> None:
    (tmp_path / "array.json").write_text(json.dumps(RECORDS, indent=2), encoding="utf-8")
    lines = "\n".join(json.dumps(r, ensure_ascii=False) for r in RECORDS)
    (tmp_path / "lines.jsonl").write_text(lines, encoding="utf-8")
    array, lines_ = (
        countdown(train=str(tmp_path / name)).examples(Split.train)
        for name in ("array.json", "lines.jsonl")
    )
    assert array == lines_
    assert [e.key for e in array] == [
        "countdown:3,5,9:11",
        "countdown:1,20:19",
        "countdown:0,999999999:-1000000000",
    ]
    assert [e.prompt for e in array[:2]] == ["3 9 5=11", "20 1=19"]
    assert array[0].fields == {"numbers": [3, 9, 5], "target": 11}


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}\n{"a": 2}',
        '{"a": 1}\n{"a": 2}\n',
        '{"a": 1}\r\n{"a": 2}\r\n',
        '\n\n{"a": 1}\n \n{"a": 2}\n\n',
        ' [{"a": 1},\n {"a": 2}]\n',
        " " * 5000 + '{"a": 1}\n{"a": 2}',
        "\n" * 5000 + '[{"a": 1}, {"a": 2}]',
    ],
)
def test_blank_lines_and_line_ends_do_not_matter(file: Path, text: str) -> None:
    file.write_bytes(text.encode())
    assert [record.value for record in read_records(file)] == [{"a": 1}, {"a": 2}]


def test_records_have_the_line_of_an_editor_or_in_an_array_their_number(file: Path) -> None:
    file.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    places = [(record.line, record.place) for record in read_records(file)]
    assert places == [(2, f"{file}:2"), (4, f"{file}:4")]
    file.write_text('[\n\n{"a":\n 1}, {"a": 2},\n{"a": 3}]')
    places = [(record.line, record.place) for record in read_records(file)]
    assert places == [(number, f"{file}: record {number}") for number in (1, 2, 3)]


@pytest.mark.parametrize("text", ['{"a": 1}\n{"a": 2}', '[{"a": 1}, {"a": 2}]'])
def test_a_byte_order_mark_and_gzip_do_not_matter(tmp_path: Path, text: str) -> None:
    (tmp_path / "plain.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "packed.json.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("plain.json", "packed.json.gz"):
        records = read_records(tmp_path / name)
        assert [record.value for record in records] == [{"a": 1}, {"a": 2}]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip
OBJECTS = st.lists(st.dictionaries(st.text('abc"\\{}[],\n\té数'), JSON), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(OBJECTS, st.sampled_from([None, 0, 1]), st.booleans())
def test_an_array_is_read_as_json_reads_it(
    objects: list[dict[str, Any]], indent: int | None, escape: bool
) -> None:
    text = json.dumps(objects, indent=indent, ensure_ascii=escape)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "array.json"
        file.write_text(text, encoding="utf-8", newline="")
        assert [record.value for record in read_records(file)] == json.loads(text)


def test_each_split_reads_its_own_file(tmp_path: Path) -> None:
    files: dict[str, str] = {}
    for target, split in enumerate(Split):
        (tmp_path / f"{split}.jsonl").write_text(line(target=target))
        files[split.value] = str(tmp_path / f"{split}.jsonl")
    task = countdown(**files)
    assert [task.examples(split)[0].fields["target"] for split in Split] == [0, 1, 2]


def test_a_sudoku_file_is_read(file: Path) -> None:
    file.write_text(json.dumps({"puzzle": PUZZLE, "ground_truth_answer": SOLVED}))
    (example,) = sudoku(train=str(file)).examples(Split.train)
    assert (example.key, example.prompt) == (f"sudoku:{PUZZLE}", PUZZLE)


# Files that cannot be read


@pytest.mark.parametrize("name", ["none.jsonl", "."])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(DataError) as caught:
        countdown(test=str(path)).examples(Split.test)
    assert str(caught.value) == f"{path}: no such data file"


@pytest.mark.parametrize("content", ["", " ", "\n\n \t\n", " " * 5000, "[]", " [ ] "])
def test_an_empty_file_is_an_error(file: Path, content: str) -> None:
    assert error_of(file, content) == " the data file is empty"


def test_a_file_that_is_not_utf8_is_an_error(file: Path) -> None:
    latin = line().encode() + b'\n{"name": "caf\xe9"}\n'
    position = latin.index(b"\xe9")
    assert error_of(file, latin) == f"2: not UTF-8 at byte {position}; convert it to UTF-8"
    assert "1: not UTF-8 at byte 0;" in error_of(file, "[]".encode("utf-16"))
    late = (line() + "\n").encode() * 10_000 + b"\xff"  # behind what one read takes
    assert error_of(file, late).startswith(f"10001: not UTF-8 at byte {len(late) - 1};")
    array = b"[" + (line() + ",\n").encode() * 10_000 + b"\xff"
    assert error_of(file, array).startswith(f"10001: not UTF-8 at byte {len(array) - 1};")


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"no" + b, lambda b: b[:20] + b"!"])
def test_a_damaged_gz_file_is_an_error(tmp_path: Path, damage: Any) -> None:
    file = tmp_path / "train.jsonl.gz"
    whole = gzip.compress("\n".join(line(target=i) for i in range(99)).encode())
    assert "not a whole .gz file" in error_of(file, damage(whole))


@pytest.mark.parametrize(
    ("content", "number"),
    [
        ("{", 1),
        ("numbers,target\n3 9 5,11\n", 1),
        ("\0", 1),
        (line() + "\n{'numbers': [1, 2]}\n", 2),
        (line() + "\n\n" + line()[:-1], 3),
        (line() + line(), 1),
        ("[" + line() + "\n" + line() + "]", 2),
        ("[" + line() + ",\n{]", 2),
        ("[" + line() + ",\n" + line()[:-1], 2),
        ("[" + line() + ",\n" + line() + ",\n]", 3),
        ("[" + line(), 1),
        ("[" + line() + "]\n[1]", 2),
    ],
)
def test_what_is_not_json_is_named_by_line(file: Path, content: str, number: int) -> None:
    assert re.match(rf"{number}: not JSON: .* at column \d+$", error_of(file, content))


@pytest.mark.parametrize(
    "content",
    [
        '{"numbers": ' + "[" * 100_000,
        "[" * 100_000,
        '{"target": ' + "1" * 5000 + "}",
        '[{"target": ' + "1" * 5000 + "}]",
    ],
    ids=["deep line", "deep array", "huge number in a line", "huge number in an array"],
)
def test_json_that_python_refuses_is_a_data_error(file: Path, content: str) -> None:
    assert "not JSON" in error_of(file, content)


@pytest.mark.parametrize(
    ("record", "kind"),
    [("3", "int"), ('"text"', "str"), ("null", "NoneType"), ("true", "bool"), ("1.5", "float")],
)
def test_a_record_that_is_no_object_is_named(file: Path, record: str, kind: str) -> None:
    reason = f"a record is a JSON object, not {kind}"
    assert error_of(file, f"{line()}\n{record}\n") == f"2: {reason}"
    assert error_of(file, f"[{line()},\n{record}]") == f" record 2: {reason}"


def test_a_list_within_an_array_is_no_record(file: Path) -> None:
    said = error_of(file, f"[{line()}, [1]]")
    assert said == " record 2: a record is a JSON object, not list"


@pytest.mark.parametrize("half", ["\\ud800", "\\uDFFF", "\\ud83d \\ude00"])
def test_half_a_character_is_refused(file: Path, half: str) -> None:
    text = f'{{"numbers": [3, 9, 5], "target": 11, "note": "{half}"}}'
    code = half[2:6].lower()
    reason = f"\\u{code} without its other half is no character"
    assert error_of(file, text) == f"1: {reason}"
    assert error_of(file, f"[{text}]") == f" record 1: {reason}"
    file.write_text('{"numbers": [3, 9, 5], "target": 11, "note": "\\ud83d\\ude00"}')
    assert len(countdown(train=str(file)).examples(Split.train)) == 1


# Records with a fault


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"target": None}, "target: missing"),
        ({"target": "11"}, "target: '11' is not an integer"),
        ({"target": 11.0}, "target: 11.0 is not an integer"),
        ({"target": True}, "target: True is not an integer"),
        ({"target": [11]}, "target: [11] is not an integer"),
        ({"target": 10**9 + 1}, "target: 1000000001 is not within -1000000000..1000000000"),
        ({"target": -(10**9) - 1}, "target: -1000000001 is not within -1000000000..1000000000"),
        ({"numbers": None}, "numbers: None is not a list of two or more integers"),
        ({"numbers": "3 9 5"}, "numbers: '3 9 5' is not a list of two or more integers"),
        ({"numbers": []}, "numbers: [] is not a list of two or more integers"),
        ({"numbers": [3]}, "numbers: [3] is not a list of two or more integers"),
        ({"numbers": {"3": 9}}, "numbers: {'3': 9} is not a list of two or more integers"),
        ({"numbers": [3, False]}, "numbers: False is not an integer of at most nine digits"),
        ({"numbers": [3, "9"]}, "numbers: '9' is not an integer of at most nine digits"),
        ({"numbers": [3, 9.0]}, "numbers: 9.0 is not an integer of at most nine digits"),
        (
            {"numbers": [3, -(10**9)]},
            "numbers: -1000000000 is not an integer of at most nine digits",
        ),
        ({"numbers": [3, 10**9]}, "numbers: 1000000000 is not an integer of at most nine digits"),
    ],
)
def test_a_countdown_field_fault_is_named(file: Path, changes: Any, reason: str) -> None:
    assert error_of(file, f"{line()}\n{line(**changes)}\n") == f"2: {reason}"
    assert error_of(file, f"[{line()},{line(**changes)}]") == f" record 2: {reason}"


NO_PUZZLE = "is not 16 digits from 0 to 4 or 81 from 0 to 9"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"puzzle": None}, "puzzle: missing"),
        ({"puzzle": ""}, "puzzle: '' is not a non-empty string"),
        ({"puzzle": 34}, "puzzle: 34 is not a non-empty string"),
        ({"puzzle": PUZZLE[1:]}, f"puzzle: '{PUZZLE[1:]}' {NO_PUZZLE}"),
        ({"puzzle": PUZZLE + "0"}, f"puzzle: '{PUZZLE}0' {NO_PUZZLE}"),
        ({"puzzle": "5" + PUZZLE[1:]}, f"puzzle: '5{PUZZLE[1:]}' {NO_PUZZLE}"),
        ({"puzzle": "_" + PUZZLE[1:]}, f"puzzle: '_{PUZZLE[1:]}' {NO_PUZZLE}"),
        ({"puzzle": "２" + PUZZLE[1:]}, f"puzzle: '２{PUZZLE[1:]}' {NO_PUZZLE}"),
        ({"ground_truth_answer": None}, "ground_truth_answer: missing"),
        ({"ground_truth_answer": PUZZLE}, f"ground_truth_answer: '{PUZZLE}' is not a solved grid"),
        ({"ground_truth_answer": "1234"}, "ground_truth_answer: '1234' is not a solved grid"),
        ({"ground_truth_answer": ROWS}, f"ground_truth_answer: '{ROWS}' is not a solved grid"),
        (
            {"puzzle": "2" + PUZZLE[1:]},
            f"ground_truth_answer: '{SOLVED}' does not fit the puzzle",
        ),
    ],
)  # fmt: skip
def test_a_sudoku_field_fault_is_named(file: Path, changes: Any, reason: str) -> None:
    good = {"puzzle": PUZZLE, "ground_truth_answer": SOLVED}
    bad = {field: value for field, value in (good | changes).items() if value is not None}
    content = f"{json.dumps(good)}\n{json.dumps(bad)}\n"
    assert error_of(file, content, sudoku) == f"2: {reason}"


@pytest.mark.parametrize("value", [0, 5, 10])
def test_an_integer_within_its_range_is_taken(value: int) -> None:
    assert integer({"n": value}, "n", 0, 10) == value


@pytest.mark.parametrize("value", [-1, 11, True, False, 1.0, "1", None, []])
def test_anything_else_is_not_an_integer_of_the_range(value: object) -> None:
    with pytest.raises(ValueError, match=r"^n: .* is not "):
        integer({"n": value}, "n", 0, 10)


@pytest.mark.parametrize("value", ["", 1, True, None, ["a"]])
def test_only_a_non_empty_string_is_a_string(value: object) -> None:
    assert string({"s": " "}, "s") == " "
    with pytest.raises(ValueError, match=r"^s: .* is not a non-empty string$"):
        string({"s": value}, "s")


# A task that has no problems of its own


class FileTask(Task):
    """Reads its problems from files, as math and code do."""

    def example(self, record: dict[str, object]) -> Any:
        raise NotImplementedError

    def score(self, example: Any, text: str) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_task_without_its_file_says_what_to_set(split: str) -> None:
    task = FileTask(TaskConfig(name="math", prompt="{question}", gen_length=256))
    with pytest.raises(DataError) as caught:
        task.examples(Split(split))
    assert str(caught.value) == f"task=math needs a data file: set task.files.{split}=FILE"
