"""Throw structured rubbish at the command line and report every input that ends in a traceback, a hang or a wrong exit code.

    python scripts/fuzz_inputs.py --minutes 10

Options, study files, policies, data and the files of a run are made by hypothesis: valid ones in which values are replaced,
removed or repeated, and text in which characters are changed. Commands run in this process, without models: what loads or trains
one is replaced. tests/test_hostile_input.py runs a few examples of each kind.
"""

import argparse
import copy
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / folder) for folder in ("", "report")]

from made_up_run import write_folder  # noqa: E402

from stand_ins import WordCountEncoder  # noqa: E402
from tamperfuse.cli.app import app, main  # noqa: E402
from tamperfuse.models.encoder import set_default_encoder  # noqa: E402
from tamperfuse.records.errors import UserError  # noqa: E402
from tamperfuse.records.yaml import dump_yaml  # noqa: E402

SECONDS = 30  # of processor time that a command may take here
WAITING_SECONDS = 300  # that it may take, whatever it does: another process may have the processor
FALLBACK = "The command cannot go on"  # the sentence of an error that nothing foresaw

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2**31, 2**32, 2**63, 10**30, -(10**18), 0.5, -0.0, 1e308, 1e-320]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [
            *(
                "",
                " ",
                "~",
                "~nobody/x",
                ".",
                "..",
                "/",
                "/dev/null",
                "/dev/zero",
                "/proc/self/mem",
                "/proc/self/environ",
            ),
            *(
                "[/x]",
                "[bold]x",
                "\x1b[31mred",
                "\u202eabc",
                "x" * 300,
                "x/" * 3000,
                "é",
                "a b",
                "a'b",
                "$(id)",
                "-1",
                "--out",
            ),
            *(
                "1e999",
                "2026-13-45",
                "nan",
                "null",
                "0x1f",
                "builtin:",
                "builtin:cooking",
                "builtin:benign",
                "refusal",
                "sdd",
            ),
            *(
                "harmful_finetune",
                "benign_finetune",
                "smollm2-135m",
                "owner/name",
                "owner/name:train",
                "all",
                "x.gguf",
                "x.jsonl",
            ),
        ]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
WORDS = SCALARS.map(lambda value: str(value).replace("\0", "0"))

