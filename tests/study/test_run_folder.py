"""A run replaces the results in its folder, so a folder with files of another version is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from tamperfuse import api
from tamperfuse.cli.app import main
from tamperfuse.records.errors import UserError
from tamperfuse.records.summary import read_summary
from tamperfuse.study.run import run_study
from tamperfuse.study.sections import parse_judge
from tamperfuse.study.spec import Study


def with_schema(path: Path, schema: int) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": schema}))


def without_a_column(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["samples"]), path)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "summary.json",
            lambda path: with_schema(path, 1),
            "has schema 1, and this version writes schema 2, and the run",
        ),
        ("plan.json", lambda path: with_schema(path, 0), "has schema 0, and this version writes schema 1, and the run"),
        (
            "results.parquet",
            without_a_column,
            "has other columns than this version writes (without samples), and the run",
        ),
    ],
)
def test_a_folder_of_another_version_is_refused_and_stays_as_it_is(
    name: str,
    change: Callable[[Path], None],
    words: str,
    study: Study,
    finished_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "study.yaml").write_text(study.to_yaml(), encoding="utf-8")
    out = tmp_path / "apart" / "run"
    shutil.copytree(finished_run, out)
    change(out / name)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "study.yaml"), "--out", str(out)])
    assert ended.value.code == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith(f"tamperfuse: {out / name} {words} would replace it: choose another --out")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_damaged_results_are_written_again(study: Study, finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "apart" / "run"
    shutil.copytree(finished_run, out)
    for name in ("summary.json", "results.parquet", "plan.json"):
        (out / name).write_bytes((finished_run / name).read_bytes()[:100])
    run_study(study, out)
    assert (out / "results.parquet").read_bytes() == (finished_run / "results.parquet").read_bytes()


def test_results_of_another_study_are_set_aside_before_a_run(
    study: Study, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "apart" / "run"
    shutil.copytree(finished_run, out)
    results = {
        name: (out / name).read_bytes() for name in ("summary.json", "results.parquet", "run.json", "study.yaml")
    }
    run_study(study, out, only=["refusal, seed 0"])
    assert {name: (out / name).read_bytes() for name in results} == results, "the same study"
    monkeypatch.setattr("tamperfuse.study.run._run_nodes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    changed = study.model_copy(update={"seeds": (1,)})
    with pytest.raises(KeyboardInterrupt):
        run_study(changed, out)
    with pytest.raises(UserError, match=r"summary\.json"):
        read_summary(out)
    assert {name: (out / "earlier" / name).read_bytes() for name in results} == results
    assert read_summary(out / "earlier").seeds == [0]


def test_results_of_another_content_of_the_model_are_set_aside(
    study: Study, finished_run: Path, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tamperfuse.study.run._run_nodes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    model, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(tiny_folder, model)
    moved = study.model_copy(update={"model": str(model)})
    with pytest.raises(KeyboardInterrupt):
        run_study(moved, out)
    shutil.copy(finished_run / "summary.json", out)
    with pytest.raises(KeyboardInterrupt):
        run_study(moved, out)
    assert (out / "summary.json").exists(), "the same model"
    judged = moved.model_copy(update={"judges": {"phrases": parse_judge("phrases")}})
    with pytest.raises(KeyboardInterrupt):
        run_study(judged, tmp_path / "judged")
    before = shutil.copy(out / "study.yaml", tmp_path)
    shutil.copy(tmp_path / "judged" / "study.yaml", out)  # as `judge run` leaves it
    with pytest.raises(KeyboardInterrupt):
        run_study(judged, out)
    assert (out / "summary.json").exists(), "a judge was added to the same study"
    shutil.copy(before, out / "study.yaml")
    weights = load_file(model / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(KeyboardInterrupt):
        run_study(moved, out)
    assert not (out / "summary.json").exists() and (out / "earlier" / "summary.json").exists()


def test_a_user_s_study_file_is_not_replaced(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("# mine\n" + study.to_yaml(), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["run", str(file), "--out", str(tmp_path)])
    assert ended.value.code == 2 and "would be replaced" in capsys.readouterr().err
    with pytest.raises(UserError, match="would be replaced"):
        api.run_study(file, tmp_path)
    assert file.read_text(encoding="utf-8").startswith("# mine") and [*tmp_path.iterdir()] == [file]


def test_a_dry_run_says_that_the_folder_cannot_be_used(study: Study, finished_run: Path) -> None:
    with pytest.raises(UserError, match="holds a study of the threat"):
        run_study(study.model_copy(update={"threat": "builtin:gardening"}), finished_run, dry_run=True)


def test_a_model_is_no_folder_of_a_run(study: Study, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    before = sorted(path.name for path in (tmp_path / "model").iterdir())
    with pytest.raises(UserError, match="holds a model: choose another --out"):
        run_study(study, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == before


def test_a_folder_of_the_user_named_earlier_stays(study: Study, finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    (out / "earlier").mkdir()
    (out / "earlier" / "notes.txt").write_text("mine")
    changed = study.model_copy(update={"attacks": {}})
    run_study(changed, out)
    assert (out / "earlier" / "notes.txt").read_text() == "mine"
    assert (out / "earlier-2" / "summary.json").exists()


@pytest.mark.parametrize("disk", [float("inf"), float("nan")])
def test_a_limit_of_the_disk_is_a_number(study: Study, tmp_path: Path, disk: float) -> None:
    with pytest.raises(UserError, match=r"--disk is (inf|nan): write a number"):
        run_study(study, tmp_path / "run", disk=disk)
