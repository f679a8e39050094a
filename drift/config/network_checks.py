"""What does not go with a network, which is known when its config.json is read; no torch."""

from collections.abc import Iterator

from drift.common.errors import ConfigError
from drift.config.commands import BaseConfig, RunConfig
from drift.config.rollout import CacheMode


def network_problems(config: BaseConfig, block_length: int) -> Iterator[str]:
    """Every reason why a config does not go with a network.

    Args:
        config: of any command.
        block_length: of the network's block-causal attention; 0: attention is full.
    """
    rollout, cache = config.rollout, config.rollout.cache
    if not block_length:
        if cache == CacheMode.block:
            yield (
                "rollout.cache=block is exact for block-causal attention alone, this network's is "
                "full; use none, prefix or dual"
            )
        return
    if rollout.block_length != block_length:
        yield (
            f"rollout.block_length={rollout.block_length}, but the network's attention has blocks "
            f"of {block_length}; set model.block_length={block_length}, which rollout.block_length "
            "takes"
        )
    if cache in (CacheMode.prefix, CacheMode.dual):
        yield (
            f"rollout.cache={cache} approximates full attention; this network's is block-causal, "
            "whose cache is exact: use auto or block"
        )
    if isinstance(config, RunConfig) and config.masking.prompt_mask_prob > 0:
        yield (
            f"masking.prompt_mask_prob={config.masking.prompt_mask_prob} would hide a part of what "
            "the blocks behind it see clean; with block-causal attention it must be 0"
        )


def validate_network(config: BaseConfig, block_length: int) -> None:
    """Refuse a config that does not go with the network.

    Raises:
        ConfigError: one line with every problem found.
    """
    if found := list(network_problems(config, block_length)):
        raise ConfigError("; ".join(found))
