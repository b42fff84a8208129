"""The table that a terminal shows while a run goes on."""

import contextlib
import io
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.logging import RichHandler

from study.test_status import plan, planned
from tamperfuse.cli.app import main
from tamperfuse.records import progress
from tamperfuse.study.execution import progress as run_progress
from tamperfuse.study.execution.progress import RunProgress
from tamperfuse.study.further_judges import FURTHER_JUDGE
from tamperfuse.study.node import FinishedNode, Node, reuse_result
from tamperfuse.study.spec import Study
from tamperfuse.study.status import run_status
from tamperfuse.study.status_table import ROWS, status_table
from terminal import screen_lines

KINDS = (
    "answers before hardening",
    "calibration",
    "pairs",
    "benign set",
    "defense",
    "measure",
    "attack",
    "search",
    "judge",
)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """A terminal of 24 lines of 80 columns, on which progress and the log are shown."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(run_progress, "REFRESH", 0.0)
    monkeypatch.setattr(progress, "RUN_UPDATES", 50.0)
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, force_interactive=True, width=80, height=24, soft_wrap=True)
    logging.getLogger("tamperfuse").addHandler(
        RichHandler(console=console, show_time=False, show_level=False, show_path=False)
    )
    progress.show_progress(console)
    yield output
    progress.show_progress(None)


def wait_for(output: io.StringIO, condition: Callable[[list[str]], bool]) -> list[str]:
    """The lines of the screen, as soon as they meet a condition."""
    deadline = time.monotonic() + 300
    while not condition(lines := screen_lines(output.getvalue())):
        assert time.monotonic() < deadline, lines
        time.sleep(0.01)
    return lines


def test_a_table_of_few_lines_shows_what_is_done_what_runs_and_the_time_left(terminal: io.StringIO) -> None:
    nodes = [planned(f"{kind} {i}", kind, 600.0) for kind in (*KINDS, FURTHER_JUDGE) for i in range(12)]
    with RunProgress(plan(*nodes, workers=8), [node.key for node in nodes[:40]]) as current:
        for node in nodes[38:44]:
            current.begin(node.key, f"{node.what} \x1b[2J with a label that is longer than a line of this terminal")
        current.finish(nodes[38].key, 1200.0)
        with progress.progress("malicious fine-tuning", 1200) as advance:
            advance(34, "loss 1.234 · 1,000 tokens/s · 66% of the limit · 1.3 GiB")
            lines = wait_for(terminal, lambda lines: any("34/1200" in line for line in lines))
    assert 10 <= len(lines) <= 13 and max(map(cell_len, lines)) <= 80
    assert lines[1].split() == ["nodes", "done", "running", "left", "time", "left"]
    rows = {line.split()[0]: line.split()[1:4] for line in lines[2:8]}
    assert list(rows) == ["data", *ROWS, "all"]
    assert rows["data"] == ["39", "5", "4"] and rows["all"] == ["39", "5", "76"]
    assert lines[8].startswith("Running for 0 s: node benign set 3 [U+001B][2J with") and lines[8].endswith("…")
    assert lines[10] == "… and 3 other nodes"
    assert "34/1200" in lines[11] and "loss" in lines[11], "the current node's own steps"
    assert lines[12].startswith("Whole run: about ") and lines[12].endswith(
        "(estimates, corrected by 1 finished node)."
    )
    assert screen_lines(terminal.getvalue()) == [], "nothing is left of it"


def test_messages_stand_above_the_table(terminal: io.StringIO) -> None:
    log = logging.getLogger("tamperfuse")
    with RunProgress(plan(planned("a"), planned("b"))) as current:
        for step in range(3):
            current.begin("a", "node a")
            log.warning("Warning %d.", step)
            print(f"Library {step}.", file=sys.stderr)
            current.interrupt("a")
        lines = wait_for(terminal, lambda lines: "Between two nodes." in lines)
    messages = [f"{word} {step}." for step in range(3) for word in ("Warning", "Library")]
    assert lines[:6] == messages
    assert "Whole run" in lines[-1] and sum("time left" in line for line in lines) == 1
    assert len(screen_lines(terminal.getvalue())) == 6, "the table is cleared, messages stay"


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What :func:`exit_code` takes as standard error: a terminal of 24 lines of 80 columns."""
    for name, value in {"TTY_COMPATIBLE": "1", "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(run_progress, "REFRESH", 0.0)
    yield io.StringIO()
    progress.show_progress(None)


def exit_code(errors: io.StringIO, *arguments: str) -> int:
    with contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_json_on_standard_output_is_pure(
    study: Study,
    finished_run: Path,
    tmp_path: Path,
    errors: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "study.yaml").write_text(study.to_yaml(), encoding="utf-8")

    def printing(run: Path, node: Node) -> FinishedNode | None:
        print("A library prints.")
        return reuse_result(run, node)

    monkeypatch.setattr("tamperfuse.study.run.reuse_result", printing)
    monkeypatch.setattr("tamperfuse.report.page.write_report", lambda run: None)
    assert exit_code(errors, "run", str(tmp_path / "study.yaml"), "--out", str(finished_run), "--json") == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 2
    assert "Whole run: about 0 s left" in errors.getvalue()
    lines = screen_lines(errors.getvalue())
    assert "A library prints." in lines
    assert not any(words in line for line in lines for words in ("Whole run", "time left"))


def test_ctrl_c_leaves_nothing_of_the_table(
    study: Study,
    tmp_path: Path,
    errors: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    screens: list[list[str]] = []
    statuses: list[list[str]] = []

    def interrupted(run: Path, node: Node, *rest: Any) -> FinishedNode:
        with progress.progress("answers", 7) as advance:
            advance(3)
            logging.getLogger("tamperfuse").warning("A warning of %s.", node.label)
            with progress.progress("scores", 9):  # which draws everything anew
                text = io.StringIO()
                Console(file=text, width=80).print(status_table(run_status(run)))
                statuses.append(screen_lines(text.getvalue()))
                screens.append(screen_lines(errors.getvalue()))
                signal.raise_signal(signal.SIGINT)
        raise AssertionError("not interrupted")

    monkeypatch.setattr("tamperfuse.study.run.compute", interrupted)
    (tmp_path / "study.yaml").write_text(study.to_yaml(), encoding="utf-8")
    assert exit_code(errors, "run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "apart" / "run")) == 130
    assert capsys.readouterr().out == ""
    [screen], [status] = screens, statuses
    first = next(i for i, line in enumerate(screen) if "time left" in line)
    counts = [line.split()[:4] for line in status]
    assert counts[1] == ["data", "0", "1", counts[1][3]]
    assert [line.split()[:4] for line in screen[first : first + len(status)]] == counts, "as `tamperfuse status` counts"
    assert any("answers" in line and "3/7" in line for line in screen[first:]) and "0/9" in "".join(screen[first:])
    assert screen[-1].startswith("Whole run: about ") and screen[-1].endswith("(estimates; no node was timed yet).")
    lines = screen_lines(errors.getvalue())
    assert "A warning of answers before hardening." in lines
    assert lines[-1].startswith("Interrupted. Finished work is saved")
    assert not any(words in line for line in lines for words in ("Whole run", "time left", "3/7", "0/9"))
    assert errors.getvalue().rindex("\x1b[?25h") > errors.getvalue().rindex("\x1b[?25l"), "the cursor is visible again"
