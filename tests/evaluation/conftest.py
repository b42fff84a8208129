"""Fixtures that tests of judges share."""

from pathlib import Path

import pytest

from tamperfuse.evaluation.judges.endpoint import KEY


@pytest.fixture
def judge_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, no key, no proxy, and no waiting between retries."""
    monkeypatch.setenv("TAMPERFUSE_CACHE", str(tmp_path / "cache"))
    for name in (KEY, "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.001)
