"""Checkpoints: what is written is read back bit for bit, and what is broken is named."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

from drift.common.errors import CheckpointError
from drift.common.types import Example
from drift.config.task import TaskConfig
from drift.policy.base import Policy
from drift.policy.loading import load_policy, load_tokenizer, save_policy
from drift.rollout.prompts import encode, render
from tests.conftest import ROOT
from tests.oracles import CONFIGS, Weights, random_weights, write_checkpoint, write_shards

BLANK_TINY = ROOT / "scripts" / "blank_tiny.py"
SIZES = {"vocab": 13, "hidden": 8, "layers": 2, "heads": 2, "kv_heads": 1, "mlp": 12}
PRINTABLE = "".join(map(chr, range(32, 127))) + "\n"
both_families = pytest.mark.parametrize("family", ["llada", "dream"])


def import_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["llada", "dream"])
def tiny(request: pytest.FixtureRequest) -> Policy:
    return import_script(BLANK_TINY).make_policy(request.param, seed=0, hidden_size=16)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A LLaDA checkpoint in official names, without a tokenizer."""
    config = CONFIGS["llada"](**SIZES)
    return write_checkpoint(tmp_path / "plain", config, random_weights("llada", config, 0))


def assert_same_weights(one: Policy, other: Policy) -> None:
    first, second = one.backbone.state_dict(), other.backbone.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def error_of(folder: Path | str, **arguments: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_policy(folder, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_from_config(folder: Path, key: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))


def change_weights(folder: Path, change: Callable[[Weights], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


# Round trips


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_read_back_bit_for_bit(
    tiny: Policy, tmp_path: Path, dtype: torch.dtype
) -> None:
    policy = import_script(BLANK_TINY).make_policy(tiny.family.name, seed=1, hidden_size=16)
    policy = policy.to(dtype)
    save_policy(policy, tmp_path)
    loaded = load_policy(tmp_path, dtype=dtype)
    assert_same_weights(loaded, policy)
    assert loaded.family is policy.family
    assert loaded.backbone.config == policy.backbone.config


def test_the_tokenizer_is_read_back(tiny: Policy, tmp_path: Path) -> None:
    save_policy(tiny, tmp_path)
    loaded = load_policy(tmp_path).tokenizer
    assert loaded.get_vocab() == tiny.tokenizer.get_vocab()
    assert loaded.chat_template == tiny.tokenizer.chat_template
    text = "<|user|>\\boxed{1 + 2} \n<answer>"
    ids = tiny.tokenizer(text)["input_ids"]
    assert loaded(text)["input_ids"] == ids
    assert loaded.decode(ids) == tiny.tokenizer.decode(ids)


def test_special_ids_are_read_back(tiny: Policy, tmp_path: Path) -> None:
    save_policy(tiny, tmp_path)
    special = load_policy(tmp_path).special
    vocab = tiny.tokenizer.get_vocab()
    assert (special.mask, special.pad) == (tiny.special.mask, tiny.special.pad)
    assert special.stop == (vocab["<|endoftext|>"], vocab[tiny.family.end_of_turn])


def test_saving_what_was_loaded_writes_the_same_files(tiny: Policy, tmp_path: Path) -> None:
    save_policy(tiny, tmp_path / "first")
    save_policy(load_policy(tmp_path / "first"), tmp_path / "second")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@both_families
def test_official_tensors_are_saved_under_official_names(family: str, tmp_path: Path) -> None:
    config = CONFIGS[family](**SIZES) | {"auto_map": {"AutoModel": "modeling.Model"}}
    weights = random_weights(family, config, seed=0)
    policy = load_policy(write_checkpoint(tmp_path / "in", config, weights))
    save_policy(policy, tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in weights)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


@both_families
def test_shards_with_an_index_are_one_checkpoint(family: str, tmp_path: Path) -> None:
    config = CONFIGS[family](**SIZES)
    weights = random_weights(family, config, seed=0)
    whole = load_policy(write_checkpoint(tmp_path / "whole", config, weights))
    write_shards(tmp_path / "shards", config, weights, num_shards=3)
    assert_same_weights(load_policy(tmp_path / "shards"), whole)


def test_a_checkpoint_without_tokenizer_makes_logits_and_says_so(plain: Path) -> None:
    policy = load_policy(plain, family="llada")
    assert policy.logits(torch.tensor([[1, 2, 12]])).shape == (1, 3, 13)
    assert (policy.special.mask, policy.special.pad, policy.special.stop) == (12, 2, (2,))
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        _ = policy.tokenizer


# Broken checkpoints


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_refused(plain: Path, keep: int) -> None:
    file = plain / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert error_of(plain).startswith(f"{file} is truncated or damaged: ")


def test_a_policy_is_saved_in_shards_and_comes_back(tiny: Policy, tmp_path: Path) -> None:
    save_policy(tiny, tmp_path, max_shard_size=10_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same_weights(load_policy(tmp_path), tiny)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    config = CONFIGS["dream"](**SIZES)
    files = write_shards(tmp_path, config, random_weights("dream", config, 0), num_shards=3)
    (tmp_path / files[1]).unlink()
    message = error_of(tmp_path)
    assert message == f"{tmp_path} lacks the shard {files[1]} that its index names"


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    config = CONFIGS["dream"](**SIZES)
    files = write_shards(tmp_path, config, random_weights("dream", config, 0), num_shards=3)
    shard = tmp_path / files[2]
    shard.write_bytes(shard.read_bytes()[:-8])
    assert error_of(tmp_path).startswith(f"{shard} is truncated or damaged: ")


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path: Path) -> None:
    config = CONFIGS["llada"](**SIZES)
    files = write_shards(tmp_path, config, random_weights("llada", config, 0), num_shards=1)
    weights = load_file(tmp_path / files[0])
    del weights["model.transformer.ln_f.weight"]
    save_file(weights, tmp_path / files[0])
    message = error_of(tmp_path)
    assert "model.transformer.ln_f.weight" in message
    assert files[0] in message


@pytest.mark.parametrize("index", ["{}", "[]", "{", '{"weight_map": 3}'])
def test_an_index_without_a_weight_map_is_refused(plain: Path, index: str) -> None:
    (plain / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in error_of(plain)


def test_a_missing_tensor_is_named(plain: Path) -> None:
    change_weights(plain, lambda w: w.pop("model.transformer.blocks.1.up_proj.weight"))
    message = error_of(plain)
    assert message == f"{plain} lacks tensor model.transformer.blocks.1.up_proj.weight"


def test_two_missing_tensors_name_one_and_count_the_other(plain: Path) -> None:
    change_weights(plain, lambda w: w.pop("model.transformer.blocks.1.up_proj.weight"))
    change_weights(plain, lambda w: w.pop("model.transformer.blocks.0.ff_out.weight"))
    assert error_of(plain).endswith(
        "lacks tensor model.transformer.blocks.0.ff_out.weight and 1 more"
    )


def test_an_extra_tensor_is_named(plain: Path) -> None:
    change_weights(plain, lambda w: w.update({"model.extra.weight": torch.zeros(1)}))
    assert error_of(plain) == f"{plain} has unknown tensor model.extra.weight"


def test_a_layer_more_than_the_config_says_is_extra(plain: Path) -> None:
    change_config(plain, n_layers=1)
    assert "has unknown tensor model.transformer.blocks.1.attn_norm.weight and 8 more" in error_of(
        plain
    )


def test_a_tensor_of_another_shape_is_named_with_both_shapes(plain: Path) -> None:
    name = "model.transformer.blocks.0.k_proj.weight"
    change_weights(plain, lambda w: w.update({name: torch.zeros(8, 8)}))
    message = error_of(plain)
    assert message == (
        f"{plain / 'model.safetensors'}: {name} is [8, 8], its config.json wants [4, 8]"
    )


@pytest.mark.parametrize("model_type", ["llama", "LLaDA", "", None, 3])
def test_an_unknown_model_type_lists_the_known_ones(plain: Path, model_type: object) -> None:
    change_config(plain, model_type=model_type)
    message = error_of(plain)
    assert message.startswith(f"{plain}/config.json has model_type={model_type!r}")
    assert "; known: llada, Dream, sdar, a2d-qwen3" in message


def test_another_family_than_asked_for_is_refused(plain: Path) -> None:
    message = error_of(plain, family="dream")
    assert f"{plain} is a llada checkpoint" in message
    assert "model.family=dream" in message


@both_families
def test_a_size_that_config_json_lacks_is_named(family: str, tmp_path: Path) -> None:
    config = CONFIGS[family](**SIZES)
    write_checkpoint(tmp_path, config, random_weights(family, config, 0))
    key = {"llada": "d_model", "dream": "hidden_size"}[family]
    drop_from_config(tmp_path, key)
    assert error_of(tmp_path) == f"{tmp_path}/config.json lacks '{key}'"


def test_a_folder_without_config_is_no_checkpoint(plain: Path) -> None:
    (plain / "config.json").unlink()
    assert error_of(plain) == f"{plain} has no config.json"


def test_a_folder_without_weights_is_refused(plain: Path) -> None:
    (plain / "model.safetensors").unlink()
    assert error_of(plain) == f"{plain} has no model.safetensors and no index of shards"


@pytest.mark.parametrize("text", [b"", b"{", b"llada", b"\xff\xfe{}", b"[1]", b"3", b"null"])
def test_a_config_that_is_no_json_object_is_refused(plain: Path, text: bytes) -> None:
    (plain / "config.json").write_bytes(text)
    assert error_of(plain).startswith(f"{plain / 'config.json'} is not ")


def test_no_mask_token_anywhere_says_where_to_set_it(tiny: Policy, tmp_path: Path) -> None:
    save_policy(tiny, tmp_path)
    drop_from_config(tmp_path, "mask_token_id")
    path = tmp_path / "tokenizer_config.json"
    tokenizer_config = json.loads(path.read_text())
    del tokenizer_config["mask_token"]
    path.write_text(json.dumps(tokenizer_config))
    message = error_of(tmp_path)
    assert message == (
        f"{tmp_path} names no mask token: set mask_token_id in config.json "
        "or mask_token in tokenizer_config.json"
    )


def test_the_tokenizers_mask_token_is_enough(tiny: Policy, tmp_path: Path) -> None:
    save_policy(tiny, tmp_path)
    drop_from_config(tmp_path, "mask_token_id")
    assert load_policy(tmp_path).special.mask == tiny.special.mask


def test_no_end_of_sequence_token_is_refused(plain: Path) -> None:
    drop_from_config(plain, "eos_token_id")
    assert error_of(plain) == f"{plain} names no end-of-sequence token (eos_token_id)"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_refused(tiny: Policy, tmp_path: Path, name: str) -> None:
    save_policy(tiny, tmp_path)
    (tmp_path / name).write_text("{")
    assert str(tmp_path) in error_of(tmp_path)


def test_a_hub_name_that_is_not_downloaded_says_how_to_fetch_it() -> None:
    name = "no-such-organisation/no-such-model"
    assert f"`hf download {name}`" in error_of(name)
    assert f"`hf download {name} --revision v1`" in error_of(name, revision="v1")


@pytest.mark.parametrize(
    "path", ["data/none", "outputs/none", "./none", "/none/x", "a/b/c", "none"]
)
def test_a_path_that_is_no_folder_is_not_taken_for_a_hub_name(path: str) -> None:
    assert error_of(path) == f"model.path={path} is not a folder; give a checkpoint's folder"


# The tiny checkpoints


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=PRINTABLE, max_size=60))
def test_tiny_tokenizers_give_printable_text_back(tiny: Policy, text: str) -> None:
    ids = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tiny.tokenizer.decode(ids) == text
    assert tiny.tokenizer.unk_token_id not in ids


@pytest.mark.parametrize(
    ("text", "num_tokens"),
    [
        ("", 0),
        ("\\boxed{", 1),
        ("\\boxed{9+5-3}", 7),  # the box, five of 9+5-3, the brace
        ("<answer>1234</answer>", 6),
        ("a b\n", 4),
        ("  ", 2),
    ],
)
def test_tiny_tokenizers_count(tiny: Policy, text: str, num_tokens: int) -> None:
    assert len(tiny.tokenizer(text, add_special_tokens=False)["input_ids"]) == num_tokens


def test_tiny_ids_fit_the_embedding(tiny: Policy) -> None:
    assert max(tiny.tokenizer.get_vocab().values()) < tiny.backbone.config.vocab_size
    assert len({tiny.special.mask, tiny.special.pad}) == 2


def test_tiny_chat_template_ends_where_the_answer_begins(tiny: Policy) -> None:
    task = TaskConfig(name="any", prompt="", gen_length=8)
    example = Example(key="k", prompt="3 9=12", fields={})
    end = {"llada": "<|eot_id|>", "dream": "<|im_end|>"}[tiny.family.name]
    text = render(tiny, task, example)
    assert text == f"<|user|>3 9=12{end}<|assistant|>"
    assert len(encode(tiny, task, example)) == 1 + 6 + 1 + 1
    task.system = "Add."
    assert render(tiny, task, example) == f"<|system|>Add.{end}{text}"
    begun = replace(example, prefix="def f(")
    assert render(tiny, task, begun) == f"<|system|>Add.{end}{text}def f("


def test_the_same_seed_makes_the_same_tiny_policy(tiny: Policy) -> None:
    make = import_script(BLANK_TINY).make_policy
    assert_same_weights(make(tiny.family.name, seed=0, hidden_size=16), tiny)
    other = make(tiny.family.name, seed=1, hidden_size=16)
    assert not torch.equal(other.backbone.embed.weight, tiny.backbone.embed.weight)


def test_dreams_tokenizer_is_read_from_vocab_and_merges(tmp_path: Path) -> None:
    words = [*"helo", "\u0120", "he", "ll"]  # \u0120 is the space of byte-level BPE
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\nl l\n")
    special = {"7": "<|endoftext|>", "8": "<|im_end|>", "9": "<|mask|>"}
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "mask_token": "<|mask|>",
        "added_tokens_decoder": {i: {"content": t, "special": True} for i, t in special.items()},
        "chat_template": "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer("hello<|im_end|>")["input_ids"] == [5, 6, 3, 8]
    assert tokenizer.mask_token_id == 9
    assert tokenizer.chat_template == config["chat_template"]
