"""How a command starts: Hydra composes, one line says what is wrong, dataclasses go to the code."""

import dataclasses
import difflib
import io
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from drift import help, ranks, sweep
from drift.cluster.submission import lost_job
from drift.common.errors import ConfigError, DriftError
from drift.config import GROUPS, BaseConfig, register

PACKAGE = Path(__file__).resolve().parent
CONF = next(p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if p.is_dir())

USER_ERRORS = (DriftError, HydraException, OmegaConfBaseException, yaml.YAMLError, OSError)
SAVE_MEMORY = "lower rollout.max_rows, optim.rows_per_forward or rollout.gen_length"


def typed(config: DictConfig) -> Any:
    """The dataclasses behind a composed config."""
    config = config.copy()
    with open_dict(config):
        config.pop("hydra", None)
    result = OmegaConf.to_object(config)
    refuse_additions(result)
    return result


def refuse_additions(config: Any, prefix: str = "") -> None:
    """Refuse what `+group.name=value` added: no code would read it."""
    known = [field.name for field in dataclasses.fields(config)]
    for name, value in vars(config).items():
        if name not in known:
            raise ConfigError(f"{prefix}{name}: no such option; options here: {', '.join(known)}")
        if dataclasses.is_dataclass(value):
            refuse_additions(value, f"{prefix}{name}.")


def explain(error: BaseException) -> str:
    """One line for a user: the key, the value, what is allowed."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for kind, words in EXPLANATIONS:
        for link in chain:
            if isinstance(link, kind) and (said := words(link)) is not None:
                return said
    return first_line(chain[-1])


def missing_value(error: Any) -> str | None:
    """`input is not set; add input=VALUE`"""
    return f"{error.full_key} is not set; add {error.full_key}=VALUE" if error.full_key else None


def wrong_value(error: Any) -> str | None:
    """`optim.lr: Value 'fast' of type 'str' could not be converted to Float`"""
    key, kind = error.full_key, error.object_type
    if not key:
        return None
    if dataclasses.is_dataclass(kind) and error.key is not None:
        kind = get_type_hints(kind).get(error.key)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        settings = ", ".join(f"{key}.{field.name}" for field in dataclasses.fields(kind))
        return f"{key} is not one value, it holds settings; change one of {settings}"
    if get_origin(kind) is list and isinstance(error.value, str | int | float):
        return f"{key} is a list, which is written {shlex.quote(f'{key}=[{error.value}]')}"
    return f"{key}: {first_line(error)}"


def broken_yaml(error: Any) -> str:
    """`conf/task/mine.yaml:3: not YAML: mapping values are not allowed here`"""
    mark = error.problem_mark
    return f"{mark.name}:{mark.line + 1}: not YAML: {error.problem}" if mark else first_line(error)


def unreadable_override(error: Any) -> str:
    """`task.prompt={x}: cannot be read; close ..., or quote a text twice: 'task.prompt="{x}"'`"""
    key, equals, value = error.override.partition("=")
    if not equals or not re.fullmatch(r"[+~]{0,2}[\w./@:-]+", key):
        return f"{error.override}: cannot be read; write overrides as key=value"
    text = value.strip("'\"").replace('"', '\\"')
    quoted = shlex.quote(f'{key}="{text}"')
    return (
        f"{error.override}: cannot be read; close its brackets and quotes, or quote a text for "
        f"the shell and for Hydra: {quoted}"
    )


def forgotten_multirun(error: Any) -> str | None:
    """`masking=all,trace: several values are a sweep, which needs -m; ...`"""
    found = re.match(r"(Ambiguous value|Sweep parameters).*?'(.*)'", str(error))
    if not found:
        return None
    words = f"{found[2]}: several values are a sweep, which needs -m"
    if found[1] == "Sweep parameters":  # range(1,3)
        return words
    key, _, value = found[2].partition("=")
    a_list, a_text = (shlex.quote(f"{key}={written}") for written in (f"[{value}]", f'"{value}"'))
    return f"{words}; a list is written {a_list}, a text with commas {a_text}"


def failed_file(error: Any) -> str:
    """`outputs/run: Not a directory`"""
    return f"{error.filename or 'input/output'}: {error.strerror or error}"


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def unknown_option(error: Any) -> str | None:
    """`rollout.gen_lenght: no such option; did you mean gen_length; options: ...`"""
    if not error.full_key:
        return None
    group, _, name = str(error.full_key).rpartition(".")
    schema = error.object_type
    if schema is dict:  # free settings, as task.options
        return f"{error.full_key}: no setting so far; a new one is written +{error.full_key}=VALUE"
    allowed: list[str] = []
    if isinstance(schema, type) and dataclasses.is_dataclass(schema):
        allowed = [field.name for field in dataclasses.fields(schema) if field.name != "output_dir"]
    near = [f"{group + '.' if group else ''}{word}" for word in closest(name, allowed)]
    near += [] if group else [f"{of}.{name}" for of in groups_with(name) if of in allowed]
    hint = f"; did you mean {' or '.join(near)}" if near else ""
    known = f"; options here: {', '.join(allowed)}" if allowed else ""
    return f"{error.full_key}: no such option{hint}{known}"


def closest(name: str, known: list[str]) -> list[str]:
    return difflib.get_close_matches(name, known, n=1)


def groups_with(name: str) -> list[str]:
    """The groups that have a setting of that name: ["optim", "model"] for `lr`."""
    return [
        group
        for group, schemas in GROUPS.items()
        if any(
            name == field.name
            for schema in schemas.values()
            for field in dataclasses.fields(schema)
        )
    ]


def unknown_choice(error: Any) -> str:
    """`model=lada: no such option of the group; did you mean llada; options: dream, llada, tiny`"""
    choice = str(error.missing_cfg_file or "")
    group, _, name = choice.rpartition("/")
    options = sorted(error.options or options_of(group))
    if not options:  # a file names what is nowhere
        return first_line(error)
    file = re.match(r"In '(.+/.+?)':", str(error))  # one of conf/ alone is the command's own
    where = f"{file[1]}.yaml: " if file else ""
    near = closest(name, options)
    hint = f"; did you mean {near[0]}" if near else ""
    return (
        f"{where}{group}={name}: no such option of the group{hint}; options: {', '.join(options)}"
    )


def options_of(group: str) -> list[str]:
    """The options that conf/ has of a group, sorted; empty if it is none."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml")) if group else []


