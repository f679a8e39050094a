"""The numbers of an evaluation against brute force, and the table that shows them."""

from itertools import combinations, product
from math import comb
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from drift.common.files import digest
from drift.common.stats import bootstrap, mcnemar, pass_at_k, wilson
from drift.evals.cell import CellState
from drift.evals.results import (
    ProtocolResults,
    compare,
    majority,
    markdown,
    metrics,
    outcomes,
    powers,
    short_names,
    summarize,
)
from drift.rollout.evaluate import Completion


def completion(key: str, sample: int = 0, answer: str | None = "7", correct: bool = False):
    return Completion(
        key=key, prompt=key, sample=sample, completion=str(answer), answer=answer, correct=correct,
        verdict="pass" if correct else "wrong", nfe=4, length=3, tokens=8, finished=correct,
    )  # fmt: skip


def samples(key: str, *answers: str | None, right: str = "7") -> list[Completion]:
    return [completion(key, i, a, a == right) for i, a in enumerate(answers)]


# ---- statistics


@pytest.mark.parametrize(("n", "correct", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 6)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(n: int, correct: int, k: int):
    draws = list(combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_pass_at_k_is_unbiased(sizes: tuple[int, int]) -> None:
    """Its mean over n completions of a fair coin is the chance of a right one among k."""
    n, k = sizes
    mean = sum(comb(n, c) * pass_at_k(n, c, k) for c in range(n + 1)) / 2**n
    assert mean == pytest.approx(1 - 0.5**k)


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_refuses_what_is_not_defined(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {correct}"):
        pass_at_k(n, correct, k)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 3), (2, 9), (0, 7)])
def test_mcnemar_counts_the_tosses_that_are_as_uneven(b: int, c: int) -> None:
    tosses = [abs(sum(t) - (b + c) / 2) for t in product((0, 1), repeat=b + c)]
    extreme = sum(t >= abs(b - (b + c) / 2) for t in tosses) / len(tosses)
    assert mcnemar(b, c) == mcnemar(c, b) == pytest.approx(extreme)


def test_mcnemar_agrees_with_scipy_on_large_counts() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    assert mcnemar(431, 380) == pytest.approx(scipy_stats.binomtest(380, 811).pvalue)


def test_the_bootstrap_agrees_with_wilson_on_a_share() -> None:
    values = [1.0] * 300 + [0.0] * 700
    assert bootstrap(values) == pytest.approx(wilson(300, 1000), abs=2e-3)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap([0.25]) == (0.25, 0.25)
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap([])


