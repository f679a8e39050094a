"""The gate against leaks: what counts as the same problem, and what it says."""

import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from drift.common.errors import DataError
from drift.config.task import FilesConfig, Split, TaskConfig
from drift.tasks import Task
from drift.tasks.base import own_words
from drift.tasks.contamination import Problem, check_overlap, matches, plain, word_runs
from tests.unit.tasks.test_task_files import Echo, questions

LONG = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in "
    "May. How many clips did Natalia sell altogether in April and May?"
)
DATA = os.environ.get("DRIFT_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="DRIFT_DATA names no folder of raw files")


def problems(*texts: str) -> list[Problem]:
    return [Problem(key=f"{i}:{text}", text=text) for i, text in enumerate(texts)]


def why(train: str, held_out: str, *, written: bool = True) -> str | None:
    """Why two texts are taken for the same, None if they are not."""
    ours = [Problem(key="ours", text=train)]
    theirs = [Problem(key="theirs", text=held_out)]
    found = matches(ours, theirs, written=written)
    return found[0].why if found else None


@pytest.mark.parametrize(
    "changed",
    [
        LONG,
        LONG.upper(),
        LONG.replace(" ", "\n  "),
        LONG.replace(",", "").replace(".", ";").replace("?", ""),
        "  " + LONG.replace("Natalia", "“Natalia”") + " ",
        LONG.replace("48", "４８"),  # full-width digits
    ],
)
def test_a_copy_is_found_whatever_its_case_blanks_and_punctuation(changed: str) -> None:
    assert why(changed, LONG) == "same text"


def test_of_generated_problems_the_whole_text_counts() -> None:
    assert why(f" {LONG}\n", LONG, written=False) == "same text"
    for changed in (LONG.upper(), LONG.replace(",", ""), LONG + " Think."):
        assert why(changed, LONG, written=False) is None


@pytest.mark.parametrize(
    "changed",
    [
        LONG.replace(" and May?", " and May in total?"),
        "Here is a problem. " + LONG + " Think step by step.",
        LONG.replace("Natalia", "Anna"),
        LONG.replace(" ", "-"),
        LONG.replace(",", ", (that is)"),
    ],
)
def test_a_copy_with_other_words_around_is_found_by_13_words(changed: str) -> None:
    assert len(str(why(changed, LONG)).split()) == 13


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is $3-2$?", "What is $3+2$?"),
        ("What is 3.5?", "What is 35?"),
        ("3 9 5=11", "39 5=11"),
        ("3 9 5=11", "3 9 51=1"),
        ("f(1,2)", "f(12)"),
        ("Compute $(-1)^3$.", "Compute $(1)^3$."),
        ("balance ([)]", "balance [()]"),
        (". # . #", "# . # ."),
        ("a_1", "a1"),
    ],
)
def test_short_problems_that_differ_in_a_sign_are_different(one: str, other: str) -> None:
    assert why(one, other) is None


def test_short_problems_are_compared_as_a_whole() -> None:
    assert why("what is  $3-2$", "What is $3-2$?") == "same text"
    assert why("3 9 5 = 11", "3 9 5=11") == "same text"
    words = "one two three four five six seven eight nine ten eleven twelve"
    assert why(words + " x", "y " + words) is None  # twelve
    assert why(words + " 13 x", "y " + words + " 13") == words + " 13"


def test_an_empty_text_is_no_copy() -> None:
    assert why("", " ") is None


def test_equal_keys_are_the_same_problem() -> None:
    train, test = (Problem(key="countdown:3,5,9:11", text=t) for t in ("3 9 5=11", "5 3 9=11"))
    (match,) = matches([train], [test], written=False)
    assert (match.train, match.held_out, match.why) == (0, 0, "same problem")


def test_words_that_many_training_texts_share_are_no_leak() -> None:
    phrase = "please reason step by step and put your final answer within a box now"
    held_out = problems(f"Who? {phrase}")
    ten = [f"Problem {i} {phrase}" for i in range(10)]
    assert len(matches(problems(*ten), held_out, written=True)) == 10
    assert matches(problems(*ten, f"One more {phrase}"), held_out, written=True) == []
    copies = [f"Problem 0 {phrase}"] * 20  # one text, often
    assert len(matches(problems(*copies), held_out, written=True)) == 20


def test_the_words_of_the_prompts_template_do_not_count() -> None:
    template = "{question}\nPlease reason step by step, and put your answer within \\boxed{{}}."
    prompt = template.format(question="Who?")
    assert own_words(prompt, template).strip() == "Who?"
    assert own_words("3 9 5=11", "{numbers}={target}") == "3 9 5=11"


