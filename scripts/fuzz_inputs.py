"""Throw structured rubbish at the command line and report every input that ends in a traceback, a hang or a wrong exit code.

    python scripts/fuzz_inputs.py --minutes 10

Options, study files, policies, data sources, the files of a run, models, adapters and chat templates are made by hypothesis
(scripts/fuzz_examples.py): valid ones in which values are replaced, removed or repeated, and files in which bytes are changed.
Commands run in this process, without models: what loads or trains one is replaced, but for the kinds that are about models, which
load a tiny one and stop. tests/test_hostile_input.py runs a few examples of each kind.
"""

import argparse
import io
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

import typer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("scripts", "tests", "tests/report")]

from made_up_run import write_folder  # noqa: E402

from fuzz_examples import (  # noqa: E402
    ANSWERS,
    CONVERSATIONS,
    POLICY,
    RUN_FILES,
    SEARCH,
    STUDY,
    THREAT,
    WORDS,
    as_json,
    damage,
    data_files,
    encoded,
    files_of,
    folder_damage,
    templates,
)
from stand_ins import TEMPLATE, WordCountEncoder, make_tiny_model  # noqa: E402
from tamperfuse.cli.app import app, main  # noqa: E402
from tamperfuse.models.encoder import set_default_encoder  # noqa: E402
from tamperfuse.models.load import load_model  # noqa: E402
from tamperfuse.records.errors import UserError  # noqa: E402
from tamperfuse.records.yaml import dump_yaml  # noqa: E402

SECONDS = 30  # of processor time that a command may take here
WAITING_SECONDS = 300  # that it may take, whatever it does: another process may have the processor
FALLBACK = "The command cannot go on"  # the sentence of an error that nothing foresaw


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
        stack.enter_context(patch("tamperfuse.study.run.compute", no_model))
        stack.enter_context(patch("tamperfuse.commands.harden.execute", no_model))
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


# ---- command lines


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


# ---- properties: each takes an example and a folder, and yields outcomes

MODEL_FILES = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"),
    "model.safetensors",
)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def make_run(folder: Path) -> Path:
    """A small finished run with a search and a policy."""
    write_folder(folder)
    (folder / "searches.json").write_text(as_json(SEARCH), encoding="utf-8")
    (folder / "policy.yaml").write_text(dump_yaml(POLICY), encoding="utf-8")
    return folder


def make_models(folder: Path) -> None:
    """A tiny model, `model/`, and an adapter of it, `adapter/`."""
    from peft import LoraConfig, get_peft_model

    if (folder / "adapter").exists():
        return
    loaded = load_model(str(make_tiny_model(folder / "model")))
    get_peft_model(loaded.model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder / "adapter")


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


def try_pair(example: tuple[tuple[str, bytes], tuple[str, bytes]], run: Path, folder: Path) -> list[Outcome]:
    arguments = ["pair", "--out", str(folder / "out")]
    for option, (suffix, content) in zip(("--harmful", "--responses"), example, strict=True):
        path = folder / f"{option[2:]}{suffix}"
        path.write_bytes(content)
        arguments += [option, str(path)]
    return [call(arguments)]


def try_model(example: tuple[str, str, bytes], run: Path, folder: Path) -> list[Outcome]:
    kind = "adapter" if example[0] in ADAPTER_FILES else "model"
    shutil.copytree(run.parent / kind, folder / kind)
    damage(folder / kind, *example)
    return [_load(folder / kind, folder)]


def try_template(content: bytes, run: Path, folder: Path) -> list[Outcome]:
    (folder / "template.jinja").write_bytes(content)
    return [_load(run.parent / "model", folder, "--chat-template", str(folder / "template.jinja"))]


def _load(model: Path, folder: Path, *options: str) -> Outcome:
    """`evaluate` up to the point where the model is loaded."""

    def load_and_stop(*arguments: Any, **keywords: Any) -> Any:
        load_model(*arguments, **keywords)
        raise UserError("The model is loaded: this is the end of the input's way.")

    threat = folder / "threat.jsonl"
    threat.write_bytes(encoded(".jsonl", THREAT))
    with (
        patch("tamperfuse.commands.evaluate.load_model", load_and_stop),
        patch("tamperfuse.models.chat_template.CPU_SECONDS", 1),
    ):
        return call(["evaluate", str(model), "--threat", str(threat), "--out", str(folder / "out"), *options])


def properties(run: Path) -> dict[str, tuple[st.SearchStrategy[Any], Callable[[Any, Path, Path], list[Outcome]]]]:
    """By name: what makes examples, and what tries one. Models are beside the run (:func:`make_models`)."""
    prompts, answers = data_files(THREAT) | data_files(CONVERSATIONS), data_files(ANSWERS) | data_files(CONVERSATIONS)
    return {
        "options": (command_lines(), try_command_line),
        "studies": (files_of(STUDY, dump_yaml), try_study),
        "policies": (files_of(POLICY, dump_yaml), try_policy),
        "runs": (folder_damage(run, RUN_FILES), try_damage),
        "threats": (data_files(THREAT), try_threat),
        "pairs": (st.tuples(prompts, answers), try_pair),
        "models": (folder_damage(run.parent / "model", MODEL_FILES), try_model),
        "adapters": (folder_damage(run.parent / "adapter", ADAPTER_FILES), try_model),
        "templates": (templates(TEMPLATE), try_template),
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
    if name in ("models", "adapters", "templates"):
        make_models(run.parent)
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
