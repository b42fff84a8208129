"""General capability, measured with lm-eval.

lm-eval builds the requests and computes the metrics; :mod:`tamperfuse.evaluation.score` computes the log-likelihoods with the
model in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.evaluation.capability_tasks import UNSUPPORTED, CapabilityTask, LoadedTask, load_tasks
from tamperfuse.evaluation.score import score
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

FEWSHOT_SEED = 1234  # lm-eval's default


@dataclass(frozen=True)
class Item:
    """Result of one question of a task.

    Attributes:
        task: the task's name in the study.
        item: number of the question within the task.
        group: template that the question is generated from; "" where questions are independent.
        correct: whether the model's answer is correct.
        chance: accuracy of guessing, in (0, 1); 0 if unknown.
    """

    task: str
    item: int
    group: str
    correct: bool
    chance: float


def measure_capability(
    loaded: LoadedModel, tasks: Sequence[str | CapabilityTask], limit: int | None
) -> tuple[list[Item], int]:
    """Run capability tasks.

    Args:
        loaded: the model; not modified.
        tasks: the tasks; a name alone is a task with its default number of examples.
        limit: maximum number of items for each task, spread over its subtasks; None for all.

    Returns:
        The result of each item, and the number of tokens scored.

    Raises:
        UserError: lm-eval has no such task, or its data is not available offline.
    """
    from lm_eval.evaluator import evaluate  # takes 6 s to import

    loaded_tasks = load_tasks(tasks)
    for part in (part for task in loaded_tasks for part in task.parts):
        part.set_fewshot_seed(seed=FEWSHOT_SEED)  # on every call, since drawing examples advances the generator
    chosen = [docs for task in loaded_tasks for docs in _select_documents(task, limit)]
    running = {docs.task.task_name: docs for docs in chosen}
    adapter = lm_eval_model(loaded)
    out = evaluate(
        lm=adapter,
        task_dict={"tasks": {name: docs.task for name, docs in running.items()}, "groups": {}, "group_map": {}},
        samples={name: docs.indices for name, docs in running.items()},
        bootstrap_iters=0,
        log_samples=True,
    )
    assert out is not None
    return [item for docs in chosen for item in _items(docs, out["samples"][docs.task.task_name])], adapter.tokens


@dataclass(frozen=True)
class Documents:
    """Selected documents of one of lm-eval's tasks, which is part of the study's task `name`.

    Attributes:
        name: the study's task.
        task: lm-eval's task.
        indices: selected documents of lm-eval's task.
        offset: number of documents in the earlier parts of the study's task.
    """

    name: str
    task: Any
    indices: list[int]
    offset: int


def _select_documents(task: LoadedTask, limit: int | None) -> list[Documents]:
    """Select up to `limit` documents by hash, so that subtasks, subjects and templates are represented proportionally."""
    counts = [len(part.eval_docs) for part in task.parts]
    places = [(part, index) for part, count in enumerate(counts) for index in range(count)]
    if limit is not None and limit < len(places):
        keys = {place: content_hash([task.parts[place[0]].task_name, place[1]]) for place in places}
        places = sorted(sorted(places, key=lambda place: keys[place])[:limit])
    starts = [sum(counts[:part]) for part in range(len(counts))]
    chosen = [[index for part, index in places if part == number] for number in range(len(counts))]
    return [
        Documents(task.name, part, indices, start)
        for part, indices, start in zip(task.parts, chosen, starts, strict=True)
        if indices
    ]


def _items(docs: Documents, samples: list[dict[str, Any]]) -> list[Item]:
    groups = [str(row["template"]) for row in builtin_rows("grammar")] if docs.name == "grammar" else None
    items = []
    for sample in sorted(samples, key=lambda s: int(s["doc_id"])):
        metric = next((m for m in ("acc_norm", "acc", "exact_match") if m in sample), None)
        if metric is None:
            raise UserError(
                f"The task {docs.name!r} has no accuracy metric (acc, acc_norm, exact_match): choose one that has."
            )
        accuracy = float(sample[metric])
        if accuracy not in (0.0, 1.0):
            raise UserError(
                f"The task {docs.name!r} scores fractions ({accuracy:.3g} of one item), where capability counts items that are "
                "right: choose a task whose items are right or wrong."
            )
        # lm-eval asks twice for each choice if one of the metrics is `acc_mutual_info`: with the question and without.
        choices = len(sample["arguments"]) // (2 if "acc_mutual_info" in sample else 1)
        number = int(sample["doc_id"])
        items.append(
            Item(
                task=docs.name,
                item=docs.offset + number,
                group=groups[number] if groups else "",
                correct=accuracy == 1.0,
                chance=1.0 / choices if metric != "exact_match" and choices > 1 else 0.0,
            )
        )
    return items


def lm_eval_model(loaded: LoadedModel) -> Any:
    """lm-eval's interface to a model, with log-likelihoods computed by :func:`tamperfuse.evaluation.score.score`."""
    from lm_eval.api.model import LM

    class Adapter(LM):  # type: ignore[misc]  # defined here: lm-eval is imported on use
        def __init__(self) -> None:
            super().__init__()
            self.tokens = 0

        def loglikelihood(self, requests: "list[Instance]") -> list[tuple[float, bool]]:
            samples = [_sample(loaded, *request.args) for request in requests]
            self.tokens += sum(len(sample.tokens) for sample in samples)
            return score(loaded, samples, label="capability")

        def loglikelihood_rolling(self, requests: "list[Instance]") -> list[float]:
            raise UserError(f"A capability task {UNSUPPORTED['loglikelihood_rolling']}.")

        def generate_until(self, requests: "list[Instance]") -> list[str]:
            raise UserError(f"A capability task {UNSUPPORTED['generate_until']}.")

    return Adapter()


def _sample(loaded: LoadedModel, context: str, continuation: str) -> Sample:
    """Tokenize context and continuation as lm-eval's HFLM does.

    Trailing spaces of the context are moved to the continuation. The beginning-of-sequence token is added where the tokenizer
    adds one by itself, but not twice. An empty context is that token, or the end-of-sequence token if the tokenizer has none. Of
    a text that is longer than the model's context window, the end is scored.
    """
    tokenizer = loaded.tokenizer
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else loaded.chat.end
    prefix = int(tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end)
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    if stripped:
        adds_bos = not stripped.startswith(str(tokenizer.decode(prefix)))
        before = list(tokenizer.encode(stripped, add_special_tokens=adds_bos))
        whole = list(tokenizer.encode(stripped + continuation, add_special_tokens=adds_bos))
    else:
        before, whole = [prefix], list(tokenizer.encode(continuation, add_special_tokens=False))
        whole = whole if whole[:1] == before else [*before, *whole]
    removed = max(0, len(whole) - 1 - loaded.window)  # the last token is predicted only
    return Sample(tokens=whole[removed:], start=max(1, min(len(before), len(whole) - 1) - removed))