@given(st.text())
def test_any_text_can_be_compared(text: str) -> None:
    assert plain(plain(text)) == plain(plain(plain(text)))
    assert all(len(run.split(" ")) == 13 for run in word_runs(text))


SENTENCES = st.lists(st.sampled_from("abc"), min_size=12, max_size=30).map(" ".join)


@given(st.lists(SENTENCES, max_size=4), st.lists(SENTENCES, max_size=4))
def test_matches_are_those_of_a_plain_search(train: list[str], held_out: list[str]) -> None:
    def same(one: str, other: str) -> bool:
        a, b = one.split(), other.split()
        runs = [a[i : i + 13] for i in range(len(a) - 12)]
        return a == b or any(b[j : j + 13] in runs for j in range(len(b) - 12))

    expected = [
        (i, j) for i, one in enumerate(train) for j, other in enumerate(held_out)
        if same(one, other)
    ]  # fmt: skip
    found = matches(problems(*train), problems(*held_out), written=True)
    assert [(match.train, match.held_out) for match in found] == expected


# The gate


def echo(tmp_path: Path, train: list[str], test: list[str]) -> tuple[Task, dict[Split, list]]:
    """A task of the two data files and its examples; validation is one problem of its own."""
    files = FilesConfig(
        train=questions(tmp_path / "train.jsonl", *train),
        validation=questions(tmp_path / "validation.jsonl", "never asked"),
        test=questions(tmp_path / "test.jsonl", *test),
    )
    prompt = "{question}\nPlease reason step by step and put your final answer within \\boxed{{}}."
    task = Echo(TaskConfig(name="echo", prompt=prompt, gen_length=8, files=files))
    return task, {split: task.examples(split) for split in Split}


def test_no_leak_gives_the_figures(tmp_path: Path) -> None:
    task, examples = echo(tmp_path, ["a b", LONG], ["c d", "e f"])
    assert check_overlap(task, examples, 0.0) == {
        "validation": {"n": 1, "in_train": 0, "written": True},
        "test": {"n": 2, "in_train": 0, "written": True},
    }


def test_a_leak_is_refused_with_the_first_cases_and_the_fix(tmp_path: Path) -> None:
    leaked = [f"What is {i} and {i}?" for i in range(5)]
    task, examples = echo(tmp_path, ["own", LONG.upper(), *leaked], [LONG, "other", *leaked])
    with pytest.raises(DataError) as caught:
        check_overlap(task, examples, 0.5)
    said = str(caught.value)
    assert said.startswith("6 of the 7 test problems (85.7%) are in train, data.max_overlap=0.5; ")
    shown = f'"{LONG[:57]}..."'
    assert f"; train 2 {shown.upper()} is 1 {shown}: same text; train 3 " in said
    assert said.count("is 0 and 0") == 2
    assert "What is 2 and 2" not in said  # three cases are enough
    assert f"take them out of {tmp_path}/train.jsonl" in said
    assert f"exclude=[{tmp_path}/test.jsonl]" in said
    assert "\n" not in said
    figures = check_overlap(task, examples, 6 / 7)
    assert figures["test"] == {"n": 7, "in_train": 6, "written": True}


def test_half_of_a_test_set_in_train_is_refused(tmp_path: Path) -> None:
    """248 of the 500 questions of MATH500 stand in a training file that was published."""
    rng = random.Random(0)
    names = [f"Find {rng.randrange(10**9)} in $x^{i}$." for i in range(500)]
    train = [*names[:248], *(f"Add {i} to it." for i in range(1000))]
    task, examples = echo(tmp_path, train, names)
    with pytest.raises(DataError, match=r"^248 of the 500 test problems \(49\.6%\) are in train"):
        check_overlap(task, examples, 0.0)


# Real data


def texts(name: str) -> list[str]:
    lines = (Path(DATA or "") / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines]


@needs_data
def test_gsm8ks_train_and_test_share_three_sentences() -> None:
    train, test = texts("gsm8k_train.jsonl"), texts("gsm8k_test.jsonl")
    found = matches(problems(*train), problems(*test), written=True)
    shared = {test[match.held_out][:24]: train[match.train][:28] for match in found}
    assert len(found) == 4
    assert shared == {
        "Max bought stamps at the": "Bella bought stamps at the p",
        "Max plans to watch two m": "Joseph and his friends watch",
        "A plane travels 1200 mil": "A train travels 360 miles in",
    }
