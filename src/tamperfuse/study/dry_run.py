"""What a dry run says beyond its plan: memory, other machines, and a plan where the Hub cannot be reached.

Without the Hub, what can be read is read, and placeholders take the place of the rest: a data set has as many prompts as a study
uses of a large one, and a model has the size that its name states. Such a plan is estimated and printed, and never run.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.sources import read_source
from tamperfuse.corpora.threats import MOST_PROMPTS, PARTS, SHARES, Threat, ThreatPrompt, load_threat
from tamperfuse.evaluation.capability_tasks import CapabilityTask, load_tasks
from tamperfuse.models.chat_template import read_template
from tamperfuse.models.encoder import default_encoder
from tamperfuse.models.load import parameter_count, resolve_model
from tamperfuse.records.amounts import duration, gigabytes
from tamperfuse.records.errors import HubUnreachable, UserError
from tamperfuse.records.files import content_hash
from tamperfuse.records.memory import machine_memory
from tamperfuse.study.benign import MODEL_WRITTEN
from tamperfuse.study.context import StudyContext, check_prompts
from tamperfuse.study.estimates import ACCELERATORS, DECODING, UTILISATION, Costs, Speed, seconds_for
from tamperfuse.study.execution.cluster import node_memory
from tamperfuse.study.judging import check_encoder
from tamperfuse.study.node import Node
from tamperfuse.study.spec import Study, resolve_study

T = TypeVar("T")
P = TypeVar("P")
# "7b" in Llama-2-7b-chat; neither "A3B", the active parameters in Qwen3-30B-A3B, nor "8x7B", a number of experts.
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bm])(?![A-Za-z0-9])", re.IGNORECASE)
_UNITS = {"b": 1e9, "m": 1e6}


def stated_size(name: str) -> int | None:
    """The number of parameters that a model's name states, such as 7 billion in Llama-2-7b-chat; None if it states none."""
    sizes = [float(number) * _UNITS[unit.lower()] for number, unit in _SIZE.findall(name.rpartition("/")[2])]
    return round(max(sizes)) if sizes else None  # a context window of 1M may stand beside it


def placeholder_threat(source: str) -> Threat:
    """A threat of as many prompts as a study uses of a large data set, none of them answered."""
    parts = {
        part: tuple(ThreatPrompt(f"{part}-{i}", f"{part} {i}") for i in range(round(SHARES[part] * MOST_PROMPTS)))
        for part in PARTS
    }
    return Threat(source, parts)


class _Reader:
    """Reads what can be read; `unread` says by name as what the rest is planned."""

    def __init__(self) -> None:
        self.unread: dict[str, str] = {}

    def read(self, name: str, load: Callable[[], T], placeholder: P, planned_as: str) -> T | P:
        """What `load` returns, or the placeholder if the Hub cannot be reached."""
        try:
            return load()
        except HubUnreachable:
            self.unread[name] = planned_as
            return placeholder

    def rows(self, source: str, planned_as: str) -> list[Example]:
        """The rows of a source; none if it cannot be reached."""
        nothing: list[Example] = []
        return self.read(source, lambda: list(read_source(source)), nothing, planned_as)