def test_the_bootstrap_holds_the_mean_as_often_as_it_says() -> None:
    """200 samples of 100 problems from a known distribution: 95 % -+ 4 standard errors."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(200, 100, generator=generator).tolist()
    held = 0
    for values in draws:
        low, high = bootstrap(values, resamples=500)
        held += low <= 0.5 <= high
    assert 0.95 - 4 * 0.0154 <= held / 200 <= 1.0


# ---- a cell


def test_a_majority_is_found_among_the_answers() -> None:
    def vote(*answers: str | None) -> str | None:
        winner = majority(samples("p", *answers))
        return winner and winner.answer

    assert vote("3", "7", "7") == "7"
    assert vote("3", "1 / 2", "1/2") == "1 / 2"  # the same but for white space
    assert vote("3", "7", "7", "3") == "3"  # of equals the first drawn
    assert vote(None, None, "5") == "5"  # no answer is no vote
    assert vote(None, None) is None


def test_a_cell_of_four_samples() -> None:
    rows = [
        *samples("a", "7", "7", "3", None),
        *samples("b", "1", "1", "7", "2"),
        *samples("c", "2", None, None, None),
    ]
    found = summarize(rows, decode_s=2.0)
    assert (found["n"], found["samples"]) == (3, 4)
    assert found["accuracy"] == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    assert found["pass_at"]["2"]["value"] == pytest.approx((5 / 6 + 1 / 2 + 0) / 3)
    assert found["pass_at"]["4"]["value"] == pytest.approx(2 / 3)
    assert found["majority"]["value"] == pytest.approx(1 / 3)
    assert found["truncated_frac"] == pytest.approx(9 / 12)
    assert found["tokens_per_s"] == 12 * 8 / 2.0
    assert found["verdicts"] == {"wrong": 9, "pass": 3}
    assert metrics(found)["eval/majority_4"] == pytest.approx(1 / 3)
    assert metrics(found)["eval/pass_2"] == found["pass_at"]["2"]["value"]


def test_a_cell_of_one_sample_has_wilsons_interval_and_no_votes() -> None:
    found = summarize([completion("a", correct=True), completion("b")], decode_s=1.0)
    assert found["ci95"] == list(wilson(1, 2))
    assert "pass_at" not in found
    assert "majority" not in found


def test_the_k_that_are_reported() -> None:
    assert {n: powers(n) for n in (1, 2, 3, 8, 10)} == {
        1: [], 2: [2], 3: [2, 3], 8: [2, 4, 8], 10: [2, 4, 8, 10],
    }  # fmt: skip


# ---- two checkpoints


def test_two_checkpoints_are_compared_problem_by_problem() -> None:
    before = [completion(key, correct=key in "abc") for key in "abcdef"]
    after = [completion(key, correct=key in "bcde") for key in "bcdefa"]  # another order
    found = compare(before, after)
    assert (found["n"], found["only_first"], found["only_second"]) == (6, 1, 2)
    assert found["difference"] == pytest.approx(1 / 6)
    assert found["p"] == mcnemar(1, 2)
    low, high = found["ci95"]
    assert low <= found["difference"] <= high


def test_a_problem_that_one_of_them_lacks_is_left_out() -> None:
    assert compare([completion("a"), completion("b")], [completion("b", correct=True)])["n"] == 1
    assert compare([completion("a")], [completion("b")]) == {"n": 0}


def test_a_problem_that_a_file_holds_twice_is_two_problems() -> None:
    rows = [completion("a", correct=True), completion("a")]
    assert outcomes(rows) == {("a", 0): (1, 1), ("a", 1): (0, 1)}


def test_several_samples_have_a_difference_and_no_p() -> None:
    found = compare(samples("a", "7", "3"), samples("a", "7", "7"))
    assert found["difference"] == 0.5
    assert "p" not in found


def test_names_are_shown_without_the_folders_they_share() -> None:
    assert short_names(["run/checkpoints/step_1", "run/checkpoints/step_2"]) == ["step_1", "step_2"]
    assert short_names(["data/tiny", "run/step_2"]) == ["data/tiny", "run/step_2"]
    assert short_names(["/a/b", "c"]) == ["/a/b", "c"]
    assert short_names(["a", "a/b"]) == ["a", "a/b"]
    assert short_names(["one"]) == ["one"]


def test_the_table_shows_every_number(tmp_path: Path) -> None:
    protocol = {
        "task": "math", "split": "test", "problems": {"n": 2, "sha256": "0" * 64}, "samples": 1,
        "seed": 0, "dtype": "bfloat16", "prompt": "{question}", "system": None, "grader": "Math",
        "grading": {}, "end_rule": "stop", "decoding": {"gen_length": 256, "steps": 128},
    }  # fmt: skip
    rows = [[completion(k, correct=k in right) for k in "ab"] for right in ("", "ab|")]
    cells = [
        CellState(
            checkpoint=name, path=name, position=i, summary=summarize(rows[i], 0.5),
            stop_tokens=["</s>"], first_prompt="a",
        )
        for i, name in enumerate(("base", "x|y"))
    ]  # fmt: skip
    compared = [{"first": "base", "second": "x|y", **compare(*rows)}]
    text = markdown([ProtocolResults(protocol=protocol, cells=cells, comparisons=compared)])
    place = f"| math | 256 | 128 | {digest(protocol)} |"
    assert f"{place} base | 0.000 [0.000, 0.658] | 2 | 4.0 | 32 | 1.000 |" in text
    assert f"{place} base | x\\|y | +1.000 [+1.000, +1.000] | 2 | 0 | 0.5 |" in text
    assert "stop tokens </s>" in text
