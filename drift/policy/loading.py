"""Checkpoints of the families' own formats: config.json, safetensors, tokenizer files.

Loading is strict: a tensor that is missing, extra or of another shape is an error that names it.
"""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from drift.cluster.zero import Partition, ZeroConfig, gathered
from drift.common import terminal
from drift.common.errors import CheckpointError, ConfigError
from drift.common.files import read_json
from drift.config.model import AttentionBackend, Dtype, ModelConfig
from drift.policy import lora
from drift.policy.attention import BACKENDS
from drift.policy.backbone import Backbone, BackboneConfig
from drift.policy.base import Family, Place, Policy, SpecialIds
from drift.policy.block_families import A2D, FAST_DLLM_V2, SDAR, STABLE_DIFFCODER
from drift.policy.dream import DREAM
from drift.policy.llada import LLADA
from drift.policy.shards import (
    MAX_SHARD_SIZE,
    Shape,
    open_shard,
    shard_of_tensor,
    write_shards,
)

log = logging.getLogger("drift")
Stored = tuple[str, str, Callable[[], Tensor]]  # our name, its dtype in the file, what reads it
ALL = (LLADA, DREAM, SDAR, A2D, STABLE_DIFFCODER, FAST_DLLM_V2)
FAMILIES = {family.name: family for family in ALL}
# keys of config.json that say how long a block is; the first is ours and is always written
BLOCK_KEYS = ("block_length", "block_size", "bd_size")
PROJECT_ROOT = Path(__file__).resolve().parents[2]
PACKAGE_ROOT = Path(__file__).resolve().parents[1]


def others(missing: tuple[Path, ...]) -> str:
    """For data/tiny-code: " (data has tiny-countdown, ...)", the checkpoints of that kind there."""
    kind, dash, _ = missing[0].name.partition("-")
    files = [file for path in missing for file in path.parent.glob(f"{kind}-*/config.json")]
    names = ", ".join(sorted({file.parent.name for file in files}))
    return f" ({missing[0].parent} has {names})" if dash and names else ""


