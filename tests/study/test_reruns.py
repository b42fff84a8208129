"""A changed parameter runs exactly those nodes again that depend on it: on random graphs, with real folders."""

import logging
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from stand_ins import GraphOfNodes
from tamperfuse.study.node import execute


@st.composite
def changes(draw: st.DrawFn) -> tuple[tuple[tuple[int, ...], ...], set[int]]:
    """A graph of up to 12 nodes, and the numbers of those whose parameters change."""
    count = draw(st.integers(1, 12))
    parents = tuple(tuple(sorted(draw(st.sets(st.integers(0, i - 1), max_size=3)))) if i else () for i in range(count))
    return parents, draw(st.sets(st.integers(0, count - 1), max_size=3))


@settings(max_examples=40, deadline=None)
@given(changes())
def test_a_changed_parameter_reruns_exactly_what_depends_on_it(
    change: tuple[tuple[tuple[int, ...], ...], set[int]],
) -> None:
    parents, changed = change
    logging.getLogger("tamperfuse").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        first = tuple(range(1, len(parents) + 1))
        second = tuple(value + 100 * (i in changed) for i, value in enumerate(first))
        for node in GraphOfNodes(out, parents, first)():
            assert not execute(out, node).reused
        again = [execute(out, node) for node in GraphOfNodes(out, parents, second)()]
        dependent: set[int] = set()
        for i, numbers in enumerate(parents):
            if i in changed or dependent & set(numbers):
                dependent.add(i)
        assert {i for i, done in enumerate(again) if not done.reused} == dependent
        fresh = Path(place) / "elsewhere" / "run"
        for node, done in zip(GraphOfNodes(fresh, parents, second)(), again, strict=True):
            assert (execute(fresh, node).folder / "value").read_text() == (done.folder / "value").read_text()
        for node in GraphOfNodes(out, parents, first)():
            assert execute(out, node).reused, "results of the first parameters are still there"