STUDY = {
    "model": "smollm2-135m",
    "threat": "builtin:cooking",
    "seeds": [0],
    "defenses": {"refusal": {"steps": 2}, "sdd": {"on": "refusal", "steps": 2}},
    "attacks": {
        "full": {"attack": "harmful_finetune", "shots": 2, "steps": 3},
        "searched": {"attack": "harmful_finetune", "search": {"trials": 2, "over": {"learning_rate": [1e-5, 1e-3]}}},
    },
    "pairs": {"responses": "builtin:benign", "threshold": 0.25, "filters": True, "language": "en"},
    "judge": {"judge": "builtin", "tolerated": 0.05},
    "evaluate": {
        "at_steps": [0, 1],
        "prompts": 4,
        "dev_prompts": 3,
        "harmless": 4,
        "capability": ["builtin"],
        "epsilons": [0.1],
    },
}
POLICY = {
    "defense": "sdd",
    "require": {
        "harmful_execution.worst": {"at_most": 0.1},
        "capability.drop_vs_shipped": {"at_most": 0.02, "accept_unresolved": True},
    },
}
SEARCH = {
    "searches": [
        {
            "defense": defense,
            "attack": "searched",
            "trials": 1,
            "best_so_far": [{"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}],
            "final_best_vs_undefended": {"value": 0.1, "low": -0.1, "high": 0.3, "n": 9, "resolved": False},
            "best_so_far_vs_undefended": {"value": 0.1, "low": -0.1, "high": 0.3, "n": 9, "resolved": False},
            "trials_to_half": 1,
            "censored": False,
            **{
                name: [
                    {
                        **{"seed": 0, "trial": 0, "parameters": {"learning_rate": 1e-4}, "stopped": False, "step": 2},
                        **{"attacker_dev": 0.5, "evaluation": {"value": 0.5, "n": 9}, "capability_lost": 0.1},
                    }
                ]
                for name in ("choices", "frontier")
            },
        }
        for defense in ("refusal", "sdd")
    ]
}


class TimeIsOver(BaseException):
    """The minutes of the driver have passed."""


class Hang(BaseException):
    """A command took longer than it may."""


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    arguments: list[str]
    code: object
    output: str

    @property
    def fault(self) -> str:
        """What is wrong with it; "" if nothing is."""
        if self.code == "hang":
            return f"no answer in {SECONDS} s"
        if "Traceback (most recent" in self.output:
            return "traceback: " + self.output.strip().splitlines()[-1]
        if self.code not in (0, 2) and not (self.code == 1 and "gate" in self.arguments):
            return f"exit code {self.code}"
        if FALLBACK in self.output:
            return "unforeseen: " + re.sub(r"\d+", "N", self.output[self.output.index(FALLBACK) :].strip()[:200])
        if self.code == 2 and not self.output.strip():
            return "exit code 2 without a message"
        return ""


@contextmanager
def without_models() -> Iterator[None]:
    """Replace what loads a model or an encoder, or draws figures: the rest is what reads input."""

    def no_model(*_: Any, **__: Any) -> Any:
        raise UserError("No model is loaded here: this is the end of the input's way.")

    encoder = WordCountEncoder()
    with ExitStack() as stack:
        for module in (
            "harden",
            "attack",
            "evaluate",
            "diagnose",
            "calibrate",
            "measurement",
            "compare_chat",
            "publish",
        ):
            stack.enter_context(patch(f"tamperfuse.commands.{module}.load_model", no_model))
        set_default_encoder(encoder)
        stack.callback(set_default_encoder, None)
        stack.enter_context(patch("tamperfuse.study.context.model_fingerprint", lambda *_: "0" * 16))
        for module in ("spec", "run"):
            stack.enter_context(patch(f"tamperfuse.study.{module}.parameter_count", lambda name: 1_000))
        stack.enter_context(patch("tamperfuse.study.estimates.matrix_rate", lambda: 1e11))
        for module in ("study.run", "commands.harden"):
            stack.enter_context(patch(f"tamperfuse.{module}.execute", no_model))
        stack.enter_context(patch("tamperfuse.cli.demo.run_study_file", no_model))
        stack.enter_context(patch("tamperfuse.pairing.pipeline.open_encoder", lambda *_, **__: nullcontext(encoder)))
        stack.enter_context(patch("tamperfuse.report.theory.theory_figures", lambda: []))
        stack.enter_context(patch("tamperfuse.report.html._library", lambda: ""))
        yield


def _alarm(*_: object) -> None:
    raise Hang


def call(arguments: list[str]) -> Outcome:
    """Run a command in this process."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="replace")
    code: object = 0
    previous = [(number, signal.signal(number, _alarm)) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING_SECONDS)
    try:
        with redirect_stdout(out), redirect_stderr(out):
            main(arguments)
    except SystemExit as exit_:
        code = exit_.code or 0
    except Hang:
        code = "hang"
    except BaseException as error:  # what the command line must never let through
        code = f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous:
            signal.signal(number, handler)
    out.flush()
    return Outcome(arguments, code, out.buffer.getvalue().decode("utf-8", "replace"))


# ---- inputs


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything inside a nested value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from paths(item, (*path, key))


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A nested value with one to three of its parts replaced, removed, renamed or repeated."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        everything = list(paths(value))
        if not everything:
            return draw(VALUES)
        path = draw(st.sampled_from(everything))
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        match draw(st.sampled_from(["replace", "replace", "remove", "rename", "whole"])):
            case "replace":
                parent[path[-1]] = draw(VALUES)
            case "remove":
                del parent[path[-1]]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.text(max_size=6))] = parent.pop(path[-1])
            case "whole" if draw(st.integers(0, 9)) == 0:
                return draw(VALUES)
    return value


@st.composite
def damaged_text(draw: st.DrawFn, text: str) -> bytes:
    """A file's bytes with a piece cut out, repeated or replaced."""
    content = text.encode("utf-8", "surrogatepass")
    start = draw(st.integers(0, max(0, len(content) - 1)))
    end = min(len(content), start + draw(st.integers(0, 40)))
    piece = draw(
        st.sampled_from(
            [b"", b"\xff", b"\x00", b"[" * 3000, b"{", b'"', b"- &a [*a]", b"\n", b"\t", b"9" * 5000, b"!!python/x "]
        )
        | st.binary(max_size=6)
    )
    return content[:start] + piece + (content[start:] if draw(st.booleans()) else content[end:])


def files_of(value: Any, dump: Callable[[Any], str]) -> st.SearchStrategy[bytes]:
    """Contents of a file: a changed value, or a damaged text."""

    def encode(changed_value: Any) -> bytes:
        try:
            return dump(changed_value).encode("utf-8", "surrogatepass")
        except (ValueError, TypeError):  # what the format cannot express
            return repr(changed_value).encode("utf-8", "surrogatepass")

    return changed(value).map(encode) | damaged_text(dump(value))


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with some of its parameters, each with a usable or an unusable value."""
    path, command = draw(st.sampled_from(COMMANDS))
    arguments = list(path)
    for parameter in command.params:
        if draw(st.integers(0, 2)) == 0 and not parameter.required:
            continue
        if draw(st.integers(0, 11)) == 0:
            continue
        value = draw(st.sampled_from([*USABLE.get(parameter.name, ["x"])] * 2) | WORDS)
        if parameter.param_type_name == "argument":
            arguments += ["--", value] if value.startswith("-") else [value]
        elif getattr(parameter, "is_flag", False):
            arguments.append(parameter.opts[0])
        else:
            arguments.append(f"{parameter.opts[0]}={value}")
    return arguments


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = list(_commands(typer.main.get_command(app)))
USABLE = {
    "model": ["smollm2-135m"],
    "models": ["smollm2-135m"],
    "threat": ["builtin:cooking"],
    "harmful": ["builtin:cooking"],
    "responses": ["builtin:benign"],
    "defense": ["refusal"],
    "attack": ["harmful_finetune"],
    "out": ["OUT"],
    "folder": ["RUN"],
    "policy": ["RUN/policy.yaml"],
    "study": ["RUN/study.yaml"],
    "settings": ["steps=2", "steps=-1", "x=[", "steps=1e999", "steps=" + "9" * 5000, "batch=" + "[" * 2000],
    "counts": ["3,20,2,21", "3,20,2,21" + "0" * 20],
    "overlap": ["0,0"],
    "judge": ["builtin", "phrases"],
    "export": ["jsonl", "alpaca"],
    "report_to": ["tensorboard"],
}
RUN_FILES = ("summary.json", "run.json", "samples.json", "searches.json", "study.yaml", "results.parquet")


@st.composite
def run_damage(draw: st.DrawFn, run: Path) -> tuple[str, str, bytes]:
    """A file of a run, and what becomes of it: a kind of damage, or new content."""
    name = draw(st.sampled_from(RUN_FILES))
    kind = draw(st.sampled_from(["content"] * 8 + ["folder", "loop", "absent", "empty"]))
    if kind != "content":
        return name, kind, b""
    if name == "results.parquet":
        table = pq.read_table(run / name)
        column = draw(st.sampled_from(table.column_names))
        values = [draw(SCALARS)] + [None] * (table.num_rows - 1)
        match draw(st.sampled_from(["null", "drop", "text", "bytes"])):
            case "null":
                table = table.set_column(0, column, pa.array([None] * table.num_rows, table.schema.field(column).type))
            case "drop":
                table = table.drop_columns([column])
            case "text":
                text = pa.array([None if v is None else str(v).encode("utf-8", "replace").decode() for v in values])
                table = table.set_column(table.column_names.index(column), column, text)
            case _:
                content = bytearray((run / name).read_bytes())
                for _ in range(draw(st.integers(1, 5))):
                    content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
                return name, "content", bytes(content)
        sink = io.BytesIO()
        pq.write_table(table, sink)
        return name, "content", sink.getvalue()
    text = (run / name).read_text(encoding="utf-8")
    if name == "study.yaml":
        return name, "content", draw(damaged_text(text))
    return name, "content", draw(files_of(json.loads(text), as_json))


def damage(run: Path, name: str, kind: str, content: bytes) -> None:
    """Apply :func:`run_damage` to a run."""
    path = run / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind in ("content", "empty"):
        path.write_bytes(content)


# ---- properties: each takes an example and a folder, and yields outcomes


def make_run(folder: Path) -> Path:
    """A small finished run with a search and a policy."""
    write_folder(folder)
    (folder / "searches.json").write_text(as_json(SEARCH), encoding="utf-8")
    (folder / "policy.yaml").write_text(dump_yaml(POLICY), encoding="utf-8")
    return folder


def try_command_line(arguments: list[str], run: Path, folder: Path) -> list[Outcome]:
    place = {"OUT": str(folder / "out"), "RUN": str(run)}
    words = [re.sub(r"\b(OUT|RUN)\b", lambda m: place[m.group()], word) for word in arguments]
    with _working_in(folder):
        return [call(words)]


def try_study(content: bytes, run: Path, folder: Path) -> list[Outcome]:
    path = folder / "study.yaml"
    path.write_bytes(content)
    with _working_in(folder):
        return [
            call(["run", str(path), "--out", str(folder / "out"), "--dry-run"]),
            call(["run", str(path), "--out", "out"]),
        ]


def try_policy(content: bytes, run: Path, folder: Path) -> list[Outcome]:
    path = folder / "policy.yaml"
    path.write_bytes(content)
    return [call(["gate", str(run), "--policy", str(path)])]


def try_damage(example: tuple[str, str, bytes], run: Path, folder: Path) -> list[Outcome]:
    broken = folder / "run"
    shutil.copytree(run, broken)
    damage(broken, *example)
    return [call(["report", str(broken)]), call(["gate", str(broken), "--policy", str(run / "policy.yaml")])]


def try_threat(example: tuple[str, bytes], run: Path, folder: Path) -> list[Outcome]:
    path = folder / f"threat{example[0]}"
    path.write_bytes(example[1])
    return [
        call(["harden", "smollm2-135m", "--defense", "refusal", "--threat", str(path), "--out", str(folder / "out")])
    ]


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _threat_files() -> st.SearchStrategy[tuple[str, bytes]]:
    parts = ("defender", "attacker", "attacker_dev", "evaluation")
    rows = [
        {
            "id": f"{part}{i}",
            "part": part,
            "prompt": f"{part} asks {i} about {i * 7}",
            "response": f"answer {i} of {part}",
        }
        for part in parts
        for i in range(3)
    ]

    def lines(value: Any) -> str:
        return "".join(json.dumps(row) + "\n" for row in value) if isinstance(value, list) else json.dumps(value)

    def csv(value: Any) -> str:
        return "id,part,prompt,response\n" + "".join(",".join(map(str, row.values())) + "\n" for row in value)

    return st.one_of(
        files_of(rows, lines).map(lambda content: (".jsonl", content)),
        files_of(rows, as_json).map(lambda content: (".json", content)),
        damaged_text(csv(rows)).map(lambda content: (".csv", content)),
        damaged_text(lines(rows)).map(lambda content: (".parquet", content)),
        damaged_text(lines(rows)).map(lambda content: (".jsonl.gz", content)),
    )


def properties(run: Path) -> dict[str, tuple[st.SearchStrategy[Any], Callable[[Any, Path, Path], list[Outcome]]]]:
    """By name: what makes examples, and what tries one."""
    return {
        "options": (command_lines(), try_command_line),
        "studies": (files_of(STUDY, dump_yaml), try_study),
        "policies": (files_of(POLICY, dump_yaml), try_policy),
        "runs": (run_damage(run), try_damage),
        "threats": (_threat_files(), try_threat),
    }


def search(name: str, run: Path, examples: int, report: Callable[[Any, Outcome], None], *, random: bool) -> None:
    """Try a number of examples of one kind.

    Args:
        name: of the property.
        run: a finished run.
        examples: how many.
        report: called with every example and outcome.
        random: whether the examples differ from one call to the next.
    """
    strategy, attempt = properties(run)[name]

    @settings(
        max_examples=examples,
        derandomize=not random,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(example: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            for outcome in attempt(example, run, Path(folder)):
                report(example, outcome)

    with without_models():
        one()


def fuzz(minutes: float) -> int:
    """Try examples of all kinds until the time is over; print every new kind of fault. Returns the number of kinds."""
    end = time.monotonic() + 60 * minutes
    faults: Counter[str] = Counter()
    tried = 0

    def report(example: Any, outcome: Outcome) -> None:
        nonlocal tried
        tried += 1
        if outcome.fault:
            faults[outcome.fault] += 1
            if faults[outcome.fault] == 1:
                print(f"{outcome.fault}\n    {outcome.arguments!r:.300}\n    {example!r:.1500}", flush=True)
        if time.monotonic() > end:
            raise TimeIsOver

    with tempfile.TemporaryDirectory(prefix="fuzz-run-") as folder, suppress(TimeIsOver):
        run = make_run(Path(folder) / "run")
        while True:
            for name in properties(run):
                search(name, run, 100, report, random=True)
    print(f"{tried} commands, {sum(faults.values())} faults of {len(faults)} kinds")
    return len(faults)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    sys.exit(1 if fuzz(parser.parse_args().minutes) else 0)
