"""results.parquet and summary.json are checked when they are written and when they are read."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from report.made_up_run import result_rows, summary, write_folder
from tamperfuse.cli.app import main
from tamperfuse.records.errors import UserError
from tamperfuse.records.plan import PLAN, RunPlan, read_plan, write_plan
from tamperfuse.records.results import COLUMNS, RESULTS, read_results, write_results
from tamperfuse.records.summary import SUMMARY, Measure, read_summary, write_summary


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"defense": None}, "rows without a value for 'defense'"),
        ({"value": float("nan")}, "a value of 'value' that is not finite"),
        ({"extra": 1}, "the unknown columns extra"),
    ],
)
def test_rows_that_could_not_be_read_are_not_written(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    rows = result_rows()
    with pytest.raises(UserError, match=f"is not written, since it has {problem}"):
        write_results(tmp_path, [rows[0] | change, *rows[1:]])
    assert not (tmp_path / RESULTS).exists()


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (COLUMNS.remove(COLUMNS.get_field_index("samples")), "without samples"),
        (COLUMNS.append(pa.field("mood", pa.string())), "with mood"),
        (COLUMNS.set(COLUMNS.get_field_index("n"), pa.field("n", pa.float64())), "of another type: n"),
        (pa.schema(list(reversed(COLUMNS))), "in another order"),
    ],
)
def test_a_table_of_an_older_version_is_refused(columns: pa.Schema, problem: str, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(result_rows(), schema=columns), tmp_path / RESULTS)
    with pytest.raises(UserError, match=f"other columns than this version writes .*{problem}.*run the study again"):
        read_results(tmp_path)


def test_a_summary_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    wrong = Measure.model_construct(value=0.5, low=0.9, high=0.1, n=3, resolved=True)
    sdd = summary().defenses["sdd"].model_copy(update={"benign_kl": wrong})
    with pytest.raises(UserError, match=r"no valid value at defenses\.sdd\.benign_kl"):
        write_summary(tmp_path, summary().model_copy(update={"defenses": {"sdd": sdd}}))
    assert not (tmp_path / SUMMARY).exists()
    write_summary(tmp_path, summary())
    assert read_summary(tmp_path) == summary()


@pytest.mark.parametrize("command", [["report"], ["gate", "--policy", "policy.yaml"]])
def test_a_folder_of_an_older_schema_is_refused_with_a_sentence(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("policy.yaml").write_text("defense: sdd\nrequire: {benign_answer_rate: {at_least: 0.5}}")
    folder = write_folder(tmp_path / "run")
    old = json.loads((folder / SUMMARY).read_text())
    (folder / SUMMARY).write_text(json.dumps({**old, "schema": 1}))
    with pytest.raises(SystemExit) as ended:
        main([command[0], str(folder), *command[1:]])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "has schema 1, and this version reads schema 2: run the study again." in message and message.count("\n") == 1


@pytest.mark.parametrize(
    ("stated", "words"),
    [({}, "states no schema"), ({"schema": "2"}, "has schema '2'"), ({"schema": True}, "has schema True")],
)
def test_a_summary_must_state_its_schema(stated: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_summary(tmp_path, summary())
    content = json.loads((tmp_path / SUMMARY).read_text())
    del content["schema"]
    (tmp_path / SUMMARY).write_text(json.dumps({**content, **stated}))
    with pytest.raises(UserError, match=f"{words}, and this version reads schema 2: run the study again"):
        read_summary(tmp_path)


def test_a_plan_must_state_its_schema(tmp_path: Path) -> None:
    write_plan(tmp_path, RunPlan(schema=1, workers=1, threads=1, nodes=[]))
    assert read_plan(tmp_path).nodes == []
    content = json.loads((tmp_path / PLAN).read_text())
    del content["schema"]
    (tmp_path / PLAN).write_text(json.dumps(content))
    with pytest.raises(UserError, match="states no schema, and this version reads schema 1"):
        read_plan(tmp_path)
