"""A user's mistakes: one line that says what is wrong, exit code 1, nothing written."""

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.conftest import ROOT, Run, says

TINY = ROOT / "data" / "tiny-countdown"
SMOKE = ("debug=smoke", "task.train_size=200", "tracking=off")


def refused(run: Run, tmp_path: Path, *overrides: str, code: int = 1) -> str:
    """The one line of a refusal; checks that nothing was written."""
    before = sorted(tmp_path.rglob("*"))
    done = run("train", *overrides, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    lines = (done.stdout + done.stderr).strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("drift: ")
    written = [p for p in sorted(tmp_path.rglob("*")) if p not in before and p.name != "outputs"]
    assert written == []
    return lines[0].removeprefix("drift: ")


def refused_yaml(run: Run, folder: Path, group: str, text: str) -> str:
    """The line that refuses an own option of a group."""
    path = folder / "conf" / group / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return refused(run, folder, f"hydra.searchpath=[file://{folder}/conf]", f"{group}=mine")


def test_unknown_option_names_the_near_one(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, "rollout.gen_lenght=32")
    assert line.startswith("rollout.gen_lenght: ")
    says(line, "did you mean rollout.gen_length;", "options", "block_length, ")


def test_a_setting_of_an_earlier_version_names_the_one_of_today(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, "optim.rows_per_forward=4")
    assert line.startswith("optim.rows_per_forward: ")
    says(line, "did you mean optim.tokens_per_forward;")


def test_unknown_choice_lists_the_options(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, "model=lada")
    assert line.startswith("model=lada: ")
    says(line, "did you mean llada;", "options", "dream, ")


def test_setting_of_another_option_is_refused(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, "masking=all", "masking.low_prob_threshold=0.5")
    assert line == (
        "masking.low_prob_threshold=0.5 applies to masking=sequential only; use masking=sequential"
    )


@pytest.mark.parametrize(
    ("override", "write"),
    [
        ("masking.strategy=random", "write masking=random"),
        ("tracking.backend=off", "write tracking=off"),
        ("task.name=sudoku", "write task=sudoku"),
    ],
)
def test_an_option_is_not_a_setting(run: Run, tmp_path: Path, override: str, write: str) -> None:
    line = refused(run, tmp_path, override)
    assert line.startswith(override.partition("=")[0])
    assert write in line


def test_wrong_type_is_refused(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, "optim.lr=fast")
    assert line == "optim.lr=fast must be a finite number greater than 0"


def test_one_value_for_many_settings_names_them(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, "model.lora=8")
    says(line, "model.lora ", "model.lora.rank, ", "model.lora.alpha")


def test_one_value_for_a_list_shows_how_a_list_is_written(run: Run) -> None:
    done = run("eval", "checkpoints=X", check=False)
    says(done.stderr, "drift: checkpoints ", "list", "'checkpoints=[X]'\n")


@pytest.mark.parametrize("value", ["null", "1"])
def test_a_group_that_is_set_to_no_option_names_them(run: Run, tmp_path: Path, value: str) -> None:
    words = ("optim=adamw", f"tracking={value}")
    says(refused(run, tmp_path, *words), f"tracking={value}: ", "mlflow, off, wandb")


def test_a_setting_of_a_group_without_an_option_says_to_choose_one(run: Run) -> None:
    done = run("track", "folder=.", "tracking.uri=x", check=False)
    assert done.returncode == 1
    says(done.stderr, "drift: tracking.uri=x: ", "add tracking=OPTION", "mlflow, off, wandb\n")


def test_a_wrong_option_inside_a_yaml_names_the_file(run: Run, tmp_path: Path) -> None:
    line = refused_yaml(run, tmp_path, "masking", "defaults: [randm, _self_]\n")
    assert line.startswith("masking/mine.yaml: masking=randm: ")
    says(line, "did you mean random;", "all, block, ")


def test_malformed_override_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, "tiny", code=2)
    says(line, "tiny: ", "key=value")


@pytest.mark.parametrize("value", ["{question}", "Is 1/2 'more', {name}?", "[q_proj"])
def test_a_text_that_hydra_cannot_read_is_told_with_its_quotes(
    run: Run, tmp_path: Path, value: str
) -> None:
    override = f"task.prompt={value}"
    line = refused(run, tmp_path, override, code=2)
    assert line.startswith(f"{override}: cannot be read; ")
    (mended,) = shlex.split(line.partition("for Hydra: ")[2])
    assert OverridesParser.create().parse_override(mended).value() == value


@pytest.mark.parametrize("value", ["all,trace", "first, then second"])
def test_several_values_without_a_sweep_are_told_what_they_may_be(
    run: Run, tmp_path: Path, value: str
) -> None:
    line = refused(run, tmp_path, f"task.prompt={value}")
    says(line, f"task.prompt={value}: ", "-m;")
    words = shlex.split(line)
    a_list, a_text = (word for word in words if word.startswith(("task.prompt=[", 'task.prompt="')))
    parse = OverridesParser.create().parse_override
    assert parse(a_list.rstrip(",")).value() == value.split(", " if ", " in value else ",")
    assert parse(a_text).value() == value


def test_a_range_without_a_sweep_needs_the_flag(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, "seed=range(0,3)")
    says(line, "seed=range(0,3): ", "-m")


