"""Training in several processes: the same as in one, resumed after a kill, on two machines."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import torch
from recipe_tools import one_line_error, run_module

from espnet_lmu.data.files import command_line
from espnet_lmu.data.kaldi_dir import write_table
from espnet_lmu.errors import UserError
from espnet_lmu.hook import import_asr_train
from espnet_lmu.training.checkpoint import repair
from espnet_lmu.training.launch import main
from espnet_lmu.training.resume import check_settings

LEARNING_RATE = 0.01
TOKENS = ["<blank>", "<unk>", *"ABCDE", "<sos/eos>"]
CONFIG = f"""
encoder: lmu
encoder_conf: {{output_size: 16, num_blocks: 1, memory_size: 8, theta: 20.0, attention_heads: 2, dropout_rate: 0.0}}
model_conf: {{ctc_weight: 1.0}}
normalize: null
batch_type: folded
batch_size: 5
fold_length: [800, 150]
num_workers: 0
optim: sgd
optim_conf: {{lr: {LEARNING_RATE}}}
grad_clip: 1.0e+9
keep_nbest_models: 10000
best_model_criterion: [[valid, loss, min]]
use_matplotlib: false
use_tensorboard: false
"""


def make_training(directory: Path) -> list[str]:
    """Arguments of asr_train for ten utterances of noise."""
    random = np.random.default_rng(0)
    lengths = {f"utt{i}": 30 + 3 * i for i in range(10)}
    features = {key: random.standard_normal((length, 20), np.float32) for key, length in lengths.items()}
    kaldiio.save_ark(str(directory / "feats.ark"), features, scp=str(directory / "feats.scp"))
    write_table(directory / "text", {key: "".join(random.choice(list("ABCDE"), 4)) for key in lengths})
    write_table(directory / "speech_shape", {key: f"{length},20" for key, length in lengths.items()})
    write_table(directory / "text_shape", {key: f"4,{len(TOKENS)}" for key in lengths})
    (directory / "tokens.txt").write_text("".join(f"{token}\n" for token in TOKENS))
    (directory / "train.yaml").write_text(CONFIG)
    arguments = ["--config", f"{directory}/train.yaml", "--token_type", "char", "--resume", "true"]
    arguments += ["--token_list", f"{directory}/tokens.txt", "--input_size", "20"]
    for part in ("train", "valid"):
        arguments += [f"--{part}_data_path_and_name_and_type", f"{directory}/feats.scp,speech,kaldi_ark"]
        arguments += [f"--{part}_data_path_and_name_and_type", f"{directory}/text,text,text"]
        arguments += [f"--{part}_shape_file", f"{directory}/speech_shape"]
        arguments += [f"--{part}_shape_file", f"{directory}/text_shape"]
    return arguments


def _launch(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    stream = open(log, "a", buffering=1)
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)
    sys.stdout = sys.stderr = stream
    os.environ.update(environment)
    sys.argv = ["launch", *arguments]
    command_line(main)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Training:
    """`launch` in a fork of the test's process, where ESPnet is imported already."""

    def __init__(self, output_dir: Path, processes: int, epochs: int, arguments: list[str], **environment: str):
        output_dir.mkdir(exist_ok=True)
        self.log = output_dir / f"train{environment.get('RANK', '')}.log"
        command = [str(processes), *arguments, "--output_dir", str(output_dir), "--max_epoch", str(epochs)]
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=_launch, args=(command, environment, self.log))
        self.process.start()

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def workers(self) -> list[int]:
        pid = self.process.pid
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def exit_code(self) -> int:
        self.process.join(120)
        assert self.process.exitcode is not None, self.output()
        return self.process.exitcode


def losses(output_dir: Path) -> list[float]:
    """Training loss of each epoch."""
    stats = torch.load(output_dir / "checkpoint.pth", weights_only=False)["reporter"]["stats"]
    return [stats[epoch]["train"]["loss"] for epoch in sorted(stats)]


def second_gradient(output_dir: Path) -> torch.Tensor:
    """The sum of the averaged gradients of the second epoch, which plain gradient descent has added to the weights."""
    before, after = (torch.load(output_dir / f"{epoch}epoch.pth") for epoch in (1, 2))
    return torch.cat([(before[name] - after[name]).flatten() for name in before]) / LEARNING_RATE


