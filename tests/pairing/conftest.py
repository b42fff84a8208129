"""Fixtures of the pairing tests."""

import pytest

from pairing_stand_ins import write_sources


@pytest.fixture(autouse=True)
def _cache_of_the_test(tmp_path, monkeypatch):
    monkeypatch.setenv("TAMPERFUSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sources(tmp_path):
    return write_sources(tmp_path)
