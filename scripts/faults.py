"""One-line faults in drift/, and which of them the tests catch.

python scripts/faults.py draw --seed 0 --number 30 --output faults.json
python scripts/faults.py map --output map.json [--number 3] [--slow]
python scripts/faults.py run faults.json --map map.json --output result.json [--only 3,7]

draw: at most two faults a file, the kinds in turn. Look at them: a fault that cannot change what
  the program does gets "skipped": "REASON" in the file, and the next draw into it adds another.
map: for each file of drift/ the test files that cover it: those that have its name, import it or
  run its command, and then those of the files that import it; NUMBER at most. Those of tests/slow
  only with --slow, which takes no others, or where no others cover the file.
run: each fault alone, in a clone of the last commit in a temporary folder. A fault is found by its
  function and its line, so that files may move between two runs. A test that fails without the
  fault as well is left out. What survives is worth a second run with a map of more files, and one
  with a map of the slow tests.
"""

import argparse
import ast
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PER_FILE = 2
OPERATORS = {  # kind, text, and what it becomes
    ast.Add: ("sign", "+", "-"),
    ast.Sub: ("sign", "-", "+"),
    ast.Lt: ("bound", "<", "<="),
    ast.LtE: ("bound", "<=", "<"),
    ast.Gt: ("bound", ">", ">="),
    ast.GtE: ("bound", ">=", ">"),
    ast.Eq: ("bound", "==", "!="),
    ast.NotEq: ("bound", "!=", "=="),
    ast.And: ("boolean", "and", "or"),
    ast.Or: ("boolean", "or", "and"),
}
EQUALITY = 0.3  # the share of == and != that is kept: turned round, most of them fail any test
TEXTS = (ast.JoinedStr, ast.List, ast.ListComp, ast.Tuple)  # cannot be subtracted
# Left out: the sandbox's inner processes, which the kernel limits, and code for GPUs only.
LEFT_OUT = re.compile(
    r"sandbox/(candidate|checker|isolation|kernel|landlock|program|seccomp|zygote)|attention|memory"
)
KEY = re.compile(r"(?<![\w{.])([a-z_]+\.[a-z_]+)(?=\W)")  # rollout.steps, but not {config.rollout}

STARTED = {  # files that no import leads to, and the file whose tests reach them
    "math_worker": "pool",
    "gym_worker": "pool",
    "zygote": "client",
    "preflight": "sweep",
    "__main__": "help",
}
LIMIT_S = 300.0  # wall time of the tests of one fault

Fault = dict[str, str]  # kind, file, function, line, changed, and "skipped" with its reason
Change = tuple[str, int, int, int, str, str]  # kind, line, from and to column, old and new text


