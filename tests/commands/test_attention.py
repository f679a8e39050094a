"""Attention backends against each other, the cache against whole rows, the sampler's replica."""

import sys
from pathlib import Path

import pytest

from drift.common.errors import ConfigError
from drift.config.model import AttentionBackend, ModelConfig
from drift.policy.loading import load_model
from tests.conftest import Run, make_policy


def test_flex_attention_does_not_train_on_a_cpu(run: Run) -> None:
    done = run("train", "model.attention=flex_attention", check=False)
    assert done.stderr.splitlines()[-1] == (
        "drift: model.attention=flex_attention has no backward pass on a CPU; use sdpa"
    )


@pytest.mark.skipif("flash_attn" in sys.modules, reason="flash-attn is installed")
def test_flash_attention_without_the_package_names_the_extra(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs the extra `flash`.*or use model.attention=sdpa"):
        load_model(
            ModelConfig(
                name="tiny", family=make_policy().family.name, path="data/tiny-countdown",  # type: ignore[arg-type]
                lr=1.0, attention=AttentionBackend.flash_attention_2,
            ),
            device="cpu",
        )  # fmt: skip
    done = run("train", "model.attention=flash_attention_2", check=False)
    assert done.returncode == 1
    assert "drift: model.attention=flash_attention_2 needs the extra `flash`" in done.stderr
    assert not any(path.is_file() for path in (tmp_path / "outputs").rglob("*"))
