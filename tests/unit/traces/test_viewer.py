"""The trace page: what is in the file, and the rows that are made from a rollout."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from drift.common import rng
from drift.common.types import Advantages, Rollout, Score
from drift.config.masking import SequentialConfig
from drift.learner.masking import build_views
from drift.policy.base import Policy
from drift.policy.loading import load_policy
from drift.rollout.decoding import decode
from drift.traces.page import TraceRow, View, replay, trace_rows, write_trace
from drift.traces.rows import views_of
from tests.conftest import ROOT, make_rollout, make_trace, masking, planes, rollout_config

NASTY = [
    "</script>",
    '"',
    "'",
    "\u2028",
    "<img src=x onerror=alert(1)>",
    "<!--",
    "\\",
    "{{data}}",
    "\ud800",
]


def row(**changes: object) -> TraceRow:
    """Three tokens: the second was committed first, the third never."""
    values: dict[str, object] = {
        "label": "correct",
        "prompt": "3 9 5=7",
        "tokens": ["9", " +", "x"],
        "steps": [1, 0, -1],
        "logps": [-0.1, -0.7, 0.0],
        "length": 2,
    }
    return TraceRow(**(values | changes))  # type: ignore[arg-type]


def embedded(page: str) -> dict[str, object]:
    """The data of a page, read as a browser does: up to the first end of the element."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


# ---- the file


@given(st.lists(st.text() | st.sampled_from(NASTY), min_size=1, max_size=5), st.text())
def test_any_text_comes_back_as_it_was(tmp_path_factory, tokens: list[str], title: str) -> None:
    path = tmp_path_factory.mktemp("traces") / "trace.html"
    size = len(tokens)
    shown = row(
        prompt="".join(tokens), tokens=tokens, steps=[0] * size, logps=[-0.5] * size, length=size
    )
    write_trace(path, [shown], title=title)
    data = embedded(path.read_text(encoding="utf-8"))
    assert data["title"] == title
    assert data["rows"][0]["tokens"] == tokens  # type: ignore[index]
    assert data["rows"][0]["prompt"] == "".join(tokens)  # type: ignore[index]


def test_text_stands_in_the_page_without_a_bracket(tmp_path: Path) -> None:
    """Before the style and behind the script, the page is the template's own markup."""
    write_trace(tmp_path / "nasty.html", [row(prompt="".join(NASTY))], title="".join(NASTY))
    page = (tmp_path / "nasty.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert "\u2028" not in page.split('id="data">')[1]


def test_every_number_is_in_the_page(tmp_path: Path) -> None:
    full = row(
        entropies=[0.25, 1.0, 0.0],
        alternatives=[[("9", 0.905), ("3", 0.0951234567)], [(" +", 0.4966)], []],
        advantage=-0.70711,
        reward=1.0,
        views=[View(hidden=[True, False, True], scored=[True, False, False])],
        source="step_000080",
    )
    write_trace(tmp_path / "trace.html", [full, row(logps=[math.nan, -math.inf, 0.0])], title="t")
    first, second = embedded((tmp_path / "trace.html").read_text())["rows"]  # type: ignore[misc]
    assert first == {
        "label": "correct",
        "source": "step_000080",
        "prompt": "3 9 5=7",
        "tokens": ["9", " +", "x"],
        "length": 2,
        "steps": [1, 0, -1],
        "logps": [-0.1, -0.7, 0.0],
        "entropies": [0.25, 1.0, 0.0],
        "alternatives": [[["9", 0.905], ["3", 0.09512]], [[" +", 0.4966]], []],
        "advantage": -0.70711,
        "reward": 1.0,
        "views": [{"hidden": "101", "scored": "100"}],
    }
    assert second["logps"] == [None, None, 0.0]
    assert second["views"] is None


def test_the_page_asks_nothing_of_a_network(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.html", [row()], title="t")
    page = (tmp_path / "trace.html").read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|url\(|@import|src=", page.replace("img-src data:", ""))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": [0, 1]}, "steps has 2 entries for 3 tokens"),
        ({"logps": [0.0] * 4}, "logps has 4 entries for 3 tokens"),
        ({"entropies": []}, "entropies has 0 entries for 3 tokens"),
        ({"alternatives": [[]]}, "alternatives has 1 entries for 3 tokens"),
        (
            {"views": [View(hidden=[True] * 3, scored=[True] * 2)]},
            r"views\[0\].scored has 2 entries for 3 tokens",
        ),
        ({"length": 4}, "length=4 is not within 0..3"),
        ({"steps": [0, -2, 0]}, "steps holds -2"),
    ],
)
def test_a_row_whose_parts_do_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row(**changes)