def no_option(error: Any) -> str | None:
    """`tracking=null: choose one of mlflow, off, wandb`; Hydra does not name the word."""
    if not str(error).startswith("Config group override must be"):
        return None
    parse = OverridesParser.create().parse_override
    for word in sys.argv[1:]:
        options = options_of(word.partition("=")[0].lstrip("+"))
        if not options or (override := parse(word)).is_sweep_override():
            continue
        if not isinstance(override.value(), str | list):
            return f"{word}: choose one of {', '.join(options)}"
    return "a group takes the name of one of its options"


def group_not_chosen(error: Any) -> str | None:
    """`tracking.uri=...: no tracking is chosen; add tracking=OPTION, ...`; nor does Hydra here."""
    if not str(error).startswith("Unexpected type for root: NoneType"):
        return None
    for word in sys.argv[1:]:
        group = word.partition("=")[0].partition(".")[0]
        options = options_of(group)
        if options and not any(other.startswith(f"{group}=") for other in sys.argv):
            return f"{word}: no {group} is chosen; add {group}=OPTION, one of {', '.join(options)}"
    return None


EXPLANATIONS: tuple[tuple[type[Exception], Callable[[Any], str | None]], ...] = (
    (DriftError, str),
    (yaml.MarkedYAMLError, broken_yaml),
    (ConfigKeyError, unknown_option),
    (ConfigAttributeError, unknown_option),
    (MissingConfigException, unknown_choice),
    (OverrideParseException, unreadable_override),
    (ConfigCompositionException, forgotten_multirun),
    (MissingMandatoryValue, missing_value),
    (OmegaConfBaseException, wrong_value),
    (OSError, failed_file),
    (ValueError, no_option),
)


def settle_streams() -> None:
    """A closed stream is an empty one; a character that one cannot show is written as \\xe9."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_command(name: str, run: Callable[[Any], None]) -> None:
    """Compose conf/<name>.yaml with the command line and call `run` with the typed config.

    Exit codes: 0, 1 for a user's mistake (one line, no traceback), 2 for a malformed override.
    """
    settle_streams()
    register()
    help.register()
    OmegaConf.register_new_resolver("drift_either", lambda one, other: one or other, replace=True)
    help.refuse_wrong_flags(sys.argv[1:])
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a closed pipe (`| head`) is no reason for a traceback
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing; `explain` prints

    def job(config: DictConfig) -> float | None:
        typed_config: BaseConfig = typed(config)
        typed_config.output_dir = HydraConfig.get().runtime.output_dir
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return sweep.attempt(sweep.job_card(HydraConfig.get()), typed_config, run, run_fault)
        try:
            run(typed_config)
        except BrokenPipeError:
            raise
        except (*USER_ERRORS, MemoryError, RuntimeError) as error:
            fault = run_fault(error)
            if fault is None:
                raise
            remove_if_empty(Path(typed_config.output_dir))
            place = ranks.find()
            which = f"rank {place.rank}: " if place.number > 1 else ""
            print(f"drift: {which}{fault}", file=sys.stderr)
            sys.exit(exit_code(error))
        return None

    if ranks.find().rank:  # the first rank's folder is the run's
        quiet = ("handlers.file.filename=/dev/null", "root.level=WARNING")
        sys.argv += ["hydra.run.dir=.", *(f"hydra.job_logging.{setting}" for setting in quiet)]
    enter(hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job))


def enter(entry: Callable[[], object]) -> None:
    """Run Hydra; what it raises is told in one line, with the exit code that goes with it."""
    try:
        entry()
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except USER_ERRORS as error:
        print(f"drift: {explain(error)}", file=sys.stderr)
        sys.exit(exit_code(error))
    except (ValueError, AssertionError) as error:
        if (words := no_option(error) or group_not_chosen(error)) is None:
            raise
        sys.exit(f"drift: {words}")
    except RuntimeError as error:
        if (words := lost_job(error)) is None:
            raise
        sys.exit(f"drift: {words}{sweep.tell_begun()}")
    except KeyboardInterrupt:
        sys.exit(130)


def exit_code(error: BaseException) -> int:
    if isinstance(error, OverrideParseException):
        return 2
    return error.exit_code if isinstance(error, DriftError) else 1


def run_fault(error: BaseException) -> str | None:
    """One line for a fault of a running job that a user can mend; None for a bug."""
    if isinstance(error, USER_ERRORS):
        return explain(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return f"{first_line(error)}; {SAVE_MEMORY}"
    return None


def remove_if_empty(folder: Path) -> None:
    """Leave no empty run folder behind a mistake; a command without one runs in the user's own."""
    if folder == Path.cwd():
        return
    ours = folder.parent.parent.name == "outputs"  # outputs/<experiment>/<time>
    for path in (folder, folder.parent) if ours else (folder,):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
