"""Looking at a model: everything that is measured on its weights at one moment, kept for judging later."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.overlap import plain
from tamperfuse.corpora.routing import TaskItem
from tamperfuse.corpora.threats import Threat
from tamperfuse.evaluation.capability import measure_capability
from tamperfuse.evaluation.generate import generate
from tamperfuse.evaluation.score import score
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.files import content_hash, read_json, staged, write_json
from tamperfuse.records.process import is_main
from tamperfuse.study.estimates import Costs
from tamperfuse.study.spec import Evaluate
from tamperfuse.study.tables import DocumentRow, ItemRow, Response, TaskRow, read_rows, write_rows

HARMLESS = "harmless"
TASK_TOKENS = 8  # an answer of the benign task is two words
COSTS = "costs.json"
TABLES: dict[str, type] = {"responses": Response, "items": ItemRow, "documents": DocumentRow, "tasks": TaskRow}


@dataclass
class Observer:
    """Gathers measurements of one model over the steps of an attack.

    Attributes:
        loaded: the model, whatever state its weights are in.
        threat: whose prompts are asked.
        evaluate: how many, how long.
        kept: where what was seen at each step is kept at once, so that an interrupted attack need not look again; it
            belongs to one attack on one model. None to keep nothing.
        costs: tokens generated and scored so far.
    """

    loaded: LoadedModel
    threat: Threat
    evaluate: Evaluate
    kept: Path | None = None
    costs: Costs = field(default_factory=Costs)
    responses: list[Response] = field(default_factory=list)
    items: list[ItemRow] = field(default_factory=list)
    documents: list[DocumentRow] = field(default_factory=list)
    tasks: list[TaskRow] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Take up what an interrupted attack saw; a resumed training does not come by those steps again."""
        for place in sorted(self.kept.glob("step-*"), key=_step) if self.kept else ():
            self._add({name: read_rows(place / f"{name}.parquet", kind) for name, kind in TABLES.items()})
            self.costs += Costs(**read_json(place / COSTS))
            self._seen.add(_step(place))

    def once(self, step: int, look: "Callable[[Observer], None]") -> None:
        """Look at the model at a step, unless an interrupted run did: it saw the same, since the weights were the same.

        Args:
            step: of the attack.
            look: calls this class's methods on the observer that it is given.
        """
        if step in self._seen:
            return
        seen = Observer(self.loaded, self.threat, self.evaluate)
        look(seen)
        if self.kept and is_main():
            with staged(self.kept / f"step-{step}", directory=True) as staging:
                seen.write(staging)
                write_json(staging / COSTS, asdict(seen.costs))
        self._add({name: getattr(seen, name) for name in TABLES})
        self.costs += seen.costs

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
        limit = self.evaluate.capability_items
        found, tokens = measure_capability(self.loaded, self.evaluate.capability, None if limit == "all" else limit)
        self.costs.scored += tokens
        self.items += [ItemRow(step, i.task, i.item, i.group, i.correct, i.chance) for i in found]

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
        for name, kind in TABLES.items():
            write_rows(folder / f"{name}.parquet", kind, getattr(self, name))

    def _add(self, rows: dict[str, list[Any]]) -> None:
        for name, more in rows.items():
            getattr(self, name).extend(more)

    def _answers(self, prompts: Sequence[str], tokens: int, what: str) -> list[str]:
        chat = self.loaded.chat
        answers = generate(self.loaded, [chat.prompt(prompt) for prompt in prompts], new_tokens=tokens, label=what)
        self.costs.generated += sum(map(len, answers))
        return [chat.text(answer) for answer in answers]


def _step(place: Path) -> int:
    return int(place.name.removeprefix("step-"))


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
