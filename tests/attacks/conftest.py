"""A model to attack, fresh for every test."""

from pathlib import Path

import pytest
from bench import Bench

from tamperfuse.models.load import LoadedModel


@pytest.fixture
def bench(tiny: LoadedModel, tiny_folder: Path) -> Bench:
    return Bench(tiny, str(tiny_folder))
