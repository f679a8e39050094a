"""Every shipped config composes; the experiments are what they were reviewed to be."""

import os
import re
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from drift.common.errors import ConfigError
from drift.config import GROUPS
from drift.config.bounds import BOUNDS
from drift.config.checks import validate
from drift.config.commands import COMMANDS, RunConfig
from drift.config.compose import CONF, typed
from drift.config.explain import explain
from drift.config.masking import SequentialConfig
from tests.configs import composed
from tests.conftest import ROOT, says

GOLDEN = ROOT / "tests" / "golden"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", ["default", *EXPERIMENTS])
def test_experiment_equals_its_golden_file(name: str) -> None:
    """Remake the files with DRIFT_UPDATE_GOLDEN=1 and review the difference."""
    overrides = [] if name == "default" else [f"experiment={name}"]
    text = OmegaConf.to_yaml(composed(*overrides), resolve=True)
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("DRIFT_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize(
    "choice",
    [
        f"{group}={option}"
        for group in ("model", "task", "masking", "rollout", "objective", "cluster", "tracking")
        for option in options(group)
    ],
)
def test_every_option_composes_and_is_valid(choice: str) -> None:
    partners = dict.fromkeys(("objective=sandwich", "objective=boundary"), "masking=elbo")
    # blocks of 32 tokens: countdown's canvas has 16
    partners |= dict.fromkeys(("model=a2d_qwen3", "model=fast_dllm_v2"), "task=code")
    config = typed(composed(choice, *([partners[choice]] if choice in partners else [])))
    assert isinstance(config, RunConfig)
    validate(config)


def test_model_and_task_compose_as_the_readme_says() -> None:
    config = typed(composed("model=llada", "task=code"))
    assert (config.model.path, config.rollout.gen_length) == ("GSAI-ML/LLaDA-8B-Instruct", 256)
    assert isinstance(config.masking, SequentialConfig)
    assert config.optim.lr == 1e-6


