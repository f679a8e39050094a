"""Decoding where attention is block-causal: the cache is exact, the prompt's end is given."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from drift.common.errors import RolloutError
from drift.common.types import Trace
from drift.config.rollout import (
    CacheMode,
    DynamicConfig,
    FactorConfig,
    RolloutConfig,
    StaticConfig,
    ThresholdConfig,
)
from drift.policy.base import Policy
from drift.rollout import caching, decoding
from drift.rollout.decoding import decode
from tests.conftest import make_policy, rollout_config

FAMILIES = ["sdar", "stable_diffcoder", "fast_dllm_v2"]
RULES: list[tuple[type[RolloutConfig], dict[str, object]]] = [
    (StaticConfig, {}),
    (StaticConfig, {"steps": 6}),
    (StaticConfig, {"schedule": "dream"}),
    (ThresholdConfig, {"threshold": 0.15}),
    (FactorConfig, {"factor": 1.8}),
    (StaticConfig, {"schedule": "sdar", "steps": 6}),
    (DynamicConfig, {"threshold": 0.2, "steps": 6}),
    (StaticConfig, {"confidence": "random", "position_temperature": 0.0}),
    (ThresholdConfig, {"threshold": 0.2, "temperature": 0.0}),
    (StaticConfig, {"temperature": 0.7, "top_k": 5, "confidence_from": "drawn"}),
]


def prompts_of(count: int) -> list[list[int]]:
    """Of every length modulo 4, some shorter than a block, the rows of a group equal."""
    generator = torch.Generator().manual_seed(3)
    lengths = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13]
    found = [torch.randint(3, 12, (n,), generator=generator).tolist() for n in lengths]
    return [found[i // 2 % len(found)] for i in range(count)]


def sample(
    policy: Policy, prompts: list[list[int]], config: RolloutConfig, cache: str, max_rows: int = 5
) -> Trace:
    rows = torch.arange(len(prompts))
    config = replace(config, cache=CacheMode(cache), max_rows=max_rows)
    return decode(policy, prompts, rows, config, key=7)


def assert_equal(one: Trace, other: Trace) -> None:
    for name, tensor in one.tensors().items():
        if name == "commits_B":
            continue
        found = other.tensors()[name]
        if tensor.dtype.is_floating_point:
            torch.testing.assert_close(tensor, found, atol=1e-6, rtol=1e-6)
        else:
            assert torch.equal(tensor, found), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "settings"), RULES)
def test_the_cache_is_exact(
    family: str, kind: type[RolloutConfig], settings: dict[str, object]
) -> None:
    policy = make_policy(family, seed=2).double()
    config = rollout_config(kind, **({"gen_length": 12, "steps": 12} | settings))
    prompts = prompts_of(16)
    whole = sample(policy, prompts, config, "none")
    assert_equal(whole, sample(policy, prompts, config, "block"))
    assert_equal(whole, sample(policy, prompts, config, "block", max_rows=16))
    for i in (0, 5, 9):
        alone = sample(policy, [prompts[i]], config, "block")
        at = decode(policy, [prompts[i]], torch.tensor([i]), replace(config, max_rows=1), key=7)
        assert_equal(whole.pick(torch.tensor([i])), at)
        assert int(alone.nfe_B[0]) > 0


def blocks_decoded(trace: Trace) -> Tensor:
    """How many blocks of each row were begun."""
    begun_BC = trace.committed_BC
    block_BC = trace.block_BC
    first_B = block_BC[:, 0]
    return block_BC.masked_fill(~begun_BC, -1).amax(1) - first_B + 1


def test_a_row_decodes_through_the_block_that_holds_its_last_token() -> None:
    policy = make_policy("sdar", seed=2)
    policy.special = replace(policy.special, stop=(11,))
    config = rollout_config(gen_length=8, steps=8)
    prompts = [[5] * n for n in (1, 4, 6, 7)]
    trace = sample(policy, prompts, config, "auto")
    assert trace.canvas_BC.shape == (4, 11)
    assert trace.gen_length == 8
    for row, prompt in enumerate(prompts):
        end = -(-(len(prompt) + 8) // 4) * 4 - len(prompt)
        if not trace.finished_B[row]:
            assert trace.committed_BC[row].tolist() == [True] * end + [False] * (11 - end)
            assert int(trace.length_B[row]) == 8
    assert torch.equal(trace.commits_B, blocks_decoded(trace) - 1)
    assert torch.equal(sample(policy, prompts, config, "none").commits_B, torch.zeros(4).long())


def test_a_prompts_last_block_is_given() -> None:
    """Its stop tokens end nothing, and what is given is never masked."""
    policy = make_policy("sdar", seed=2)
    config = rollout_config(gen_length=8, steps=8)
    seen: list[Tensor] = []
    network = caching.Exact.hidden

    def watched(self: caching.Exact, blocks: caching.Blocks) -> Tensor:
        seen.append(blocks.ids_AS[:, :4].clone())
        return network(self, blocks)

    caching.Exact.hidden = watched  # type: ignore[method-assign]
    try:
        trace = sample(policy, [[5, 2, 0]], config, "none")
    finally:
        caching.Exact.hidden = network  # type: ignore[method-assign]
    assert all(ids[0, :3].tolist() == [5, 2, 0] for ids in seen)
    assert int(trace.nfe_B[0]) >= 1
    assert int(trace.unmask_step_BC[0, 0]) == 0  # the only mask of its first block
    assert int(trace.unmask_step_BC[0, 1:5].min()) == 1 or bool(trace.finished_B[0])


def test_a_stop_token_behind_the_canvas_does_not_count() -> None:
    policy = make_policy("sdar", seed=2)
    config = rollout_config(gen_length=4, steps=4, block_length=4)
    trace = sample(policy, [[5, 6]] * 40, config, "block")
    stop = torch.isin(trace.canvas_BC, torch.tensor(policy.special.stop)) & trace.committed_BC
    inside, behind = stop[:, :4].any(1), stop[:, 4:].any(1)
    assert bool((behind & ~inside).any())
    assert torch.equal(trace.finished_B, inside)
    assert bool((trace.length_B[~inside] == 4).all())


def test_a_prompt_is_prefilled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a group that enter later copy it from a neighbour, or find it in their own slot."""
    policy = make_policy("sdar", seed=2)
    config = rollout_config(gen_length=8, steps=8)
    filled: list[int] = []
    prefill = policy.backbone.prefill

    def counted(ids: Tensor, *arguments: object, **more: object) -> Tensor | None:
        filled.append(len(ids))
        return prefill(ids, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(policy.backbone, "prefill", counted)
    prompts = [[5, 6, 7, 8, 9]] * 6 + [[9, 8, 7, 6, 5, 4]] * 6
    whole = sample(policy, prompts, config, "none")
    assert_equal(whole, sample(policy, prompts, config, "block", max_rows=3))
    assert sum(filled) == 2
    monkeypatch.setattr(caching, "PREFILL", 4)
    long = [[5, 6, 7, 8] * 5, [9, 8, 7] * 3]
    assert_equal(sample(policy, long, config, "none"), sample(policy, long, config, "block"))


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_an_approximate_cache_is_refused(cache: str) -> None:
    with pytest.raises(RolloutError, match=f"rollout.cache={cache} approximates full attention"):
        sample(make_policy("sdar"), [[5]], rollout_config(), cache)


def test_settings_that_do_not_go_with_the_network_are_refused() -> None:
    with pytest.raises(RolloutError, match=r"rollout.cache=block is exact for block-causal"):
        sample(make_policy("llada"), [[5]], rollout_config(), "block")
    with pytest.raises(
        RolloutError, match=r"attention has blocks of 4; use rollout.block_length=4"
    ):
        sample(make_policy("sdar"), [[5]], rollout_config(block_length=8), "auto")
    assert decoding.GIVEN >= 0
