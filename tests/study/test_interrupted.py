"""A node that is killed while it trains goes on from its last checkpoint; what its hooks saw before is not asked again."""

import errno
import shutil
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from stand_ins import Killed, results
from tamperfuse.cli.app import main
from tamperfuse.commands.attack import attack_model
from tamperfuse.commands.harden import harden_model
from tamperfuse.models.finite import Diverged
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json, sha256_of, write_json
from tamperfuse.study.announce import plan_nodes
from tamperfuse.study.disk import DiskCeiling
from tamperfuse.study.estimates import Costs
from tamperfuse.study.execution.progress import RunProgress
from tamperfuse.study.execution.watch import RunWatch
from tamperfuse.study.node import Node, Outcome, execute, unfinished_folder
from tamperfuse.study.observe import Observer
from tamperfuse.study.remaining import finished_keys
from tamperfuse.study.run import _begin, run_here, run_study
from tamperfuse.study.spec import Study
from tamperfuse.training import checkpoints
from tamperfuse.training import fit as fit_module
from tamperfuse.training.checkpoints import current_block
from tamperfuse.training.loop import Loop


@pytest.fixture
def measured_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps at which a model under attack was asked, each time that it was."""
    steps, plain = [], Observer.ask

    def ask(self: Observer, step: int, *rest: Any) -> None:
        steps.append(step)
        plain(self, step, *rest)

    monkeypatch.setattr(Observer, "ask", ask)
    return steps


def kill() -> None:
    raise Killed


def dying(monkeypatch: pytest.MonkeyPatch, run: int, step: int, die_of: Callable[[], object] = kill) -> None:
    """Training run number `run` dies right after step `step`, its hook and its checkpoint."""
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.0)
    started: list[Loop] = []
    begin, checkpoint = Loop.begin, Loop.checkpoint

    def count(self: Loop) -> None:
        started.append(self)
        begin(self)

    def die(self: Loop, ends: bool) -> None:
        checkpoint(self, ends)
        if len(started) == run and self.state.global_step == step:
            die_of()

    monkeypatch.setattr(Loop, "begin", count)
    monkeypatch.setattr(Loop, "checkpoint", die)


def test_a_study_killed_while_it_trains_ends_with_the_same_results(
    study: Study,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured_steps: list[int],
) -> None:
    for step in (1, 2):  # of the second training in each run: a defense's, then, that one resumed, an attack's
        with monkeypatch.context() as patch:
            dying(patch, 2, step)
            with pytest.raises(Killed):
                run_study(study, tmp_path / "run")
        assert len(list((tmp_path / "run" / "unfinished").glob("*/fit-0.json"))) == 1
    run_study(study, tmp_path / "run")
    assert results(tmp_path / "run") == results(finished_run)
    assert not (tmp_path / "run" / "unfinished").exists()
    # As shipped and before attack: three looks. Then each defense's two attacks, at steps 1 and 3, and at step 2.
    assert sorted(measured_steps) == [0, 0, 0, 1, 1, 2, 2, 3, 3], "nothing was asked twice"


@pytest.mark.usefixtures("quick_judging")
def test_attack_and_harden_go_on_as_well(
    tiny_folder: Path,
    threat_file: Path,
    benign_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured_steps: list[int],
) -> None:
    def attack(out: Path) -> list[str]:
        settings = {"shots": 2, "steps": 4, "batch": 2}
        return attack_model(
            str(tiny_folder),
            "harmful_finetune",
            str(threat_file),
            out,
            reference=None,
            retain="builtin:retain",
            keep=True,
            settings=settings,
            seed=0,
        )

    def harden(out: Path) -> None:
        settings = {"steps": 3, "batch": 2}
        harden_model(
            str(tiny_folder),
            "refusal",
            str(threat_file),
            out,
            pairs=None,
            benign=[str(benign_file)],
            settings=settings,
            seed=0,
        )

    for work in (attack, harden):
        expected = work(tmp_path / f"{work.__name__} whole")
        measured_steps.clear()
        out = tmp_path / f"{work.__name__} killed"
        with monkeypatch.context() as patch:
            dying(patch, 1, 2)
            with pytest.raises(Killed):
                work(out)
        assert not out.exists() and (tmp_path / f"{out.name}.unfinished" / "fit-0.json").exists()
        assert work(out) == expected
        assert not (tmp_path / f"{out.name}.unfinished").exists()
        assert measured_steps == ([0, 4] if work is attack else [])
    whole, killed = (tmp_path / f"attack {name}" / "attacked" for name in ("whole", "killed"))
    for name in ("model.safetensors", "tamperfuse.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert read_json(tmp_path / "harden killed" / "tamperfuse.json")["made_by"] == "refusal (seed 0)"


def test_a_node_that_diverges_leaves_nothing_to_resume_from(tmp_path: Path) -> None:
    def leaves_state(error: UserError) -> Node:
        def run(folder: Path) -> Outcome:
            state = current_block().folder
            assert state is not None
            state.mkdir(parents=True)
            (state / "fit-0.json").write_text("{}")
            raise error

        return Node("a defense", "defense", (), {"error": str(error)}, 0, run, Costs())

    for error, left in ((Diverged("the training diverged", 3), False), (UserError("the disk is full"), True)):
        node = leaves_state(error)
        with pytest.raises(UserError, match=str(error)):
            execute(tmp_path / "run", node)
        assert unfinished_folder(tmp_path / "run", node).exists() is left


def test_what_other_studies_left_unfinished_is_named_and_stays(
    study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tamperfuse")
    run, node = tmp_path / "my run", Node("a node", "pairs", (), {}, 0, lambda folder: Outcome(), Costs())
    plan, now = plan_nodes([node], 1, 1, 1), datetime.now(UTC)
    unfinished_folder(run, node).mkdir(parents=True)
    _begin(run, study, plan, now)
    assert not caplog.messages
    for name in ("b", "c"):
        (run / "unfinished" / name).mkdir()
        with (run / "unfinished" / name / "state.pt").open("wb") as state:
            state.truncate(100_000_000)
    _begin(run, study, plan, now)
    [message] = caplog.messages
    assert message.startswith("2 folders") and "(0.2 GB)" in message
    assert message.endswith(f"rm -r '{run}/unfinished/b' '{run}/unfinished/c'")
    assert len(list((run / "unfinished").iterdir())) == 3


@pytest.mark.parametrize("damage", ["a byte", "truncated", "deleted", "record", "field", "type"])
def test_damaged_results_are_computed_again_and_the_message_names_the_file(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = []

    def run(folder: Path) -> Outcome:
        runs.append(folder)
        (folder / "table.bin").write_bytes(b"0123456789")
        return Outcome()

    node = Node("a node", "pairs", (), {}, 0, run, Costs())
    first = execute(tmp_path / "run", node)
    table = first.folder / "table.bin"
    match damage:
        case "a byte":
            table.write_bytes(b"0123456780")
        case "truncated":
            table.write_bytes(b"0123")
        case "deleted":
            table.unlink()
        case "record":
            (first.folder / "node.json").write_text("{")
        case "field" | "type":
            record = read_json(first.folder / "node.json")
            record |= {"facts": 1} if damage == "type" else {"second": record.pop("seconds")}
            write_json(first.folder / "node.json", record)
    again = execute(tmp_path / "run", node)
    assert not again.reused
    assert len(runs) == 2
    assert table.read_bytes() == b"0123456789"
    assert ("node.json" if damage in ("record", "field", "type") else "table.bin") in caplog.text
    assert execute(tmp_path / "run", node).reused
    assert execute(tmp_path / "beside", node).reused, "a run beside it shares the result"
    assert len(runs) == 2


def test_a_damaged_node_is_announced_when_it_runs_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def write(folder: Path) -> Outcome:
        (folder / "value").write_text("1")
        return Outcome()

    out, node = tmp_path / "run", Node("a node", "pairs", (), {}, 0, write, Costs())
    plan = plan_nodes([node], 1, 1, 1)
    for damaged in (False, True):
        if damaged:
            (out / "nodes" / node.key / "value").write_text("2")
        caplog.clear()
        progress = RunProgress(plan, finished_keys(out))
        done = run_here(out, node, RunWatch([node], plan, DiskCeiling(out, None), progress))
        assert not done.reused and progress.text().startswith("1 of 1 nodes done")
        assert caplog.messages[damaged] == "[1/1] a node …"
    assert caplog.messages[0].endswith("has changed since it was written, so it is computed again.")


def test_a_node_that_cannot_be_read_is_not_taken_for_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path) -> Outcome:
        (folder / "value").write_text("1")
        return Outcome()

    def unreadable(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    node = Node("a node", "pairs", (), {}, 0, write, Costs())
    folder = execute(tmp_path / "run", node).folder
    monkeypatch.setattr("tamperfuse.study.node.sha256_of", unreadable)
    with pytest.raises(UserError, match=r"value cannot be read \(Input/output error\). Nothing was removed"):
        execute(tmp_path / "run", node)
    assert (folder / "value").read_text() == "1"
    monkeypatch.undo()
    (folder / "node.json").rename(tmp_path / "node.json")
    (folder / "node.json").symlink_to("node.json")  # a loop, in place of a file that the user may not read
    assert finished_keys(tmp_path / "run") == set()


def test_results_beside_a_run_that_cannot_be_read_do_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write(folder: Path) -> Outcome:
        (folder / "value").write_text("1")
        return Outcome()

    def unreadable(path: Path) -> str:
        if "of-another-user" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return sha256_of(path)

    node = Node("a node", "pairs", (), {}, 0, write, Costs())
    result = execute(tmp_path / "of-another-user", node).folder
    monkeypatch.setattr("tamperfuse.study.node.sha256_of", unreadable)
    done = execute(tmp_path / "run", node)
    assert not done.reused and done.folder.parent.parent == tmp_path / "run"
    assert caplog.messages == [f"a node: {result} of another run cannot be read, so it is computed again."]
    assert (result / "value").read_text() == "1"


def test_a_result_that_its_own_run_removes_meanwhile_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write(folder: Path) -> Outcome:
        (folder / "value").write_text("1")
        return Outcome()

    def removed(source: Path, *_: object, **__: object) -> None:
        shutil.rmtree(source)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(source))

    node = Node("a node", "pairs", (), {}, 0, write, Costs())
    execute(tmp_path / "beside", node)
    monkeypatch.setattr("tamperfuse.study.node.shutil.copytree", removed)
    done = execute(tmp_path / "run", node)
    assert not done.reused and (done.folder / "value").read_text() == "1"
    assert len(caplog.messages) == 1 and caplog.messages[0].endswith("has just been removed.")


def test_ctrl_c_sigterm_and_a_full_disk_cost_a_study_nothing(
    study: Study,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the command itself, by real signals: in a training of a defense, in one of an attack, and when an attack is written."""
    (tmp_path / "study.yaml").write_text(study.to_yaml(), encoding="utf-8")
    run = tmp_path / "apart" / "run"
    terminates = signal.getsignal(signal.SIGTERM)

    def ends_with(code: int, *words: str) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["run", str(tmp_path / "study.yaml"), "--out", str(run)])
        error = capsys.readouterr().err
        assert ended.value.code == code and "Traceback" not in error
        assert all(word in error for word in words)
        assert list(run.glob("nodes/.tmp-*")) == [] and not (run / "results.parquet").exists()
        assert signal.getsignal(signal.SIGTERM) is terminates

    for number, step in ((signal.SIGTERM, 1), (signal.SIGINT, 2)):
        with monkeypatch.context() as patch:
            stop = partial(signal.raise_signal, number)
            dying(patch, 2, step, stop)  # as in the first test of this file
            ends_with(130, "Interrupted. Finished work is saved: run the same command again to resume.")
        assert len(list((run / "unfinished").glob("*/fit-0.json"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(Observer, "write", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device", "table")))
        ends_with(2, "is full: free some space and run again")
    run_study(study, run)
    assert results(run) == results(finished_run)


@pytest.mark.usefixtures("quick_judging")
def test_an_interrupted_attack_does_not_go_on_with_other_measurements(
    tiny_folder: Path, threat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attack(prompts: int | None = None) -> list[str]:
        settings = {"shots": 2, "steps": 4, "batch": 2}
        sources = {"reference": None, "retain": "builtin:retain"}
        options = {"keep": False, "settings": settings, "seed": 0, "prompts": prompts}
        return attack_model(
            str(tiny_folder), "harmful_finetune", str(threat_file), tmp_path / "out", **sources, **options
        )

    with monkeypatch.context() as patch:
        dying(patch, 1, 2)
        with pytest.raises(Killed):
            attack()
    with pytest.raises(
        UserError, match=r"belongs to other work \(.*measured\.prompts was .* and is 2\): repeat the command"
    ):
        attack(2)
    assert attack()


def test_an_interrupted_node_counts_the_time_that_its_training_kept(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        dying(patch, 1, 2)
        with pytest.raises(Killed):
            run_study(study, tmp_path / "run")
    plain = fit_module._restore

    def restore(masters: Any, saved: dict[str, Any], result: Any) -> None:
        plain(masters, saved, result)
        result.seconds = 1000.0

    monkeypatch.setattr(fit_module, "_restore", restore)
    run_study(study, tmp_path / "run")
    records = [read_json(path) for path in (tmp_path / "run" / "nodes").glob("*/node.json")]
    resumed = [record for record in records if record["seconds_training"] >= 1000]
    assert len(resumed) == 1 and resumed[0]["seconds"] > 1000
