"""LoRA adapters (arXiv 2106.09685) through peft, in its file format, with official names."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from drift.cluster.zero import gathered
from drift.common.errors import CheckpointError
from drift.config.model import LoraConfig as LoraSettings
from drift.policy.base import Adapter, Policy

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of tensor names in peft's files
NAME = "default"  # peft's name of the only adapter


def fingerprint(policy: Policy) -> str:
    """SHA-256 of the embedding, which no adapter changes: says whether two bases are the same.

    Of its bfloat16 form, so that a base loaded in another precision is still the same base.
    """
    weight = policy.backbone.embed.weight
    with gathered([weight], policy.split):
        embed = weight.detach().to("cpu", torch.bfloat16).contiguous()
    return hashlib.sha256(embed.view(torch.int16).numpy().tobytes()).hexdigest()


def attach(policy: Policy, adapter: Adapter, like: dict[str, Tensor] | None = None) -> None:
    """Freeze the policy's weights and put trainable low-rank updates beside the targets.

    Args:
        policy: has none.
        adapter: what is attached.
        like: factors whose precision it takes; None: float32, whatever the base has.

    Raises:
        CheckpointError: a target names no linear layer.
    """
    linear = {
        name.rpartition(".")[2]
        for name, module in policy.backbone.named_modules()
        if isinstance(module, nn.Linear) and name != "head"
    }
    unknown = sorted(set(adapter.targets) - linear)
    if unknown:
        raise CheckpointError(
            f"model.lora.targets: no layer is called {unknown[0]}; there are {sorted(linear)}"
        )
    scale: Any = adapter.alpha  # peft takes a float, but says int
    from peft import LoraConfig, inject_adapter_in_model  # its import takes seconds

    config = LoraConfig(r=adapter.rank, lora_alpha=scale, target_modules=list(adapter.targets))
    inject_adapter_in_model(config, policy.backbone)
    policy.adapter = adapter
    for name, factor in factors(policy).items():
        factor.data = factor.data.to(like[name].dtype if like else torch.float32)


def attach_new(policy: Policy, settings: LoraSettings, base: str) -> None:
    """A fresh adapter; it changes nothing until it is trained.

    Its random factors come from torch's generator, seeded here: every run starts from the same.
    """
    adapter = Adapter(
        rank=settings.rank,
        alpha=settings.alpha,
        targets=tuple(settings.targets),
        base=base,
        base_sha256=fingerprint(policy),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attach(policy, adapter)


def layers(policy: Policy) -> dict[str, "LoraLayer"]:
    """The adapted layers by our name, for example `blocks.0.attn.q_proj`."""
    if policy.adapter is None:
        return {}
    from peft.tuners.lora import LoraLayer

    modules = policy.backbone.named_modules()
    return {name: module for name, module in modules if isinstance(module, LoraLayer)}


@contextmanager
def adapter_off(policy: Policy) -> Iterator[None]:
    """The frozen weights alone inside the block; nothing changes for a policy without adapter."""
    adapted = layers(policy).values()
    for layer in adapted:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in adapted:
            layer.enable_adapters(True)


def official_modules(policy: Policy) -> dict[str, str]:
    """Our module name -> the official one, for every weight."""
    places = policy.family.places(policy.backbone.config)
    return {
        ours.rpartition(".")[0]: place.tensor.rpartition(".")[0] for ours, place in places.items()
    }


def factors(policy: Policy) -> dict[str, Tensor]:
    """The trained tensors under their names in peft's file."""
    official = official_modules(policy)
    return {
        f"{PREFIX}{official[name]}.{part}.weight": getattr(layer, part)[NAME].weight
        for name, layer in layers(policy).items()
        for part in ("lora_A", "lora_B")
    }


def save_adapter(policy: Policy, folder: Path, tensors: dict[str, Tensor] | None = None) -> None:
    """Write the adapter alone: peft can load it onto the official model.

    Args:
        policy: has one.
        folder: created when missing.
        tensors: the factors by their names in peft's file; None: the policy's own.
    """
    adapter = policy.adapter
    assert adapter is not None
    folder.mkdir(parents=True, exist_ok=True)
    tensors = factors(policy) if tensors is None else tensors
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    official = official_modules(policy)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "target_modules": sorted({official[name].rpartition(".")[2] for name in layers(policy)}),
        "base_model_name_or_path": adapter.base,
        "drift_targets": list(adapter.targets),
        "drift_base_sha256": adapter.base_sha256,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_factors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a saved adapter."""
    try:
        return load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors raises its own and OSError
        raise CheckpointError(f"{folder}/{WEIGHTS} is missing or damaged: {error}") from None


@torch.no_grad()
def load_adapter(policy: Policy, folder: Path, config: dict[str, Any]) -> None:
    """Put a saved adapter on its base.

    Raises:
        CheckpointError: it was trained on other weights, or its tensors do not fit.
    """
    try:
        adapter = Adapter(
            rank=config["r"],
            alpha=config["lora_alpha"],
            targets=tuple(config["drift_targets"]),
            base=config["base_model_name_or_path"],
            base_sha256=config["drift_base_sha256"],
        )
    except KeyError as error:
        raise CheckpointError(f"{folder}/{CONFIG} lacks {error}") from None
    if fingerprint(policy) != adapter.base_sha256:
        raise CheckpointError(
            f"the adapter {folder} was trained on other weights than {adapter.base} holds"
        )
    attach(policy, adapter)
    saved, wanted = read_factors(folder), factors(policy)
    for name in sorted(wanted.keys() | saved.keys()):
        if name not in wanted or name not in saved or wanted[name].shape != saved[name].shape:
            raise CheckpointError(f"{folder}/{WEIGHTS}: tensor {name} does not fit the base")
        wanted[name].copy_(saved[name])


@torch.no_grad()
def merged_weight(policy: Policy, name: str) -> Tensor:
    """A weight of the backbone by our name, in float32, an adapter added into it."""
    module, _, kind = name.rpartition(".")
    layer: Any = layers(policy).get(module)
    if layer is None:
        return policy.backbone.get_parameter(name).float()
    weight = layer.get_base_layer().get_parameter(kind).float()
    return weight + layer.get_delta_weight(NAME).float() if kind == "weight" else weight


@torch.no_grad()
def kept_share(policy: Policy, dtype: torch.dtype) -> float:
    """What is left of the adapter's update D where the merged weights W + D are rounded to `dtype`.

    The projection of round(W + D) - round(W) on D, over all adapted layers: near 1 where D is many
    times the spacing of `dtype`'s numbers at W, near 0 where it is much less.
    """
    kept = whole = 0.0
    for name, layer in layers(policy).items():
        base: Any = layer.get_base_layer()
        weight, merged = base.weight.float(), merged_weight(policy, f"{name}.weight")
        update = merged - weight
        kept += float(((merged.to(dtype).float() - weight.to(dtype).float()) * update).sum())
        whole += float(update.square().sum())
    return kept / whole if whole else 1.0