def test_two_processes_train_as_one_through_a_kill_and_on_two_machines(tmp_path, capsys):
    import_asr_train()
    arguments = make_training(tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"

    killed = Training(two, 2, 10000, arguments)
    wait_until((two / "3epoch.pth").exists)
    os.kill(killed.workers()[1], signal.SIGKILL)
    assert killed.exit_code() == 1
    errors = [line for line in killed.output().splitlines() if line.startswith("error: ")]
    assert errors == ["error: training process 1 was ended by SIGKILL (out of memory?); run stage 11 again to resume"]

    # It goes on as two launches with a process each, as on two machines.
    repair(two)
    finished = len(losses(two))
    first_epoch = (two / "1epoch.pth").stat().st_mtime_ns
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(sock.getsockname()[1]), "WORLD_SIZE": "2"}
    machines = [
        Training(two, 1, finished + 2, ["--num_nodes", "2", *arguments], **meeting, RANK=str(rank)) for rank in (0, 1)
    ]
    assert [machine.exit_code() for machine in machines] == [0, 0], machines[0].output() + machines[1].output()
    assert (two / "1epoch.pth").stat().st_mtime_ns == first_epoch  # it resumed

    alone = Training(one, 1, finished + 2, arguments)
    assert alone.exit_code() == 0, alone.output()
    assert len(losses(one)) == len(losses(two)) == finished + 2
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-4)
    expected, found = second_gradient(one), second_gradient(two)
    assert expected.norm() > 1 and (found - expected).norm() < 1e-4 * expected.norm()
    _check_what_may_change(one, arguments, finished + 2, capsys)


def _check_what_may_change(experiment: Path, arguments: list[str], epochs: int, capsys) -> None:
    """A trained model goes on with more epochs and other batches, but not as another model."""
    capsys.readouterr()
    check_settings(experiment, [*arguments, "--max_epoch", str(epochs)])
    assert capsys.readouterr().out == f"{experiment}: trained already, for {epochs} of {epochs} epochs\n"
    check_settings(experiment, [*arguments, "--max_epoch", str(epochs + 1), "--batch_size", "2"])
    assert capsys.readouterr().out == ""
    # The same statistics elsewhere.
    check_settings(experiment, [*arguments, "--max_epoch", str(epochs + 1), "--normalize_conf", "stats_file=moved.npz"])
    tokens = experiment.parent / "other.txt"
    tokens.write_text("".join(f"{token}\n" for token in reversed(TOKENS)))
    for other, message in (
        (["--normalize", "utterance_mvn"], "normalize None, not utterance_mvn"),
        (["--normalize_conf", "norm_vars=false"], "normalize_conf norm_vars None, not False"),
        (["--preencoder", "linear"], "preencoder None, not linear"),
        (["--ctc_conf", "ctc_type=builtin2"], "ctc_conf ctc_type builtin, not builtin2"),
        (["--encoder_conf", "memory_size=16"], "encoder_conf memory_size 8, not 16"),
        (["--encoder_conf", "bidirectional=true"], "encoder_conf bidirectional None, not True"),
        (["--token_list", str(tokens)], "other tokens"),
        (["--init_param", "a.pth"], "init_param [], not ['a.pth']"),
        (["--optim_conf", "lr=0.5"], f"optim_conf lr {LEARNING_RATE}, not 0.5"),
        (["--scheduler", "warmuplr"], "scheduler None, not warmuplr"),
    ):
        with pytest.raises(UserError) as error:
            check_settings(experiment, [*arguments, *other])
        remedy = "give --asr_tag NAME for another experiment"
        assert str(error.value) == f"{experiment}: it was trained with {message}; {remedy}"
    config = experiment / "config.yaml"
    config.write_text(config.read_text().replace("keep_nbest_models: 10000", "keep_nbest_models: 1"))
    with pytest.raises(UserError, match="its 1 best epochs, so it cannot end with the 10000 best; set keep_nbest"):
        check_settings(experiment, arguments)
    config.write_text("encoder: lmu\nencoder_conf: {")  # cut by a full disk; written anew by ESPnet
    check_settings(experiment, [*arguments, "--max_epoch", str(epochs + 1)])
    with pytest.raises(UserError, match="asr_train: unrecognized arguments: --max_epochh 3; correct"):
        check_settings(experiment, [*arguments, "--max_epochh", "3"])


def test_a_mistyped_option_is_named(tmp_path):
    import_asr_train()
    run = Training(tmp_path, 2, 1, ["--max_epochh", "3"])
    assert run.exit_code() != 0
    assert run.output() == "error: asr_train: unrecognized arguments: --max_epochh 3; correct --asr_args\n"


def test_the_processes_end_with_the_one_that_started_them(tmp_path):
    import_asr_train()
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "WORLD_SIZE": "2", "RANK": "1"}  # nobody comes
    run = Training(tmp_path, 2, 1, make_training(tmp_path), **meeting)
    wait_until(lambda: len(run.workers()) == 2)
    workers = run.workers()
    time.sleep(2)  # until torch has asked the system to be told of the parent's death
    assert all(map(alive, workers))
    run.process.kill()
    run.process.join()
    wait_until(lambda: not any(map(alive, workers)))


@pytest.mark.parametrize(
    "arguments, environment, message",
    [
        (["2", "--num_nodes", "2"], {}, "--num_nodes 2: give --cmd slurm, or start the same command on each machine"),
        (["2"], {"WORLD_SIZE": "2", "RANK": "1"}, "WORLD_SIZE is set, MASTER_ADDR is not"),
        (["99", "--ngpu", "99"], {}, "--ngpu 99: this machine has"),
        (["0"], {}, "--train_nj 0: give at least 1"),
    ],
)
def test_launches_that_cannot_start(arguments, environment, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert message in one_line_error(run_module("espnet_lmu.training.launch", *arguments))
