import shutil
from pathlib import Path

import pytest
from scripts.publish_results import FILES, publish

from tamperfuse.report.page import write_report


def test_the_page_is_built_from_what_is_published(finished_run: Path, tmp_path: Path) -> None:
    target = tmp_path / "results"
    target.mkdir()
    (target / "old.json").write_text("{}")
    publish(finished_run, target)
    assert {path.name for path in target.iterdir()} >= set(FILES)
    assert not (target / "old.json").exists() and not (target / "nodes").exists()
    assert write_report(target).stat().st_size > 10_000


def test_an_unfinished_run_is_refused_and_nothing_is_replaced(finished_run: Path, tmp_path: Path) -> None:
    run, target = tmp_path / "run", tmp_path / "results"
    run.mkdir()
    target.mkdir()
    (target / "summary.json").write_text("{}")
    shutil.copyfile(finished_run / "study.yaml", run / "study.yaml")
    with pytest.raises(SystemExit, match="finished run"):
        publish(run, target)
    assert (target / "summary.json").exists()


def test_published_results_are_not_replaced_by_themselves(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text(name)
    with pytest.raises(SystemExit, match="is published already"):
        publish(tmp_path, tmp_path / ".")
    assert all((tmp_path / name).is_file() for name in FILES)
