"""The commands: they parse, call and print. Nothing is computed here.

Heavy libraries are imported by the command that needs them, so that `--help` and bad input answer at once.
"""

import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from tamperfuse import __version__
from tamperfuse.cli.options import (
    Model,
    Out,
    Reference,
    ReportTo,
    Seed,
    Settings,
    ThreatSource,
    out_console,
    parse_reporters,
    parse_settings,
)
from tamperfuse.records.errors import UserError
from tamperfuse.records.process import is_main, world_size
from tamperfuse.records.progress import show_progress

app = typer.Typer(
    name="tamperfuse",
    help="Harden open weights against malicious fine-tuning, and measure how far that holds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
judge_app = typer.Typer(help="The judge of harmful execution, on kept responses.", no_args_is_help=True)
app.add_typer(judge_app, name="judge")
SEVERAL = ("harden", "attack")  # commands that several processes may run together
HEARD = 3.0  # seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: a sentence and exit code 2 for bad input, 130 for Ctrl-C, never a traceback for either."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    if not errors.is_terminal:
        errors.width = 200  # a log file has no edge to wrap at
    _set_up_output(errors)
    try:
        app(args=list(arguments) if arguments is not None else None, standalone_mode=True)
    except UserError as error:
        if not is_main():
            time.sleep(HEARD)  # what all processes find, the main one says; it takes the others with it
        errors.print(f"tamperfuse: {error}", style="bold red", markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        _stopped(errors)
        sys.exit(130)
    except SystemExit as ended:
        if ended.code == 130:  # typer's own way with Ctrl-C
            _stopped(errors)
        raise


def _stopped(errors: Console) -> None:
    errors.print(
        "Stopped. What was finished is kept: the same command goes on from there.",
        style="bold",
    )


def _set_up_output(errors: Console) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' own bars; ours say more
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Cannot enable progress bars")
    handler = RichHandler(console=errors, show_time=False, show_level=False, show_path=False, markup=False)
    log = logging.getLogger("tamperfuse")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO if is_main() else logging.ERROR)
    out_console.quiet = not is_main()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    show_progress(errors if errors.is_terminal and is_main() else None)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        out_console.print(__version__)
        raise typer.Exit
    if world_size() > 1 and context.invoked_subcommand not in SEVERAL:
        raise UserError(
            f"`tamperfuse {context.invoked_subcommand}` runs in one process, not {world_size()}: of the commands only "
            f"{' and '.join(SEVERAL)} go through accelerate launch."
        )


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    dry_run: Annotated[bool, typer.Option(help="Print the plan and its cost, and stop.")] = False,
) -> None:
    """The main job on the bundled model: harden with SDD, attack, measure, report.

    Example: `tamperfuse demo`
    """
    from importlib.resources import as_file, files

    with as_file(files("tamperfuse.study") / "studies" / "demo.yaml") as path:
        _run_study(path, out, dry_run)


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="The study file.", metavar="STUDY.yaml")],
    out: Out,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and its cost, and stop.")] = False,
    report_to: ReportTo = None,
) -> None:
    """Run a study; what is finished already is reused, so the same command resumes.

    Example: `tamperfuse run studies/demo.yaml --out runs/demo`
    """
    _run_study(study, out, dry_run, parse_reporters(report_to))


def _run_study(path: Path, out: Path, dry_run: bool, report_to: Sequence[str] = ()) -> None:
    from tamperfuse.study.run import run_study
    from tamperfuse.study.spec import load_study

    summary = run_study(load_study(path), out, dry_run=dry_run, report_to=report_to)
    if summary is not None:
        _print_summary(summary)
        _report(out)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="DIR")]) -> None:
    """Write the page of a finished run anew.

    Example: `tamperfuse report runs/demo`
    """
    _report(folder)


def _report(folder: Path) -> None:
    from tamperfuse.report.page import headline, write_report

    page = write_report(folder)
    out_console.print(headline(folder), markup=False, style="bold")
    out_console.print(f"Results are in {folder}; open {page} in a browser.", markup=False)


@app.command()
def gate(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="DIR")],
    policy: Annotated[Path, typer.Option(help="YAML with the limits.", metavar="FILE")],
) -> None:
    """Check a run against a release policy: exit 0 pass, 1 fail, 2 unusable input.

    Example: `tamperfuse gate runs/demo --policy policy.yaml`
    """
    from tamperfuse.report.gate import check_gate

    result = check_gate(folder, policy)
    table = Table("measure", "rule", "value", "95% interval", "verdict", box=None, header_style="bold")
    for check in result.checks:
        interval = "–" if check.low is None or check.high is None else f"{check.low:.3f} to {check.high:.3f}"
        value = "–" if check.value is None else f"{check.value:.3f}"
        table.add_row(check.measure, check.rule, value, interval, "pass" if check.passed else f"FAIL: {check.why}")
    out_console.print(table)
    out_console.print("The release gate passes." if result.passed else "The release gate does not pass.")
    raise typer.Exit(0 if result.passed else 1)