def open_without_hub(study: Study, run: Path) -> tuple[StudyContext, int, dict[str, str]]:
    """The context of a study of which some parts cannot be read, for its plan alone.

    Prompts that are longer than the context window, and harmless samples that belong to the threat, are not left out.

    Args:
        study: the study.
        run: the run's folder.

    Returns:
        The context, the number of the model's parameters, and what was not read, with as what it is planned.

    Raises:
        UserError: what can be read cannot be used, or the model cannot be reached and its name states no size.
    """
    reader = _Reader()
    size = _model_size(study.model, reader)
    study = resolve_study(study, size)
    template = read_template(Path(study.chat_template)) if study.chat_template else ""
    encoder = default_encoder()
    check_encoder(encoder)
    most = f"{MOST_PROMPTS:,} prompts, none of them answered"
    threat = reader.read(
        study.threat, lambda: load_threat(study.threat, encoder), placeholder_threat(study.threat), most
    )
    check_prompts(study, threat)
    for task in study.evaluate.capability:
        if task != "builtin":
            name = task.task if isinstance(task, CapabilityTask) else task
            reader.read(name, partial(load_tasks, [task]), None, "its questions")
    sources = [source for source in study.benign.sources if source not in MODEL_WRITTEN]
    benign = [row.prompt for source in sources for row in reader.rows(source, "no prompts beside the others")]
    retain = reader.rows(study.retain, "its samples")
    for source in study.pairs.sources:
        reader.rows(source, "its responses")
    fingerprint = content_hash(["placeholder", study.model])  # no key of a plan with placeholders is that of a result
    context = StudyContext(study, run, threat, benign, retain, fingerprint, encoder, template)
    context.pair_responses, context.harmless, context.tasks_fingerprint = [], [], ""
    return context, size, reader.unread


def _model_size(name: str, reader: _Reader) -> int:
    """Parameters of the study's model.

    Raises:
        UserError: it cannot be reached, and its name states no size.
    """
    if resolve_model(name) is not None:
        return parameter_count(name)
    stated = stated_size(name)
    size = reader.read(
        name, lambda: parameter_count(name), stated, f"{(stated or 0) / 1e9:g} billion parameters, by its name"
    )
    if size is None:
        raise UserError(
            f"The Hub cannot be reached, and the name {name} states no size, without which there is nothing to estimate from: go "
            "online, or download the model and name its folder."
        )
    return size


def dry_run_sentences(
    study: Study, nodes: Sequence[Node], done: Collection[str], size: int, unread: Mapping[str, str]
) -> list[str]:
    """What a dry run says beyond its plan.

    Args:
        study: the study.
        nodes: of the plan.
        done: keys of those with a result.
        size: parameters of the model.
        unread: as of :func:`open_without_hub`; empty if everything was read.
    """
    sentences = machine_sentences(nodes, done, size)
    tasks = [task.task if isinstance(task, CapabilityTask) else task for task in study.evaluate.capability]
    if further := [name for name in tasks if name != "builtin"]:
        sentences.append(
            f"Capability is counted with questions as long as the built-in ones: those of {', '.join(further)} may take several "
            "times as long."
        )
    if unread:
        planned = "; ".join(f"{name} ({planned_as})" for name, planned_as in unread.items())
        sentences.append(
            f"The Hub cannot be reached, so these were neither read nor checked: {planned}. Results of earlier runs were not "
            "looked up."
        )
    return sentences


def machine_sentences(nodes: Sequence[Node], done: Collection[str], size: int) -> list[str]:
    """The memory that the nodes without a result need and, if this machine has less, the time that accelerators would take.

    Args:
        nodes: of the plan.
        done: keys of those with a result.
        size: parameters of the model.
    """
    todo = list({node.key: node for node in nodes if node.key not in done}.values())
    if not todo:
        return []
    needed = max(node_memory(node, size) for node in todo)
    sentences = [f"Memory: about {gigabytes(needed)} for the largest node, and the activations of its training."]
    available = torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else machine_memory()
    if needed <= available:
        return sentences
    costs = sum((node.expected for node in todo), Costs())
    trials = sum(int(node.about.get("trials", 1)) for node in todo)
    times = [
        f"one {accelerator.name} ({gigabytes(round(accelerator.memory))}): "
        + (
            f"at least {duration(seconds_for(costs, trials, size, Speed.of(accelerator)))}"
            if needed <= accelerator.memory
            else "too small"
        )
        for accelerator in ACCELERATORS
    ]
    return [
        *sentences,
        f"This machine has {gigabytes(available)}. By data sheets, at an assumed {UTILISATION:.0%} of their rate in training and "
        f"scoring and {DECODING:.0%} in generation, never measured: {'; '.join(times)}.",
    ]
