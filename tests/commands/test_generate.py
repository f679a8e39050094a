"""`python -m drift.generate` as a user runs it, and `drift.generate` as a library call."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import drift
from drift.policy.base import Policy
from drift.policy.loading import load_policy, save_policy
from drift.policy.lora import factors, save_adapter
from drift.rollout.generate import generate
from drift.rollout.screen import HOW
from tests.conftest import ROOT
from tests.forkserver import Done, command
from tests.unit.policy.test_lora import adapted
from tests.unit.rollout.test_generate import ANSWER, TINY, tiny as tiny
from tests.unit.traces.test_viewer import embedded

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def call(folder: Path, *words: str, stdin: bytes = b"", **environment: str) -> Done:
    """The command in a folder, on a pipe."""
    return command(folder, "drift.generate", *words, stdin=stdin, **environment)


def on_terminal(folder: Path, *arguments: str) -> str:
    """What a terminal of 80 columns gets, escape sequences included."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "drift.generate", *arguments],
        cwd=folder,
        env=ENVIRONMENT | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(timeout=60) == 0, shown.decode()
    return shown.decode()


def refused(folder: Path, *arguments: str, stdin: bytes = b"") -> str:
    """The one line of a refusal; nothing is written, and the folder still stands."""
    before = sorted(folder.rglob("*"))
    done = call(folder, *arguments, stdin=stdin)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert sorted(folder.rglob("*")) == before
    assert folder.is_dir()
    return lines[0].removeprefix("drift: ")


# ---- the command


