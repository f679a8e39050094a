"""Fixtures: toy policies, hand-made traces, and commands run as a user runs them."""

import functools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch
from torch import Tensor

from drift.common.types import Example, MaskedViews, PromptBatch, Rollout, Score, Trace
from drift.config.masking import MaskingConfig, ReplayConfig
from drift.config.objective import ObjectiveConfig, ReinforceConfig
from drift.config.rollout import RolloutConfig, StaticConfig
from drift.learner.masking import build_views
from drift.learner.masking.views import number_of
from drift.policy.backbone import Backbone, BackboneConfig
from drift.policy.base import Policy, SpecialIds
from drift.policy.loading import FAMILIES
from tests.forkserver import ROOT as ROOT, Done, command, start

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# a script's background job, as CI may be, ignores ctrl-c and hands that down to what tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
# a slow machine fails no example, and a change fails at once or not at all
hypothesis.settings.register_profile("drift", deadline=None, derandomize=True)
hypothesis.settings.load_profile("drift")
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


def make_policy(
    family: str = "llada", *, vocab_size: int = 12, seed: int = 0, hidden_size: int = 16
) -> Policy:
    """Random weights; mask id 1, padding 0, stop ids 0 and 2; blocks of 4 where they are causal."""
    config = BackboneConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4 if family in ("llada", "stable_diffcoder") else 2,
        mlp_size=32,
        rope_theta=10_000.0,
        norm_eps=1e-5,
        max_positions=64,
        qkv_bias=family in ("dream", "fast_dllm_v2"),
        tie_head=False,
        head_size=6 if family == "sdar" else hidden_size // 4,
        qk_norm=family == "sdar",
        block_length=0 if family in ("llada", "dream") else 4,
        shift=family in ("dream", "fast_dllm_v2"),
    )
    backbone = Backbone(config)
    backbone.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    return Policy(backbone, FAMILIES[family], SpecialIds(mask=1, pad=0, stop=(0, 2)))


@pytest.fixture(params=["dream", "llada"])
def policy(request: pytest.FixtureRequest) -> Policy:
    return make_policy(request.param)


def rollout_config(kind: type[RolloutConfig] = StaticConfig, **changes: object) -> RolloutConfig:
    values: dict[str, object] = {
        "gen_length": 8,
        "block_length": 4,
        "steps": 8,
        "max_rows": 4,
    }
    return kind(**(values | changes))  # type: ignore[arg-type]


def make_trace(
    unmask_step: list[list[int]],
    *,
    canvas: list[list[int]] | None = None,
    logp: list[list[float]] | None = None,
) -> Trace:
    """A trace from its unmask steps; canvas and log-probs where a test needs them."""
    step_BC = torch.tensor(unmask_step)
    canvas_BC = torch.full_like(step_BC, 5) if canvas is None else torch.tensor(canvas)
    return Trace(
        prompt_length_B=torch.ones(len(step_BC), dtype=torch.int64),
        canvas_BC=canvas_BC,
        unmask_step_BC=step_BC,
        logp_BC=torch.zeros(step_BC.shape) if logp is None else torch.tensor(logp),
        length_B=(step_BC >= 0).sum(1),
        finished_B=torch.ones(len(step_BC), dtype=torch.bool),
        nfe_B=step_BC.amax(1) + 1,
        commits_B=torch.zeros(len(step_BC), dtype=torch.int64),
    )


def make_rollout(
    prompts: list[list[int]], trace: Trace, *, group_size: int = 1, temperature: float = 1.0
) -> Rollout:
    rows = len(trace.canvas_BC)
    examples = [Example(key=str(i), prompt="", fields={}) for i in range(len(prompts))]
    score = Score(reward=0.0, correct=False, answer=None, verdict="wrong")
    lengths = torch.tensor([len(prompt) for prompt in prompts for _ in range(group_size)])
    trace = replace(trace, prompt_length_B=lengths[:rows])
    return Rollout(
        prompts=PromptBatch(examples=examples, ids=prompts, first_prompt=0),
        group_size=group_size,
        rows_B=torch.arange(rows),
        trace=trace,
        texts=[""] * rows,
        scores=[score] * rows,
        temperature=temperature,
        policy_version=0,
        reward_s=0.0,
    )


