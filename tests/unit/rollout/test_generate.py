"""`python -m drift.generate` as a user runs it, and `drift.generate` as a library call."""

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, strategies as st
from omegaconf import OmegaConf

import drift
from drift.common.errors import ConfigError, RolloutError
from drift.common.types import Example, Trace
from drift.config.task import LongPrompts, TaskConfig
from drift.generate import literal
from drift.policy.base import Policy
from drift.policy.loading import load_policy
from drift.rollout.generate import complete, rollout_config
from drift.rollout.prompts import encode_all
from drift.rollout.screen import Screen, lines_of, style_of
from tests.conftest import ROOT

TINY = ROOT / "data" / "tiny-countdown"
ANSWER = "\\boxed{3+9+5}"  # the checkpoint's greedy one, its habit


@pytest.fixture(scope="module")
def tiny() -> Policy:
    return load_policy(TINY)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])) | st.text("\\'\"${}=, [(:\n"))
def test_what_is_typed_behind_prompt_is_the_prompt(text: str) -> None:
    override = OverridesParser.create().parse_override(literal(f"prompt={text}"))
    assert OmegaConf.create({"prompt": override.value()}).prompt == text


def test_only_texts_are_taken_literally() -> None:
    assert literal("rollout.gen_length=32") == "rollout.gen_length=32"
    assert literal("--help") == "--help"
    assert literal("prompt") == "prompt"


def test_lines_are_prompts_whatever_ends_them() -> None:
    assert lines_of("f", "\ufeffa\r\nb c \nd\u2028e".encode()) == ["a", "b c ", "d\u2028e"]


def test_a_terminal_takes_no_orders_from_a_model(tiny: Policy) -> None:
    from rich.console import Console

    screen = Screen(Console(), tiny, ["a\x1b[2J"], 1)
    canvas = tiny.tokenizer("7+3", add_special_tokens=False)["input_ids"]
    trace = Trace(
        prompt_length_B=torch.tensor([3]),
        canvas_BC=torch.tensor([[*canvas, tiny.special.mask]]),
        unmask_step_BC=torch.tensor([[0, 0, 1, -1]]),
        logp_BC=torch.tensor([[0.95, 0.7, 0.1, 1.0]]).log(),
        length_B=torch.tensor([0]),
        finished_B=torch.tensor([False]),
        nfe_B=torch.tensor([2]),
        commits_B=torch.tensor([0]),
    )
    row = screen.row(trace, 0)
    assert row.plain == "7+3·"
    assert [str(span.style) for span in row.spans] == ["cyan", "bold magenta", "dim"]
    assert style_of(0.9) == ""
    assert style_of(0.3) == "yellow"
    assert style_of(0.0) == "bold magenta"


def test_generate_completes_what_the_command_completes(tiny: Policy) -> None:
    rollout = drift.generate(tiny, "3 9 5=7", gen_length=16, block_length=8)
    assert rollout.texts == [ANSWER]
    assert rollout.scores == []
    assert rollout.prompts.examples[0].prompt == "3 9 5=7"
    assert rollout.trace.canvas_BC.shape == (1, 16)


def test_defaults_are_a_canvas_of_128_in_blocks_of_32(tiny: Policy) -> None:
    trace = drift.generate(tiny, ["3 9 5=7", "1 2 3=6"]).trace
    assert trace.canvas_BC.shape == (2, 128)
    assert all((row >= 0).sum() % 32 == 0 for row in trace.unmask_step_BC)
    assert drift.generate(tiny, "1 2 3=6", gen_length=16).trace.canvas_BC.shape == (1, 16)


def test_a_completion_does_not_depend_on_its_neighbours(tiny: Policy) -> None:
    settings = {"gen_length": 16, "block_length": 8, "temperature": 1.0, "seed": 3}
    alone = drift.generate(tiny, "3 9 5=7", **settings)
    beside = drift.generate(tiny, ["3 9 5=7", "12 1 1=10"], group_size=1, max_rows=1, **settings)
    assert beside.texts[0] == alone.texts[0]
    other = drift.generate(tiny, ["3 9 5=7"], group_size=8, **(settings | {"seed": 4}))
    assert len(set(other.texts)) > 1


def test_chat_is_the_checkpoints_template_and_raw_is_the_prompt(tiny: Policy) -> None:
    ids = tiny.tokenizer("3=3", add_special_tokens=False)["input_ids"]
    chat = drift.generate(tiny, "3=3", gen_length=16).prompts.ids[0]
    assert tiny.tokenizer.decode(chat) == "<|user|>3=3<|eot_id|><|assistant|>"
    assert drift.generate(tiny, "3=3", gen_length=16, chat=False).prompts.ids[0] == ids


def test_watch_sees_every_step(tiny: Policy) -> None:
    seen: list[int] = []
    rollout = drift.generate(
        tiny,
        "3 9 5=7",
        gen_length=16,
        rollout="static",
        watch=lambda trace: seen.append(int(trace.committed_BC.sum())),
    )
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) == int(rollout.trace.nfe_B)


def test_a_system_prompt_that_no_template_takes_up_is_refused(tiny: Policy) -> None:
    with pytest.raises(ConfigError, match="system is set, but no chat"):
        complete(
            tiny, ["3=3"], rollout_config("threshold", {}), chat=False, seed=0, system="Be brief."
        )


@pytest.mark.parametrize(
    ("prompts", "settings", "error", "message"),
    [
        ("a", {"gen_lenght": 16}, ConfigError, "rollout.gen_lenght: no such option; did you mean"),
        (
            "a",
            {"gen_length": "long"},
            ConfigError,
            "rollout.gen_length=long must be a whole",
        ),
        ("a", {"gen_length": 48}, ConfigError, "rollout.gen_length=48 is not a multiple of"),
        (
            "a",
            {"rollout": "statik"},
            ConfigError,
            "rollout=statik: choose one of static",
        ),
        (
            "a",
            {"rollout": "factor", "factor": 0},
            ConfigError,
            "rollout.factor=0.0 must be",
        ),
        (
            "a",
            {"rollout": "static", "threshold": 0.5},
            ConfigError,
            "rollout.threshold applies to rollout=dynamic or threshold only; use one of these",
        ),
        ("a", {"temperature": -1}, ConfigError, "rollout.temperature=-1.0 must be 0 or more"),
        ([], {}, ConfigError, "there is no prompt to complete"),
        (["a", " "], {}, RolloutError, "prompt 2 is empty"),
        ("3 é☃", {}, RolloutError, "prompt 1: the prompt '3 é☃' has 'é', which the model's token"),
        (["a", "\udcff"], {}, RolloutError, "prompt 2 or task.system is not UTF-8"),
        ("1", {"gen_length": 512}, RolloutError, "rollout.gen_length=512 leaves no place for a"),
        ("1" * 300, {}, RolloutError, "prompt 1 has 303 tokens; with rollout.gen_length=128"),
    ],
)
def test_what_cannot_be_completed_is_refused(
    tiny: Policy,
    prompts: str | list[str],
    settings: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error) as caught:
        drift.generate(tiny, prompts, **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_no_prompt_fits_the_canvas_is_too_long(tiny: Policy) -> None:
    config = TaskConfig(name="a", prompt="", gen_length=16, long_prompts=LongPrompts.drop)
    long = Example(key="a", prompt="1" * 250, fields={})
    with pytest.raises(RolloutError, match=r"at most 240 tokens; lower rollout\.gen_length"):
        encode_all(tiny, config, [long], gen_length=16)
