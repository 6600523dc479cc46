"""Models of the streaming tests."""

import pytest
from streaming_tools import write_model


@pytest.fixture(scope="session")
def raw_model(tmp_path_factory):
    """A model with ESPnet's default frontend."""
    frontend = {"fs": "16k", "n_fft": 512, "win_length": 400, "hop_length": 160}
    return write_model(tmp_path_factory.mktemp("raw"), frontend_conf=frontend)


@pytest.fixture(scope="session")
def fbank_model(tmp_path_factory):
    """A model of stored features."""
    return write_model(tmp_path_factory.mktemp("fbank"), input_size=80)