def test_typo_inside_a_yaml_is_refused(run: Run, tmp_path: Path) -> None:
    line = refused_yaml(
        run, tmp_path, "experiment", "# @package _global_\noptim: {learning_rate: 0.1}\n"
    )
    assert line.startswith("optim.learning_rate: ")


def test_yaml_that_does_not_parse_is_refused_with_its_line(run: Run, tmp_path: Path) -> None:
    line = refused_yaml(
        run, tmp_path, "experiment", "# @package _global_\noptim: {lr: 0.1\nseed: 1\n"
    )
    assert "mine.yaml:3: not YAML" in line


def test_setting_added_by_force_is_refused(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, "+optim.momentum=0.9")
    assert line.startswith("optim.momentum: ")
    says(line, "options", "lr, beta1")


def test_a_folder_that_is_not_chosen_with_hydra_is_refused(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, "output_dir=here")
    says(line, "output_dir=here ", "hydra.run.dir=FOLDER")


@pytest.mark.parametrize(
    ("overrides", "name"), [((), "tiny-countdown"), (("experiment=espo",), "espo")]
)
def test_a_folder_is_named_after_the_experiment_or_model_and_task(
    run: Run, overrides: tuple[str, ...], name: str
) -> None:
    said = run("train", *overrides, "--cfg", "hydra", "--resolve", "--package", "hydra.run").stdout
    assert f"dir: outputs/{name}/20" in said


def test_run_folder_in_use_is_refused(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = refused(run, tmp_path, "hydra.run.dir=run")
    assert "run is in use by another process" in line


def test_block_that_does_not_divide_is_refused(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, "rollout.block_length=5")
    says(line, "rollout.gen_length=16 ", "rollout.block_length=5;")
    says(line, "block_length in {1, 2, 4, 8, 16} or gen_length=20")


def test_group_of_one_is_refused(run: Run, tmp_path: Path) -> None:
    assert "rollout.group_size=1 leaves nothing" in refused(run, tmp_path, "rollout.group_size=1")


def test_every_job_of_a_sweep_is_checked_before_the_first_starts(run: Run, tmp_path: Path) -> None:
    done = run("train", "-m", "rollout.block_length=8,7", "seed=0,1", check=False)
    assert done.returncode == 1
    says(done.stderr, "2 of 4 jobs", "rollout.block_length=7 seed=1: rollout.gen_length=16 ")
    assert not (tmp_path / "outputs" / "mlflow.db").exists()


def test_missing_checkpoint_says_how_to_get_it(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, "model=llada", "task=code")
    assert "fetch it with `hf download GSAI-ML/LLaDA-8B-Instruct --revision main`" in line


def test_task_without_a_tiny_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, "task=code")
    assert "model.path=data/tiny-code is not a folder" in line
    assert "(data has tiny-arithmetic, tiny-countdown, tiny-one_line_code, tiny-sudoku)" in line


def test_checkpoint_of_another_family_is_refused(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, "model=tiny_dream", f"model.path={TINY}")
    says(line, str(TINY), "model_type=llada", "model.family=dream")


def test_truncated_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(TINY, broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    line = refused(run, tmp_path, f"model.path={broken}")
    assert "model.safetensors is truncated or damaged" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such data file"),
        (b"", "the data file is empty"),
        (b"\xff\xfe\x00", "not UTF-8 at byte 0"),
        (b'{"numbers": [1, 2], "target": 3}\nnot json\n', "data.jsonl:2: not JSON"),
        (b'{"numbers": [1, 2]}\n', "data.jsonl:1: target: missing"),
        (b'{"numbers": [1, "2"], "target": 3}\n', "data.jsonl:1: numbers: '2' is not an integer"),
    ],
)
def test_bad_data_file_is_refused(
    run: Run, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "data.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert message in refused(run, tmp_path, f"task.files.train={path}")


def test_prompt_too_long_is_refused_or_dropped(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    long = '{"numbers": [' + ", ".join(["1"] * 200) + '], "target": 3}\n'
    path.write_text(long + '{"numbers": [1, 2], "target": 3}\n' * 4)
    line = refused(run, tmp_path, f"task.files.train={path}")
    assert "tokens; with rollout.gen_length=16 the model's positions allow 240" in line
    done = run("train", *SMOKE, f"task.files.train={path}", "task.long_prompts=drop")
    assert (
        "1 of 5 train prompts are longer than the model's positions and were dropped" in done.stdout
    )


def test_a_run_that_ends_within_its_warm_up_says_so(run: Run) -> None:
    done = run("train", *SMOKE, "num_steps=1", "task.train_size=64", "optim.warmup_steps=5")
    assert "optim.warmup_steps=5: the run ends within the warm-up" in done.stdout


def test_resume_from_what_is_not_a_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    assert "resume=nothing is not a folder" in refused(run, tmp_path, "resume=nothing")


def test_help_and_composed_config_are_printed(run: Run) -> None:
    shown = run("train", "--help").stdout
    assert re.search(r"\*sequential +Hide what was committed", shown)
    assert "low_prob_threshold: 0.6" in run("train", "--cfg", "job").stdout


def test_what_a_stream_cannot_show_is_written_as_its_code() -> None:
    code = "from drift.cli.command import settle_streams as s; s(); print('é1', '\\udcff')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.stdout, done.stderr) == (b"\\xe91 \\udcff\n", b"")
