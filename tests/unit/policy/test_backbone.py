"""The network against a plain float64 forward of the official checkpoints."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from drift.policy.backbone import Backbone, RMSNorm, rope_tables, rotate
from drift.policy.base import Policy
from drift.policy.loading import FAMILIES, load_policy
from tests.oracles import CONFIGS, ORACLES, SHAPES, Config, random_weights, write_checkpoint

SIZES = {
    "one layer, one head": {
        "vocab": 11, "hidden": 8, "layers": 1, "heads": 1, "kv_heads": 1, "mlp": 12,
    },
    "as many kv heads as heads": {
        "vocab": 37, "hidden": 24, "layers": 3, "heads": 4, "kv_heads": 4, "mlp": 40,
    },
    "grouped queries": {
        "vocab": 29, "hidden": 48, "layers": 2, "heads": 6, "kv_heads": 2, "mlp": 20,
    },
    "one kv head": {
        "vocab": 50, "hidden": 32, "layers": 2, "heads": 4, "kv_heads": 1, "mlp": 64,
    },
}  # fmt: skip
LENGTHS = (1, 2, 7, 13)
both_families = pytest.mark.parametrize("family", ["llada", "dream"])


def random_ids(vocab: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(vocab, (length,), generator=torch.Generator().manual_seed(seed))


def padded(rows: list[torch.Tensor], size: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.full((len(rows), size), pad)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, torch.tensor([len(row) for row in rows])


def load(family: str, config: Config, folder: Path) -> tuple[Policy, dict[str, torch.Tensor]]:
    weights = random_weights(family, config, seed=3)
    return load_policy(write_checkpoint(folder, config, weights)), weights


@pytest.fixture(scope="module", params=["llada", "dream"])
def grouped_policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    config = CONFIGS[request.param](**SIZES["grouped queries"])
    return load(request.param, config, tmp_path_factory.mktemp(request.param))[0]


@both_families
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_logits_agree_with_the_official_network(family: str, size: str, tmp_path: Path) -> None:
    config = CONFIGS[family](**SIZES[size])
    policy, weights = load(family, config, tmp_path)
    for length in LENGTHS:
        ids = random_ids(config["vocab_size"], length, seed=length)
        expected = ORACLES[family](weights, config, ids)
        torch.testing.assert_close(
            policy.logits(ids[None])[0].double(), expected, atol=1e-4, rtol=0
        )


@both_families
@torch.no_grad()
def test_each_row_of_a_padded_batch_agrees_with_the_official_network(
    family: str, tmp_path: Path
) -> None:
    config = CONFIGS[family](**SIZES["grouped queries"])
    policy, weights = load(family, config, tmp_path)
    rows = [random_ids(config["vocab_size"], length, seed=length) for length in LENGTHS]
    ids, lengths = padded(rows, size=16, pad=2)
    logits = policy.logits(ids, lengths)
    for i, row in enumerate(rows):
        expected = ORACLES[family](weights, config, row)
        torch.testing.assert_close(logits[i, : len(row)].double(), expected, atol=1e-4, rtol=0)


@both_families
@torch.no_grad()
def test_a_tied_head_is_the_embedding(family: str, tmp_path: Path) -> None:
    config = CONFIGS[family](**SIZES["grouped queries"], tied=True)
    policy, weights = load(family, config, tmp_path)
    ids = random_ids(config["vocab_size"], 7, seed=0)
    expected = ORACLES[family](weights, config, ids)
    assert policy.backbone.head.weight is policy.backbone.embed.weight
    torch.testing.assert_close(policy.logits(ids[None])[0].double(), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_dream_position_0_and_1_both_read_row_0(tmp_path: Path) -> None:
    config = CONFIGS["dream"](**SIZES["grouped queries"])
    policy, _ = load("dream", config, tmp_path)
    ids = random_ids(config["vocab_size"], 5, seed=1)[None]
    rows = policy.backbone.head(policy.backbone(ids))[0]
    logits = policy.logits(ids)[0]
    for position, row in enumerate([0, 0, 1, 2, 3]):
        torch.testing.assert_close(logits[position], rows[row], atol=1e-6, rtol=0)
    assert (rows[1] - rows[0]).abs().max() > 0.1


@torch.no_grad()
def test_llada_is_not_shifted(tmp_path: Path) -> None:
    config = CONFIGS["llada"](**SIZES["grouped queries"])
    policy, _ = load("llada", config, tmp_path)
    ids = random_ids(config["vocab_size"], 5, seed=1)[None]
    assert torch.equal(policy.logits(ids), policy.backbone.head(policy.backbone(ids)))


@torch.no_grad()
def test_attention_looks_in_both_directions(grouped_policy: Policy) -> None:
    ids = random_ids(29, 6, seed=2)[None]
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % 29
    difference = (grouped_policy.logits(ids) - grouped_policy.logits(changed)).abs().amax(-1)[0]
    assert (difference > 1e-4).all()


@settings(max_examples=15, deadline=None)
@given(
    length=st.integers(1, 12),
    neighbours=st.lists(st.integers(1, 17), max_size=4),
    place=st.integers(0, 4),
    padding=st.integers(0, 5),
    pad=st.integers(0, 28),
    seed=st.integers(0, 1000),
)
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(
    grouped_policy: Policy,
    length: int,
    neighbours: list[int],
    place: int,
    padding: int,
    pad: int,
    seed: int,
):
    row = random_ids(29, length, seed)
    alone = grouped_policy.logits(row[None])[0]
    rows = [random_ids(29, other, seed + i + 1) for i, other in enumerate(neighbours)]
    place = min(place, len(rows))
    rows.insert(place, row)
    ids, lengths = padded(rows, max(map(len, rows)) + padding, pad)
    together = grouped_policy.logits(ids, lengths)
    torch.testing.assert_close(together[place, :length], alone, atol=1e-5, rtol=0)
    assert together.isfinite().all()


@torch.no_grad()
def test_what_stands_in_the_padding_does_not_matter(grouped_policy: Policy) -> None:
    row = random_ids(29, 5, seed=4)
    lengths = torch.tensor([5])
    one, other = (padded([row], 9, pad)[0] for pad in (2, 28))
    first, second = (grouped_policy.logits(ids, lengths)[:, :5] for ids in (one, other))
    assert torch.equal(first, second)


@torch.no_grad()
def test_lengths_that_cover_the_whole_batch_change_nothing(grouped_policy: Policy) -> None:
    ids = torch.stack([random_ids(29, 6, seed) for seed in (1, 2)])
    with_lengths = grouped_policy.logits(ids, torch.tensor([6, 6]))
    assert torch.equal(with_lengths, grouped_policy.logits(ids))


def test_rms_norm_of_3_and_4() -> None:
    # mean square (9 + 16) / 2 = 12.5, root 3.5355339
    norm = RMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 10.0])
    torch.testing.assert_close(
        norm(torch.tensor([3.0, 4.0])), torch.tensor([0.8485281, 11.3137085])
    )


def test_rope_turns_dimension_j_with_j_plus_half() -> None:
    # head size 4, theta 100: frequencies 1 and 1/10; position 2 turns by 2 and 0.2
    tables = rope_tables(torch.arange(3)[None], 4, 100.0)
    x = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 3, 1, 4)
    turned = rotate(x, tables)[0, :, 0]
    assert torch.equal(turned[0], x[0, 0, 0])
    expected = torch.tensor([-0.4161468, 0.9800666, 0.9092974, 0.1986693])  # cos 2, cos .2, sin ..
    torch.testing.assert_close(turned[2], expected)


LLADA_8B = CONFIGS["llada"](vocab=126464, hidden=4096, layers=32, heads=32, kv_heads=32, mlp=12288)
DREAM_7B = CONFIGS["dream"](vocab=152064, hidden=3584, layers=28, heads=28, kv_heads=4, mlp=18944)
published = pytest.mark.parametrize(
    ("family", "config", "count"),
    [("llada", LLADA_8B, 8_015_581_184), ("dream", DREAM_7B, 7_615_616_512)],
)


@published
def test_published_sizes_give_the_published_parameter_counts(
    family: str, config: Config, count: int
):
    with torch.device("meta"):
        backbone = Backbone(FAMILIES[family].read_config(config))
    assert sum(parameter.numel() for parameter in backbone.parameters()) == count


@published
def test_official_names_and_shapes_cover_every_parameter(
    family: str, config: Config, count: int
) -> None:
    sizes = FAMILIES[family].read_config(config)
    with torch.device("meta"):
        backbone = Backbone(sizes)
    places = FAMILIES[family].places(sizes)
    shapes = {places[ours].tensor: tuple(p.shape) for ours, p in backbone.named_parameters()}
    assert shapes == SHAPES[family](config)
    assert len(places) == len({place.tensor for place in places.values()}) == len(shapes)


@both_families
def test_tied_official_names_have_no_head(family: str) -> None:
    config = CONFIGS[family](**SIZES["grouped queries"], tied=True)
    sizes = FAMILIES[family].read_config(config)
    places = FAMILIES[family].places(sizes)
    assert set(places) == {name for name, _ in Backbone(sizes).named_parameters()}
    assert {place.tensor for place in places.values()} == set(SHAPES[family](config))


@both_families
def test_write_config_is_the_inverse_of_read_config(family: str) -> None:
    config = CONFIGS[family](**SIZES["one kv head"])
    sizes = FAMILIES[family].read_config(config)
    written = FAMILIES[family].write_config(sizes)
    assert FAMILIES[family].read_config(written) == sizes
    assert written.items() <= config.items()


def test_llada_without_kv_heads_has_as_many_as_heads() -> None:
    config = CONFIGS["llada"](**SIZES["grouped queries"]) | {"n_kv_heads": None}
    assert FAMILIES["llada"].read_config(config).num_kv_heads == 6


def test_a_policy_never_predicts_the_mask_token(grouped_policy: Policy) -> None:
    logits = grouped_policy.denoising_logits(torch.ones(3, 48))
    assert (logits[:, 28] == -torch.inf).all()
    assert logits[:, :28].isfinite().all()


def test_gradient_checkpointing_changes_no_gradient(policy: Policy) -> None:
    ids = torch.randint(3, 12, (2, 9), generator=torch.Generator().manual_seed(0))
    gradients = []
    for recompute in (False, True):
        policy.backbone.gradient_checkpointing = recompute
        policy.zero_grad()
        policy.logits(ids, torch.tensor([9, 6])).square().mean().backward()
        gradients.append([p.grad.clone() for p in policy.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
