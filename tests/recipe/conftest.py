"""Fixtures of the recipe tests."""

import pytest
from recipe_tools import Recipe, make_set


@pytest.fixture
def data_set(tmp_path):
    """`make_set` in the test's directory."""
    return lambda name, size, **options: make_set(tmp_path / name, size, **options)


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    return Recipe(tmp_path / "recipe")
