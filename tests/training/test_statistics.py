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


@pytest.mark.parametrize(
    "line, message",
    [
        (
            "optim_conf: {lr: 1e-3}",
            "lr: 1e-3 is text to YAML, which wants a point in a number: 1.0e-3",
        ),
        (
            "scheduler_conf: {milestones: [5, 2E4]}",
            "milestones: 2E4 is text .*: 2.0e4; correct --asr_args",
        ),
    ],
)
def test_a_number_that_yaml_takes_for_text_is_named(line, message, tmp_path):
    config = tmp_path / "train.yaml"
    config.write_text(f"encoder: lmu\n{line}\n")
    with pytest.raises(UserError, match=message):
        collect_piece(["--config", str(config)], str(tmp_path))
