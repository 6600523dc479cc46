"""Stages 14 and 15 of a recipe, against a stand-in of the hub, and loading what they published."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from experiments import CONFIG, make_experiment
from hub_server import TOKEN, HubServer

pytest.importorskip("huggingface_hub")

ROOT = Path(__file__).resolve().parents[2]
ASR_SH = ROOT / "egs" / "TEMPLATE" / "asr1" / "asr.sh"


@pytest.fixture
def hub():
    server = HubServer()
    yield server
    server.shutdown()


def _run(command: list[str], cwd: Path, hub: HubServer, token: str | None = TOKEN) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(cwd / "hf"), "PYTHONPATH": str(ROOT)}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if token:
        environment["HF_TOKEN"] = token
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def _stages(first: int, last: int, *options: str) -> list[str]:
    sets = ["--train_set", "train", "--valid_set", "valid", "--test_sets", "test", "--python", sys.executable]
    experiment = [
        "--asr_exp",
        "exp/asr_tiny",
        "--inference_asr_model",
        "valid.acc.ave.pth",
        "--lang",
        "en",
        "--fs",
        "8k",
    ]
    return [str(ASR_SH), *sets, *experiment, "--stage", str(first), "--stop_stage", str(last), *options]


_OPEN = """
import sys
from espnet_lmu.errors import UserError
from espnet_lmu.recognition.model_files import open_model
try:
    files = open_model(sys.argv[1])
except UserError as error:
    sys.exit(f"error: {error}")
print(files.rate, files.model_file, files.config_file.read_text())
"""


def test_published_model_loads_by_its_name(tmp_path, hub):
    experiment = make_experiment(tmp_path)
    (experiment / "RESULTS.md").write_text("# Results of asr_tiny\n\n| set | WER |\n| --- | --- |\n| test | 12.3 |\n")
    result = _run(_stages(14, 15, "--hf_repo", "me/model"), tmp_path, hub)
    assert result.returncode == 0, result.stderr
    assert f"uploaded: {hub.address}/me/model" in result.stdout
    files = hub.repositories["me/model"]
    assert files["model.pth"] == b"weights" * 5000
    card = files["README.md"].decode()
    header, text = card.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(header)["language"] == ["en"]
    assert yaml.safe_load(header)["pipeline_tag"] == "automatic-speech-recognition"
    for part in ("| test | 12.3 |", "## Results of asr_tiny", 'load_model("me/model")', "8000 Hz", "output_size: 16"):
        assert part in text
    assert str(tmp_path) not in card

    (tmp_path / "exp").rename(tmp_path / "gone")
    result = _run([sys.executable, "-c", _OPEN, "me/model"], tmp_path, hub)
    assert result.returncode == 0, result.stderr
    rate, weights, config = result.stdout.split(maxsplit=2)
    assert rate == "8000" and Path(weights).read_bytes() == files["model.pth"]
    assert yaml.safe_load(config)["token_list"] == CONFIG["token_list"]

    result = _run([sys.executable, "-c", _OPEN, "me/other"], tmp_path, hub)
    assert result.stderr.startswith("error: me/other: no such file or folder, and not to be had from the Hugging Face")
    assert len(result.stderr.splitlines()) == 1

    files["config.yaml"] += b"# changed\n"
    result = _run([sys.executable, "-c", _OPEN, "me/model"], tmp_path / "gone", hub)
    assert (
        result.stderr
        == "error: me/model: config.yaml is damaged or was changed: its checksum differs; get the model again\n"
    )


def test_missing_name_token_or_pack_is_named(tmp_path, hub):
    make_experiment(tmp_path)
    for options, token, message in (
        ([], TOKEN, "error: --hf_repo is required for stage 15: give USER/NAME"),
        (["--hf_repo", "model"], TOKEN, "error: --hf_repo model: give USER/NAME"),
        (
            ["--hf_repo", "me/model"],
            None,
            "error: no token of the Hugging Face hub: run `hf auth login`, or set HF_TOKEN",
        ),
        (["--hf_repo", "me/model"], TOKEN, "asr_tiny_valid.acc.ave.zip: no such file; run stage 14 first"),
    ):
        result = _run(_stages(15, 15, *options), tmp_path, hub, token)
        assert result.returncode == 1 and len(result.stderr.splitlines()) == 1 and message in result.stderr
    assert _run(_stages(14, 15), tmp_path, hub).returncode == 0  # without a name, nothing is uploaded
    result = _run(_stages(15, 15, "--hf_repo", "me/model"), tmp_path, hub, "hf_wrong")
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert "me/model: the Hugging Face hub does not take it: Client error '401 Unauthorized'" in result.stderr
    assert not hub.repositories
