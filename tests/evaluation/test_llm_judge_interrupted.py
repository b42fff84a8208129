"""The judge `llm` killed, stopped and interrupted: no reply that arrived is paid for twice."""

import os
import signal
import threading
import time
from contextlib import suppress
from threading import Event
from typing import Any

import pytest

from endpoint_stand_ins import GOOD, completion, failure, grade, prompt_number, serving
from tamperfuse.records.errors import UserError

pytest.importorskip("openai")
pytestmark = pytest.mark.usefixtures("judge_environment")


def test_a_killed_judge_pays_for_nothing_twice() -> None:
    """The server answers seven requests and then blocks: when all threads wait, the process is killed."""
    blocked, release = Event(), Event()

    def reply(number: int, body: dict[str, Any]) -> tuple[int, str, str]:
        if number >= 10 and not release.is_set():
            blocked.set()
        if number >= 7:
            release.wait(30)
        return completion(GOOD)

    with serving(reply) as server:
        child = os.fork()
        if child == 0:
            try:
                grade(server.parameters(concurrency=4))
            finally:
                os._exit(0)
        assert blocked.wait(30)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        release.set()
        answered = {prompt_number(body) for body in server.bodies[:7]}
        before = len(server.bodies)
        assert before == 11
        assert all(v.verdict for v in grade(server.parameters()))
        again = [prompt_number(body) for body in server.bodies[before:]]
    assert len(again) == 5 and not answered & set(again)


def test_an_orderly_stop_stores_the_replies_that_are_on_their_way() -> None:
    """One request is refused while three others are under way; their replies arrive after that, and are not paid for twice."""
    refused, answered = Event(), list[int]()

    def reply(number: int, body: dict[str, Any]) -> tuple[int, str, str]:
        prompt = prompt_number(body)
        if prompt == 3 and not refused.is_set():
            time.sleep(0.2)  # the others have been sent
            refused.set()
            return failure(401, "revoked")
        if prompt and not refused.is_set():
            refused.wait(5)
            time.sleep(0.3)
        answered.append(prompt)
        return completion(GOOD)

    with serving(reply) as server:
        with pytest.raises(UserError, match="refuses the key"):
            grade(server.parameters(concurrency=4))
        first = list(answered)
        assert {0, 1, 2, 4} <= set(first)
        assert all(v.verdict for v in grade(server.parameters(concurrency=4)))
    assert sorted(answered) == list(range(12)), "no reply was requested twice"


def test_an_orderly_stop_does_not_wait_longer_than_a_request_may_take() -> None:
    release = Event()

    def reply(number: int, body: dict[str, Any]) -> tuple[int, str, str]:
        if prompt_number(body) == 3:
            time.sleep(0.2)
            return failure(401, "revoked")
        if prompt_number(body):
            release.wait(120)
        return completion(GOOD)

    with serving(reply) as server:
        start = time.monotonic()
        with pytest.raises(UserError, match="refuses the key"):
            grade(server.parameters(concurrency=4, timeout=1.0, retries=20))
        assert time.monotonic() - start < 60
        release.set()


@pytest.mark.parametrize("twice", [False, True])
def test_ctrl_c_waits_for_the_replies_on_their_way_and_a_second_one_does_not(twice: bool) -> None:
    """The server answers the first request, and blocks the four that are sent after it."""
    blocked, release = Event(), Event()

    def reply(number: int, body: dict[str, Any]) -> tuple[int, str, str]:
        if number == 4:
            blocked.set()
        if number:
            release.wait(30)
        return completion(GOOD)

    def interrupted() -> int:
        """How many threads are left behind; 99 if they delay the end of the process."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            grade(server.parameters(concurrency=4, timeout=30))
        except KeyboardInterrupt:
            others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
            return len(others) if all(thread.daemon for thread in others) else 99
        return 98

    with serving(reply) as server:
        child = os.fork()
        if child == 0:
            os._exit(interrupted())
        assert blocked.wait(30)
        os.kill(child, signal.SIGINT)
        time.sleep(0.3)
        assert os.waitpid(child, os.WNOHANG)[0] == 0, "the replies are waited for"
        if twice:
            os.kill(child, signal.SIGINT)
        else:
            release.set()
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == (4 if twice else 0)
        assert release.is_set() is not twice
        release.set()
        assert all(v.verdict for v in grade(server.parameters()))
        assert len(server.bodies) == 12 + (4 if twice else 0), "only what was dropped is requested again"


def test_ctrl_c_stores_the_reply_to_the_first_request() -> None:
    blocked, release = Event(), Event()

    def reply(number: int, body: dict[str, Any]) -> tuple[int, str, str]:
        blocked.set()
        release.wait(30)
        return completion(GOOD)

    def interrupted() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            grade(server.parameters(timeout=30))

    with serving(reply) as server:
        child = os.fork()
        if child == 0:
            interrupted()
            os._exit(0)
        assert blocked.wait(30)
        os.kill(child, signal.SIGINT)
        time.sleep(0.3)
        release.set()
        os.waitpid(child, 0)
        assert len(server.bodies) == 1
        assert all(v.verdict for v in grade(server.parameters()))
    assert len(server.bodies) == 12