def facts(message: str) -> list[str]:
    """What is no plain word: ["rollout.steps=3", "2"] of "rollout.steps=3 needs 2 blocks"."""
    return re.findall(r"[\w.='+*-]*[\d._=+*][\w.='+*-]*", message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["rollout.gen_length=100", "rollout.block_length=32"],
            "rollout.gen_length=100 is not a multiple of rollout.block_length=32; use "
            "block_length in {1, 2, 4, 5, 10, 20, 25, 50, 100} or gen_length=128",
        ),
        (["rollout.steps=3"], "rollout.steps=3 must be a multiple of the 2 blocks"),
        (["rollout.group_size=1"], "rollout.group_size=1 leaves nothing to compare"),
        (["rollout.threshold=1.5"], "rollout.threshold=1.5 must be above 0 and at most 1"),
        (["rollout=factor", "rollout.factor=0"], "rollout.factor=0.0 must be greater than 0"),
        (["rollout.confidence=entropy"], "rollout.confidence=entropy is no number from 0 to 1"),
        (["rollout.position_temperature=1"], "rollout.position_temperature=1.0 draws an order"),
        (
            ["rollout=static", "rollout.confidence=random", "rollout.confidence_from=drawn"],
            "rollout.confidence_from=drawn does not apply to rollout.confidence=random",
        ),
        (["rollout.top_p=0"], "rollout.top_p=0.0 must be above 0"),
        (["model.lora.alpha=0"], "model.lora.alpha=0.0 must be greater than 0"),
        (["model.lora.alpha=nan"], "model.lora.alpha=nan must be a finite number"),
        (["model.lora.rank=-1"], "model.lora.rank=-1 must be 0 or more"),
        (["model.lora.rank=8", "model.lora.targets=[]"], "model.lora.targets=[] trains nothing"),
        (["rollout.top_k=0"], "rollout.top_k=0 must be greater than 0"),
        (["rollout.horizon=8"], "rollout.horizon=8 applies to rollout.cache=prefix only"),
        (["rollout.refresh_every=2"], "rollout.refresh_every=2 applies to rollout.cache=prefix or"),
        (["rollout.compile=true"], "rollout.compile=true applies to rollout.cache=prefix or dual"),
        (
            ["rollout.cache=dual", "rollout.compile=true", "model.attention=flash_attention_2"],
            "rollout.compile=true does not work with model.attention=flash_attention_2",
        ),
        (
            ["rollout.cache=dual", "rollout.compile=true", "rollout.weights=gather"],
            "rollout.compile=true needs all weights at once",
        ),
        (
            ["masking=replay", "masking.prompt_mask_prob=0.1", "objective.importance=truncated"],
            "needs the sampler's own states, which masking.prompt_mask_prob=0.1 changes",
        ),
        (
            ["task.reward.truncated=zero", "rollout.suppress_end=token"],
            "with rollout.suppress_end=token no completion ends",
        ),
        (["rollout.cache=dual", "rollout.refresh_every=0"], "refresh_every=0 must be greater"),
        (["rollout.temperature=0"], "rollout.temperature=0 makes every completion"),
        (
            ["objective.num_updates=2"],
            "objective.num_updates=2 needs a ratio to the old policy, which objective=reinforce "
            "has not; use objective=ppo_clip or objective.num_updates=1",
        ),
        (
            ["objective=gspo", "objective.clip_low=1"],
            "objective.clip_low=1.0 must be from 0 to below 1: the",
        ),
        (["masking=coupled", "masking.num_views=3"], "masking.num_views=3 must be even"),
        (["masking=all", "masking.num_views=2"], "masking.num_views=2 must be 1"),
        (["masking=random", "masking.ratio=0"], "masking.ratio=0.0 must be above 0 and at most 1"),
        (["masking.low_prob_threshold=2"], "masking.low_prob_threshold=2.0 must be from 0 to 1"),
        (["masking.temperature=-1"], "masking.temperature=-1.0 must be 0 or more"),
        (
            ["objective.importance=truncated", "masking=random"],
            "objective.importance=truncated compares sampler and learner in the sampler's own",
        ),
        (["optim.lr=nan"], "optim.lr=nan must be a finite number"),
        (["optim.beta1=2"], "optim.beta1=2.0 must be from 0 to below 1"),
        (["optim.lr=0"], "optim.lr=0.0 must be greater than 0"),
        (["task.operators=x"], "task.operators='x' must be one or more of + - *"),
        (["task=math", "task.workers=0"], "task.workers=0 must be greater than 0"),
        (["task=gsm8k", "task.time_limit_s=inf"], "task.time_limit_s=inf must be a finite number"),
        (["task.reward.format=nan"], "task.reward.format=nan must be a finite number"),
        (["task.reward.cells=1"], "task.reward.cells=1.0 does not apply to task=countdown"),
        (["task.reward.nfe_penalty=-1"], "task.reward.nfe_penalty=-1.0 must be 0 or more"),
        (
            ["task.reward.nfe_penalty=1"],
            "task.reward.nfe_penalty=1.0 must be below task.reward.answer=1.0: a right answer",
        ),
        (["curriculum.max_rounds=0"], "curriculum.max_rounds=0 must be greater than 0"),
        (["curriculum=informative", "curriculum.floor=0"], "curriculum.floor=0.0 must be greater"),
        (["curriculum=informative", "curriculum.decay=2"], "curriculum.decay=2.0 must be from 0"),
        (
            ["curriculum.max_rounds=2", "objective.reward_control=shuffle"],
            "curriculum.max_rounds=2 keeps groups by their own rewards, which",
        ),
        (["task.reward.length_penalty=-1"], "task.reward.length_penalty=-1.0 must be 0 or more"),
        (["data.max_overlap=2"], "data.max_overlap=2.0 must be from 0 to 1"),
        (["task=code", "task.memory_mb=64"], "task.memory_mb=64 must be 128 or more"),
        (["task=code", "task.workers=0"], "task.workers=0 must be greater than 0"),
        (["task=mbpp", "task.time_limit_s=inf"], "task.time_limit_s=inf must be a finite number"),
        (
            ["cluster.num_processes=2", "cluster.main_port=-5"],
            "main_port=-5 must be from 1 to",
        ),
        (
            ["cluster.offload_optimizer=true", "cluster.zero_stage=0"],
            "cluster.offload_optimizer=True needs cluster.zero_stage=1 or more, not 0",
        ),
        (["cluster.zero_stage=4"], "cluster.zero_stage=4 must be from 0 to 3: null is 3 on"),
        (["task.num_numbers=7"], "task.num_numbers=7 must be from 2 to 6"),
        (["task=sudoku", "task.max_empty=13"], "task.max_empty=13 must be from 1 to 12"),
        (["task=sudoku", "task.min_empty=11"], "task.min_empty=11 and task.max_empty=10 must"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], message: str) -> None:
    """The words of the messages may change; keys, values, numbers and the fix may not."""
    with pytest.raises(ConfigError) as caught:
        validate(typed(composed(*overrides)))
    says(str(caught.value), *facts(message))
    assert "\n" not in str(caught.value)