def find_checkpoint(path: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint: a path, a path inside the project, or a downloaded hub name.

    Raises:
        CheckpointError: there is none; the message names those of the same kind beside it, or has
            the command that fetches a hub name.
    """
    folders = (Path(path).expanduser(), PROJECT_ROOT / path, PACKAGE_ROOT / path)
    for folder in folders:
        if folder.is_dir():
            return folder
    if path.count("/") != 1 or path.startswith((".", "/", "~", "data/", "outputs/")):
        raise CheckpointError(
            f"model.path={path} is not a folder; give a checkpoint's folder{others(folders)}"
        )
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


def detect_family(raw: dict[str, Any], folder: Path) -> Family:
    """The family that a config.json names, by model_type and, if many share it, architectures."""
    kind, architectures = raw.get("model_type"), " ".join(raw.get("architectures") or [])
    for family in FAMILIES.values():
        named = family.architecture is None or family.architecture in architectures
        if kind in family.model_types and named:
            return family
    known = ", ".join(name for family in FAMILIES.values() for name in family.model_types)
    named = f" and architectures={architectures}" if kind == "llama" else ""
    raise CheckpointError(f"{folder}/config.json has model_type={kind!r}{named}; known: {known}")


def block_length_of(
    raw: dict[str, Any], family: Family, folder: Path, wanted: int | None
) -> tuple[int, str]:
    """Tokens of a block of the network's attention, 0 where it is full, and where that was said.

    Args:
        raw: config.json.
        family: of the checkpoint.
        folder: of the checkpoint, for errors.
        wanted: model.block_length; None: as the checkpoint says.

    Raises:
        CheckpointError: it contradicts the checkpoint, or nobody says.
    """
    key = next((key for key in BLOCK_KEYS if raw.get(key) is not None), None)
    if family.block_length == 0:
        if wanted:
            raise CheckpointError(
                f"model.block_length={wanted}, but {family.name} checkpoints have full attention; "
                "leave it null"
            )
        return 0, f"family {family.name}"
    if key is not None:
        found = raw[key]
        if not isinstance(found, int) or found < 0:
            raise CheckpointError(f"{folder}/config.json has {key}={found!r}; it must be 0 or more")
        if wanted is not None and wanted != found:
            raise CheckpointError(
                f"model.block_length={wanted}, but {folder}/config.json has {key}={found}; leave "
                "model.block_length null"
            )
        return found, f"{key} in config.json"
    if wanted is not None:
        return wanted, "model.block_length"
    if family.block_length is None:
        raise CheckpointError(
            f"{folder}/config.json does not say how long the blocks of this {family.name} "
            "checkpoint are; set model.block_length (0 = full attention)"
        )
    return family.block_length, f"default of {family.name}"


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
            read_json(folder / name, CheckpointError)  # its error names the file
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
    if tokenizer is not None and family.end_of_turn is not None:
        stop.append(tokenizer.get_vocab().get(family.end_of_turn))
    mask = family.mask if mask is None else mask
    if mask is None:
        raise CheckpointError(
            f"{folder} names no mask token: set mask_token_id in config.json "
            "or mask_token in tokenizer_config.json"
        )
    stop_ids = tuple(dict.fromkeys(i for i in stop if i is not None))
    if not stop_ids:
        raise CheckpointError(f"{folder} names no end-of-sequence token (eos_token_id)")
    return SpecialIds(mask=mask, pad=stop_ids[0] if pad is None else pad, stop=stop_ids)


def build(config: BackboneConfig, dtype: torch.dtype, device: Any, zero: ZeroConfig) -> Backbone:
    """A backbone without weights: whole, or under ZeRO-3 only this rank's part of each tensor.

    Raises:
        ConfigError: DeepSpeed's configuration asks for another precision than `dtype`.
    """
    if zero is not None:
        import deepspeed

        # without its argument `dtype`, which is overruled on a CPU without float16 arithmetic
        with deepspeed.zero.Init(config_dict_or_path=zero):
            backbone = Backbone(config)
        for name, parameter in backbone.named_parameters():
            if parameter.dtype != dtype:
                raise ConfigError(
                    f"ZeRO-3 holds {name} in {parameter.dtype}, model.dtype asks for {dtype}; "
                    "make bf16.enabled and fp16.enabled of cluster.deepspeed agree with model.dtype"
                )
        return backbone
    with torch.device("meta"):
        backbone = Backbone(config)
    backbone = backbone.to(dtype).to_empty(device=device)
    if config.tie_head:
        backbone.head.weight = backbone.embed.weight  # to_empty gives each its own storage
    return backbone


def shapes_of(config: BackboneConfig) -> dict[str, Shape]:
    """Of every weight by our name; a partitioned parameter does not know its own."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Backbone(config).named_parameters()}


def stored_weights(config: BackboneConfig, family: Family, folder: Path) -> Iterator[Stored]:
    """The tensors of a checkpoint file by file, none missing, none extra, each of its shape.

    Raises:
        CheckpointError: names the tensor that does not fit.
    """
    shards, shapes, places = shard_of_tensor(folder), shapes_of(config), family.places(config)
    named = {place.tensor for place in places.values()}
    missing, extra = sorted(named - shards.keys()), sorted(shards.keys() - named)
    for problem, tensors in (("lacks", missing), ("has unknown", extra)):
        if tensors:
            more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
            raise CheckpointError(f"{folder} {problem} tensor {tensors[0]}{more}")
    for shard in sorted(set(shards.values())):
        with open_shard(shard) as tensors:
            absent = {n for n, file in shards.items() if file == shard} - set(tensors.keys())
            if absent:
                raise CheckpointError(f"{shard} lacks tensor {min(absent)} that its index names")
            for ours, place in places.items():
                if shards[place.tensor] == shard:
                    found = tensors.get_slice(place.tensor)
                    check_shape(shapes[ours], rows_of(found.get_shape(), place), place, shard)
                    rows = slice(None) if place.rows is None else place.rows
                    yield ours, found.get_dtype(), partial(found.__getitem__, rows)


def rows_of(shape: list[int], place: Place) -> list[int]:
    """The shape of the rows that a place names in a tensor."""
    if place.rows is None:
        return shape
    return [len(range(*place.rows.indices(shape[0]))), *shape[1:]]


@torch.no_grad()
def copy_weights(policy: Policy, folder: Path) -> None:
    """Stream a checkpoint into a policy, one tensor at a time, strictly.

    Under ZeRO-3 the first rank reads and each tensor is spread as it comes: no rank ever holds more
    than its part and one tensor.
    """
    parameters = dict(policy.backbone.named_parameters())
    writes = not policy.split or torch.distributed.get_rank() == 0
    with terminal.bar("loading tensors", len(parameters)) as bar:
        for name, _, read in stored_weights(policy.backbone.config, policy.family, folder):
            with gathered([parameters[name]], policy.split, writer=0):
                if writes:
                    parameters[name].copy_(read())
            bar.advance()


def check_shape(wanted: Shape, found: list[int], place: Place, shard: Path) -> None:
    if list(wanted) != found:
        raise CheckpointError(
            f"{shard}: {place.tensor} is {found}, its config.json wants {list(wanted)}"
        )


def load_policy(
    path: str | Path,
    *,
    family: str | None = None,
    revision: str | None = None,
    block_length: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    zero: ZeroConfig = None,
) -> Policy:
    """A policy from a checkpoint in its family's official format, or from a LoRA adapter.

    Args:
        path: a folder, or a hub name that is already downloaded; an adapter names its base.
        family: refuse a checkpoint of another family; None takes whatever config.json says.
        revision: of the hub name.
        block_length: tokens of a block of block-causal attention, 0 = full attention, for a
            checkpoint whose config.json does not say.
        dtype, device: of the weights.
        zero: a DeepSpeed configuration of stage 3, in an initialised process group: every rank
            calls, and keeps its part of each tensor alone.

    Raises:
        CheckpointError: missing, truncated, of another family, or tensors that do not fit.
    """
    folder = find_checkpoint(str(path), revision)
    if (folder / lora.CONFIG).exists():
        adapter = read_json(folder / lora.CONFIG, CheckpointError)
        base = str(adapter.get("base_model_name_or_path"))
        policy = load_policy(
            base,
            family=family,
            revision=revision,
            block_length=block_length,
            dtype=dtype,
            device=device,
            zero=zero,
        )
        lora.load_adapter(policy, folder, adapter)
        return policy
    raw = read_json(folder / "config.json", CheckpointError)
    found = detect_family(raw, folder)
    if family is not None and found.name != family:
        raise CheckpointError(
            f"{folder} is a {found.name} checkpoint (model_type={raw['model_type']}), "
            f"but model.family={family}; use a model of family {found.name}"
        )
    length, said = block_length_of(raw, found, folder, block_length)
    try:
        config = replace(found.read_config(raw), block_length=length)
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
    if length:
        log.info("attention is block-causal, %d tokens a block (%s)", length, said)
    backbone = build(config, dtype, device, zero)
    policy = Policy(backbone, found, special, raw_config=raw, tokenizer=tokenizer)
    policy.official_files = read_official(folder)
    policy.split = zero is not None
    copy_weights(policy, folder)
    return policy


def load_model(
    config: ModelConfig,
    *,
    device: torch.device | str,
    path: str | None = None,
    trained: Partition | None = None,
) -> Policy:
    """The policy that a `model` config asks for.

    Args:
        config: path, family, revision, dtype, attention, gradient checkpointing.
        device: of the weights.
        path: instead of the config's own, for example a checkpoint of a run, of any family.
        trained: how to hold what the optimizer changes: without LoRA every weight, with it the
            adapter alone, a new one if the checkpoint has none. The rest is in `config.dtype`.

    Raises:
        CheckpointError: as `load_policy`.
        ConfigError: the attention backend does not work here, or the checkpoint is an adapter of
            another rank than is to be trained.
    """
    on_cpu = torch.device(device).type == "cpu"
    if trained and on_cpu and config.attention == AttentionBackend.flex_attention:
        raise ConfigError("model.attention=flex_attention has no backward pass on a CPU; use sdpa")
    every_weight = trained is not None and not config.lora.rank
    policy = load_policy(
        config.path if path is None else path,
        family=config.family if path is None else None,
        revision=config.revision,
        block_length=config.block_length if path is None else None,
        dtype=trained.dtype if trained and every_weight else torch_dtype(config.dtype),
        device=device,
        zero=trained.zero if trained else None,
    )
    if (
        policy.backbone.config.block_length
        and config.attention == AttentionBackend.flash_attention_2
    ):
        raise ConfigError(
            "model.attention=flash_attention_2 cannot compute block-causal attention; use sdpa or "
            "flex_attention"
        )
    policy.backbone.attention = config.attention
    BACKENDS[config.attention](None, 1)  # its error now, not after the first batch
    policy.backbone.gradient_checkpointing = config.gradient_checkpointing
    if trained and policy.adapter is not None and policy.adapter.rank != config.lora.rank:
        raise ConfigError(
            f"model.lora.rank={config.lora.rank}, but {path or config.path} is an adapter of rank "
            f"{policy.adapter.rank}; set that, or merge it with drift.export"
        )
    if trained and config.lora.rank and policy.adapter is None:
        lora.attach_new(policy, config.lora, config.path)
    return policy


def save_policy(
    policy: Policy,
    folder: Path,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    *,
    dtype: torch.dtype = torch.float32,
    fetch: Callable[[str], Tensor] | None = None,
    rank: int = 0,
    num_ranks: int = 1,
) -> None:
    """Write a policy in its family's official format, a LoRA adapter merged into the weights.

    Args:
        policy: what to save.
        folder: created when missing.
        max_shard_size: bytes of one file; more than that makes several and an index.
        dtype: of the files.
        fetch: the float32 weight of our name, a collective where ranks share the work; None: the
            policy's own.
        rank, num_ranks: of this process; the first writes all but its share of the weights too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = policy.backbone.config
    ours, shapes = parts_of(policy.family.places(config)), shapes_of(config)
    one = fetch or partial(lora.merged_weight, policy)

    def whole(official: str) -> Tensor:
        parts = [one(name) for name in ours[official]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    write_shards(
        folder,
        "model",
        {
            official: (sum(shapes[name][0] for name in names), *shapes[names[0]][1:])
            for official, names in ours.items()
        },
        dtype,
        whole,
        max_shard_size=max_shard_size,
        rank=rank,
        num_ranks=num_ranks,
    )
    if rank == 0:
        save_settings(policy, folder)


def parts_of(places: dict[str, Place]) -> dict[str, list[str]]:
    """Official tensor -> our weights in it, in the order of their rows."""
    found: dict[str, list[tuple[int, str]]] = {}
    for ours, place in places.items():
        start = place.rows.start if place.rows is not None else 0
        found.setdefault(place.tensor, []).append((start, ours))
    return {official: [ours for _, ours in sorted(parts)] for official, parts in found.items()}


def read_official(folder: Path) -> dict[str, bytes]:
    """The modules that config.json's `auto_map` names, and transformers' settings of generation."""
    files = [*folder.glob("*.py"), *folder.glob("generation_config.json")]
    return {path.name: path.read_bytes() for path in files}


def save_settings(policy: Policy, folder: Path) -> None:
    """Write config.json, the tokenizer, and what the official code needs beside them."""
    raw = policy.raw_config | policy.family.write_config(policy.backbone.config)
    if raw.get("model_type") not in policy.family.model_types:
        raw["model_type"] = policy.family.model_types[0]
    if policy.family.block_length != 0:
        raw["block_length"] = policy.backbone.config.block_length
    special = policy.special
    ids = {"mask_token_id": special.mask, "pad_token_id": special.pad}
    raw |= ids | {"eos_token_id": raw.get("eos_token_id", special.stop[0])}
    (folder / "config.json").write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")
    if policy._tokenizer is not None:
        policy._tokenizer.save_pretrained(folder)
    for name, content in policy.official_files.items():
        (folder / name).write_bytes(content)
