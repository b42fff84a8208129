"""Chat templates that fail, hang, or take all memory get a sentence."""

import multiprocessing
import os
import signal
import sys
import threading
import time

import pytest

from stand_ins import TEMPLATE, make_tokenizer
from tamperfuse.models.chat import Chat
from tamperfuse.records.errors import UserError

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}BODY{% endfor %}{% endfor %}"


def chat(template: object) -> Chat:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return Chat.of(tokenizer)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0].content.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "."),
        ("{% include 'x' %}", "no loader"),
        ("{% import 'x' as x %}", "no loader"),
        ("{% extends '/etc/passwd' %}", "no loader"),
        ("{{ messages[0].content }", "unexpected"),
        ("{{ missing.attribute }}", "missing"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ raise_exception('no \x1b[31mred\n second line') }}", r"no \[31mred\)"),
        ("{{ 'a' * 10 ** 10 }}", "MiB of memory"),
        ("{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "memory"),
        ("{{ 'a' * 10 ** 6 }}{{ messages[0].content }}", "1,000,005 characters for messages of 5"),
        ("no messages", "does not contain the messages"),
        ({"tool_use": "x", "rag": "y"}, r"several chat templates \(tool_use, rag\)"),
        (["x"], "list"),
    ],
)
def test_a_template_that_fails_is_a_sentence(template: object, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        chat(template)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("body", ["", "x"])
@pytest.mark.parametrize("thread", [False, True])
def test_a_template_that_does_not_end_is_stopped(body: str, thread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tamperfuse.models.chat_template.CPU_SECONDS", 0.2)
    caught: list[str] = []

    def run() -> None:
        try:
            chat(LOOP.replace("BODY", body) + str(time.time()))  # templates are tried once
        except UserError as error:
            caught.append(str(error))

    if thread:
        worker = threading.Thread(target=run)
        worker.start()
        worker.join()
    else:
        run()
    assert len(caught) == 1 and "takes more than" in caught[0]


def test_a_default_among_several_templates_is_used() -> None:
    tokenizer = make_tokenizer()
    several = chat({"default": tokenizer.chat_template, "tool_use": "x"})
    assert several.prompt("hi") == chat(tokenizer.chat_template).prompt("hi")


def test_a_template_is_checked_in_a_worker_of_a_process_pool_too() -> None:
    """Such workers are daemonic: multiprocessing lets them start no process."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_end_of_turn) == chat(TEMPLATE).end


def test_where_no_process_can_be_forked_templates_are_tried_in_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, which has no module `resource` either."""
    monkeypatch.delattr(os, "fork")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert chat("{# tried in this process #}" + TEMPLATE).end == chat(TEMPLATE).end
    with pytest.raises(UserError, match="missing"):
        chat("{# tried in this process #}{{ missing.attribute }}")


def _end_of_turn() -> int:
    return chat("{# not checked before #}" + TEMPLATE).end


def test_a_template_that_loops_for_some_texts_only_is_stopped_when_it_meets_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = "{% if 'peas' in messages[0].content %}" + LOOP.replace("BODY", "") + "{% endif %}"
    usable = chat(body + TEMPLATE)
    assert usable.prompt("beans")
    monkeypatch.setattr("tamperfuse.models.chat_template.CPU_SECONDS", 0.2)
    handler = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(UserError, match=r"it takes more than 0\.2 s for one of the conversations"):
        usable.prompt("beans and peas")
    assert usable.prompt("beans") and signal.getsignal(signal.SIGVTALRM) is handler


def test_a_template_that_prints_the_date_prints_the_same_one_every_day() -> None:
    dated = chat("{{ strftime_now('%d %b %Y, %B %d, %Y-%m-%d') if strftime_now is defined }}|" + TEMPLATE)
    text = str(dated.tokenizer.decode(dated.prompt("hello")))
    assert text.startswith("26 Jul 2024, July 26, 2024-07-26|")


def test_white_space_that_is_a_token_does_not_end_a_turn() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["\n\n"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n<|end|>{% endfor %}"
    one = Chat.of(tokenizer)
    assert one.end == tokenizer.convert_tokens_to_ids("<|end|>")
    assert one.end not in one.response("first paragraph\n\nsecond")


def test_a_sample_is_no_longer_than_its_limit() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} ;<|end|>{% endfor %}"
    one = Chat.of(tokenizer)
    assert one.format.closing
    whole = one.sample("hi", "one two three", 100).response_tokens
    for limit in range(1, whole + 2):
        sample = one.sample("hi", "one two three", limit)
        assert sample.response_tokens <= limit
        assert (sample.tokens[-1] == one.end) == (limit >= whole)
