"""Work in two threads: order, errors, and the caller's settings."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from tamperfuse.models.cpu.two_threads import WORKERS, run_in_parallel


@pytest.fixture
def four_threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


def test_tasks_run_at_once_with_their_share_of_threads_and_the_callers_gradient_mode(four_threads: int) -> None:
    meeting = threading.Barrier(WORKERS, timeout=20)  # passed only if all are there

    def task(number: int) -> tuple[int, int, bool]:
        meeting.wait()
        return number, torch.get_num_threads(), torch.is_grad_enabled()

    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            found = run_in_parallel([lambda n=n: task(n) for n in range(WORKERS)])
        assert found == [(n, four_threads // WORKERS, gradients) for n in range(WORKERS)]
    assert torch.get_num_threads() == four_threads


def test_an_error_comes_through_when_nothing_runs_any_more(four_threads: int) -> None:
    ended, meeting = [], threading.Barrier(WORKERS, timeout=20)

    def fails() -> None:
        meeting.wait()
        raise ValueError("no")

    def works() -> None:
        meeting.wait()
        time.sleep(0.05)
        ended.append(1)

    with pytest.raises(ValueError, match="no"):
        run_in_parallel([fails, works])
    assert ended == [1] and torch.get_num_threads() == four_threads


def test_one_task_runs_where_it_is() -> None:
    assert run_in_parallel([threading.get_ident]) == [threading.get_ident()]