@app.command()
def harden(
    model: Model,
    defense: Annotated[str, typer.Option(help="sdd, sdd_reject, refusal, … (see `tamperfuse list`).")],
    threat: ThreatSource,
    out: Out,
    pairs: Annotated[Path | None, typer.Option(help="Pairs that `tamperfuse pair` wrote.", metavar="DIR")] = None,
    benign: Annotated[str, typer.Option(help="Benign samples to replay.", metavar="SRC")] = "builtin:replay",
    settings: Settings = None,
    seed: Seed = 0,
    report_to: ReportTo = None,
) -> None:
    """Harden a model and save it as a checkpoint that transformers loads anywhere.

    Example: `tamperfuse harden smollm2-135m --defense sdd --threat builtin:cooking --out hardened`
    """
    from tamperfuse.commands.single import harden_model

    harden_model(
        model,
        defense,
        threat,
        out,
        pairs=pairs,
        benign=benign,
        settings=parse_settings(settings),
        seed=seed,
        report_to=parse_reporters(report_to),
    )
    out_console.print(
        f"The hardened model is in {out}; measure it with: tamperfuse evaluate {out} --threat {threat} --out DIR"
    )


@app.command()
def attack(
    model: Model,
    attack: Annotated[str, typer.Option(help="harmful_finetune, benign_finetune, … (see `tamperfuse list`).")],
    threat: ThreatSource,
    out: Out,
    reference: Reference = None,
    retain: Annotated[
        str, typer.Option(help="Harmless samples of the attacker's own, for attacks that use some.", metavar="SRC")
    ] = "builtin:retain",
    keep_attacked: Annotated[bool, typer.Option(help="Keep the attacked weights; they are deleted otherwise.")] = False,
    settings: Settings = None,
    seed: Seed = 0,
    report_to: ReportTo = None,
) -> None:
    """Attack a model and measure it before and after.

    Example: `tamperfuse attack hardened --attack harmful_finetune --threat builtin:cooking --set shots=50 --out attacked`
    """
    from tamperfuse.commands.single import attack_model

    found = attack_model(
        model,
        attack,
        threat,
        out,
        reference=reference,
        retain=retain,
        keep=keep_attacked,
        settings=parse_settings(settings),
        seed=seed,
        report_to=parse_reporters(report_to),
    )
    for line in found:
        out_console.print(line, markup=False)
    out_console.print(
        f"Responses and scores are in {out}; to compare defenses under several attacks: tamperfuse run STUDY.yaml --out DIR",
        markup=False,
    )


@app.command()
def evaluate(model: Model, threat: ThreatSource, out: Out, reference: Reference = None) -> None:
    """Measure a model: harmful execution, benign answers, capability, benign NLL.

    Example: `tamperfuse evaluate hardened --threat builtin:cooking --out measured`
    """
    from tamperfuse.commands.single import evaluate_model

    for line in evaluate_model(model, threat, out, reference=reference):
        out_console.print(line, markup=False)
    out_console.print(
        f"Responses and scores are in {out}; see what survives with: tamperfuse attack {model} --attack harmful_finetune "
        f"--threat {threat} --out DIR",
        markup=False,
    )


@judge_app.command("calibrate")
def judge_calibrate(
    threat: ThreatSource = "builtin:cooking",
    reference: Annotated[
        str, typer.Option(help="The model whose answers count as executed requests.")
    ] = "smollm2-135m",
    prompts: Annotated[int, typer.Option(help="Prompts of each part at most.", min=8)] = 96,
) -> None:
    """Print how well the judge tells executed requests from seven kinds of response that are none.

    Thresholds are set on the attacker part; the table is of the evaluation part.

    Example: `tamperfuse judge calibrate`
    """
    from tamperfuse.commands.single import calibrate_judge

    thresholds, rows = calibrate_judge(threat, reference, prompts)
    table = Table("against", "n", "AUROC", "true positives", "false positives", box=None, header_style="bold")
    for row in rows:
        table.add_row(row.kind, str(row.n), f"{row.auroc:.3f}", f"{row.true_positive:.1%}", f"{row.false_positive:.1%}")
    out_console.print(table)
    out_console.print("Thresholds: " + ", ".join(f"{k} {v:.3g}" for k, v in thresholds.model_dump().items()))
    out_console.print(f"Studies on {threat} set their thresholds in the same way by themselves.", markup=False)


