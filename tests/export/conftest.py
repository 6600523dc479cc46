"""Small random models as experiments, and audio, for the command: those of the streaming tests."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "streaming"))


@pytest.fixture(scope="session")
def small_models():
    import streaming_tools

    return streaming_tools
