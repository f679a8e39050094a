"""Attention backends against each other, the cache against whole rows, the sampler's replica."""

import pytest
import torch

from drift.cluster.zero import WHOLE
from drift.config.model import AttentionBackend, Dtype, LoraConfig, ModelConfig
from drift.policy import lora
from drift.policy.backbone import Cache
from drift.policy.base import Policy
from drift.policy.loading import load_model, load_policy
from drift.policy.replica import Replica
from tests.conftest import make_policy

IDS = torch.tensor([[5, 6, 7, 8, 9, 3], [4, 3, 0, 0, 0, 0], [9, 8, 7, 6, 0, 0]])
LENGTHS = torch.tensor([6, 2, 4])


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
def test_flex_attention_equals_sdpa(policy: Policy, lengths: torch.Tensor | None) -> None:
    with torch.no_grad():
        expected = policy.logits(IDS, lengths)
        policy.backbone.attention = AttentionBackend.flex_attention
        found = policy.logits(IDS, lengths)
    real = torch.arange(6) < (torch.full((3,), 6) if lengths is None else lengths)[:, None]
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("query", [[[0, 5], [1, 0], [3, 3]], [[2], [1], [0]]])
def test_chosen_columns_equal_those_of_the_whole_row(
    policy: Policy, query: list[list[int]]
) -> None:
    columns = torch.tensor(query)
    whole = policy.backbone(IDS, LENGTHS)
    some = policy.backbone(IDS, LENGTHS, columns)
    torch.testing.assert_close(some, whole[torch.arange(3)[:, None], columns])


def test_a_step_right_after_the_prefill_equals_the_whole_row(policy: Policy) -> None:
    backbone = policy.backbone
    cache = Cache(backbone.config, 3, 6, torch.float32, policy.device)
    backbone.prefill(IDS, LENGTHS, cache, torch.arange(3))
    columns = torch.tensor([[3, 4, 5], [0, 1, 6], [1, 2, 6]])  # 6 pads
    ids = IDS.gather(1, columns.clamp(max=5))
    found = backbone.step(ids, columns, LENGTHS, cache, 2, 6)
    whole = backbone(IDS, LENGTHS)
    torch.testing.assert_close(found, whole[torch.arange(3)[:, None], columns[:, :2]])


def test_a_replica_follows_its_source_in_place(policy: Policy) -> None:
    replica = Replica(policy, torch.float32)
    torch.testing.assert_close(replica.logits(IDS, LENGTHS), policy.logits(IDS, LENGTHS))
    storage = [p.data_ptr() for p in replica.parameters()]
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.01
    assert not torch.equal(replica.logits(IDS, LENGTHS), policy.logits(IDS, LENGTHS))
    replica.refresh(policy)
    torch.testing.assert_close(replica.logits(IDS, LENGTHS), policy.logits(IDS, LENGTHS))
    assert [p.data_ptr() for p in replica.parameters()] == storage
    assert not any(p.requires_grad for p in replica.parameters())


def test_a_replica_keeps_an_update_below_the_spacing_of_bfloat16() -> None:
    policy = load_policy("data/tiny-countdown", dtype=torch.bfloat16)
    base = policy.logits(IDS)
    lora.attach_new(policy, LoraConfig(rank=2), "base")
    replica = Replica(policy, torch.bfloat16)
    assert torch.equal(replica.logits(IDS), base)
    with torch.no_grad():
        for name, factor in lora.factors(policy).items():
            if "lora_B" in name:
                factor.fill_(1e-4)
    assert lora.kept_share(policy, torch.bfloat16) < 0.5
    replica.refresh(policy)
    assert torch.equal(replica.logits(IDS), policy.logits(IDS))
    assert not torch.equal(replica.logits(IDS), base)
    assert not any(p.requires_grad for p in replica.parameters())


def test_a_bfloat16_base_has_a_float32_adapter_and_the_same_fingerprint() -> None:
    config = ModelConfig(
        name="tiny", family=make_policy().family.name, path="data/tiny-countdown",  # type: ignore[arg-type]
        dtype=Dtype.bfloat16, lr=1.0, lora=LoraConfig(rank=2),
    )  # fmt: skip
    policy = load_model(config, device="cpu", trained=WHOLE)
    assert policy.backbone.embed.weight.dtype == torch.bfloat16
    assert {f.dtype for f in lora.factors(policy).values()} == {torch.float32}
    whole = load_model(ModelConfig(
        name="tiny", family=config.family, path=config.path, dtype=Dtype.bfloat16, lr=1.0,
    ), device="cpu", trained=WHOLE)  # fmt: skip
    assert whole.backbone.embed.weight.dtype == torch.float32
    assert lora.fingerprint(whole) == lora.fingerprint(policy)
