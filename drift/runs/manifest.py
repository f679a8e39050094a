"""What a run was made of: versions, code, data, seeds, machine."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from drift import __version__
from drift.cluster.engine import gpu_names
from drift.common.files import write_json
from drift.common.types import Example
from drift.config import REGISTRIES
from drift.config.commands import RunConfig, SFTConfig

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "deepspeed",
    "peft",
    "hydra-core",
    "mlflow",
    "sympy",
    "math-verify",
    "reasoning-gym",
)


def data_digest(examples: list[Example]) -> dict[str, Any]:
    """How many examples, and the SHA-256 of their keys, prompts and fields in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.key}\x00{example.prompt}\x00{example.fields}\x00".encode())
    return {"n": len(examples), "sha256": digest.hexdigest()}


def git_state(root: Path) -> dict[str, Any]:
    """Commit and whether the tree differs from it; empty if `root` is not a checkout's own root.

    A package that is installed inside another repository has no commit.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return {}
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "gpus": gpu_names(),
    }


def data_digests(splits: dict[str, list[Example]]) -> dict[str, Any]:
    return {name: data_digest(examples) for name, examples in splits.items()}


def build_manifest(seed: int, data: dict[str, Any], prompt: str) -> dict[str, Any]:
    """Everything that is needed to say what was run.

    Args:
        seed: of the run.
        data: digests of the splits, their overlap with train, records left out.
        prompt: the first one, rendered.
    """
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {"drift": __version__} | {name: installed(name) for name in PACKAGES},
        "git": git_state(ROOT),
        **data,
        "first_prompt": prompt,
        "seed": seed,
        "machine": machine(),
    }


def choices_of(config: Any) -> dict[str, str]:
    """The option of each group: {"model": "tiny", "masking": "sequential", ...}.

    By the class of its settings; for model, task and cluster by their `name`.
    """
    chosen: dict[str, str] = {}
    for known in REGISTRIES:
        if known.group in vars(config):
            part: Any = getattr(config, known.group)
            chosen[known.group] = part.name if "name" in vars(part) else known.name(part)
    return {group: name for group, name in chosen.items() if name != "base"}  # no name of an option


def settings_of(config: Any) -> dict[str, Any]:
    """A run's config.yaml: its settings, nested, and `choices`, the options that were chosen."""
    settings: Any = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return {"choices": choices_of(config), **settings}


def write_origin(config: RunConfig | SFTConfig, data: dict[str, Any], prompt: str) -> None:
    """config.yaml and manifest.json (`build_manifest`) in the run's folder."""
    folder = Path(config.output_dir)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings_of(config))))
    write_json(folder / "manifest.json", build_manifest(config.seed, data, prompt))