def test_every_number_says_its_bounds() -> None:
    schemas = {*COMMANDS.values(), *(s for known in GROUPS.values() for s in known.values())}
    for schema in list(schemas):
        schemas |= {kind for kind in get_type_hints(schema).values() if is_dataclass(kind)}
    silent = [
        f"{schema.__name__}.{field.name}"
        for schema in schemas
        for field in fields(schema)
        if get_type_hints(schema)[field.name] in (int, float, int | None, float | None)
        and BOUNDS not in field.metadata
    ]
    assert not silent, "give each a bound of drift/config/bounds.py, or any_number"


def test_infinite_temperature_can_be_written() -> None:
    assert typed(composed("masking.temperature=inf")).masking.temperature == float("inf")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.schedule=dream", "applies to rollout=static only; use rollout=static"),
        ("masking.least_count=1", "applies to masking=elbo only; use masking=elbo"),
        (
            "objective.clip_dual=3",
            "applies to objective=boundary, dr_grpo, grpo, gspo or ppo_clip only; use one of these",
        ),
        (
            "task.time_limit_s=5",
            "applies to task=code, gsm8k, humaneval, math, math500, mbpp, one_line_code or "
            "reasoning_gym only; use one of these",
        ),
        ("cluster.partition=main", "applies to cluster=slurm only; use cluster=slurm"),
        ("curriculum.decay=0.5", "applies to curriculum=informative only; use"),
        ("optim.tokens_per_forward=null", "must be a whole number of at least 1"),
        ("optim.tokens_per_forward=2.5", "must be a whole number of at least 1"),
        ("optim.lr=fast", "must be a finite number greater than 0"),
        ("rollout.top_k=few", "must be null or a whole number of at least 1"),
        ("task.num_numbers=x", "must be a whole number from 2 to 6"),
        ("rollout.top_p=all", "must be null or a number above 0 and at most 1"),
        ("seed=x", "must be a whole number"),
    ],
)
def test_a_setting_that_does_not_compose_is_answered_with_what_does(
    monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.setattr("sys.argv", ["drift", override])
    with pytest.raises(ConfigCompositionException) as caught:
        composed(override)
    assert explain(caught.value).startswith(f"{override} {message}")


def test_whole_numbers_are_refused_as_such() -> None:
    config = typed(composed("optim.tokens_per_forward=0", "objective.num_minibatches=0"))
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert str(caught.value) == (
        "objective.num_minibatches=0 must be a whole number of at least 1; "
        "optim.tokens_per_forward=0 must be a whole number of at least 1"
    )


def test_a_count_out_of_range_has_the_message_of_its_range_alone() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(typed(composed("masking=elbo", "masking.least_count=2")))
    assert str(caught.value) == "masking.least_count=2 must be a whole number from 0 to 1"
