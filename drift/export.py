"""A folder for the official code: `python -m drift.export checkpoint=RUN/... output=FOLDER`."""

import logging
from pathlib import Path

from drift.cli import run_command
from drift.config import ExportConfig
from drift.errors import ConfigError

log = logging.getLogger("drift")


def run(config: ExportConfig) -> None:
    """Merge a LoRA adapter, if there is one, and save in the family's own format."""
    output = Path(config.output)
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"output={output} is not empty; choose a new folder")
    import torch

    from drift.policy.loading import load_policy, policy_folder, save_policy

    policy = load_policy(policy_folder(config.checkpoint))
    policy.to(getattr(torch, config.dtype.value))
    save_policy(policy, output, config.max_shard_size)
    log.info("wrote %s in the format of %s", output, policy.family.name)


if __name__ == "__main__":
    run_command("export", run)
