"""Rules of CONTRIBUTING.md that a machine can check."""

import subprocess
import sys

from tests.conftest import ROOT


def test_importing_drift_and_its_config_imports_no_torch() -> None:
    code = "import sys, drift, drift.config, drift.config.checks, drift.cli.preflight; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
