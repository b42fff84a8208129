import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tamperfuse.cli.app import app, main

COMMANDS = ("demo", "run", "report", "gate", "harden", "attack", "evaluate", "pair", "list", "theory", "diagnose")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_with_an_example(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert re.search(r"Example.*tamperfuse " + command, shown.output, re.DOTALL)


def test_judge_calibrate_helps_with_an_example() -> None:
    shown = CliRunner().invoke(app, ["judge", "calibrate", "--help"]).output
    assert re.search(r"Example.*tamperfuse judge calibrate", shown, re.DOTALL)


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert "is not a file" in fails(["run", str(tmp_path / "no.yaml"), "--out", out], capsys)
    assert "did you mean 'sdd'" in fails(
        ["harden", "smollm2-135m", "--defense", "sd", "--threat", "builtin:cooking", "--out", out], capsys
    )
    assert "is not key=value" in fails(
        ["harden", "smollm2-135m", "--defense", "sdd", "--threat", "builtin:cooking", "--out", out, "--set", "x"],
        capsys,
    )
    assert "did you mean 'cooking'" in fails(
        ["evaluate", "smollm2-135m", "--threat", "builtin:cookin", "--out", out], capsys
    )
    assert "learning_rate" in fails(
        [
            "attack",
            "x/y",
            "--attack",
            "harmful_finetune",
            "--threat",
            "builtin:cooking",
            "--out",
            out,
            "--set",
            "learning_rate=-1",
        ],
        capsys,
    )
    study = tmp_path / "study.yaml"
    study.write_text(
        "{model: smollm2-135m, threat: 'builtin:cooking', attacks: {}, evaluate: {capability: [openbookqa]}}"
    )
    assert "reaches the Hub" in fails(["run", str(study), "--out", out], capsys)
    study.write_text(
        "{model: smollm2-135m, threat: 'builtin:cooking', attacks: {big: {attack: harmful_finetune, shots: 500}}}"
    )
    assert "asks for 500 shots" in fails(["run", str(study), "--out", out], capsys)
    assert "finished run" in fails(["report", str(tmp_path)], capsys)
    unread = ["harden", "x/y", "--defense", "sdd", "--threat", "builtin:cooking", "--out", out, "--set", "steps=[1"]
    assert "value is not valid YAML" in fails(unread, capsys)
    for absent in ("/proc/absent/out", str(tmp_path / "file" / "out")):
        (tmp_path / "file").write_text("")
        assert "cannot be written" in fails(["theory", "--out", absent], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--counts", "-1,20,2,21"], "cannot be negative"),
        (["--counts", "3,20.5,2,21"], "must be an integer"),
        (["--counts", "3,20,2"], "not 4 numbers"),
        (["--counts", "3,20,2,21", "--overlap", "3,0"], "shared_invariant is 3"),
        (["--counts", "3,20,2,21", "--overlap", "0,21"], "shared_spurious is 21"),
        (["--counts", "3,20,2,21", "--p", "1.5"], "p is 1.5"),
        (["--counts", "3,20,2,21", "--p", "nan"], "p is nan"),
        (["--counts", "3,20,2,21", "--lambda=-0.1"], "lambda is -0.1"),
        (["--counts", "3,20,2,21", "--classes", "1"], "at least 2 classes"),
        (["--p", "0.5"], "give its --counts"),
    ],
)
def test_bad_settings_of_the_theory(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in fails(["theory", *arguments, "--out", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


def test_a_setting_of_the_theory_is_judged() -> None:
    shown = CliRunner().invoke(app, ["theory", "--counts", "3,20,2,21"]).output
    assert "Accuracy 0.8414 before the attack, 0.9198 after it, exactly" in shown
    assert (
        "Theorem 2, these being features of general accuracy: its conditions are met; accuracy does not fall exactly"
        in shown
    )
    assert "n_v exceeds 7.50" in shown and "5 more invariant features; or 16 fewer spurious ones" in shown
    inside = CliRunner().invoke(app, ["theory", "--counts", "9,20,2,30"]).output
    assert "inside the region" in inside


def test_list_names_everything() -> None:
    shown = CliRunner().invoke(app, ["list"]).output
    for name in ("sdd_reject", "benign_finetune", "builtin:cooking", "smollm2-135m"):
        assert name in shown


def test_the_plan_is_printed_without_running(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tamperfuse.cli.app", "demo", "--dry-run", "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Budget: about" in done.stderr
    assert not (tmp_path / "run").exists()
