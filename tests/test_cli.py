import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from lm_eval.tasks import TaskManager
from typer.testing import CliRunner

from command_stand_ins import fails
from tamperfuse.attacks import ATTACKS
from tamperfuse.cli.app import app, main
from tamperfuse.cli.options import NARROWEST, ResultsConsole
from tamperfuse.cli.summary_table import percent
from tamperfuse.defenses import DEFENSES
from tamperfuse.evaluation import capability_tasks
from tamperfuse.models.bundled import ENCODERS, MODELS
from tamperfuse.records.summary import Measure

ROOT = Path(__file__).parents[1]
EXAMPLE = re.compile(r"Example:\s+(?:`(tamperfuse [^`]+)`|(tamperfuse .+))")
INPUTS = {
    "model",
    "models",
    "folder",
    "study",
    "policy",
    "pairs",
    "reference",
}  # parameters that name something to read
HARDEN = ["harden", "smollm2-135m", "--threat", "builtin:cooking"]


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ROOT_COMMAND = typer.main.get_command(app)
COMMANDS = dict(commands(ROOT_COMMAND))


def examples(command: Any) -> list[list[str]]:
    text = inspect.cleandoc(command.callback.__doc__ or "")
    return [shlex.split(quoted or plain)[1:] for quoted, plain in EXAMPLE.findall(text)]


EXAMPLES = [(path, example) for path, command in COMMANDS.items() for example in examples(command)]


def parse(path: tuple[str, ...], arguments: list[str]) -> dict[str, object]:
    """The values that a command line gives to a command; usage errors are raised."""
    assert tuple(arguments[: len(path)]) == path
    return COMMANDS[path].make_context(" ".join(path), arguments[len(path) :]).params


def as_list(value: object) -> list[str]:
    return [str(item) for item in (value if isinstance(value, list | tuple) else [value]) if item is not None]


