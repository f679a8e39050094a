"""Drift: reinforcement learning from verifiable rewards for masked diffusion language models.

Importing drift imports no torch; the names below load their module when first used.
"""

import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load_policy": "drift.policy.loading",
    "Policy": "drift.policy.base",
    "load_task": "drift.tasks.scoring",
    "score": "drift.tasks.scoring",
    "generate": "drift.rollout.generate",
}
__all__ = ["__version__", *_LAZY]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'drift' has no attribute {name!r}")


class _Package(ModuleType):
    """Importing a command, as `drift.generate`, does not put it in the function's place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _LAZY or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
