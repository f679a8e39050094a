"""A checkpoint as LLaDA's and Dream's authors publish it, at tiny size, through every command."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drift.policy.loading import load_policy
from tests.conftest import ROOT, Run
from tests.oracles import CONFIGS, random_weights, write_shards

SIZES = {"vocab": 128, "hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "mlp": 48}
FEW = ("rollout.prompts_per_step=4", "rollout.group_size=2", "eval.max_examples=4", "num_steps=2",
       "task.train_size=200")  # fmt: skip
CODE = """from transformers import PretrainedConfig

class LikeTheAuthors(PretrainedConfig):
    model_type = "{family}"
"""
LOADING = """import sys
from transformers import AutoConfig, GenerationConfig
for folder in sys.argv[1:]:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    print(type(config).__name__, GenerationConfig.from_pretrained(folder).max_new_tokens)
"""


@pytest.fixture(params=["llada", "dream"])
def official(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    spec = importlib.util.spec_from_file_location("blank", ROOT / "scripts" / "blank_tiny.py")
    assert spec is not None and spec.loader is not None
    blank = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(blank)
    family, folder = request.param, tmp_path / "official"
    tokenizer = blank.make_tokenizer(family)
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("mask", "pad", "eos")}
    config = CONFIGS[family](**SIZES) | ids
    config["auto_map"] = {"AutoConfig": "configuration_theirs.LikeTheAuthors"}
    write_shards(folder, config, random_weights(family, config, 0), num_shards=3)
    (folder / "configuration_theirs.py").write_text(CODE.format(family=config["model_type"]))
    (folder / "generation_config.json").write_text('{"max_new_tokens": 77}')
    tokenizer.save_pretrained(folder)
    return family, folder


def test_an_official_checkpoint_goes_through_every_command(
    official: tuple[str, Path], run: Run, tmp_path: Path
) -> None:
    family, folder = official
    model = ("model=tiny" if family == "llada" else "model=tiny_dream", f"model.path={folder}")
    run("doctor", *model)
    run("train", *model, *FEW, "hydra.run.dir=full", "optim.lr=1e-3")
    run("train", *model, *FEW, "hydra.run.dir=lora", "model.lora.rank=2", "optim.lr=1e-3")
    full, adapter = (tmp_path / f"{kind}/checkpoints/step_000002" for kind in ("full", "lora"))
    assert (adapter / "policy" / "adapter_model.safetensors").exists()
    run("doctor", *model[:1], f"model.path={full}/policy")
    shown = run("eval", *model[:1], f"checkpoints=[{folder},{full},{adapter}]").stdout
    assert shown.count("[0.000,") >= 1
    for checkpoint in (folder, full, adapter):
        run("generate", *model[:1], f"model.path={checkpoint}", "prompt=3 9 5=7")
    run("export", f"checkpoint={adapter}", "output=merged")
    written = json.loads((tmp_path / "merged" / "config.json").read_text())
    original = json.loads((folder / "config.json").read_text())
    assert original.items() <= written.items()  # every official key and value is kept
    command = [sys.executable, "-c", LOADING, str(full / "policy"), "merged"]
    home = os.environ | {"HF_HOME": str(tmp_path / "hf")}  # transformers copies the modules there
    loaded = subprocess.run(command, cwd=tmp_path, env=home, capture_output=True, text=True)
    assert loaded.stdout == "LikeTheAuthors 77\n" * 2, loaded.stderr
    places = load_policy(folder).family.places(load_policy(folder).backbone.config)
    assert len(places) == len(load_policy(tmp_path / "merged").backbone.state_dict())
