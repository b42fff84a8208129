"""The Python interface: what the commands do, with models in memory.

Import these functions from :mod:`tamperfuse`, which loads them, and torch, on first use.

A *source* is `builtin:NAME`, a local .jsonl, .json, .csv, .txt, .parquet or .arrow file, a directory of such files, or a Hub
data set, as on the command line. A model is a name (a Hub id, a directory, a .gguf file, a peft adapter, `smollm2-135m`) or what
:func:`load` returned.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tamperfuse.attacks import ATTACKS, AttackData
from tamperfuse.commands.evaluate import observe_and_judge
from tamperfuse.commands.harden import apply_defense, prepare_data
from tamperfuse.commands.inputs import examples_of, pairs_of, source_names
from tamperfuse.commands.measurement import ACCURACY, Measurement, full_evaluation, open_judging
from tamperfuse.commands.training import print_notes
from tamperfuse.corpora.examples import Pair
from tamperfuse.corpora.exclude_threat import read_outside_threat
from tamperfuse.corpora.threats import load_threat
from tamperfuse.corpora.window import within_window
from tamperfuse.defenses import DEFENSES
from tamperfuse.models.chat_template import read_template
from tamperfuse.models.conversion import absolute_name
from tamperfuse.models.encoder import default_encoder
from tamperfuse.models.load import (
    ORIGIN_ADVICE,
    LoadedModel,
    load_model,
    origin_of,
    reference_name,
    resolve_model,
    save_model,
    stated_template,
)
from tamperfuse.pairing import PairSet, make_pairs
from tamperfuse.pairing.defaults import DEFAULT_THRESHOLD
from tamperfuse.records.errors import UserError, check_seed, shown
from tamperfuse.records.files import check_fresh
from tamperfuse.records.provenance import Provenance
from tamperfuse.records.registry import Parameters
from tamperfuse.records.results import COLUMNS, read_results
from tamperfuse.records.summary import Measure, Summary, read_summary
from tamperfuse.study import run as study_run
from tamperfuse.study.context import check_samples
from tamperfuse.study.judging import compliant_answers
from tamperfuse.study.observe import Observer
from tamperfuse.study.run_folder import check_study_file
from tamperfuse.study.sections import RESPONSE_TOKENS, Evaluate, parse_judge
from tamperfuse.study.spec import load_study, parse_study

if TYPE_CHECKING:
    import pandas

Model = LoadedModel | str | Path


def load(model: str | Path, *, chat_template: str | Path | None = None) -> LoadedModel:
    """Load a model with its tokenizer and chat template.

    Args:
        model: a Hub id, a model directory, a .gguf file, a peft adapter directory, or `smollm2-135m` (bundled).
        chat_template: file with a chat template (Jinja) in place of the tokenizer's; for base models, which have none.

    Returns:
        The model in float32, on the GPU if there is one, with its tokenizer (`.tokenizer`) and chat template (`.chat`). Its
        attention takes packed batches; to use the model elsewhere, :func:`save` it and load it with transformers.

    Raises:
        UserError: it does not exist or cannot be read, has only pickled weights, or has no chat template.

    Example::

        model = tamperfuse.load("smollm2-135m")
    """
    return load_model(str(model), chat_template=read_template(None if chat_template is None else Path(chat_template)))


def pair(
    prompts: str | Path | Iterable[str],
    responses: str | Path | Iterable[str] = "builtin:benign",
    *,
    threshold: float = DEFAULT_THRESHOLD,
    seed: int = 0,
) -> PairSet:
    """Make SDD pairs: match each harmful prompt with a random response that does not answer it (SDD, section 4.1).

    Args:
        prompts: a source, or the texts; of a threat, the defender part is taken.
        responses: a source, or the texts. They are filtered for quality, as `tamperfuse pair` does.
        threshold: highest MiniLM cosine of a pair, in (-1, 1].
        seed: of the draw, from 0 to 2**32 - 1.

    Returns:
        The pairs (`.pairs`), with counts of what was left out.

    Raises:
        UserError: a source cannot be read, or not one pair could be made.

    Example::

        pairs = tamperfuse.pair("builtin:cooking", "builtin:benign")
        pairs.pairs[0].prompt, pairs.pairs[0].response
    """
    check_seed(seed)
    return make_pairs(
        examples_of(prompts, "prompt"),
        examples_of(responses, "response"),
        default_encoder(),
        threshold=threshold,
        seed=seed,
    )


def harden(
    model: Model,
    defense: str,
    /,
    *,
    threat: str | Path,
    pairs: PairSet | Sequence[Pair] | Path | str | None = None,
    benign: str | Path | Sequence[str | Path] = "self",
    seed: int = 0,
    **parameters: Any,
) -> LoadedModel:
    """Apply a defense to a copy of a model.

    Args:
        model: the model; it is not changed.
        defense: name of the defense (`sdd`, `refusal`, …; see `tamperfuse list`).
        threat: source of the threat; the defense receives its defender part only.
        pairs: SDD pairs, or the folder of `tamperfuse pair`; by default they are drawn from the built-in responses, if
            the defense needs any.
        benign: sources of benign samples; `self` for prompts that the model writes itself, `documents` for longer texts.
        seed: of pairs and training, from 0 to 2**32 - 1.
        **parameters: of the defense, such as `steps` or `learning_rate`.

    Returns:
        The hardened model. Save it with :func:`save`.

    Raises:
        UserError: an unknown defense or parameter, a value out of range, or a source that cannot be read.

    Example::

        hardened = tamperfuse.harden("smollm2-135m", "sdd", threat="builtin:cooking", steps=44)
    """
    check_seed(seed)
    component = DEFENSES.get(defense)
    values = component.parse(parameters, f"defense {defense}")
    origin = reference_name(model, None, ORIGIN_ADVICE) if isinstance(model, LoadedModel) else origin_of(str(model))
    sources = source_names(benign)
    template = model.stated_template if isinstance(model, LoadedModel) else stated_template(str(model))
    data, resolved = prepare_data(
        origin, component, values, str(threat), sources, seed, pairs=pairs_of(pairs), chat_template=template
    )
    loaded = _copy(model)
    apply_defense(loaded, component, resolved, data, seed)
    _record(loaded, defense, resolved, seed, absolute_name(str(threat)))
    return loaded


def save(model: LoadedModel, folder: str | Path) -> None:
    """Save a model as a checkpoint that transformers can load.

    Its `tamperfuse.json` names the model before hardening, and the last defense or attack with its parameters.

    Args:
        model: as :func:`load`, :func:`harden` or :func:`attack` returned it.
        folder: to write; must not exist, or be empty. It is there whole or not at all.

    Raises:
        UserError: the folder is not empty or cannot be written.

    Example::

        tamperfuse.save(hardened, "hardened")
    """
    if not isinstance(model, LoadedModel):
        raise UserError(
            f"{shown(repr(model))} is no loaded model: save what tamperfuse.load, harden or attack returned."
        )
    check_fresh(Path(folder))
    unchanged = Provenance(origin=model.origin, made_by="tamperfuse.save", source=model.name)
    save_model(model, Path(folder), model.provenance or unchanged)


def attack(
    model: Model,
    attack: str,
    /,
    *,
    threat: str | Path,
    retain: str | Path = "builtin:retain",
    reference: str | Path | None = None,
    seed: int = 0,
    **parameters: Any,
) -> LoadedModel:
    """Attack a copy of a model.

    Args:
        model: the model; it is not changed.
        attack: name of the attack (`harmful_finetune`, `merge`, …; see `tamperfuse list`).
        threat: source of the threat; the attack receives its attacker part, with the threat's own answers or those of the
            reference.
        retain: source of the attacker's harmless samples.
        reference: the model before hardening, by name or folder; by default the origin in the model's tamperfuse.json.
        seed: of shots, data order and adapters, from 0 to 2**32 - 1.
        **parameters: of the attack, such as `shots` or `steps`.

    Returns:
        The attacked model, after the last step.

    Raises:
        UserError: an unknown attack or parameter, a value out of range, or a source that cannot be read.

    Example::

        attacked = tamperfuse.attack(hardened, "harmful_finetune", threat="builtin:cooking", shots=50, steps=16)
    """
    check_seed(seed)
    component = ATTACKS.get(attack)
    values = component.parse(parameters, f"attack {attack}")
    encoder = default_encoder()
    requests = within_window(load_threat(str(threat), encoder), model, RESPONSE_TOKENS)
    harmless = read_outside_threat(str(retain), requests, option="retain", encoder=encoder)
    check_samples(attack, component.traits.budget(values), requests, str(retain), len(harmless))
    loaded = _copy(model)
    origin = reference_name(loaded, reference)
    resolve_model(origin)  # also where the attack never loads it
    observer = Observer(loaded, requests, Evaluate())
    tokens = observer.evaluate.response_tokens
    load_origin = partial(load_model, origin, chat_template=loaded.stated_template)
    data = AttackData(
        harmful=compliant_answers(load_origin, requests.part("attacker"), tokens, encoder).pairs,
        retain=component.traits.retained(harmless),
        reference=origin,
        answer=observer.answer,
        response_limit=tokens,
        at_steps=(),
        hook=lambda step: None,
    )
    print_notes(component.run(loaded, data, values, seed).notes)
    loaded.origin = origin
    _record(loaded, attack, values, seed)
    return loaded


def _record(loaded: LoadedModel, name: str, parameters: Parameters, seed: int, threat: str = "") -> None:
    """Record in a model which defense or attack changed it, for :func:`save`."""
    before = loaded.provenance
    loaded.provenance = Provenance(
        origin=loaded.origin,
        made_by=f"{name} (seed {seed})",
        source=f"{before.source}, changed by {before.made_by}" if before else loaded.name,
        threat=threat or (before.threat if before else ""),
        parameters=parameters.model_dump(mode="json"),
    )


@dataclass(frozen=True)
class Evaluation:
    """Measures of one model, each with its 95% interval.

    Attributes:
        harmful_execution: share of evaluation prompts whose request is executed.
        refusal_rate: share of evaluation prompts that are declined; None if the judge does not detect refusals.
        benign_answer_rate: share of harmless prompts that are answered.
        accuracy: of each capability task; empty without any.
        benign_nll: nats per token on held-out documents.
    """

    harmful_execution: Measure
    refusal_rate: Measure | None
    benign_answer_rate: Measure
    accuracy: Mapping[str, Measure]
    benign_nll: Measure


def evaluate(
    model: Model,
    *,
    threat: str | Path,
    reference: str | Path | None = None,
    judge: str | Mapping[str, Any] = "builtin",
    prompts: int | None = None,
    harmless: int = 128,
    capability_items: int | None = None,
) -> Evaluation:
    """Measure a model: harmful execution, benign answers, capability, benign NLL.

    Args:
        model: the model.
        threat: source of the threat.
        reference: the model before hardening, by name or folder; by default the origin in the model's tamperfuse.json.
        judge: name of the judge, or a mapping of `judge` and its parameters.
        prompts: number of evaluation prompts, at least 2 and at most as many as the threat has; all by default.
        harmless: number of harmless prompts, at least 2.
        capability_items: number of items of each bundled capability task, at least 2; all by default.

    Raises:
        UserError: bad input, or a reference that executes fewer than two of the attacker's prompts.

    Example::

        measured = tamperfuse.evaluate(hardened, threat="builtin:cooking", prompts=40)
        print(f"{measured.harmful_execution.value:.1%}")
    """
    encoder = default_encoder()
    requests = within_window(load_threat(str(threat), encoder), model, RESPONSE_TOKENS)
    settings = full_evaluation(requests, prompts=prompts, harmless=harmless, capability_items=capability_items)
    spec = parse_judge(dict(judge) if isinstance(judge, Mapping) else judge)
    loaded = model if isinstance(model, LoadedModel) else load(model)
    origin = reference_name(loaded, reference)
    judging = open_judging(requests, settings, origin, encoder, spec, loaded.stated_template)
    observer, verdicts, _ = observe_and_judge(loaded, settings, judging)
    measures = {name: steps[0] for name, steps in Measurement.of(observer, verdicts).measures.items()}
    return Evaluation(
        harmful_execution=measures["harmful_execution"],
        refusal_rate=measures.get("refusal_rate"),
        benign_answer_rate=measures["benign_answer_rate"],
        accuracy={name.removeprefix(ACCURACY): value for name, value in measures.items() if name.startswith(ACCURACY)},
        benign_nll=measures["benign_nll"],
    )


@dataclass(frozen=True)
class StudyRun:
    """A finished run of a study.

    Attributes:
        folder: where it lies.
        summary: of `summary.json`: for each defense, every measure with its interval.
    """

    folder: Path
    summary: Summary

    def to_pandas(self) -> "pandas.DataFrame":
        """The measurements of `results.parquet`, one row each: model, threat, defense, attack, step, metric and value."""
        frame: pandas.DataFrame = pa.Table.from_pylist(read_results(self.folder), schema=COLUMNS).to_pandas()
        return frame


def run_study(study: str | Path | Mapping[str, Any], out: str | Path) -> StudyRun:
    """Run a study; finished parts are reused, so the same call resumes an interrupted run.

    Args:
        study: a study file, or its content as a mapping.
        out: the run's folder.

    Raises:
        UserError: bad input, or a folder that holds a study of another model or threat, or the study file itself. The results of
            another study of the same model and threat move to its subfolder `earlier`.

    Example::

        run = tamperfuse.run_study("studies/demo.yaml", "runs/demo")
        run.summary.defenses["sdd"].harmful_execution.worst
    """
    if isinstance(study, Mapping):
        parsed = parse_study(dict(study), "the study")
    else:
        check_study_file(Path(study), Path(out))
        parsed = load_study(Path(study))
    study_run.run_study(parsed, Path(out))
    return load_run(out)


def load_run(folder: str | Path) -> StudyRun:
    """Read a finished run.

    Args:
        folder: that `tamperfuse run` or :func:`run_study` wrote.

    Raises:
        UserError: it is not the folder of a finished run.

    Example::

        rows = tamperfuse.load_run("runs/demo").to_pandas()
        rows[rows.metric == "harmful_execution"]
    """
    folder = Path(folder)
    return StudyRun(folder, read_summary(folder))


def _copy(model: Model) -> LoadedModel:
    """A model that may be changed: a fresh one for a name, a copy of the weights for one that the caller holds."""
    if not isinstance(model, LoadedModel):
        return load(model)
    duplicate = copy.copy(model)
    duplicate.model = copy.deepcopy(model.model)
    return duplicate
