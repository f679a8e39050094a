"""The list of commands, `--help`, wrong words, and what the shell is told to complete."""

import pytest

from drift.config.compose import CONF
from tests.conftest import Run
from tests.forkserver import ROOT, Done, command


def drift(*words: str, **environment: str) -> Done:
    return command(ROOT, "drift", *words, **environment)


def test_commands_are_listed_with_a_line_each() -> None:
    lines = drift().stdout.splitlines()
    assert "  train     RL from verifiable rewards" in lines
    listed = [line.split()[0] for line in lines[2:]]
    shipped = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "base")
    assert listed == shipped
    assert all(len(line.split()) > 2 for line in lines[2:])


def test_a_wrong_command_names_the_near_one() -> None:
    done = drift("tarin")
    assert done.returncode == 2
    assert done.stderr.startswith("drift: tarin: no such command; did you mean train; commands: ")


def test_a_command_behind_drift_is_that_command() -> None:
    done = drift("train", "masking=rnadom")
    assert done.returncode == 1
    assert "masking=rnadom: no such option of the group; did you mean random" in done.stderr


def test_a_setting_without_its_group_names_the_groups_that_have_it(run: Run) -> None:
    done = run("train", "lr=0.1", check=False)
    assert done.stderr.startswith("drift: lr: no such option; did you mean model.lr or optim.lr; ")


def test_help_lists_the_groups_of_the_command_and_what_is_chosen(run: Run) -> None:
    said = run("eval", "--help", "rollout=static").stdout
    assert said.startswith("Evaluation of several checkpoints")
    assert "\n  rollout\n" in said
    assert "\n   *static     The same number of tokens each step" in said
    assert "\n    factor     The more tokens together" in said
    assert "threshold: 0.9" not in said
    for absent in ("masking\n", "  objective\n", "schema", "output_dir", "$$"):
        assert absent not in said
    assert "Groups" not in run("export", "--help").stdout


@pytest.mark.parametrize(
    ("line", "choices"),
    [
        ("drift tr", {"train", "track", "eval"}),
        ("drift train masking=", {"masking=all", "masking=random"}),
        ("drift train rollout.gen", {"rollout.gen_length="}),
    ],
)
def test_the_shell_is_told_commands_groups_and_settings(line: str, choices: set[str]) -> None:
    done = drift("-sc", "query=bash", COMP_LINE=line)
    assert choices <= set(done.stdout.split()), done.stderr


def test_completion_can_be_installed() -> None:
    assert "complete -o nospace" in drift("-sc", "install=bash").stdout
