"""Measure a model, before an attack or at the steps of one. Responses are judged later, by nodes of their own."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.overlap import NEAR_COSINE
from tamperfuse.corpora.routing import TaskItem
from tamperfuse.corpora.threats import PARTS, Threat
from tamperfuse.corpora.window import check_lengthened
from tamperfuse.evaluation.capability import measure_capability
from tamperfuse.evaluation.generate import generate, is_cut
from tamperfuse.evaluation.score import score
from tamperfuse.models.encoder import TextEncoder
from tamperfuse.models.finite import Diverged, not_finite
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash, read_json, staged, write_json
from tamperfuse.records.process import is_main
from tamperfuse.study.estimates import Costs
from tamperfuse.study.sections import Evaluate
from tamperfuse.study.tables import (
    HARMLESS_FAR,
    HARMLESS_NEAR,
    HARMLESS_PARTS,
    DivergenceRow,
    DocumentRow,
    ItemRow,
    Response,
    TaskRow,
    read_rows,
    write_rows,
)
from tamperfuse.training.distillation import TeacherSample, divergence, predict

NEIGHBOURS = 20  # defender prompts that a harmless prompt's nearness is measured by
TASK_TOKENS = 8  # an answer of the benign task is two words
COSTS = "costs.json"
TABLES: dict[str, type] = {
    "responses": Response,
    "items": ItemRow,
    "documents": DocumentRow,
    "divergences": DivergenceRow,
    "tasks": TaskRow,
}


@dataclass(frozen=True)
class HarmlessPrompt:
    """A prompt of the benign answer rate.

    Attributes:
        id: unique among harmless prompts.
        prompt: the prompt.
        part: :data:`HARMLESS_NEAR` or :data:`HARMLESS_FAR`.
    """

    id: str
    prompt: str
    part: str


@dataclass
class Observer:
    """Collects measurements of one model over the steps of an attack.

    Attributes:
        loaded: the model, with its weights as they are at the moment.
        threat: whose prompts the model answers.
        evaluate: how many prompts, and how long responses may be.
        resume_folder: where the measurements of each step are stored at once, so that an interrupted attack does not measure a
            step twice. It must belong to one attack on one model. None to store nothing.
        costs: tokens generated and scored so far.
    """

    loaded: LoadedModel
    threat: Threat
    evaluate: Evaluate
    resume_folder: Path | None = None
    costs: Costs = field(default_factory=Costs)
    responses: list[Response] = field(default_factory=list)
    items: list[ItemRow] = field(default_factory=list)
    documents: list[DocumentRow] = field(default_factory=list)
    divergences: list[DivergenceRow] = field(default_factory=list)
    tasks: list[TaskRow] = field(default_factory=list)
    _measured: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Load the steps that an interrupted attack measured; its resumed training does not reach them again."""
        measured: list[tuple[int, dict[str, list[Any]], Costs]] = []
        for folder in self.resume_folder.glob("step-*") if self.resume_folder else ():
            try:
                step = _step(folder)
                rows: dict[str, list[Any]] = {
                    name: read_rows(folder / f"{name}.parquet", kind) for name, kind in TABLES.items()
                }
                costs = Costs(**read_json(folder / COSTS))
            except (OSError, ValueError, TypeError, UserError) as error:
                raise UserError(f"{folder} is damaged: remove {folder.parent} to start from the beginning.") from error
            measured.append((step, rows, costs))
        for step, rows, costs in sorted(measured, key=lambda loaded: loaded[0]):
            self._add(rows)
            self.costs += costs
            self._measured.add(step)

    def once(self, step: int, measure: "Callable[[Observer], None]") -> None:
        """Measure the model at a step, unless an interrupted attack did: the weights were the same.

        Args:
            step: of the attack.
            measure: calls methods of the observer that it receives.

        Raises:
            Diverged: weights or logits are not finite; nothing is measured.
        """
        if step in self._measured:
            return
        if problem := not_finite(self.loaded.model):
            raise Diverged(
                f"The attacked model diverged at step {step} ({problem}), so it is not measured: lower the learning rate or the "
                "strength of the attack.",
                step,
            )
        observer = Observer(self.loaded, self.threat, self.evaluate)
        measure(observer)
        if self.resume_folder and is_main():
            with staged(self.resume_folder / f"step-{step}", directory=True) as staging:
                observer.write(staging)
                write_json(staging / COSTS, asdict(observer.costs))
        self._add({name: getattr(observer, name) for name in TABLES})
        self.costs += observer.costs

    def ask(self, step: int, evaluation: int, dev: int, harmless: Sequence[HarmlessPrompt] = ()) -> None:
        """Generate responses to prompts of the threat and to harmless ones.

        Args:
            step: of the attack.
            evaluation: number of prompts of the evaluation part.
            dev: number of prompts of the attacker_dev part.
            harmless: harmless prompts to answer as well.
        """
        prompts = [("evaluation", p.id, p.prompt) for p in self.threat.part("evaluation", evaluation)]
        prompts += [("attacker_dev", p.id, p.prompt) for p in self.threat.part("attacker_dev", dev)]
        prompts += [(p.part, p.id, p.prompt) for p in harmless]
        limit = self.evaluate.response_tokens
        answers = self._answers([prompt for _, _, prompt in prompts], limit, f"responses, step {step}")
        self.responses += [
            Response(step, part, name, prompt, text, cut)
            for (part, name, prompt), (text, cut) in zip(prompts, answers, strict=True)
        ]

    def before_attack(self, harmless: Sequence[HarmlessPrompt], *, evaluation: int, dev: int) -> None:
        """Measure everything on a model that is not attacked, as step 0: responses, capability, held-out documents."""
        self.ask(0, evaluation, dev, harmless)
        self.capability(0)
        self.benign_nll(0)

    def answer(self, prompts: Sequence[str], label: str = "answers") -> list[str]:
        """The model's answers to prompts, with its weights as they are now; not recorded as responses."""
        return [text for text, _ in self._answers(prompts, self.evaluate.response_tokens, label)]

    def capability(self, step: int) -> None:
        """Measure capability."""
        limit = self.evaluate.capability_items
        answered, tokens = measure_capability(self.loaded, self.evaluate.capability, None if limit == "all" else limit)
        self.costs.scored += tokens
        self.items += [ItemRow(step, i.task, i.item, i.group, i.correct, i.chance) for i in answered]

    def benign_nll(self, step: int) -> None:
        """Measure the likelihood of held-out documents."""
        rows = heldout_documents(self.evaluate.heldout)
        chat = self.loaded.chat
        samples = [chat.sample(r["prompt"], r["response"], 4 * self.evaluate.response_tokens) for r in rows]
        self.costs.scored += sum(len(sample.tokens) for sample in samples)
        values = score(self.loaded, samples, label="held-out documents")
        self.documents += [
            DocumentRow(step, row["id"], -value, sample.response_tokens)
            for row, sample, (value, _) in zip(rows, samples, values, strict=True)
        ]

    def teacher(self) -> list[TeacherSample]:
        """The model's predictions of its own answers to harmless prompts, from which a hardened model may diverge."""
        rows = [row for row in self.responses if row.part in HARMLESS_PARTS and row.response]
        samples = [self.loaded.chat.sample(r.prompt, r.response, self.evaluate.response_tokens) for r in rows]
        self.costs.scored += sum(len(sample.tokens) for sample in samples)
        return predict(self.loaded, samples, label="predictions on harmless prompts")

    def divergence(self, step: int, teacher: Sequence[TeacherSample]) -> None:
        """Measure the KL divergence from the model as shipped, on its answers to harmless prompts."""
        self.costs.scored += sum(len(s.sample.tokens) for s in teacher)
        values = divergence(self.loaded, teacher, label="KL from the model as shipped")
        self.divergences += [
            DivergenceRow(step, str(number), value, s.sample.response_tokens)
            for number, (s, value) in enumerate(zip(teacher, values, strict=True))
        ]

    def benign_task(self, step: int, task: str, items: Sequence[TaskItem]) -> None:
        """Score a benign task: exact match of the first line, ignoring letter case."""
        answers = self._answers([item.prompt for item in items], TASK_TOKENS, f"{task}, step {step}")
        self.tasks += [
            TaskRow(
                step,
                task,
                f"{task}-{i}",
                (text.splitlines() or [""])[0].strip(" .").casefold() == item.response.casefold(),
            )
            for i, (item, (text, _)) in enumerate(zip(items, answers, strict=True))
        ]

    def write(self, folder: Path) -> None:
        """Write all measurements to a folder."""
        for name, kind in TABLES.items():
            write_rows(folder / f"{name}.parquet", kind, getattr(self, name))

    def _add(self, rows: dict[str, list[Any]]) -> None:
        for name, more in rows.items():
            getattr(self, name).extend(more)

    def _answers(self, prompts: Sequence[str], tokens: int, label: str) -> list[tuple[str, bool]]:
        """The model's answers of at most `tokens` tokens, and whether that limit cut them."""
        chat = self.loaded.chat
        check_lengthened(self.loaded, prompts, tokens)
        answers = generate(self.loaded, [chat.prompt(prompt) for prompt in prompts], new_tokens=tokens, label=label)
        self.costs.generated += sum(map(len, answers))
        return [(chat.text(answer), is_cut(answer, tokens)) for answer in answers]


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def harmless_prompts(limit: int, threat: Threat, encoder: TextEncoder) -> list[HarmlessPrompt]:
    """Harmless prompts for the benign answer rate, half of them near the threat; the same ones for every model.

    The near half are those with the highest mean cosine to their 20 most similar defender prompts of the threat; the other half
    is a sample of the rest. Prompts on the threat's own subject, and near-duplicates of its prompts, are left out.

    Args:
        limit: number of prompts, at most.
        threat: the threat.
        encoder: measures similarity; values that agree to three decimals count as equal.
    """
    rows = [row for row in builtin_rows("harmless") if not threat.subject or row["subject"] != threat.subject]
    rows.sort(key=lambda row: content_hash(row["prompt"]))
    vectors = encoder.encode([row["prompt"] for row in rows])
    cosines = {part: vectors @ encoder.encode([p.prompt for p in threat.part(part)]).T for part in PARTS}
    highest = np.max([part.max(axis=1) for part in cosines.values()], axis=0)
    similarity = np.sort(cosines["defender"], axis=1)[:, -NEIGHBOURS:].mean(axis=1)
    ranked = [i for i in np.lexsort((np.arange(len(rows)), -similarity.round(3))) if highest[i] < NEAR_COSINE]
    nearest = ranked[: (limit + 1) // 2]
    others = sorted(ranked[len(nearest) :])[: limit // 2]
    return [
        HarmlessPrompt(str(rows[i]["id"]), str(rows[i]["prompt"]), part)
        for part, indices in ((HARMLESS_NEAR, nearest), (HARMLESS_FAR, others))
        for i in indices
    ]


def heldout_documents(limit: int) -> list[dict[str, str]]:
    """The first held-out documents, in an order that mixes subjects and styles."""
    rows = sorted(builtin_rows("heldout"), key=lambda row: content_hash(row["response"]))
    return [dict(row) for row in rows[:limit]]