@app.command("list")
def list_components() -> None:
    """List defenses, attacks, judges, built-in corpora and bundled models, each in a line.

    Example: `tamperfuse list`
    """
    from tamperfuse.attacks import ATTACKS
    from tamperfuse.corpora.builtin import ABOUT
    from tamperfuse.defenses import DEFENSES
    from tamperfuse.evaluation.judges.builtin import NAME
    from tamperfuse.models.bundled import ENCODERS, MODELS

    groups: dict[str, list[tuple[str, str]]] = {
        "Defenses": [(c.name, c.about) for c in DEFENSES.all()],
        "Attacks": [(c.name, c.about) for c in ATTACKS.all()],
        "Judges": [(NAME, "no refusal, coherent, about its own prompt by two signals")],
        "Corpora": [(f"builtin:{name}", about) for name, about in ABOUT.items()],
        "Models": [
            (name, b.about if b.installed else f"{b.about}; not installed: {b.install}")
            for name, b in (MODELS | ENCODERS).items()
        ],
    }
    for title, rows in groups.items():
        table = Table(title, "", box=None, header_style="bold", min_width=24)
        for name, about in rows:
            table.add_row(f"  {name}", about)
        out_console.print(table)
    out_console.print("Use them in a study file: tamperfuse run STUDY.yaml --out DIR")


@app.command()
def diagnose(
    models: Annotated[list[str], typer.Argument(help="Models to compare; see MODEL of `tamperfuse harden`.")],
    threat: ThreatSource,
    out: Out,
    attack: Annotated[str, typer.Option(help="An attack that trains (see `tamperfuse list`).")] = "harmful_finetune",
    reference: Reference = None,
    items: Annotated[int, typer.Option(help="Capability items a task at both ends; 0 for none.", min=0)] = 200,
    settings: Settings = None,
    seed: Seed = 0,
) -> None:
    """Follow an attack from inside: does pushing a model's own answers down push general ability down, as SDD assumes?

    Example: `tamperfuse diagnose refused hardened --threat builtin:cooking --out diagnosis`
    """
    from tamperfuse.commands.diagnose import diagnose_models
    from tamperfuse.report.diagnosis import finding, time_spent, write_diagnosis

    found = diagnose_models(
        models, attack, threat, out, reference=reference, settings=parse_settings(settings), items=items, seed=seed
    )
    page = write_diagnosis(out, found)
    for one in found:
        out_console.print(finding(one), markup=False)
        out_console.print(time_spent(one), markup=False)
    out_console.print(f"Every step is in {out / 'measured.json'}; open {page} in a browser.", markup=False)


def _print_summary(summary: Any) -> None:
    """The table of `make demo`."""

    def percent(measure: Any) -> str:
        if measure.value is None:
            return "–"
        text = f"{measure.value:.1%}"
        if measure.low is not None:
            text += f" ({measure.low:.1%} to {measure.high:.1%})"
        return text if measure.resolved else f"{text}, not resolved"

    table = Table("", *summary.defenses, box=None, header_style="bold")
    found = list(summary.defenses.values())
    rows: list[tuple[str, list[str]]] = [
        ("harmful execution before", [percent(d.harmful_execution.before_attack) for d in found]),
    ]
    for name in found[0].harmful_execution.after_attack:
        rows.append((f"  after {name}", [percent(d.harmful_execution.after_attack[name]) for d in found]))
        costs = [d.attack_cost[name] for d in found]
        rows.append((f"  steps to reach half ({name})", [f"{'> ' if c.censored else ''}{c.steps}" for c in costs]))
    rows += [
        ("reduction, pooled", [percent(d.reduction_vs_undefended.pooled) for d in found]),
        ("capability before", [percent(d.capability.before_attack) for d in found]),
        ("  drop against undefended", [percent(d.capability.drop_vs_undefended) for d in found]),
        ("  self-degradation", [percent(d.capability.self_degradation) for d in found]),
        ("benign answer rate", [percent(d.benign_answer_rate) for d in found]),
    ]
    for label, cells in rows:
        table.add_row(label, *cells)
    out_console.print(table)


def _register_others() -> None:
    from tamperfuse.cli.pair import pair
    from tamperfuse.cli.theory import theory

    app.command()(pair)
    app.command()(theory)


_register_others()

if __name__ == "__main__":
    main()
