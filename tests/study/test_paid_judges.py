"""Judges that need a key, and judges that cost something: what a study says of them before it computes anything."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tamperfuse.evaluation.judges.endpoint import KEY
from tamperfuse.evaluation.judges.llm import LlmParameters, estimate
from tamperfuse.records.errors import UserError
from tamperfuse.study import paid_judges
from tamperfuse.study.estimates import Costs
from tamperfuse.study.node import Node, Outcome
from tamperfuse.study.run import run_study
from tamperfuse.study.spec import Study, parse_study
from tamperfuse.study.tables import Response, read_rows

pytestmark = pytest.mark.usefixtures("quick_judging")
GRADES = {"judge": "llm", "model": "m", "base_url": "https://api.example.com/v1"}


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMPERFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(KEY, raising=False)


def changed(study: Study, **values: Any) -> Study:
    return parse_study({**study.model_dump(mode="json"), **values}, "test")


@pytest.mark.parametrize("judges", [{"judge": GRADES}, {"judges": {"grades": GRADES}}])
def test_a_missing_key_is_reported_before_anything_is_computed(
    judges: dict[str, Any], study: Study, tmp_path: Path
) -> None:
    pytest.importorskip("openai")
    with pytest.raises(UserError, match=f"api.example.com.* needs a key: set the environment variable {KEY}"):
        run_study(changed(study, **judges), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_reported_before_anything_is_computed(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"needs the openai package: pip install 'tamperfuse\[judge\]'"):
        run_study(changed(study, judges={"grades": GRADES}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_estimates_the_requests(study: Study, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("tamperfuse.study.run.log.info", lambda text, *values: lines.append(text % values))
    rows = [row for path in finished_run.glob("nodes/*/responses.parquet") for row in read_rows(path, Response)]
    responses = sum(row.part not in ("attacker", "defender") for row in rows)
    assert responses > 40
    run_study(changed(study, judges={"grades": GRADES, "phrases": {}}), finished_run, dry_run=True)
    [line] = [line for line in lines if line.startswith("Judge ")]
    assert line.startswith(
        f"Judge grades, at most, if every reply can be parsed: {responses} responses, 0 of them with a stored reply: {responses} "
    )


def test_verdicts_that_exist_and_labels_that_share_a_key_are_not_counted() -> None:
    def node(label: str, kind: str, *parents: Node, responses: int = 0, **about: str) -> Node:
        depends = {"label": label.removesuffix(" again")}
        return Node(label, kind, parents, depends, 0, lambda folder: Outcome(), Costs(), about, responses)

    context = SimpleNamespace(
        judging=SimpleNamespace(name="first"), further_judging=lambda name: SimpleNamespace(name=name)
    )
    first, second = node("a", "attack", responses=5), node("b", "search", responses=7)
    judged = [node("judge a", "judge", first), node("judge a again", "judge", first)]
    further = [node(f"x: judge {n.label}", "further judge", n, judge="x") for n in (first, second)]
    nodes = [first, second, *judged, *further]

    def left(done: set[str]) -> dict[str, int]:
        counts = paid_judges._judges_left(context, nodes, done)  # type: ignore[arg-type]
        return {judging.name: count for judging, count in counts}

    assert left(set()) == {"first": 12, "x": 12}
    assert left({further[0].key, judged[0].key}) == {"first": 7, "x": 7}
    assert left({node.key for node in nodes}) == {}


def test_placeholders_are_as_many_requests_as_there_are_responses() -> None:
    answers = paid_judges._placeholders(120, 70, 8)
    assert len(set(answers)) == 120
    assert {(len(answer.prompt), len(answer.response)) for answer in answers} == {(70, 32)}
    assert "120 responses, 0 of them" in estimate(answers, LlmParameters(model="m"))
