"""What is never made: logits of positions that nobody asked for."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from drift import rng
from drift.config import CacheMode, RolloutConfig
from drift.decoding import decode
from drift.likelihood import micro_batches, score
from drift.policy import base
from tests.conftest import make_policy, make_rollout, replay_views, rollout_config

KEY = rng.stream(3, "test")
VOCAB = 997  # no other size in these tests is a multiple of it


class Watch(TorchDispatchMode):
    """The number of positions in every tensor over the vocabulary, and the largest other tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.positions: set[int] = set()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor) or not tensor.numel():
                continue
            if tensor.shape[-1:] == (VOCAB,) or tensor.numel() % VOCAB == 0:
                self.positions.add(tensor.numel() // VOCAB)
            else:
                self.largest = max(self.largest, tensor.numel())
        return result


def decoded(config: RolloutConfig, num_prompts: int) -> Watch:
    policy = make_policy(vocab_size=VOCAB)
    prompts = [[5 + i % 7, 6, 7] for i in range(num_prompts)]
    with Watch() as watch:
        decode(policy, prompts, torch.arange(num_prompts), config, KEY)
    return watch


@pytest.mark.parametrize("cache", CacheMode)
def test_the_sampler_makes_logits_of_masked_positions_of_blocks_only(cache: CacheMode) -> None:
    config = replace(rollout_config(), cache=cache, max_rows=4)
    watch = decoded(config, 4)
    weights = {16}  # the head and the embedding: D = 16 rows over the vocabulary
    assert max(watch.positions - weights) <= 4 * config.block_length  # of 4 * 11 positions
    assert len(watch.positions) > 3


def test_logits_are_made_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "HEAD_CHUNK_BYTES", 3 * 4 * VOCAB)
    assert max(decoded(rollout_config(), 4).positions - {16}) == 3
    policy = make_policy(vocab_size=VOCAB)
    prompts = [[5, 6, 7], [4], [9, 8, 7]]
    rollout = make_rollout(prompts, decode(policy, prompts, torch.arange(3), rollout_config(), KEY))
    views = replay_views(rollout)
    batches = micro_batches(rollout, views.hidden_KBC, views.scored_KBC, policy.special, 64)
    with Watch() as watch:
        for batch in batches:
            score(policy, batch, 1.0)[0].sum().backward()
    assert max(watch.positions - {16}) == 3  # forward and backward


def test_memory_does_not_grow_with_the_number_of_prompts() -> None:
    config = replace(rollout_config(), cache=CacheMode.prefix, max_rows=4)
    few, many = decoded(config, 4), decoded(config, 40)
    assert many.largest == few.largest
    assert max(many.positions) <= max(few.positions)
