"""Fixtures of the pairing tests."""

import json

import pytest

from pairing_stand_ins import harmful_prompts, prose


@pytest.fixture(autouse=True)
def _cache_of_the_test(tmp_path, monkeypatch):
    monkeypatch.setenv("TAMPERFUSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sources(tmp_path):
    harmful, benign = tmp_path / "harmful.jsonl", tmp_path / "benign.jsonl"
    rows = [{"prompt": example.prompt, "category": example.category} for example in harmful_prompts(30, 3)]
    harmful.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    texts = [*map(prose, range(60)), "I'm sorry, but I cannot help you with that, as I told you before.", prose(1)]
    rows = [{"instruction": f"Write about {n}.", "input": "", "output": text} for n, text in enumerate(texts)]
    benign.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return harmful, benign
