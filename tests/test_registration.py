"""The encoder is known wherever ESPnet looks for one, and ESPnet's import noise stays away from users."""

import importlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import espnet_lmu
from espnet_lmu import hook
from espnet_lmu.training.mixspeech import MixSpeechASRModel
from espnet_lmu.training.muon import Muon
from espnet_lmu.training.specaug import VTLPSpecAug

TINY = ["output_size=8", "num_blocks=1", "memory_size=4", "theta=8.0", "attention_heads=2"]


def asr_arguments(tmp_path) -> list[str]:
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("<blank>\n<unk>\nA\nB\n<space>\n<sos/eos>\n")
    return [
        *("--token_list", str(tokens), "--token_type", "char", "--output_dir", str(tmp_path / "exp")),
        *("--encoder", "lmu", "--model_conf", "ctc_weight=1.0", "--decoder", "none", "--ngpu", "0"),
        *(word for option in TINY for word in ("--encoder_conf", option)),
    ]


@pytest.mark.parametrize("task", hook._TASKS)
def test_every_task_with_such_an_encoder_offers_it(task):
    choices = importlib.import_module(f"espnet2.tasks.{task}").encoder_choices
    assert choices.get_class("lmu") is espnet_lmu.LMUEncoder


@pytest.mark.parametrize("task", ["asr", "s2t_ctc", "slu", "st"])
def test_the_augmentation_is_offered_too(task):
    choices = importlib.import_module(f"espnet2.tasks.{task}").specaug_choices
    assert choices.get_class("vtlp_specaug") is VTLPSpecAug


def test_the_optimizer_is_offered_too():
    assert importlib.import_module("espnet2.tasks.abs_task").optim_classes["muon"] is Muon


def test_the_model_is_offered_to_asr():
    assert importlib.import_module("espnet2.tasks.asr").model_choices.get_class("mixspeech") is MixSpeechASRModel


def test_importing_the_package_imports_neither_torch_nor_espnet():
    code = "import sys, espnet_lmu; print([m for m in ('torch', 'espnet', 'espnet2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_task_imported_before_the_package_is_served():
    code = """
        import espnet2.tasks.cls
        import espnet_lmu
        assert "lmu" in espnet2.tasks.cls.encoder_choices.classes
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


SPAWNING_COMMAND = """
    import multiprocessing, sys

    def main():
        from espnet2.tasks.asr import ASRTask
        # as ESPnet starts its workers: nothing but the name of a method of ASRTask travels to the new process
        process = multiprocessing.get_context("spawn").Process(target=ASRTask.main, kwargs={"cmd": sys.argv[1:]})
        process.start()
        process.join()
        sys.exit(process.exitcode)

    if __name__ == "__main__":
        main()
"""


def test_a_spawned_worker_knows_encoder_and_optimizer_and_nothing_noisy_is_printed(tmp_path, monkeypatch):
    (tmp_path / "spawning_command.py").write_text(textwrap.dedent(SPAWNING_COMMAND))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(path for path in sys.path if path)}")
    command = [sys.executable, "-m", "espnet_lmu.run", "-m", "spawning_command", *asr_arguments(tmp_path)]
    command += ["--dry_run", "true", "--optim", "muon", "--exclude_weight_decay", "true"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "LMUEncoder" in run.stderr  # ESPnet logs the model it built
    assert "Muon (" in run.stderr  # and the optimizer
    assert "Flash Attention" not in run.stdout + run.stderr
    assert "nltk" not in run.stdout + run.stderr
    assert "FutureWarning" not in run.stderr


def test_the_runner_explains_its_usage():
    run = subprocess.run(
        [sys.executable, "-m", "espnet_lmu.run", "espnet2.bin.asr_train"], capture_output=True, text=True
    )
    assert run.returncode == 1
    assert run.stderr.startswith("usage: python -m espnet_lmu.run -m espnet2.bin.COMMAND")


@pytest.mark.parametrize("module", ["espnet2.bin.asr_trian", "espnte2.bin.asr_train"])
def test_the_runner_names_a_module_that_does_not_exist(module):
    run = subprocess.run([sys.executable, "-m", "espnet_lmu.run", "-m", module], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr == f"error: {module}: no such Python module; ESPnet's commands are in espnet2.bin\n"


@pytest.fixture
def trained_model(tmp_path):
    """Configuration and (random) weights of a model, as asr_train leaves them."""
    import yaml
    from espnet2.tasks.asr import ASRTask

    args = ASRTask.get_parser().parse_args(asr_arguments(tmp_path))
    args.token_list = (tmp_path / "tokens.txt").read_text().split()
    torch.manual_seed(1)
    model = ASRTask.build_model(args)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    return tmp_path


def test_espnets_recognizer_loads_a_model(trained_model):
    from espnet2.bin.asr_inference import Speech2Text

    recognizer = Speech2Text(trained_model / "config.yaml", trained_model / "model.pth", ctc_weight=1.0, beam_size=2)
    speech = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    text, tokens, ids, hypothesis = recognizer(speech)[0]
    assert isinstance(text, str) and len(tokens) == len(ids)


def test_espnet_cannot_load_renamed_weights_silently(trained_model):
    from espnet2.tasks.asr import ASRTask

    state = torch.load(trained_model / "model.pth")
    state["encoder.embed.projection.weight"] = state.pop("encoder.embed.linear.weight")
    torch.save(state, trained_model / "model.pth")
    with pytest.raises(RuntimeError, match=r"missing: encoder\.embed\.linear\.weight; unknown: encoder\.embed\.proj"):
        ASRTask.build_model_from_file(trained_model / "config.yaml", trained_model / "model.pth")


def test_hooks_are_installed_once():
    before = list(sys.meta_path)
    hook.install()
    assert sys.meta_path == before
