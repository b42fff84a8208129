"""No input ends in a traceback: exit codes and sentences."""

import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from command_stand_ins import answer
from scripts import fuzz_inputs
from tamperfuse.cli.app import main
from tamperfuse.cli.errors import sentence_of
from tamperfuse.models.chat_template import read_template
from tamperfuse.records import process
from tamperfuse.records.cache import cache_folder
from tamperfuse.records.errors import UserError, unknown_name
from tamperfuse.study.estimates import Costs, check_affordable, seconds_for
from tamperfuse.study.sections import parse_judge
from tamperfuse.study.spec import parse_study

EXAMPLES = {  # of each kind
    "options": 40,
    "studies": 15,
    "policies": 40,
    "runs": 20,
    "threats": 40,
    "pairs": 12,
    "models": 10,
    "adapters": 5,
    "templates": 6,
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fuzz_inputs.make_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_structured_rubbish_is_answered_in_a_sentence(name: str, run_folder: Path) -> None:
    """The same examples in every run; `scripts/fuzz_inputs.py` tries others for as long as it is told to."""
    faults: list[str] = []

    def note(example: Any, outcome: fuzz_inputs.Outcome) -> None:
        if outcome.fault:
            faults.append(f"{outcome.fault}\n{outcome.arguments!r:.300}\n{example!r:.800}")

    fuzz_inputs.search(name, run_folder, EXAMPLES[name], note, random=False)
    assert not faults, "\n\n".join(faults[:5])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENAMETOOLONG, "long", "x" * 900), r"^x+…x+ has a name that is too long: shorten the name\.$"),
        (OSError(errno.ELOOP, "loop", "a/b"), r"^a/b is a loop of symbolic links: correct the links\.$"),
        (IsADirectoryError(errno.EISDIR, "dir", "a/b"), r"^a/b is a folder where a file is needed: "),
        (PermissionError(errno.EACCES, "no", "a/b"), r"^a/b may not be accessed \(permission denied\): "),
        (OSError(errno.ENOSPC, "full"), r"^A file does not fit: the disk is full: free some space"),
        (OSError(errno.EMFILE, "many", "a"), r"raise `ulimit -n`"),
        (ConnectionError("refused by peer"), r"refused by peer"),
        (RecursionError("maximum recursion depth exceeded"), r"nested too deeply"),
        (MemoryError(), r"not enough memory .*lower the sizes"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), r"not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), r"not enough memory"),
        (RuntimeError("PytorchStreamWriter failed writing file"), r"could not be written completely .*free space"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"), r"cannot be encoded or decoded .*save it as UTF-8"),
        (ImportError("no module named x"), r"package is missing .*install or update"),
        (ValueError("month must be in 1..12"), r"ValueError: month must be in 1\.\.12 .*--debug"),
        (KeyError("foo"), r"KeyError: 'foo'"),
        (UserError("A sentence."), r"^A sentence\.$"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("debug", [False, True])
def test_every_error_is_a_sentence_and_a_traceback_only_under_debug(
    error: Exception, words: str, debug: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(words, sentence_of(error))

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("tamperfuse.report.gate.check_gate", fail)
    code, shown = answer(["gate", "run", "--policy", "p", *(["--debug"] if debug else [])], capsys)
    assert code == 2
    assert ("Traceback" in shown) == debug
    assert len(shown.strip().splitlines()) == 1 or debug


def test_the_sentence_of_an_unforeseen_error_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tamperfuse.report.gate.read_yaml", lambda path: [][0])
    shown = answer(["gate", str(tmp_path), "--policy", "p"], capsys)[1]
    assert "IndexError: list index out of range (in report.gate.read_policy, line " in shown


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
@pytest.mark.parametrize("value", ["abc", "-1", "1.5", "9" * 5000, "٣"])
def test_environment_variables_that_are_no_numbers(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    code, shown = answer(["list"], capsys)
    assert code == 2 and f"The environment variable {name}" in shown and len(shown) < 400


def test_a_rank_of_another_launcher_does_not_silence_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job's RANK without its WORLD_SIZE would make this process one that neither prints nor writes."""
    monkeypatch.setenv("RANK", "3")
    code, shown = answer(["list"], capsys)
    assert code == 2 and "unset RANK" in shown
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert process.rank() == 3 and not process.is_main()


@pytest.mark.parametrize("seed", ["-1", str(2**32), "9" * 5000])
@pytest.mark.parametrize("command", ["harden", "attack", "pair"])
def test_seeds_that_no_generator_takes(
    command: str, seed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "harden": ["smollm2-135m", "--defense", "refusal", "--threat", "builtin:cooking"],
        "attack": ["smollm2-135m", "--attack", "harmful_finetune", "--threat", "builtin:cooking"],
        "pair": ["--harmful", "builtin:cooking", "--responses", "builtin:benign"],
    }
    code, shown = answer([command, *options[command], f"--seed={seed}", "--out", str(tmp_path / "out")], capsys)
    assert code == 2 and re.search("seed", shown) and "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_a_tilde_that_the_shell_left_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    places: list[Path] = []
    monkeypatch.setattr("tamperfuse.report.page.write_report", lambda folder: places.append(folder) or folder)
    monkeypatch.setattr("tamperfuse.report.page.headline", lambda folder: "")
    assert answer(["report", "~/run"], capsys)[0] == 0
    assert places == [tmp_path / "run"]
    study = parse_study({"model": "~/model", "threat": "~/t.jsonl", "evaluate": {"capability": ["~/task.yaml"]}}, "x")
    assert (study.model, study.threat) == (f"{tmp_path}/model", f"{tmp_path}/t.jsonl")
    assert study.evaluate.capability == (f"{tmp_path}/task.yaml",)
    for name in ("guard", "classifier"):
        judge = parse_judge({"judge": name, "model": "~/guard"})
        assert judge.parameters["model"] == f"{tmp_path}/guard"


def test_a_home_folder_that_is_unknown_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMPERFUSE_CACHE", "~no-such-user/x")
    for use in (cache_folder, lambda: read_template(Path("~no-such-user/x"))):
        with pytest.raises(UserError, match=r"The home directory in '~no-such-user/x' is unknown"):
            use()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"seeds": [-1]}, "-1 is no seed"),
        ({"seeds": [2**32]}, "is no seed"),
        ({"seeds": [1, 1]}, "repeated"),
        ({"defenses": {"x": 5}}, "must be a mapping"),
        ({"defenses": {"x": {"defense": ["sdd"]}}}, "must be a name"),
        ({"defenses": {"x": {"defense": "sdd", "on": None, "parameters": 5}}}, "must be a mapping"),
        ({"defenses": {"x": {"defense": "sdd", "on": None, "parameters": {"steps": -1}}}}, "steps = -1"),
        ({"attacks": {"x": {"attack": "harmful_finetune", "parameters": {"step": 1}}}}, "did you mean 'steps'"),
        ({"judge": {"judge": "builtin", "parameters": 5}}, "must be a mapping"),
        ({"judge": {"judge": 5}}, "must be a name"),
        ({"judge": "x" * 5000}, "There is no judge"),
        ({"evaluate": {"capability": []}}, "evaluate.capability is []"),
        ({"evaluate": {"prompts": "many"}}, "evaluate.prompts is 'many'"),
        ({"seeds": list(range(4000)), "attacks": {"a": {"attack": "merge"}, "b": {"attack": "prune"}}}, "split it into several"),
    ],
)  # fmt: skip
def test_study_files_that_cannot_be_used(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        parse_study({"model": "m", "threat": "builtin:cooking", **values}, "study.yaml")
    assert words in str(error.value) and len(str(error.value)) < 800


def test_a_long_list_of_names_is_cut() -> None:
    message = str(unknown_name("task", "zzz", [f"name{i}" for i in range(5000)]))
    assert len(message) < 600 and "…" in message


def test_absurd_studies_are_refused_before_they_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    check_affordable(86_400.0, 2, 1_000, out, confirmed=False)
    with pytest.raises(UserError, match=r"about 60 days .*--yes"):
        check_affordable(60 * 86_400.0, 2, 1_000, out, confirmed=False)
    check_affordable(60 * 86_400.0, 2, 1_000, out, confirmed=True)
    assert seconds_for(Costs(trained=10**400), 1, 1_000) == float("inf")
    with pytest.raises(UserError, match="more than a billion days"):
        check_affordable(float("inf"), 2, 1_000, out, confirmed=False)
    with pytest.raises(UserError, match=r"writes up to .* GB of models, resume states and results, and the disk"):
        check_affordable(1.0, 10**18, 10**6, out, confirmed=True)
    monkeypatch.setattr("tamperfuse.study.estimates.torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="of memory: use a larger machine or a smaller model"):
        check_affordable(1.0, 0, 10**13, out, confirmed=True)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_a_terminal_that_is_not_utf_8(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def output(arguments: list[str]) -> str:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code
        stream.flush()
        return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]

    assert "Defenses" in output(["list"])
    assert json.loads(output(["list", "--json"]))["defenses"]


@pytest.fixture
def gate(run_folder: Path, tmp_path: Path) -> list[str]:
    """A command that passes and prints: it imports no model library, so it starts quickly."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("{defense: sdd, require: {capability.before_attack: {at_least: 0.5}}}")
    return [sys.executable, "-m", "tamperfuse", "gate", str(run_folder), "--policy", str(policy)]


def test_a_closed_pipe_leaves_the_exit_code_of_the_command(gate: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(gate, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_standard_output_on_a_full_disk(gate: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(gate, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and "the disk is full" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["report"], ["gate", "--policy", "p"]])
@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.symlink_to(p), lambda p: os.mkfifo(p)])
def test_a_summary_that_is_no_file(
    command: list[str], make: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p").write_text("{defense: sdd, require: {capability.before_attack: {at_least: 0.5}}}")
    make(tmp_path / "summary.json")
    arguments = [str(tmp_path / "p") if word == "p" else word for word in command]
    code, shown = answer([*arguments, str(tmp_path)], capsys)
    assert code == 2 and "summary.json" in shown


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("defenses.sdd.capability.drop_vs_shipped.resolvd", False),
        ("defenses.sdd.capability.drop_vs_shipped.low", 0.9),
        ("defenses.sdd.capability.drop_vs_shipped.n", -1),
        ("defenses.sdd.capability.drop_vs_shipped.value", "x"),
        ("defenses.sdd.usable_harm.abc", {"value": 0.1}),
        ("defenses.sdd.attack_cost.full-100.steps", -4),
        ("defenses", {}),
        ("seconds", -1.0),
    ],
)
def test_a_damaged_summary_opens_no_gate(
    path: str, value: object, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((run_folder / "summary.json").read_text())
    *parents, last = path.split(".")
    place = content
    for key in parents:
        place = place[key]
    place[last] = value
    (tmp_path / "summary.json").write_text(json.dumps(content))
    code, shown = answer(["gate", str(tmp_path), "--policy", str(run_folder / "policy.yaml")], capsys)
    assert code == 2 and "summary.json is damaged (at" in shown


class PanicException(BaseException):
    """As pyo3 raises it where a library in Rust panics; it is no `Exception`."""


def test_a_panic_of_a_library_in_rust_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def panic(folder: Path) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("tamperfuse.report.page.write_report", panic)
    code, shown = answer(["report", "runs/x"], capsys)
    assert code == 2 and "PanicException: index out of bounds" in shown and "Traceback" not in shown