def replay_views(rollout: Rollout) -> MaskedViews:
    """One view for each step of the trace, scoring exactly what was committed there."""
    return build_views(rollout.trace, rollout.rows_B, ReplayConfig(), 0)


def planes(views: MaskedViews, num_views: int, size: int) -> dict[str, Tensor]:
    """Views as [K, B, C] bool: what is hidden, scored, and a candidate."""
    shape = (num_views, len(views.length_B), size)
    found = {name: torch.zeros(shape, dtype=torch.bool) for name in ("scored", "candidate")}
    found["hidden"] = torch.ones(shape, dtype=torch.bool)
    for state, (row, order) in enumerate(zip(views.row_J, views.order_J, strict=True)):
        found["hidden"][order, row] = views.hide(torch.tensor([state]))[0]
    place = (views.order_J[views.state_N], views.row_N, views.column_N)
    found["candidate"][place] = views.candidate_N
    found["scored"][place] = ~views.candidate_N
    return found


def dense(value_N: Tensor, views: MaskedViews, num_views: int, size: int) -> Tensor:
    """A value of each token of the views in its place: [K, B, C], 0 elsewhere."""
    found = value_N.new_zeros(num_views, len(views.length_B), size)
    found[views.order_J[views.state_N], views.row_N, views.column_N] = value_N
    return found


def as_views(
    scored_KBC: Tensor, *, weight_KB: Tensor | None = None, length_B: Tensor | None = None
) -> MaskedViews:
    """Views that hide and score what is said, in [K, B, C] bool; every row has K states."""
    num_views, num_rows, _ = scored_KBC.shape
    rows_B = torch.arange(num_rows)
    row_J, order_J = number_of(rows_B, num_views)
    scored_JC = scored_KBC[order_J, row_J]
    state_N, column_N = scored_JC.nonzero(as_tuple=True)
    return MaskedViews(
        row_J=row_J,
        order_J=order_J,
        hide=lambda state_M: scored_JC[state_M],
        state_N=state_N,
        column_N=column_N,
        candidate_N=torch.zeros_like(state_N, dtype=torch.bool),
        candidate_min_prob=1.0,
        length_B=scored_KBC.any(0).sum(1) if length_B is None else length_B,
        rows_B=rows_B,
        weight_J=None if weight_KB is None else weight_KB[order_J, row_J],
    )


def bools(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def objective(kind: type[ObjectiveConfig] = ReinforceConfig, **changes: object) -> ObjectiveConfig:
    return kind(**changes)  # type: ignore[arg-type]


def masking(kind: type[MaskingConfig], **changes: object) -> MaskingConfig:
    return kind(**changes)  # type: ignore[arg-type]


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `python -m drift.<command> <overrides>` in an empty folder, as a user does."""
    return functools.partial(checked, command, tmp_path)


@pytest.fixture
def run_alone(tmp_path: Path) -> Run:
    """The same by an interpreter of its own: for what depends on how one starts."""
    return functools.partial(checked, start, tmp_path)


def checked(
    how: Callable[..., Done],
    folder: Path,
    name: str,
    *words: str,
    check: bool = True,
    **environment: str,
) -> Done:
    done = how(folder, f"drift.{name}", *words, **environment)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def says(text: str, *facts: str) -> None:
    """A message has these keys, values, allowed values and fixes, whatever its other words."""
    assert [fact for fact in facts if fact not in text] == [], text


def read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def page(browser: "Browser") -> Iterator["Page"]:
    """A wide window; a test fails if its page says anything on the console or asks for more."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    yield page
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
