"""The errors a user can cause; a message is one line: what is wrong, what is allowed, the fix."""


class DriftError(Exception):
    """Parent of every error of Drift; the entry points print it as one line and exit."""

    exit_code = 1


class ConfigError(DriftError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(DriftError, ValueError):
    """A data file is missing, unreadable or holds a bad record (`file:line: field: reason`)."""


class CheckpointError(DriftError, RuntimeError):
    """A checkpoint is missing, incomplete, of another family, or does not fit its config."""


class RolloutError(DriftError, RuntimeError):
    """A prompt cannot be completed with the chosen sizes."""


class TrainingError(DriftError, RuntimeError):
    """Training cannot go on, for example because a gradient is not finite."""


class GradingError(DriftError, RuntimeError):
    """A process that grades answers cannot start, or a task gives a score that is none."""


class SandboxError(DriftError, RuntimeError):
    """Untrusted programs cannot be run behind the isolation that is asked for."""


class PreemptedError(DriftError, RuntimeError):
    """A signal ended a run at the end of a step; it is saved."""

    exit_code = 143


class RankError(DriftError, RuntimeError):
    """A process of a run of several died; the first line says which and of what."""
