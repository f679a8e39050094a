"""What a run that resumes with a following reference needs."""

from pathlib import Path

import pytest

from drift.common.errors import CheckpointError
from drift.training.run import saved_reference


def test_a_following_reference_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    assert saved_reference(tmp_path) == tmp_path / "reference"


def test_a_checkpoint_without_a_reference_names_what_can_be_done(tmp_path: Path) -> None:
    """As of a run with kl_reference=start or before, or kl_coef=0."""
    with pytest.raises(CheckpointError) as caught:
        saved_reference(tmp_path)
    assert str(caught.value) == (
        f"objective.kl_reference=follow, but {tmp_path} has no reference/ (its run had another "
        "kl_reference or none); resume with that, or start a new run with "
        f"model.path={tmp_path}/policy"
    )
