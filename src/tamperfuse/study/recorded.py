"""The nodes of a finished run, as the run recorded them: to read what it measured without its model, its data or its versions.

`study.yaml` says which nodes there are, `run.json` which folder each has.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from tamperfuse.attacks import ATTACKS
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import NODE, read_json
from tamperfuse.records.reading import path_exists
from tamperfuse.records.results import AS_SHIPPED
from tamperfuse.records.run import read_run
from tamperfuse.study.data_nodes import ANSWERS
from tamperfuse.study.estimates import Costs
from tamperfuse.study.further_judges import FURTHER_JUDGE
from tamperfuse.study.labels import attack_label, before_attack_label, hardened_label, judge_label
from tamperfuse.study.node import FinishedNode, Node, damage_of, node_folder
from tamperfuse.study.sections import AttackSpec
from tamperfuse.study.spec import Study


@dataclass(frozen=True)
class RecordedNode(Node):
    """A node by the key that a run recorded; it is read, and never run."""

    recorded_key: str = ""

    @cached_property
    def key(self) -> str:
        """16 hex digits; the name of the node's folder."""
        return self.recorded_key


@dataclass(frozen=True)
class RecordedRun:
    """The nodes of a finished run that results are computed from.

    Attributes:
        answers: the compliant answers, with which judges are calibrated.
        observed: nodes with responses.
        judged: verdicts of the judge that decides, except on searches, which hold theirs.
        further: verdicts of the further judges.
    """

    answers: RecordedNode
    observed: list[FinishedNode]
    judged: list[FinishedNode]
    further: list[FinishedNode]


def read_recorded(run: Path, study: Study) -> RecordedRun:
    """Look up the nodes of a finished run.

    Args:
        run: its folder.
        study: its study, as it resolved it.

    Raises:
        UserError: `run.json` does not name a node, or its folder is missing or damaged.
    """
    keys = {node.what: node.key for node in read_run(run).nodes}
    answers = _node(run, keys, ANSWERS, ANSWERS)
    observed = [_node(run, keys, label, kind, seed, about) for label, kind, seed, about in _observed(study)]
    judged = [_node(run, keys, judge_label(n), "judge", parents=(n,)) for n in observed if n.kind != "search"]
    further = [
        _node(run, keys, judge_label(node, name), FURTHER_JUDGE, 0, {"judge": name}, (node,))
        for name in study.judges
        for node in observed
    ]
    return RecordedRun(answers, *([_finished(run, node) for node in nodes] for nodes in (observed, judged, further)))


def _observed(study: Study) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """Label, kind, seed and `about` of the nodes with responses, as the plan of the study has them."""
    before = {"attack": "", "malicious": False}
    yield before_attack_label(AS_SHIPPED), "measure", 0, {"defense": AS_SHIPPED, **before}
    for seed in study.seeds:
        for name in study.ordered_defenses():
            yield before_attack_label(hardened_label(name, seed)), "measure", seed, {"defense": name, **before}
            for attack, spec in study.attacks.items():
                about = {"defense": name, "attack": attack, **_traits(attack, spec)}
                yield attack_label(name, attack, seed), "search" if spec.search else "attack", seed, about


def _traits(attack: str, spec: AttackSpec) -> dict[str, Any]:
    component = ATTACKS.get(spec.attack)
    tried = {name: values[0] for name, values in spec.search.over.items()} if spec.search else {}
    budget = component.traits.budget(component.parse({**spec.parameters, **tried}, f"attack {attack}"))
    return {"malicious": component.traits.malicious or bool(spec.search), "has_steps": budget.trains}


def _node(
    run: Path,
    keys: Mapping[str, str],
    label: str,
    kind: str,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    parents: tuple[Node, ...] = (),
) -> RecordedNode:
    if label not in keys:
        raise UserError(f"{run / 'run.json'} does not name the node {label!r}: run the study in {run} again.")
    return RecordedNode(label, kind, parents, {}, seed, _never, Costs(), dict(about or {}), recorded_key=keys[label])


def _finished(run: Path, node: RecordedNode) -> FinishedNode:
    folder = node_folder(run, node)
    if not path_exists(folder / NODE):
        raise UserError(
            f"{folder}, the responses or verdicts of {node.label!r}, is missing: run the study again (published results have no "
            "nodes)."
        )
    if damage := damage_of(folder):
        raise UserError(f"{damage}: run the study in {run} again.")
    return FinishedNode(node, folder, read_json(folder / NODE), reused=True)


def _never(folder: Path) -> NoReturn:
    raise AssertionError(f"a recorded node is never run: {folder}")
