"""General capability, measured with lm-eval: the built-in offline tasks, or lm-eval's tasks by name.

lm-eval builds the requests and computes the metrics; :mod:`tamperfuse.evaluation.score` computes the log-likelihoods with the
model in memory.
"""

import inspect
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from pydantic import BaseModel, ConfigDict, Field

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.evaluation.score import score
from tamperfuse.models.chat import Sample
from tamperfuse.models.hub_ids import is_unreachable
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import HubUnreachable, UserError, first_line, unknown_name
from tamperfuse.records.files import content_hash, sha256_of
from tamperfuse.records.reading import check_files_named_in, path_exists

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

BUILTIN_TASKS = ("everyday", "grammar")
_REFUSED = {  # kinds of requests of lm-eval
    "generate_until": "generates text, which is not supported: choose tasks with multiple-choice answers",
    "loglikelihood_rolling": "scores whole texts and has no items that are right or wrong: choose one that has",
}
FEWSHOT_SEED = 1234  # lm-eval's default


class CapabilityTask(BaseModel):
    """A capability task of a study.

    Attributes:
        task: `builtin`, the name of a task of lm-eval (a group, such as mmlu, pools its subtasks), or the path of a task's YAML
            file.
        fewshot: number of solved examples before each question; None for the task's default, which is 0 for most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    fewshot: int | None = Field(None, ge=0)


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
class LoadedTask:
    """A task of a study: one of lm-eval's tasks, or several that are pooled."""

    name: str
    parts: tuple[Any, ...]


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


def load_tasks(tasks: Sequence[str | CapabilityTask], *, reread: bool = False) -> tuple[LoadedTask, ...]:
    """Load tasks and their data. A study calls this before it computes anything.

    Args:
        tasks: the tasks.
        reread: whether to read files that this process has read before, which may have changed since.

    Raises:
        UserError: lm-eval has no such task, a task is named twice (directly or in a group), or its data is not available
            offline.
    """
    if reread:
        _load_task.cache_clear()
    with_options = [CapabilityTask(task=task) if isinstance(task, str) else task for task in tasks]
    expanded = [
        CapabilityTask(task=name, fewshot=task.fewshot)
        for task in with_options
        for name in (BUILTIN_TASKS if task.task == "builtin" else (task.task,))
    ]
    loaded = tuple(_load_task(task) for task in expanded)
    names = [part.task_name for task in loaded for part in task.parts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"The capability task {twice!r} is named twice: name it once, directly or in a group.")
    return loaded


def tasks_fingerprint(tasks: Sequence[str | CapabilityTask]) -> str:
    """A hash that changes with whatever lm-eval's tasks ask: their configurations, documents, and the code that they name.

    It is "" for the built-in tasks, whose data are hashed with the other built-in data.
    """
    contents = [
        [_plain(part.config), _documents(part.eval_docs), _documents(_examples(part))]
        for task in load_tasks(tasks)
        for part in task.parts
        if task.name not in _BUILTIN
    ]
    return content_hash(contents) if contents else ""


def _examples(part: Any) -> Iterable[Any]:
    """The documents from which solved examples are drawn."""
    return (part.fewshot_docs() if part.config.num_fewshot else None) or ()


def _documents(documents: Iterable[Any]) -> str:
    return content_hash([_plain(document) for document in documents])


def _plain(value: Any) -> Any:
    """A part of a task's configuration as JSON-able data: a function is its name and the hash of its source file."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(
        value, Mapping
    ):  # lm-eval's configurations are dictionaries without items, whose fields are attributes
        fields = vars(value) if hasattr(value, "__dataclass_fields__") else value
        return {str(key): _plain(item) for key, item in fields.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if callable(value):
        try:
            source = inspect.getsourcefile(value)
        except TypeError:  # of a built-in function or a callable object
            source = None
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return [name, sha256_of(Path(source)) if source and Path(source).is_file() else ""]
    if hasattr(value, "__dict__") and vars(value):
        return [type(value).__qualname__, _plain(vars(value))]
    return repr(value)


@cache
def _load_task(task: CapabilityTask) -> LoadedTask:
    name = task.task
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if name.endswith((".yaml", ".yml")) and path_exists(Path(name)):
        check_files_named_in(Path(name))
    if name not in _BUILTIN:
        _go_offline_if_unreachable()
    try:
        parts = tuple(
            _manager(name not in _BUILTIN).load([_BUILTIN[name]() if name in _BUILTIN else name])["tasks"].values()
        )
    except KeyError as error:
        if Path(name).is_file():
            raise UserError(f"{name} is not a task of lm-eval ({first_line(error)}): correct it there.") from error
        raise unknown_name("capability task", name, ("builtin", *_manager(True).all_tasks)) from error
    except Exception as error:  # from datasets, the Hub's client or the network
        if name.endswith((".yaml", ".yml")):
            raise UserError(
                f"The capability task in {name} cannot be loaded ({first_line(error)}): check the file, and the data and "
                "functions that it names."
            ) from error
        kind = HubUnreachable if is_unreachable(error) else UserError
        raise kind(
            f"The data of the capability task {name!r} cannot be loaded ({first_line(error)}): use `builtin`, or a machine that "
            "has access to the Hub or has the data in its cache."
        ) from error
    for part in parts:
        _check_scores_items(part)
        if task.fewshot is not None:
            part.set_config(key="num_fewshot", value=task.fewshot)
        elif part.get_config("num_fewshot") is None:
            part.set_config(key="num_fewshot", value=0)
    return LoadedTask(name, parts)


def _check_scores_items(part: Any) -> None:
    """Check that a task does not generate text or score whole texts, as far as its configuration says so.

    Raises:
        UserError: it does.
    """
    from lm_eval.api.task import ConfigurableTask

    declares = type(part).construct_requests is ConfigurableTask.construct_requests  # others may ask otherwise
    if declares and part.OUTPUT_TYPE in _REFUSED:
        raise UserError(f"The capability task {part.task_name!r} {_REFUSED[part.OUTPUT_TYPE]}.")


@cache
def _manager(defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=defaults)


@cache
def _go_offline_if_unreachable() -> None:
    """If the Hub cannot be reached, make its client use the cache at once instead of retrying for half a minute."""
    import datasets
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    if constants.HF_HUB_OFFLINE or getproxies():
        return
    try:
        socket.create_connection((host, 443), timeout=5).close()
    except OSError:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def _file(name: str) -> str:
    return str(files("tamperfuse.corpora") / "data" / f"{name}.jsonl")


def _builtin_task(name: str, **options: Any) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": _file(name)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        **options,
    }


_BUILTIN = {
    "everyday": lambda: _builtin_task(
        "everyday",
        doc_to_text="Question: {{question}}\nAnswer:",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        metric_list=[{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
    ),
    "grammar": lambda: _builtin_task(
        "grammar",
        doc_to_text="",
        doc_to_choice="{{[good, bad]}}",
        doc_to_target=0,
        target_delimiter="",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    ),
}


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
            raise UserError(f"A capability task {_REFUSED['loglikelihood_rolling']}.")

        def generate_until(self, requests: "list[Instance]") -> list[str]:
            raise UserError(f"A capability task {_REFUSED['generate_until']}.")

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
