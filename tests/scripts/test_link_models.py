"""Hardened models of a run are linked by name."""

from pathlib import Path

import pytest
from scripts.link_models import link_models

from tamperfuse.records.files import write_json


def add_model(run: Path, key: str, what: str, seed: int, kind: str = "defense") -> Path:
    checkpoint = run / "nodes" / key / "checkpoint"
    checkpoint.mkdir(parents=True)
    write_json(checkpoint.parent / "node.json", {"kind": kind, "what": f"{what}, seed {seed}", "seed": seed})
    return checkpoint


def test_the_models_of_the_lowest_seed_are_linked_anew(tmp_path: Path) -> None:
    first = {name: add_model(tmp_path / "run", name, name, 0) for name in ("refusal", "sdd, narrow")}
    for name in first:
        add_model(tmp_path / "run", f"{name}-1", name, 1)
    add_model(tmp_path / "run", "measured", "refusal", 0, kind="measure")
    for _ in range(2):
        links = link_models(tmp_path / "run", tmp_path / "models")
        assert {link.name: link.resolve() for link in links} == {name: path.resolve() for name, path in first.items()}


def test_what_is_no_link_is_not_replaced(tmp_path: Path) -> None:
    add_model(tmp_path / "run", "a", "refusal", 0)
    (tmp_path / "models" / "refusal").mkdir(parents=True)
    with pytest.raises(SystemExit, match="is no link"):
        link_models(tmp_path / "run", tmp_path / "models")


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no hardened model"):
        link_models(tmp_path, tmp_path / "models")
    assert not (tmp_path / "models").exists()
