"""The capability tasks of a study: lm-eval's tasks by name or file, or the built-in ones, which need no network."""

import inspect
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from pydantic import BaseModel, ConfigDict, Field

from tamperfuse.models.hub_ids import is_unreachable
from tamperfuse.records.errors import HubUnreachable, UserError, first_line, unknown_name
from tamperfuse.records.files import content_hash, sha256_of
from tamperfuse.records.reading import check_files_named_in, path_exists

BUILTIN_TASKS = ("everyday", "grammar")
UNSUPPORTED = {  # kinds of requests of lm-eval
    "generate_until": "generates text, which is not supported: choose tasks with multiple-choice answers",
    "loglikelihood_rolling": "scores whole texts and has no items that are right or wrong: choose one that has",
}


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
class LoadedTask:
    """A task of a study: one of lm-eval's tasks, or several that are pooled."""

    name: str
    parts: tuple[Any, ...]


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
    if declares and part.OUTPUT_TYPE in UNSUPPORTED:
        raise UserError(f"The capability task {part.task_name!r} {UNSUPPORTED[part.OUTPUT_TYPE]}.")


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
