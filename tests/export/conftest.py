"""Small random models as experiments, and audio, for the command."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_models():
    """The helpers of the streaming tests."""
    path = Path(__file__).parents[1] / "streaming" / "conftest.py"
    spec = importlib.util.spec_from_file_location("small_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