def test_a_step_that_cannot_be_compiled_is_one_line(tmp_path: Path) -> None:
    environment = {"CXX": "/nowhere", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    wanted = ("rollout=static", "rollout.cache=dual", "rollout.compile=true")
    done = call(tmp_path, "prompt=3 5 9=17", *wanted, **environment)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert "rollout.compile=true does not work here: " in lines[0]
    assert "No working C++ compiler" in lines[0]


def test_a_prompt_on_a_pipe_gives_its_text_and_one_line_of_cost(tmp_path: Path) -> None:
    done = call(tmp_path, "prompt=3 9 5=7")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ANSWER + "\n"
    assert re.fullmatch(
        r"8 tokens in \d+\.\d\d s: \d+\.\d tokens/s, NFE 2, 4\.00 tokens per evaluation\n",
        done.stderr,
    )
    assert list(tmp_path.iterdir()) == []


def test_prompts_of_a_file_and_of_standard_input_are_the_same(tmp_path: Path) -> None:
    lines = b"3 9 5=7\n2 4 8=14\r\n"
    (tmp_path / "my prompts, all.txt").write_bytes(lines)
    done = call(tmp_path, "input=my prompts, all.txt", "rollout.group_size=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n\n")[:2] == [ANSWER, ANSWER]
    assert done.stdout.split("\n\n")[2].startswith("\\boxed{2")
    assert len(done.stdout.split("\n\n")) == 4
    assert "completion)" in done.stderr
    for arguments in ((), ("input=-",)):
        again = call(tmp_path, *arguments, "rollout.group_size=2", stdin=lines)
        assert again.stdout == done.stdout


def test_a_trace_page_is_written(tmp_path: Path) -> None:
    done = call(tmp_path, "prompt=3 9 5=7", "trace=a page.html")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a page.html"]
    (row,) = embedded((tmp_path / "a page.html").read_text())["rows"]  # type: ignore[misc]
    assert row["prompt"] == "3 9 5=7"
    assert "".join(row["tokens"]).startswith(ANSWER)
    assert len(row["alternatives"][0]) == 6
    assert row["label"] == ""


def test_a_checkpoint_of_a_run_is_a_model(tmp_path: Path, tiny: Policy) -> None:
    save_policy(tiny, tmp_path / "step_000080" / "policy")
    done = call(tmp_path, "prompt=3 9 5=7", "model.path=step_000080")
    assert done.stdout == ANSWER + "\n", done.stderr


def test_an_adapter_is_a_model(tmp_path: Path) -> None:
    policy = adapted(str(TINY))
    for factor in factors(policy).values():
        factor.data *= 3  # enough to change the answer
    save_adapter(policy, tmp_path / "step_000080" / "policy")
    policy = load_policy(tmp_path / "step_000080" / "policy")
    text = drift.generate(policy, "3 9 5=7", gen_length=16, block_length=8).texts[0]
    assert text != ANSWER
    done = call(tmp_path, "prompt=3 9 5=7", "model.path=step_000080")
    assert done.stdout == text + "\n", done.stderr


def test_another_family_needs_no_model_option(tmp_path: Path) -> None:
    done = call(tmp_path, "prompt=3 9 5=7", "model.path=data/tiny_dream-countdown")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("\\boxed{")


def test_on_a_terminal_the_canvas_denoises(tmp_path: Path) -> None:
    shown = on_terminal(tmp_path, "prompt=3 9 5=7", "rollout=static")
    assert "·" in shown  # masks of the first frame
    assert "\x1b[2m·" in shown  # dim
    assert "\x1b[36m" in shown  # a token of probability 0.6 to 0.9
    assert "\x1b[?25h" in shown  # the cursor is back
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert ANSWER + "\r\n" in text
    assert "tokens per evaluation" in text.splitlines()[-1]


def test_several_prompts_on_a_terminal_stand_in_order(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("3 9 5=7\n2 4 8=14\n")
    shown = on_terminal(tmp_path, "input=prompts.txt")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert text.rindex("1  3 9 5=7") < text.rindex("2  2 4 8=14")
    assert text.index(ANSWER) < text.rindex("\\boxed{2")


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ((), b"", 'standard input is empty; set prompt="..." or input=FILE, or pipe prompts in'),
        (("prompt=",), b"", "prompt is empty; set prompt"),
        (("prompt=  ",), b"", "prompt is empty; set prompt"),
        (("prompt=a", "input=b"), b"", "prompt and input are both set; use one of them"),
        (("input=none.txt",), b"", "none.txt: no such file of prompts"),
        ((), b"a\n\nb\n", "standard input:2: the prompt is empty; remove the line"),
        ((), b"\xff\xfe", "standard input: not UTF-8 at byte 0; convert it to UTF-8"),
        (
            ("prompt=" + "1 " * 200,),
            b"",
            "prompt 1 has 403 tokens; with rollout.gen_length=16 the model's positions allow 240; "
            "shorten it or lower rollout.gen_length",
        ),
        (("prompt=a", "trace=no/where.html"), b"", "trace=no/where.html cannot be written"),
        (("prompt=a", "rollout.block_length=5"), b"", "rollout.gen_length=16 is not a multiple"),
        (("promt=a",), b"", "promt: no such option; did you mean prompt"),
        (("prompt=a", "model.path=none"), b"", "model.path=none is not a folder"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], stdin: bytes, message: str
) -> None:
    assert refused(tmp_path, *arguments, stdin=stdin).startswith(message)


def test_without_a_prompt_on_a_terminal_it_does_not_wait(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "drift.generate"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=60,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 1
    assert done.stderr.startswith('drift: there is no prompt; set prompt="..."')


def test_odd_streams_lose_nothing(tmp_path: Path) -> None:
    command = f"{sys.executable} -m drift.generate"
    for line, code, said in (
        (f"{command} <&-", 1, f"standard input is empty; {HOW}"),
        (f"{command} prompt=$'3 \\xff'", 1, "prompt 1 or task.system is not UTF-8; convert it"),
        (f"{command} 'prompt=3 9 5=7' trace=page.html >&-", 0, "trace: page.html"),
    ):
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        assert done.stderr.splitlines()[-1].removeprefix("drift: ") == said
        assert code == 0 or len(done.stderr.splitlines()) == 1
    assert (tmp_path / "page.html").exists()


# ---- the library


def test_the_function_stays_when_the_command_is_imported() -> None:
    code = "import drift, drift.generate, drift.rollout.generate; from drift.generate import run; "
    code += "assert drift.generate is drift.rollout.generate.generate; "
    code += "import sys; assert sys.modules['drift.generate'].run is run"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert drift.generate is generate
