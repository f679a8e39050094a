"""Completions of a user's own prompts, as a library call."""

import re
from collections.abc import Callable, Sequence

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drift.common import rng
from drift.common.errors import ConfigError, RolloutError
from drift.common.types import Example, PromptBatch, Rollout, Trace
from drift.config.checks import validate
from drift.config.cluster import ClusterConfig
from drift.config.commands import BaseConfig
from drift.config.explain import explain
from drift.config.model import ModelConfig
from drift.config.network_checks import validate_network
from drift.config.rollout import ROLLOUTS, RolloutConfig
from drift.config.task import TaskConfig
from drift.policy.base import Policy
from drift.rollout.collect import completions
from drift.rollout.prompts import encode_text, longest_prompt, render

DEFAULTS = {"gen_length": 128, "temperature": 0.0, "group_size": 1}
BLOCK_LENGTH = 32
SURROGATE = re.compile("[\ud800-\udfff]")  # what Python reads for a byte that is not UTF-8


def generate(
    policy: Policy,
    prompts: str | Sequence[str],
    *,
    chat: bool = True,
    seed: int = 0,
    watch: Callable[[Trace], None] | None = None,
    rollout: str = "threshold",
    **settings: object,
) -> Rollout:
    """Complete prompts: `drift.generate(policy, "3 9 5=7", gen_length=16).texts[0]`.

    Args:
        policy: from `drift.load_policy`; its device and dtype are used.
        prompts: one, or several that are completed together; a completion does not depend on its
            neighbours.
        chat: put the checkpoint's chat template around each prompt; without one, or with False,
            the model sees the prompt as it is.
        seed: of the random numbers, where temperature > 0.
        watch: called after each denoising step with the trace so far.
        rollout: the rule of remasking: threshold (every token of confidence 0.9 or more in each
            step), static or factor.
        settings: of the rollout, for example `threshold`; unset: 128 tokens in blocks of 32 (one
            block if that is longer than the canvas; the network's where its attention is
            block-causal), greedy, one completion of each prompt
            (`group_size`).

    Returns:
        The rows of a prompt adjacent; `texts` are the completions, `scores` is empty.

    Raises:
        ConfigError: rollout settings that are unknown or cannot work, or no prompt.
        RolloutError: a prompt is empty or too long for the model's positions.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    config = rollout_config(rollout, settings, policy.backbone.config.block_length)
    return complete(policy, texts, config, chat=chat, seed=seed, watch=watch)


def rollout_config(
    rollout: str, settings: dict[str, object], block_length: int = 0
) -> RolloutConfig:
    """Checked settings, the rest filled in; refused with the words of the command line.

    block_length: of the network's block-causal attention; 0: attention is full.
    """
    if rollout not in ROLLOUTS.schemas:
        raise ConfigError(f"rollout={rollout}: choose one of {', '.join(ROLLOUTS.schemas)}")
    values = DEFAULTS | settings
    try:
        config = OmegaConf.merge(OmegaConf.structured(ROLLOUTS.schemas[rollout]), values)
        length = config.gen_length
        unset = {"steps": length, "block_length": block_length or min(BLOCK_LENGTH, length)}
        config = OmegaConf.to_object(OmegaConf.merge(config, unset | settings))
    except OmegaConfBaseException as error:
        raise ConfigError(f"rollout.{explain(error)}") from None
    assert isinstance(config, RolloutConfig)
    rest = BaseConfig(model=ModelConfig(), task=TaskConfig(), cluster=ClusterConfig())
    rest.rollout = config
    validate(rest)
    validate_network(rest, block_length)
    return config


def complete(
    policy: Policy,
    prompts: list[str],
    config: RolloutConfig,
    *,
    chat: bool,
    seed: int,
    system: str | None = None,
    watch: Callable[[Trace], None] | None = None,
) -> Rollout:
    """`generate` with checked settings and, for chat, a system prompt."""
    if not prompts:
        raise ConfigError("there is no prompt to complete")
    chat = chat and policy.tokenizer.chat_template is not None
    if system is not None and not chat:
        raise ConfigError(
            "task.system is set, but no chat template takes it up: chat=false, or the checkpoint "
            "has none; remove it"
        )
    task = TaskConfig(system=system)
    examples = [
        Example(key=f"prompt {i}", prompt=text, fields={}) for i, text in enumerate(prompts, 1)
    ]
    limit = longest_prompt(policy, config.gen_length)
    ids: list[list[int]] = []
    for example in examples:
        if not example.prompt.strip():
            raise RolloutError(f"{example.key} is empty")
        if SURROGATE.search(example.prompt + (system or "")):
            raise RolloutError(f"{example.key} or task.system is not UTF-8; convert it")
        if limit < 1:
            raise RolloutError(
                f"rollout.gen_length={config.gen_length} leaves no place for a prompt in the "
                f"model's {limit + config.gen_length} positions; lower it"
            )
        text = render(policy, task, example) if chat else example.prompt
        ids.append(encode_text(policy, text, example))
        if len(ids[-1]) > limit:
            raise RolloutError(
                f"{example.key} has {len(ids[-1])} tokens; with "
                f"rollout.gen_length={config.gen_length} the model's positions allow {limit}; "
                "shorten it or lower rollout.gen_length"
            )
    batch = PromptBatch(examples=examples, ids=ids, first_prompt=0)
    key = rng.stream(seed, "generate")
    return completions(policy, batch, config, key, group_size=config.group_size, watch=watch)
