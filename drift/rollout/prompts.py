"""From an example to prompt tokens, by the checkpoint's own chat template."""

from typing import Any

from drift.common import terminal
from drift.common.errors import CheckpointError, RolloutError
from drift.common.types import Example
from drift.config.task import LongPrompts, TaskConfig
from drift.policy.base import Policy


def render(policy: Policy, task: TaskConfig, example: Example) -> str:
    """The text that the model sees before its canvas."""
    if policy.tokenizer.chat_template is None:
        raise CheckpointError(
            "the checkpoint has no chat template; add a chat_template.jinja to its folder"
        )
    messages = [{"role": "user", "content": example.prompt}]
    if task.system is not None:
        messages.insert(0, {"role": "system", "content": task.system})
    text = policy.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)
    return text + example.prefix


def encode(policy: Policy, task: TaskConfig, example: Example) -> list[int]:
    """Prompt tokens of one example; never cut."""
    return encode_text(policy, render(policy, task, example), example)


def encode_text(policy: Policy, text: str, example: Example) -> list[int]:
    """Tokens of a text as it stands.

    Raises:
        RolloutError: it has a character that the tokenizer does not know.
    """
    tokenizer: Any = policy.tokenizer
    # verbose=False: the length is checked later; the tokenizer's own warning is one too many
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    if unknown in ids and tokenizer.unk_token not in text:
        alone = (c for c in text if unknown in tokenizer(c, add_special_tokens=False)["input_ids"])
        character = repr(next(alone, "a character"))
        raise RolloutError(
            f"{example.key}: the prompt {example.prompt[:40]!r} has {character}, which "
            "the model's tokenizer does not know; leave it out or use another model"
        )
    return ids


def longest_prompt(policy: Policy, gen_length: int) -> int:
    """The most tokens of a prompt beside its canvas, in the network's positions."""
    config = policy.backbone.config  # a row of block-causal attention ends with its last block
    return config.max_positions - gen_length - max(config.block_length - 1, 0)


def encode_all(
    policy: Policy, task: TaskConfig, examples: list[Example], gen_length: int
) -> tuple[list[Example], list[list[int]], int]:
    """Prompt tokens of every example that fits into the model's positions beside its canvas.

    Returns:
        The examples kept, their prompt tokens, and how many were dropped.

    Raises:
        RolloutError: a prompt does not fit and task.long_prompts=refuse, or none fits.
    """
    limit = longest_prompt(policy, gen_length)
    kept: list[Example] = []
    kept_ids: list[list[int]] = []
    with terminal.bar("encoding prompts", len(examples)) as bar:
        for example in examples:
            ids = encode(policy, task, example)
            if len(ids) <= limit:
                kept.append(example)
                kept_ids.append(ids)
            elif task.long_prompts == LongPrompts.refuse:
                raise RolloutError(
                    f"the prompt of {example.key} has {len(ids)} tokens; with "
                    f"rollout.gen_length={gen_length} the model's positions allow {limit}; "
                    "shorten it, lower rollout.gen_length or set task.long_prompts=drop"
                )
            bar.advance()
    if not kept:
        raise RolloutError(f"no prompt has at most {limit} tokens; lower rollout.gen_length")
    return kept, kept_ids, len(examples) - len(kept)
