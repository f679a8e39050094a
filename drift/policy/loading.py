"""Checkpoints of the families' own formats: config.json, safetensors, tokenizer files.

Loading is strict: a tensor that is missing, extra or of another shape is an error that names it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from drift.config import AttentionBackend, Dtype, ModelConfig
from drift.errors import CheckpointError, ConfigError
from drift.policy import lora
from drift.policy.attention import BACKENDS
from drift.policy.backbone import Backbone, BackboneConfig
from drift.policy.base import Family, Policy, SpecialIds
from drift.policy.dream import DREAM
from drift.policy.llada import LLADA

ZeroConfig = dict[str, Any] | None
FAMILIES = {family.name: family for family in (LLADA, DREAM)}
PROJECT_ROOT = Path(__file__).resolve().parents[2]
PACKAGE_ROOT = Path(__file__).resolve().parents[1]


def find_checkpoint(path: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint: a path, a path inside the project, or a downloaded hub name.

    Raises:
        CheckpointError: there is none; the message has the command that fetches a hub name.
    """
    for folder in (Path(path).expanduser(), PROJECT_ROOT / path, PACKAGE_ROOT / path):
        if folder.is_dir():
            return folder
    if path.count("/") != 1 or path.startswith((".", "/", "~", "data/", "outputs/")):
        raise CheckpointError(f"model.path={path} is not a folder; give a checkpoint's folder")
    try:
        return Path(snapshot_download(path, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        pinned = f" --revision {revision}" if revision else ""
        raise CheckpointError(
            f"model.path={path} is neither a folder nor a downloaded checkpoint; "
            f"fetch it with `hf download {path}{pinned}` or set model.path to a folder"
        ) from None


def torch_dtype(dtype: Dtype) -> torch.dtype:
    return {Dtype.float32: torch.float32, Dtype.bfloat16: torch.bfloat16}[dtype]


def policy_folder(checkpoint: str) -> str:
    """A policy's path: a checkpoint of a run holds it in `policy/`."""
    inner = Path(checkpoint) / "policy"
    return str(inner) if inner.is_dir() else checkpoint


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}: not a checkpoint") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def detect_family(raw: dict[str, Any], folder: Path) -> Family:
    """The family that a config.json names."""
    for family in FAMILIES.values():
        if raw.get("model_type") == family.model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES.values())
    raise CheckpointError(
        f"{folder}/config.json has model_type={raw.get('model_type')!r}; known: {known}"
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """The checkpoint's tokenizer; None if it has none.

    Dream's checkpoints have no tokenizer.json but Qwen2's vocab.json and merges.txt, under a class
    of their own that adds nothing to Qwen2's.
    """
    if (folder / "tokenizer.json").exists():
        kind, files = PreTrainedTokenizerFast, ("tokenizer.json", "tokenizer_config.json")
    elif (folder / "merges.txt").exists():
        kind, files = Qwen2Tokenizer, ("vocab.json", "tokenizer_config.json")
    else:
        return None
    for name in files:
        if (folder / name).exists():
            read_json(folder / name)  # its error names the file
    try:
        return kind.from_pretrained(folder, clean_up_tokenization_spaces=False)
    except Exception as error:  # the tokenizers library raises bare exceptions for a damaged file
        raise CheckpointError(f"{folder}/{files[0]} does not load: {error!r}") from None


def special_ids(
    raw: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None, family: Family, folder: Path
) -> SpecialIds:
    """Mask, padding and stop ids, from the checkpoint's own config.json and tokenizer."""

    def named(name: str) -> Any:
        key = f"{name}_token_id"
        found = raw.get(key)
        return getattr(tokenizer, key) if found is None and tokenizer is not None else found

    mask, pad, eos = named("mask"), named("pad"), named("eos")
    stop = list(eos) if isinstance(eos, list) else [eos]
    if tokenizer is not None:
        stop.append(tokenizer.get_vocab().get(family.end_of_turn))
    if mask is None:
        raise CheckpointError(
            f"{folder} names no mask token: set mask_token_id in config.json "
            "or mask_token in tokenizer_config.json"
        )
    stop_ids = tuple(dict.fromkeys(i for i in stop if i is not None))
    if not stop_ids:
        raise CheckpointError(f"{folder} names no end-of-sequence token (eos_token_id)")
    return SpecialIds(mask=mask, pad=stop_ids[0] if pad is None else pad, stop=stop_ids)


def shard_of_tensor(folder: Path) -> dict[str, Path]:
    """Official tensor name -> the safetensors file that holds it.

    Raises:
        CheckpointError: no weights, a shard is missing, or a file is truncated.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index} has no weight_map")
        for shard in sorted(set(weight_map.values())):
            if not (folder / shard).exists():
                raise CheckpointError(f"{folder} lacks the shard {shard} that its index names")
        return {name: folder / shard for name, shard in weight_map.items()}
    single = folder / "model.safetensors"
    if not single.exists():
        raise CheckpointError(f"{folder} has no model.safetensors and no index of shards")
    with open_shard(single) as tensors:
        return dict.fromkeys(tensors.keys(), single)


def open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from None


def build(config: BackboneConfig, dtype: torch.dtype, device: Any, zero: ZeroConfig) -> Backbone:
    """A backbone without weights: whole, or under ZeRO-3 only this rank's part of each tensor."""
    if zero is not None:
        import deepspeed

        with deepspeed.zero.Init(config_dict_or_path=zero, dtype=dtype):
            return Backbone(config)
    with torch.device("meta"):
        backbone = Backbone(config)
    backbone = backbone.to(dtype).to_empty(device=device)
    if config.tie_head:
        backbone.head.weight = backbone.embed.weight  # to_empty gives each its own storage
    return backbone


@contextmanager
def whole(parameter: Tensor, zero: ZeroConfig) -> Iterator[bool]:
    """The whole tensor inside the block; yields whether this rank is the one to write it."""
    if zero is None:
        yield True
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        yield torch.distributed.get_rank() == 0


@torch.no_grad()
def copy_weights(backbone: Backbone, family: Family, folder: Path, zero: ZeroConfig = None) -> None:
    """Stream a checkpoint into a backbone, one tensor at a time, strictly.

    Under ZeRO-3 the first rank reads and each tensor is spread as it comes: no rank ever holds more
    than its part and one tensor.
    """
    shards = shard_of_tensor(folder)
    names = family.official_names(backbone.config)
    parameters = dict(backbone.named_parameters())
    with torch.device("meta"):  # a partitioned parameter does not know its shape
        shapes = {k: list(p.shape) for k, p in Backbone(backbone.config).named_parameters()}
    missing = sorted(set(names.values()) - shards.keys())
    extra = sorted(shards.keys() - set(names.values()))
    for problem, tensors in (("lacks", missing), ("has unknown", extra)):
        if tensors:
            more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
            raise CheckpointError(f"{folder} {problem} tensor {tensors[0]}{more}")
    for shard in sorted(set(shards.values())):
        with open_shard(shard) as tensors:
            absent = {n for n, file in shards.items() if file == shard} - set(tensors.keys())
            if absent:
                raise CheckpointError(f"{shard} lacks tensor {min(absent)} that its index names")
            for ours, official in names.items():
                if shards[official] != shard:
                    continue
                check_shape(shapes[ours], tensors.get_slice(official).get_shape(), official, shard)
                with whole(parameters[ours], zero) as writes:
                    if writes:
                        parameters[ours].copy_(tensors.get_tensor(official))


def check_shape(wanted: list[int], found: list[int], name: str, shard: Path) -> None:
    if wanted != found:
        raise CheckpointError(f"{shard}: {name} is {found}, its config.json wants {wanted}")


def load_policy(
    path: str | Path,
    *,
    family: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    zero: ZeroConfig = None,
) -> Policy:
    """A policy from a checkpoint in its family's official format, or from a LoRA adapter.

    Args:
        path: a folder, or a hub name that is already downloaded; an adapter names its base.
        family: refuse a checkpoint of another family; None takes whatever config.json says.
        revision: of the hub name.
        dtype, device: of the weights.
        zero: a DeepSpeed configuration of stage 3, in an initialised process group: every rank
            calls, and keeps its part of each tensor alone.

    Raises:
        CheckpointError: missing, truncated, of another family, or tensors that do not fit.
    """
    folder = find_checkpoint(str(path), revision)
    if (folder / lora.CONFIG).exists():
        adapter = read_json(folder / lora.CONFIG)
        base = str(adapter.get("base_model_name_or_path"))
        policy = load_policy(
            base, family=family, revision=revision, dtype=dtype, device=device, zero=zero
        )
        lora.load_adapter(policy, folder, adapter)
        return policy
    raw = read_json(folder / "config.json")
    found = detect_family(raw, folder)
    if family is not None and found.name != family:
        raise CheckpointError(
            f"{folder} is a {found.name} checkpoint (model_type={found.model_type}), "
            f"but model.family={family}; use a model of family {found.name}"
        )
    try:
        config = found.read_config(raw)
        with torch.device("meta"):
            Backbone(config)
    except KeyError as error:
        raise CheckpointError(f"{folder}/config.json lacks {error}") from None
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise CheckpointError(f"{folder}/config.json has a bad size: {error}") from None
    tokenizer = load_tokenizer(folder)
    special = special_ids(raw, tokenizer, found, folder)
    if not all(0 <= i < config.vocab_size for i in (special.mask, special.pad, *special.stop)):
        raise CheckpointError(
            f"{folder}: mask, padding and stop ids {special} must be below the vocabulary's "
            f"{config.vocab_size}"
        )
    backbone = build(config, dtype, device, zero)
    copy_weights(backbone, found, folder, zero)
    return Policy(backbone, found, special, raw_config=raw, tokenizer=tokenizer)


def load_model(
    config: ModelConfig,
    *,
    device: torch.device | str,
    path: str | None = None,
    trained: bool = False,
) -> Policy:
    """The policy that a `model` config asks for.

    Args:
        config: path, family, revision, dtype, attention, gradient checkpointing.
        device: of the weights.
        path: instead of the config's own, for example a checkpoint of a run, of any family.
        trained: keep in float32 what the optimizer changes: without LoRA every weight, with it
            the adapter alone. Otherwise everything is in `config.dtype`.
    """
    on_cpu = torch.device(device).type == "cpu"
    if trained and on_cpu and config.attention == AttentionBackend.flex_attention:
        raise ConfigError("model.attention=flex_attention has no backward pass on a CPU; use sdpa")
    whole = trained and not config.lora.rank
    policy = load_policy(
        config.path if path is None else path,
        family=config.family if path is None else None,
        revision=config.revision,
        dtype=torch.float32 if whole else torch_dtype(config.dtype),
        device=device,
    )
    policy.backbone.attention = config.attention
    BACKENDS[config.attention](None, 1)  # its error now, not after the first batch
    policy.backbone.gradient_checkpointing = config.gradient_checkpointing
    return policy


def save_policy(policy: Policy, folder: Path, max_shard_size: int | str = "5GB") -> None:
    """Write a policy in its family's official format, a LoRA adapter merged into the weights.

    Args:
        policy: what to save.
        folder: created when missing.
        max_shard_size: bytes of one file; more than that makes several and an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = lora.merged_weights(policy)
    names = policy.family.official_names(policy.backbone.config)
    tensors = {official: state[ours].contiguous().cpu() for ours, official in names.items()}
    shards = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    for name, keys in shards.filename_to_tensors.items():
        save_file({key: tensors[key] for key in keys}, folder / name, metadata={"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    raw = policy.raw_config | policy.family.write_config(policy.backbone.config)
    raw["model_type"] = policy.family.model_type
    special = policy.special
    ids = {"mask_token_id": special.mask, "pad_token_id": special.pad}
    raw |= ids | {"eos_token_id": raw.get("eos_token_id", special.stop[0])}
    (folder / "config.json").write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")
    if policy._tokenizer is not None:
        policy._tokenizer.save_pretrained(folder)
