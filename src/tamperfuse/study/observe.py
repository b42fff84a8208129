"""Looking at a model: everything that is measured on its weights at one moment, kept for judging later."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.overlap import plain
from tamperfuse.corpora.routing import TaskItem
from tamperfuse.corpora.threats import Threat
from tamperfuse.evaluation.capability import measure_capability
from tamperfuse.evaluation.generate import generate
from tamperfuse.evaluation.score import score
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.files import content_hash
from tamperfuse.study.graph import Costs
from tamperfuse.study.spec import Evaluate
from tamperfuse.study.tables import DocumentRow, ItemRow, Response, TaskRow, write_rows

HARMLESS = "harmless"
TASK_TOKENS = 8  # an answer of the benign task is two words


@dataclass
class Observer:
    """Gathers measurements of one model over the steps of an attack.

    Attributes:
        loaded: the model, whatever state its weights are in.
        threat: whose prompts are asked.
        evaluate: how many, how long.
        costs: tokens generated and scored so far.
    """

    loaded: LoadedModel
    threat: Threat
    evaluate: Evaluate
    costs: Costs = field(default_factory=Costs)
    responses: list[Response] = field(default_factory=list)
    items: list[ItemRow] = field(default_factory=list)
    documents: list[DocumentRow] = field(default_factory=list)
    tasks: list[TaskRow] = field(default_factory=list)

    def ask(self, step: int, evaluation: int, dev: int, harmless: int) -> None:
        """Put prompts to the model: so many of the evaluation and attacker_dev parts, and of the harmless ones."""
        asked = [("evaluation", p.id, p.prompt) for p in self.threat.part("evaluation", evaluation)]
        asked += [("attacker_dev", p.id, p.prompt) for p in self.threat.part("attacker_dev", dev)]
        asked += [(HARMLESS, str(row["id"]), str(row["prompt"])) for row in harmless_prompts(harmless, self.threat)]
        texts = self.answer([prompt for _, _, prompt in asked], f"asking, step {step}")
        self.responses += [
            Response(step, part, name, prompt, text) for (part, name, prompt), text in zip(asked, texts, strict=True)
        ]

    def answer(self, prompts: Sequence[str], what: str = "asking") -> list[str]:
        """The model's answers to prompts as it is now, rendered as its chat has it; nothing is kept."""
        return self._answers(prompts, self.evaluate.response_tokens, what)

    def capability(self, step: int) -> None:
        """Measure capability."""
        found, tokens = measure_capability(self.loaded, self.evaluate.capability, self.evaluate.capability_items)
        self.costs.scored += tokens
        self.items += [ItemRow(step, i.task, i.item, i.group, i.correct, i.chance) for i in found]

    def benign_nll(self, step: int) -> None:
        """Measure the likelihood of held-out documents."""
        rows = heldout_documents(self.evaluate.heldout)
        chat = self.loaded.chat
        samples = [chat.sample(r["prompt"], r["response"], 4 * self.evaluate.response_tokens) for r in rows]
        self.costs.scored += sum(len(sample.tokens) for sample in samples)
        values = score(self.loaded, samples, what="held-out documents")
        self.documents += [
            DocumentRow(step, row["id"], -value, sample.response_tokens)
            for row, sample, (value, _) in zip(rows, samples, values, strict=True)
        ]

    def benign_task(self, step: int, task: str, items: Sequence[TaskItem]) -> None:
        """Score the benign task: exact match of the first line, letter case aside."""
        texts = self._answers([item.prompt for item in items], TASK_TOKENS, f"{task}, step {step}")
        self.tasks += [
            TaskRow(
                step,
                task,
                f"{task}-{i}",
                (text.splitlines() or [""])[0].strip(" .").casefold() == item.response.casefold(),
            )
            for i, (item, text) in enumerate(zip(items, texts, strict=True))
        ]

    def write(self, folder: Path) -> None:
        """Keep everything that was gathered."""
        write_rows(folder / "responses.parquet", Response, self.responses)
        write_rows(folder / "items.parquet", ItemRow, self.items)
        write_rows(folder / "documents.parquet", DocumentRow, self.documents)
        write_rows(folder / "tasks.parquet", TaskRow, self.tasks)

    def _answers(self, prompts: Sequence[str], tokens: int, what: str) -> list[str]:
        chat = self.loaded.chat
        answers = generate(self.loaded, [chat.prompt(prompt) for prompt in prompts], new_tokens=tokens, what=what)
        self.costs.generated += sum(map(len, answers))
        return [chat.text(answer) for answer in answers]


def harmless_prompts(limit: int, threat: Threat) -> list[dict[str, str]]:
    """Harmless prompts, as many near the built-in threat as far from it, the same ones for every model.

    Args:
        limit: at most so many.
        threat: whose own subject and prompts are left out.
    """
    theirs = {plain(prompt) for prompt in threat.prompts}
    rows = [r for r in builtin_rows("harmless") if r["subject"] != threat.subject and plain(r["prompt"]) not in theirs]
    rows.sort(key=lambda row: content_hash(row["prompt"]))
    near = [row for row in rows if row["near"]]
    far = [row for row in rows if not row["near"]]
    return [dict(row) for row in (near[: (limit + 1) // 2] + far[: limit // 2])]


def heldout_documents(limit: int) -> list[dict[str, str]]:
    """Held-out documents, over all subjects."""
    rows = sorted(builtin_rows("heldout"), key=lambda row: content_hash(row["response"]))
    return [dict(row) for row in rows[:limit]]
