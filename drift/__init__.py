"""Drift: reinforcement learning from verifiable rewards for masked diffusion language models.

Importing drift imports no torch; the names below load their module when first used.
"""

from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load_policy": "drift.policy.loading",
    "Policy": "drift.policy.base",
    "load_task": "drift.scoring",
    "score": "drift.scoring",
}
__all__ = ["__version__", *_LAZY]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'drift' has no attribute {name!r}")