def test_every_command_has_a_file_of_its_own() -> None:
    modules = {command.callback.__module__ for command in COMMANDS.values()}
    assert len(modules) == len(COMMANDS) and all(name.startswith("tamperfuse.cli.") for name in modules)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_prints_help_with_an_example(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"])
    assert shown.exit_code == 0
    assert examples(COMMANDS[path])
    assert f"tamperfuse {' '.join(path)}" in re.sub(r"\s+", " ", shown.output)


@pytest.mark.parametrize(("path", "example"), EXAMPLES, ids=lambda value: " ".join(value))
def test_every_example_can_be_run(path: tuple[str, ...], example: list[str]) -> None:
    """Options exist, components exist, and what is read is in the repository, bundled, or another example's output."""
    outputs = {str(parse(*both).get("out")) for both in EXAMPLES}
    values = parse(path, example)
    if defense := values.get("defense"):
        DEFENSES.get(str(defense))
    if attack := values.get("attack"):
        parameters = ATTACKS.get(str(attack)).parameters.model_fields
        assert {setting.partition("=")[0] for setting in as_list(values.get("settings"))} <= set(parameters)
    for name in INPUTS & values.keys():
        for value in as_list(values[name]):
            assert value in outputs | set(MODELS) | set(ENCODERS) or (ROOT / value).exists(), f"{name} {value}"


SLOW_TO_IMPORT = (
    "altair",
    "datasets",
    "huggingface_hub",
    "jinja2",
    "lm_eval",
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "sentence_transformers",
    "torch",
    "transformers",
)


def test_help_imports_no_library_that_takes_long() -> None:
    """Of any command: the modules are those that all of them import, so that each takes less than half a second."""
    code = (
        "import sys; from typer.testing import CliRunner; from tamperfuse.cli.app import app\n"
        f"for path in {[list(path) for path in COMMANDS]}: assert CliRunner().invoke(app, [*path, '--help']).exit_code == 0\n"
        f"print([name for name in {SLOW_TO_IMPORT} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_fits_eighty_columns(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Help texts are wrapped into a column of at least half of the line, not into a narrow one."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80)
    lines = CliRunner().invoke(app, [*path, "--help"]).output.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 130


def test_the_shell_completes_commands() -> None:
    code = "import sys; sys.argv = ['tamperfuse']; from tamperfuse.cli.app import main; main()"
    words = {"_TAMPERFUSE_COMPLETE": "complete_bash", "COMP_WORDS": "tamperfuse har", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **words})
    assert done.stdout.split() == ["harden"], done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "OUT/no.yaml"], "is not a file"),
        ([*HARDEN, "--defense", "sd"], "did you mean 'sdd'"),
        ([*HARDEN, "--defense", "sdd", "--set", "x"], "is not key=value"),
        ([*HARDEN, "--defense", "sdd", "--set", "steps="], "has no value"),
        ([*HARDEN, "--defense", "sdd", "--set", "steps=[1"], "value is not valid YAML"),
        (["evaluate", "smollm2-135m", "--threat", "builtin:cookin"], "did you mean 'cooking'"),
        (
            [
                "attack",
                "x/y",
                "--attack",
                "harmful_finetune",
                "--threat",
                "builtin:cooking",
                "--set",
                "learning_rate=-1",
            ],
            "learning_rate",
        ),
        (["theory", "--out", "/proc/absent/out"], "cannot be written"),
        (
            [
                "attack",
                "smollm2-135m",
                "--attack",
                "harmful_finetune",
                "--threat",
                "builtin:cooking",
                "--set",
                "shots=5000",
            ],
            "needs 5000 shots; the attacker part of builtin:cooking has 104 prompts",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [argument.replace("OUT", str(out)) for argument in arguments]
    if "--out" not in arguments:
        arguments += ["--out", str(out)]
    assert message in fails(arguments, capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ("{attacks: {}, evaluate: {capability: [openbookqa]}}", "no capability task named 'openbookqa'"),
        ("{attacks: {big: {attack: harmful_finetune, shots: 500}}}", "500 shots"),
    ],
)
def test_a_study_that_cannot_run_is_refused(
    quick_judging: None,
    study: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        capability_tasks, "_manager", lambda defaults: TaskManager(include_defaults=False)
    )  # which is quick
    path = tmp_path / "study.yaml"
    path.write_text(study.replace("{", "{model: smollm2-135m, threat: 'builtin:cooking', ", 1))
    assert message in fails(["run", str(path), "--out", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "finished run" in fails(["report", str(tmp_path)], capsys)


def test_output_under_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fails(["theory", "--out", str(tmp_path / "file" / "out")], capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--counts", "-1,20,2,21"], "cannot be negative"),
        (["--counts", "3,20.5,2,21"], "must be an integer"),
        (["--counts", "3,20,2"], "not 4 numbers"),
        (["--counts", "3,20,2,2" + "1" * 5000], "--counts has a number of 5,001 digits"),
        (["--counts", "3" * 5000], "not 4 numbers"),
        (["--counts", "3,20,2,21", "--overlap", "3,0"], "shared_invariant is 3"),
        (["--counts", "3,20,2,21", "--overlap", "0,21"], "shared_spurious is 21"),
        (["--counts", "3,20,2,21", "--p", "1.5"], "p is 1.5"),
        (["--counts", "3,20,2,21", "--p", "nan"], "p is nan"),
        (["--counts", "3,20,2,21", "--lambda=-0.1"], "lambda is -0.1"),
        (["--counts", "3,20,2,21", "--classes", "1"], "at least 2 classes"),
        (["--p", "0.5"], "--counts"),
    ],
)
def test_bad_settings_of_the_theory(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in fails(["theory", *arguments, "--out", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


def test_a_setting_of_the_theory_is_judged() -> None:
    shown = CliRunner().invoke(app, ["theory", "--counts", "3,20,2,21"]).output
    assert "Accuracy 0.8414 before the attack, 0.9198 after it (exact)" in shown
    assert "general accuracy): its conditions are met; accuracy does not fall in the exact form" in shown
    assert "n_v exceeds 7.50" in shown and "5 more invariant features; or 16 fewer spurious ones" in shown
    inside = CliRunner().invoke(app, ["theory", "--counts", "9,20,2,30"]).output
    assert "inside the region" in inside


def test_a_short_option_asks_for_help() -> None:
    for words in (["-h"], ["judge", "run", "-h"]):
        assert "Example:" in CliRunner().invoke(app, words).output


def test_a_number_of_workers_without_workers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(ROOT / "studies" / "demo.yaml"), "--workers", "4", "--out", str(tmp_path / "run")]
    assert "add --executor processes or ray" in fails(command, capsys)


def test_a_terminal_without_columns_hides_no_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert ResultsConsole().width == NARROWEST


def test_list_names_everything() -> None:
    shown = CliRunner().invoke(app, ["list"]).output
    for name in ("sdd_reject", "benign_finetune", "builtin:cooking", "smollm2-135m"):
        assert name in shown


@pytest.mark.parametrize("command", [["demo"], ["run", str(ROOT / "studies" / "demo.yaml")]])
def test_the_plan_is_printed_without_running(
    quick_judging: None, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--dry-run", "--out", str(tmp_path / "run")])
    assert ended.value.code == 0
    shown = capsys.readouterr().err
    assert "Budget: about" in shown
    assert "sdd" in shown
    assert not (tmp_path / "run").exists()


def test_the_plan_as_json(
    quick_judging: None, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out, done in ((finished_run, True), (tmp_path / "elsewhere" / "run", False)):
        with pytest.raises(SystemExit) as ended:
            main(["run", str(finished_run / "study.yaml"), "--out", str(out), "--dry-run", "--json"])
        assert ended.value.code == 0
        planned = json.loads(capsys.readouterr().out)
        keys = {node["key"] for node in planned["plan"]["nodes"]}
        assert planned["plan"]["schema"] == 1 and "sdd, seed 0" in [node["what"] for node in planned["plan"]["nodes"]]
        assert set(planned["finished"]) == (keys if done else set())
        assert (planned["seconds"] > 0) == (planned["disk"] > 0) == (not done)


def test_ctrl_c_exits_with_130_and_says_how_to_resume(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tamperfuse.study.run.run_study", interrupt)
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--out", str(tmp_path / "run")])
    assert ended.value.code == 130
    assert "resume" in capsys.readouterr().err


def test_commands_in_one_process_refuse_accelerate_launch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "runs in one" in fails(["report", "runs/demo"], capsys)


@pytest.mark.parametrize(
    ("measure", "text"),
    [
        (Measure(value=None), "–"),
        (Measure(value=0.5), "50.0%"),
        (Measure(value=0.5, low=0.25, high=0.75, n=8), "50.0% (25.0% to 75.0%)"),
        (Measure(value=0.5, low=-0.25, high=0.75, n=8, resolved=False), "50.0% (-25.0% to 75.0%), not resolved"),
    ],
)
def test_measures_are_printed_with_interval_and_resolution(measure: Measure, text: str) -> None:
    assert percent(measure) == text


def test_the_wheel_holds_the_demo_study_and_the_data_without_its_script(tmp_path: Path) -> None:
    """The built package has no source tree beside it, so it carries a copy."""
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path), "build_py", "--build-lib", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    copy = tmp_path / "tamperfuse" / "studies" / "demo.yaml"
    assert copy.read_bytes() == (ROOT / "studies" / "demo.yaml").read_bytes()
    source, built = (
        {
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        for folder in (ROOT / "src" / "tamperfuse", tmp_path / "tamperfuse")
    )
    assert source - built == {"corpora/data/make_grammar.py"} and built - source == {"studies/demo.yaml"}
