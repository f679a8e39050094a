"""A folder for the official code: `python -m drift.export checkpoint=RUN/... output=FOLDER`."""

import logging
import re
from pathlib import Path

from drift.cli.command import run_command
from drift.common.errors import ConfigError
from drift.config.commands import ExportConfig

SIZE = re.compile(r"[1-9]\d*[KMGT]B")
LEAST_KEPT = 0.9  # of an adapter's update, without a warning

log = logging.getLogger("drift")


def run(config: ExportConfig) -> None:
    """Merge a LoRA adapter, if there is one, and save in the family's own format."""
    output = Path(config.output)
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"output={output} is not empty; choose a new folder")
    if not SIZE.fullmatch(config.max_shard_size):
        raise ConfigError(
            f"max_shard_size={config.max_shard_size} must be a whole number above 0 with KB, MB, "
            "GB or TB, for example 5GB"
        )
    from drift.policy import lora
    from drift.policy.loading import load_policy, policy_folder, save_policy, torch_dtype

    policy, dtype = load_policy(policy_folder(config.checkpoint)), torch_dtype(config.dtype)
    kept = lora.kept_share(policy, dtype)
    if kept < LEAST_KEPT:
        log.warning(
            "dtype=%s rounds: %.0f %% of what the adapter changes is kept; use dtype=float32",
            config.dtype,
            100 * kept,
        )
    save_policy(policy, output, config.max_shard_size, dtype=dtype)
    log.info("wrote %s in the format of %s", output, policy.family.name)


if __name__ == "__main__":
    run_command("export", run)
