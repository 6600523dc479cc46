"""Stage 10's statistics."""

import pytest

from espnet_lmu.errors import UserError
from espnet_lmu.training.statistics import collect_piece


def test_options_that_espnet_does_not_know_are_named(tmp_path):
    config = tmp_path / "train.yaml"
    config.write_text("encoder: lmu\nbatch_tipe: numel\n")
    for arguments, option in ((["--max_epochh", "3"], "--max_epochh"), (["--config", str(config)], "batch_tipe")):
        with pytest.raises(UserError, match=f"asr_train: unrecognized arguments: {option}.*; correct --asr_args or"):
            collect_piece(arguments, str(tmp_path))
