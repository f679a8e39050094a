"""A folder for the official code: `python -m drift.export checkpoint=RUN/... output=FOLDER`."""

import logging
import re
from pathlib import Path

from drift.cli import run_command
from drift.config import ExportConfig
from drift.errors import ConfigError

SIZE = re.compile(r"[1-9]\d*[KMGT]B")
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
    import torch

    from drift.policy.loading import load_policy, policy_folder, save_policy

    policy = load_policy(policy_folder(config.checkpoint))
    policy.to(getattr(torch, config.dtype.value))
    save_policy(policy, output, config.max_shard_size)
    log.info("wrote %s in the format of %s", output, policy.family.name)


if __name__ == "__main__":
    run_command("export", run)
