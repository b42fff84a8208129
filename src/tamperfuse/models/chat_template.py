"""Rendering of chat templates, which are programs of a model's publisher: tried in a process with limits before they are used.

transformers renders templates in jinja2's sandbox, which keeps them away from files and from Python's internals, but limits
neither time nor memory nor output. :func:`check_template` therefore renders short and long conversations in a child process with
such limits, once per template. Later renderings have limits of time and output, too, since a template may depend on the text.
"""

import json
import os
import select
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tamperfuse.records.errors import UserError, first_line
from tamperfuse.records.reading import local_path, read_text

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

CPU_SECONDS = 5  # of the child, and of a rendering
WALL_SECONDS = 120
MEMORY = 512 * 2**20  # bytes, in addition to those of this process
LARGEST_TEMPLATE = 1 << 20  # bytes of a template's file
EXTRA_CHARACTERS = 100_000  # that a template may add to the messages
# The date that templates print, as those of Llama 3.1 do without a clock: with today's, prompts would differ from day to day.
DATE = datetime(2024, 7, 26)
_CODES = {
    f"%{code}": DATE.strftime(f"%{code}")
    for code in ("a", "A", "b", "B", "d", "H", "I", "j", "m", "M", "p", "S", "y", "Y")
}
# Replaces transformers' function of that name within a template, where it is put first.
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{%- set written = namespace(text=format) -%}"
    f"{{%- for code, value in {json.dumps(_CODES)}.items() -%}}"
    "{%- set written.text = written.text.replace(code, value) -%}{%- endfor -%}{{- written.text -}}{%- endmacro -%}"
)
_DONE = b"\0"  # after the child's answer

_USER, _ASSISTANT = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}
_LONG = {"role": "user", "content": "hello " * 1_500}
_TRIALS: tuple[tuple[Sequence[Message], bool], ...] = (
    ((_USER,), True),
    ((_LONG,), True),
    ((_USER, _ASSISTANT), False),
)
# Templates may refuse these by an exception; the limits hold for them too.
_OPTIONAL_TRIALS: tuple[tuple[Sequence[Message], bool], ...] = (
    ((_USER, _ASSISTANT, _USER), True),
    (({"role": "system", "content": "be brief"}, _USER), True),
)


def read_template(path: Path | None) -> str:
    """The text of a chat template that the user states for a model, such as a base model, which has none; "" for no path.

    Raises:
        UserError: the file cannot be read, or is not a chat template in Jinja.
    """
    if path is None:
        return ""
    text = read_text(local_path(str(path)), LARGEST_TEMPLATE)
    if "messages" not in text or not any(opening in text for opening in ("{{", "{%")):
        raise UserError(
            f"{path} is not a chat template: it must be a Jinja template that renders `messages`, as chat_template.jinja of an "
            "instruction-tuned model does."
        )
    return text


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation: bool = False) -> str:
    """Render messages with a tokenizer's chat template. Templates that support it are told not to open a thought.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages: the conversation.
        generation: whether to end where the assistant's answer starts.

    Raises:
        UserError: the template raises an exception, takes more than :data:`CPU_SECONDS` of processor time (in the main thread; no
            other can be interrupted), or renders much more text than the messages have.
    """
    try:
        with _limited_time():
            text = _render(tokenizer, messages, generation)
    except Exception as error:  # a template can raise any exception
        raise _unusable(tokenizer, _reason(error)) from error
    return text


@contextmanager
def _limited_time() -> Iterator[None]:
    """Within the block, a TimeoutError after :data:`CPU_SECONDS` of processor time: a template may loop for some texts only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"it takes more than {CPU_SECONDS} s for one of the conversations")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a chat template renders conversations within bounds of time, memory and output.

    Raises:
        UserError: there is no template, there are several without a default, or the template fails.
    """
    template = tokenizer.chat_template
    if not template:
        raise UserError(
            f"The tokenizer of {tokenizer.name_or_path!r} has no chat template: use an instruction-tuned "
            "checkpoint, or state a template (--chat-template FILE; `chat_template: FILE` in a study)."
        )
    if isinstance(template, dict) and "default" not in template:
        raise UserError(
            f"The tokenizer of {tokenizer.name_or_path!r} has several chat templates ({', '.join(map(str, template))}) and none "
            "named 'default': rename the one to use."
        )
    chosen = template["default"] if isinstance(template, dict) else template
    if not isinstance(chosen, str):
        raise _unusable(tokenizer, f"it is a {type(chosen).__name__}, not a text")
    problem = _problem(_Trial(tokenizer, chosen))
    if problem:
        raise _unusable(tokenizer, problem)


class _Trial:
    """A tokenizer and its template; equal if the templates and the special tokens are."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self.tokenizer = tokenizer
        self._key = (template, str(tokenizer.special_tokens_map))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Trial) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=16)
def _problem(trial: _Trial) -> str:
    """What is wrong with a template; "" if nothing is."""
    if not hasattr(os, "fork"):
        return _try(trial.tokenizer)
    # The child inherits the tokenizer. Python's multiprocessing would refuse to start it from a worker of a process pool.
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        try:
            _limit_this_process()
            os.write(sender, _try(trial.tokenizer).encode())
            os.write(sender, _DONE)
        finally:
            os._exit(0)
    os.close(sender)
    try:
        answer = _read(receiver)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(receiver)
    return answer.removesuffix(_DONE).decode() if answer.endswith(_DONE) else f"it takes more than {CPU_SECONDS} s"


def _read(receiver: int) -> bytes:
    """Everything that the child writes, until it ends or WALL_SECONDS are over."""
    answer, deadline = b"", time.monotonic() + WALL_SECONDS
    while select.select([receiver], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(receiver, 4096)
        if not part:
            break
        answer += part
    return answer


def _limit_this_process() -> None:
    """Limit the time and memory of this process, the child."""
    import resource  # not on Windows, where no child is started

    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def _try(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        for messages, generation in _TRIALS:
            _render(tokenizer, messages, generation)
        for messages, generation in _OPTIONAL_TRIALS:
            with suppress(TemplateError):
                _render(tokenizer, messages, generation)
    except Exception as error:  # a template can raise any exception
        return _reason(error)
    return ""


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], generation: bool) -> str:
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": generation, "enable_thinking": False}
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        options["chat_template"] = _FIXED_DATE + template
    text = str(tokenizer.apply_chat_template(list(messages), **options))
    written = sum(len(message["content"]) for message in messages)
    if len(text) > 4 * written + EXTRA_CHARACTERS:
        raise ValueError(f"it renders {len(text):,} characters for messages of {written:,}")
    return text


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it takes more than {MEMORY // 2**20} MiB of memory"
    return first_line(error)


def _unusable(tokenizer: PreTrainedTokenizerBase, reason: str) -> UserError:
    return UserError(
        f"The chat template of {tokenizer.name_or_path!r} cannot be used ({reason}): repair the file of --chat-template "
        "(`chat_template` in a study), or else chat_template.jinja, or `chat_template` in tokenizer_config.json, in the "
        "tokenizer's folder."
    )