# draw


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every function with its qualified name, as `Engine.share` or `run_command.job`."""
    for node in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = f"{prefix}.{node.name}".lstrip(".")
            if isinstance(node, ast.FunctionDef):
                yield name, node
        yield from functions(node, name)


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions inside it."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node
            yield from own_nodes(node)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, TEXTS) or (isinstance(node, ast.Constant) and type(node.value) is str)


def changes(node: ast.AST, lines: list[bytes], rng: random.Random) -> Iterator[Change]:
    """What can be changed at a node of the syntax tree; columns count bytes, as those of ast do."""
    match node:
        case (
            ast.BinOp(left=left, op=op, right=right)
            | ast.Compare(left=left, ops=[op], comparators=[right])
            | ast.BoolOp(op=op, values=[left, right])
        ) if type(op) in OPERATORS and left.end_lineno == right.lineno:
            kind, old, new = OPERATORS[type(op)]
            if kind == "sign" and (is_text(left) or is_text(right)):
                return
            if old not in ("==", "!=") or rng.random() < EQUALITY:
                yield kind, right.lineno, left.end_col_offset or 0, right.col_offset, old, new
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            yield "boolean", node.lineno, node.col_offset, inner.col_offset, "not ", ""
        case ast.Subscript(slice=place):
            yield from indices([place], rng)
        case ast.Call(func=ast.Name(id="range"), args=args):
            yield from indices(args, rng)
        case ast.JoinedStr():
            yield from keys(node, lines, rng)


def indices(places: list[ast.expr], rng: random.Random) -> Iterator[Change]:
    """Each integer of an index, a slice or a range, one more or one less."""
    for node in (inner for place in places for inner in ast.walk(place)):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            old, new = str(node.value), str(node.value + rng.choice((-1, 1)))
            yield "index", node.lineno, node.col_offset, node.end_col_offset or 0, old, new


def keys(text: ast.JoinedStr, lines: list[bytes], rng: random.Random) -> Iterator[Change]:
    """Each `group.field` of a message, replaced by another one of the file; groups as in conf/."""
    groups = {path.stem for path in (ROOT / "conf").iterdir()} | {"checkpoint", "data"}
    known = [key for line in lines if b'f"' in line for key in KEY.findall(line.decode())]
    known = sorted({key for key in known if key.partition(".")[0] in groups})
    for number in range(text.lineno, (text.end_lineno or text.lineno) + 1):
        line = lines[number - 1].decode()
        for found in KEY.finditer(line) if 'f"' in line else ():
            if found[1] in known and len(known) > 1:
                start, end = (len(line[:column].encode()) for column in found.span(1))
                new = rng.choice([key for key in known if key != found[1]])
                yield "key", number, start, end, found[1], new


def lines_of(function: Any, lines: list[bytes]) -> list[str]:
    return [line.decode().strip() for line in lines[function.lineno - 1 : function.end_lineno]]


def possible_faults(rng: random.Random) -> list[Fault]:
    """Every fault in a line that its function has once, in random order."""
    faults: list[Fault] = []
    for path in sorted((ROOT / "drift").rglob("*.py")):
        file, lines = str(path.relative_to(ROOT)), path.read_bytes().splitlines()
        if LEFT_OUT.search(file):
            continue
        for name, function in functions(ast.parse(path.read_bytes())):
            times = Counter(lines_of(function, lines))
            for node in own_nodes(function):
                for kind, number, start, end, old, new in changes(node, lines, rng):
                    line = lines[number - 1]
                    before, found, after = line[start:end].partition(old.encode())
                    text, middle = line.decode().strip(), before + new.encode() + after
                    if found and times[text] == 1:
                        changed = (line[:start] + middle + line[end:]).decode().strip()
                        where = {"kind": kind, "file": file, "function": name}
                        faults.append({**where, "line": text, "changed": changed})
    rng.shuffle(faults)
    return faults


def draw(seed: int, number: int, output: Path) -> None:
    """Fill up `output` to `number` faults that are not skipped; files with fewer faults first."""
    faults: list[Fault] = json.loads(output.read_text()) if output.exists() else []
    possible = possible_faults(random.Random(seed))
    while len(kept := [fault for fault in faults if "skipped" not in fault]) < number:
        kinds, files = Counter(f["kind"] for f in kept), Counter(f["file"] for f in kept)
        seen = {(f["file"], f["line"]) for f in faults}
        left = [f for f in possible if (f["file"], f["line"]) not in seen]
        left = [f for f in left if files[f["file"]] < PER_FILE]
        if not left:
            sys.exit(f"faults: only {len(kept)} faults; lower --number={number}")
        faults.append(min(left, key=lambda f: (kinds[f["kind"]], files[f["file"]])))
    write(output, faults)
    for index, fault in enumerate(faults):
        skipped = f"  (skipped: {fault['skipped']})" if "skipped" in fault else ""
        print(f"{index} {fault['kind']}: {fault['file']}, {fault['function']}{skipped}")
        print(f"    - {fault['line']}\n    + {fault['changed']}")


# map


def read_imports(path: Path, modules: dict[str, Path]) -> Counter[Path]:
    """The files of ours that a file imports, with how many names it takes from each."""
    found: Counter[Path] = Counter()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in inner]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found.update(modules[name] for name in names if name in modules)
    starts = (other for other in modules.values() if STARTED.get(other.stem) == path.stem)
    return found + Counter(starts)


def read_commands(path: Path, modules: dict[str, Path]) -> set[Path]:
    """The commands that a test runs: run("eval"), "drift.eval", -m drift.eval."""
    text = path.read_text(encoding="utf-8")
    names = re.findall(r"""(?:run\(\s*["']|["']drift\.|-m drift\.)(\w+)""", text)
    entries = (f"drift.{name}{main}" for name in names for main in ("", ".__main__"))
    return {modules[entry] for entry in entries if entry in modules}


def is_slow(test: str) -> bool:
    return test.startswith("tests/slow/")


def covering(number: int, slow: bool) -> dict[str, list[str]]:
    """For each file of drift/ its test files: quick and particular ones first."""
    paths = [p for top in ("drift", "scripts", "tests") for p in sorted((ROOT / top).rglob("*.py"))]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    modules = {name.removesuffix(".__init__"): path for path, name in names.items()}
    imports = {path: read_imports(path, modules) for path in paths}
    tests = [path for path in paths if path.name.startswith("test_")]
    commands = {path: read_commands(path, modules) for path in tests}
    through = [path for path in paths if path not in tests and path.name != "conftest.py"]

    def rank(
        test: Path, path: Path, targets: set[Path]
    ) -> tuple[bool, bool, bool, int, int, Path] | None:
        """What sorts the tests that reach a target; None for one that reaches none.

        First test_tracking.py of tracking.py and track.py, last the runs of commands.
        A unit test has the name of a file of its own folder.
        """
        name = test.stem.removeprefix("test_")
        short, long = sorted((name, path.stem), key=len)
        named = name == path.stem or (len(short) > 3 and long.startswith(short))
        named = named and ("unit" not in test.parts or test.parent.name == path.parent.name)
        taken = sum(imports[test][target] for target in targets)
        if not named and not taken and not targets & commands[test]:
            return None
        return not named, not taken, "commands" in test.parts, -taken, len(imports[test]), test

    result: dict[str, list[str]] = {}
    for path in (path for path in paths if names[path].startswith("drift.")):
        found: list[str] = []
        reached, seen = {path}, {path}
        while reached and sum(is_slow(file) == slow for file in found) < number:
            ranks = sorted(r for test in tests if (r := rank(test, path, reached)) is not None)
            files = (str(ranked[-1].relative_to(ROOT)) for ranked in ranks)
            found += [file for file in files if file not in found]
            reached = {other for other in through if reached & imports[other].keys()} - seen
            seen |= reached
        wanted = [file for file in found if is_slow(file) == slow]
        result[str(path.relative_to(ROOT))] = (wanted if wanted or slow else found)[:number]
    return result


# run


def place_of(fault: Fault, root: Path) -> tuple[Path, int] | None:
    """File and line number of a fault; of several places the one in a file of the old name."""
    places: list[tuple[bool, Path, int]] = []
    for path in sorted((root / "drift").rglob("*.py")):
        lines = path.read_bytes().splitlines()
        for name, function in functions(ast.parse(path.read_bytes())):
            own = lines_of(function, lines) if name == fault["function"] else []
            if own.count(fault["line"]) == 1:
                moved = path.name != Path(fault["file"]).name
                places.append((moved, path, function.lineno + own.index(fault["line"])))
    places.sort()
    if not places or (len(places) > 1 and places[0][0] == places[1][0]):
        return None
    return places[0][1:]


def write_source(path: Path, text: bytes) -> None:
    """Without its compiled form, which a change of the same second and size would leave valid."""
    path.write_bytes(text)
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def pytest(root: Path, words: list[str], limit_s: float) -> tuple[int | None, str]:
    """Exit code (None: out of time) and output of pytest on a copy, with all that it started."""
    settings = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    settings["PYTHONWARNINGS"] = "ignore::FutureWarning"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-rfE", "--tb=line"]
    with tempfile.TemporaryFile("w+") as output:
        running = subprocess.Popen(
            [*command, "-p", "no:cacheprovider", *words],
            cwd=root,
            env=os.environ | settings,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = running.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if running.poll() is None:  # out of time, or interrupted
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
        output.seek(0)
        return code, output.read()


def first_failure(root: Path, tests: list[str], broken: set[str]) -> tuple[str, str]:
    """caught, survived or timeout, and the test that fails."""
    left_out = [f"--deselect={test}" for test in sorted(broken)]
    code, said = pytest(root, [*tests, *left_out], LIMIT_S)
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", said, re.MULTILINE)
    if code in (0, 5) or code is None:
        return "timeout" if code is None else "survived", ""
    if failed is None:
        raise RuntimeError(said)
    return "caught", failed[1]


def attempt(
    fault: Fault, root: Path, covered: dict[str, list[str]], broken: set[str]
) -> dict[str, Any]:
    """Outcome, file of today, the test that fails, and seconds; `broken` grows."""
    place = place_of(fault, root)
    if place is None:
        return {"outcome": "lost"}
    path, number = place
    file, good = str(path.relative_to(root)), path.read_bytes()
    if not covered[file]:
        return {"outcome": "uncovered", "now": file}
    lines, began = good.splitlines(keepends=True), time.monotonic()
    lines[number - 1] = lines[number - 1].replace(fault["line"].encode(), fault["changed"].encode())
    while True:
        write_source(path, b"".join(lines))
        outcome, test = first_failure(root, covered[file], broken)
        write_source(path, good)
        if outcome != "caught" or pytest(root, [test], LIMIT_S)[0] != 1:
            break
        broken.add(test)
    seconds = round(time.monotonic() - began)
    return {"outcome": outcome, "now": file, "test": test, "seconds": seconds}


def run(faults: list[Fault], covered: dict[str, list[str]], options: argparse.Namespace) -> None:
    chosen = [int(word) for word in options.only.split(",")] if options.only else []
    results: list[dict[str, Any]] = []
    broken: set[str] = set()  # fail without any fault
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        subprocess.run(["git", "clone", "-q", "--shared", str(ROOT), folder], check=True)
        for number in chosen or [i for i, f in enumerate(faults) if "skipped" not in f]:
            fault = faults[number]
            found = attempt(fault, Path(folder), covered, broken)
            results.append({"fault": number, "kind": fault["kind"], "file": fault["file"], **found})
            write(options.output, {"results": results, "fail_without_fault": sorted(broken)})
            print(*results[-1].values(), flush=True)
    print(dict(Counter(result["outcome"] for result in results)))


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    drawing, running, mapping = (commands.add_parser(name) for name in ("draw", "run", "map"))
    drawing.add_argument("--seed", type=int, default=0)
    drawing.add_argument("--number", type=int, default=30, help="of faults")
    mapping.add_argument("--number", type=int, default=3, help="of test files for one file")
    mapping.add_argument("--slow", action="store_true", help="only test files of tests/slow")
    running.add_argument("faults", type=Path)
    running.add_argument("--map", type=Path, required=True, help="what `map` wrote")
    running.add_argument("--only", metavar="3,7", help="numbers of faults, from 0")
    for command in (drawing, running, mapping):
        command.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "draw":
        draw(options.seed, options.number, options.output)
    elif options.command == "map":
        write(options.output, covering(options.number, options.slow))
    else:
        run(json.loads(options.faults.read_text()), json.loads(options.map.read_text()), options)


if __name__ == "__main__":
    main()
