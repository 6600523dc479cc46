"""Small random models as experiments, and audio, for the command: those of the streaming tests."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_lmu.data.kaldi_dir import write_table

sys.path.append(str(Path(__file__).parents[1] / "streaming"))

WHOLE = {"bidirectional": True, "attention_context": None}
UTTERANCE_MVN = {"normalize": "utterance_mvn", "normalize_conf": {}}


@pytest.fixture(scope="session")
def small_models():
    import streaming_tools

    return streaming_tools


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, small_models):
    """Utterances of several lengths, and words that are not what they say."""
    directory = tmp_path_factory.mktemp("data")
    seconds = {"a": 1.3, "b": 0.7, "c": 2.9, "d": 1.01}
    for i, (key, duration) in enumerate(seconds.items()):
        # With noise: digital silence lies at the features' floor, whose distance to speech depends on the level.
        noise = np.random.default_rng(i).standard_normal(round(duration * small_models.RATE))
        samples = 0.9 * small_models.make_audio(duration, seed=i) + 0.003 * noise
        soundfile.write(directory / f"{key}.wav", samples, small_models.RATE, subtype="PCM_16")
    write_table(directory / "wav.scp", {key: str(directory / f"{key}.wav") for key in seconds})
    write_table(directory / "text", {key: "A BAD CAB" for key in seconds})
    return directory


@pytest.fixture(scope="session")
def whole_model(tmp_path_factory, small_models):
    """Both directions, all frames, features of stage 3."""
    folder = tmp_path_factory.mktemp("whole")
    return small_models.write_model(folder, WHOLE, input_size=80, **UTTERANCE_MVN)[0].parent


@pytest.fixture(scope="session")
def whole_model_of_audio(tmp_path_factory, small_models):
    """The same with features of ESPnet's default frontend."""
    frontend = {"fs": "16k", "n_fft": 512, "win_length": 400, "hop_length": 160}
    folder = tmp_path_factory.mktemp("audio")
    return small_models.write_model(folder, WHOLE, frontend_conf=frontend, **UTTERANCE_MVN)[0].parent


@pytest.fixture(scope="session")
def causal_model(tmp_path_factory, small_models):
    return small_models.write_model(tmp_path_factory.mktemp("causal"), input_size=80)[0].parent


@pytest.fixture(scope="session")
def table():
    """What makes rows of the printed table, by their first cell."""

    def parse(output: str) -> dict[str, list[str]]:
        rows = [line.strip("|").split("|") for line in output.splitlines() if line.startswith("|")]
        return {name: cells for name, *cells in rows[2:]}

    return parse
