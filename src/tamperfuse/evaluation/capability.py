"""General ability, measured by lm-eval: the bundled offline tasks, or any of lm-eval's own by name.

lm-eval builds the requests and computes the metrics; log-likelihoods come from :mod:`tamperfuse.evaluation.score`, on the
model in memory.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.evaluation.score import score
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

BUILTIN_TASKS = ("everyday", "grammar")


@dataclass(frozen=True)
class Item:
    """One question of a task, answered.

    Attributes:
        task: the task's name.
        item: its number within the task.
        group: items made from one template share a group; "" where items are independent.
        correct: whether the model was right.
        chance: probability of being right by guessing, in (0, 1); 0 where it is unknown.
    """

    task: str
    item: int
    group: str
    correct: bool
    chance: float


def measure_capability(loaded: LoadedModel, tasks: Sequence[str], limit: int | None) -> tuple[list[Item], int]:
    """Run capability tasks.

    Args:
        loaded: the model; left as it was.
        tasks: `builtin` for the bundled ones, or names that lm-eval knows.
        limit: items a task at most, spread evenly over it; None for all.

    Returns:
        Every item, and the number of tokens scored.

    Raises:
        UserError: lm-eval knows no such task, or its data cannot be had without a network.
    """
    from lm_eval.evaluator import evaluate  # 6 s to import: only where capability is measured

    names = [name for task in tasks for name in (BUILTIN_TASKS if task == "builtin" else (task,))]
    loaded_tasks = _load_tasks(tuple(names))
    chosen = {name: _spread(name, task, limit) for name, task in loaded_tasks["tasks"].items()} if limit else None
    adapter = _adapter(loaded)
    out = evaluate(lm=adapter, task_dict=loaded_tasks, samples=chosen, bootstrap_iters=0, log_samples=True)
    assert out is not None
    items = [item for name in loaded_tasks["tasks"] for item in _items(name, out["samples"][name])]
    return items, adapter.tokens


@cache
def _load_tasks(names: tuple[str, ...]) -> Any:
    from lm_eval.tasks import TaskManager

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    wanted = [_BUILTIN[name]() if name in _BUILTIN else name for name in names]
    try:
        manager = TaskManager(include_defaults=any(name not in _BUILTIN for name in names))
        return manager.load(wanted)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"lm-eval knows no such capability task ({error}): see `lm-eval ls tasks`, or use builtin."
        ) from error
    except (OSError, ConnectionError) as error:
        raise UserError(
            f"The data of {', '.join(names)} cannot be fetched ({str(error).splitlines()[0]}): use `builtin`, or a machine "
            "with a network."
        ) from error


def _file(name: str) -> str:
    return str(files("tamperfuse.corpora") / "data" / f"{name}.jsonl")


def _task(name: str, **rest: Any) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": _file(name)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        **rest,
    }


_BUILTIN = {
    "everyday": lambda: _task(
        "everyday",
        doc_to_text="Question: {{question}}\nAnswer:",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        metric_list=[{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
    ),
    "grammar": lambda: _task(
        "grammar",
        doc_to_text="",
        doc_to_choice="{{[good, bad]}}",
        doc_to_target=0,
        target_delimiter="",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    ),
}


def _spread(name: str, task: Any, limit: int) -> list[int]:
    """Which items stand for a task: drawn by hash, so that every subject and template has its share."""
    count = len(task.eval_docs)
    return sorted(sorted(range(count), key=lambda i: content_hash([name, i]))[: min(limit, count)])


def _items(name: str, samples: list[dict[str, Any]]) -> list[Item]:
    groups = [str(row["template"]) for row in builtin_rows("grammar")] if name == "grammar" else None
    found = []
    for sample in sorted(samples, key=lambda s: int(s["doc_id"])):
        metric = next((m for m in ("acc_norm", "acc", "exact_match") if m in sample), None)
        if metric is None:
            raise UserError(f"The task {name!r} has no accuracy (acc, acc_norm, exact_match): choose one that has.")
        choices = len(sample["arguments"])
        found.append(
            Item(
                task=name,
                item=int(sample["doc_id"]),
                group=groups[int(sample["doc_id"])] if groups else "",
                correct=bool(sample[metric]),
                chance=1.0 / choices if metric != "exact_match" and choices > 1 else 0.0,
            )
        )
    return found


def _adapter(loaded: LoadedModel) -> Any:
    """lm-eval's view of a model, with our scoring behind it."""
    from lm_eval.api.model import LM

    class Adapter(LM):  # type: ignore[misc]  # defined here: lm-eval is imported on use
        def __init__(self) -> None:
            super().__init__()
            self.tokens = 0

        def loglikelihood(self, requests: "list[Instance]") -> list[tuple[float, bool]]:
            samples = [_sample(loaded, *request.args) for request in requests]
            self.tokens += sum(len(sample.tokens) for sample in samples)
            return score(loaded, samples, what="capability")

        def loglikelihood_rolling(self, requests: "list[Instance]") -> list[float]:
            samples = [_sample(loaded, "", request.args[0]) for request in requests]
            self.tokens += sum(len(sample.tokens) for sample in samples)
            return [value for value, _ in score(loaded, samples, what="capability")]

        def generate_until(self, requests: "list[Instance]") -> list[str]:
            raise UserError("Capability tasks that generate text are not supported: choose one that scores choices.")

    return Adapter()


def _sample(loaded: LoadedModel, context: str, continuation: str) -> Sample:
    """Context and continuation as tokens; spaces at the border belong to the continuation, as lm-eval has it."""
    tokenizer = loaded.tokenizer
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else loaded.chat.end
    before = list(tokenizer.encode(stripped, add_special_tokens=False)) if stripped else [int(start)]
    both = list(tokenizer.encode(stripped + continuation, add_special_tokens=False))
    whole = both if stripped else [*before, *both]
    return Sample(tokens=whole, start=min(len(before), len(whole) - 1))