def test_a_page_needs_a_row_and_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        write_trace(tmp_path / "trace.html", [], title="t")
    assert list(tmp_path.iterdir()) == []


# ---- rows from a rollout


def test_replay_finds_the_log_probs_of_the_sampler(policy: Policy) -> None:
    """Without a cache the words at commit are exactly what the sampler drew from."""
    prompts = [[5, 6, 7], [8, 9], [5, 6, 7, 8, 9]]
    config = rollout_config(temperature=0.7, top_k=None)
    trace = decode(policy, prompts, torch.arange(3), config, rng.stream(0, "test"))
    rollout = make_rollout(prompts, trace, temperature=0.7)
    entropy_BC, probs_BCV, ids_BCV = replay(policy, rollout, 12, rows_per_forward=2)
    chosen_BC = (probs_BCV * (ids_BCV == trace.canvas_BC[..., None])).sum(-1)
    committed = trace.committed_BC
    torch.testing.assert_close(chosen_BC[committed].log(), trace.logp_BC[committed])
    torch.testing.assert_close(
        entropy_BC[committed], torch.special.entr(probs_BCV).sum(-1)[committed]
    )
    assert not entropy_BC[~committed].any()
    assert (probs_BCV.diff(dim=-1) <= 0).all()


@pytest.fixture(scope="module")
def tiny() -> Policy:
    return load_policy(ROOT / "data" / "tiny-countdown")


def tiny_rollout(policy: Policy) -> Rollout:
    ids = policy.tokenizer("7+3\n", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4
    trace = make_trace(
        [[0, 1, 1, 2], [1, 0, -1, -1]],
        canvas=[ids, [ids[0], policy.special.stop[0], 1, 1]],
        logp=[[-0.1, -0.2, -0.3, -0.4], [-0.5, -0.6, 0.0, 0.0]],
    )
    rollout = make_rollout([[9, 10]], trace, group_size=2)
    scores = [
        Score(reward=1.0, correct=True, answer="7+3", verdict="pass"),
        Score(reward=0.1, correct=False, answer=None, verdict="no_answer"),
    ]
    return replace(rollout, scores=scores)


def test_rows_hold_what_the_rollout_holds(tiny: Policy) -> None:
    rollout = tiny_rollout(tiny)
    config = masking(SequentialConfig, num_views=2)
    views = build_views(rollout.trace, rollout.rows_B, config, 0)
    views = views.keep(~views.candidate_N)
    advantages = Advantages(
        values_B=torch.tensor([0.5, -0.5]), used_B=torch.ones(2).bool(), zero_variance_groups=0
    )
    first, second = trace_rows(
        tiny,
        rollout,
        source="a",
        advantages=advantages,
        views=[views_of(views, row) for row in range(2)],
        num_alternatives=3,
    )
    assert (first.label, second.label) == ("correct", "wrong")
    assert first.tokens == ["7", "+", "3", "\n"]
    assert second.tokens[1] == "<|endoftext|>"
    assert first.steps == [0, 1, 1, 2]
    assert second.logps == pytest.approx([-0.5, -0.6, 0.0, 0.0])
    assert (second.length, second.reward, second.advantage) == (2, 0.1, -0.5)
    assert first.source == "a"
    found = planes(views, 2, 4)
    for b, row in enumerate((first, second)):
        assert row.views is not None
        assert [v.hidden for v in row.views] == found["hidden"][:, b].tolist()
        assert [v.scored for v in row.views] == found["scored"][:, b].tolist()
    assert first.alternatives is not None
    assert [len(words) for words in first.alternatives] == [3, 3, 3, 3]


def test_an_ungraded_rollout_makes_rows_without_grades(tiny: Policy) -> None:
    rows = trace_rows(tiny, replace(tiny_rollout(tiny), scores=[]))
    assert [(r.label, r.reward, r.entropies, r.views) for r in rows] == [("", None, None, None)] * 2
