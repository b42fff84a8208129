"""Which nodes of a study a run computes, and why some that look finished are computed again."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tamperfuse.records.errors import UserError, shown
from tamperfuse.records.files import NODE, NODES, content_hash, read_json
from tamperfuse.study.node import Node

#: What an attack's key says of the steps at which it is measured.
_STEPS = {"at_steps", "capability_at"}


def select_nodes(nodes: Sequence[Node], patterns: Sequence[str]) -> list[Node]:
    """The nodes whose labels match a pattern, with all nodes that they depend on; all nodes without a pattern.

    Args:
        nodes: of the study, parents first.
        patterns: as in a shell: `*` stands for any characters, `?` for one.

    Raises:
        UserError: a pattern matches no node.
    """
    if not patterns:
        return list(nodes)
    labels: set[str] = set()
    for pattern in patterns:
        matches = {node.label for node in nodes if node.label == pattern or fnmatchcase(node.label, pattern)}
        if not matches:
            near = get_close_matches(pattern, [node.label for node in nodes], n=1, cutoff=0.0)
            raise UserError(
                f"No node of the study matches {shown(repr(pattern))}: the nearest is {near[0]!r}; `*` stands for any "
                "characters, and --dry-run lists all nodes."
            )
        labels |= matches
    for node in reversed(nodes):  # children first
        if node.label in labels:
            labels |= {parent.label for parent in node.reads}
    return [node for node in nodes if node.label in labels]


def reruns_for_steps(run: Path, nodes: Sequence[Node]) -> str:
    """A sentence if attacks that have results in the folder are run again for nothing but other steps; "" otherwise.

    Args:
        run: the run's folder.
        nodes: those without a result.
    """
    attacks = [node for node in nodes if _STEPS & node.depends.keys()]
    if not attacks:
        return ""
    before = {
        _identity(record["kind"], record["parents"], record["seed"], record["depends"]) for record in _records(run)
    }
    again = [node for node in attacks if _identity(node.kind, _parent_keys(node), node.seed, node.depends) in before]
    if not again:
        return ""
    return (
        f"`at_steps` or `capability_at` has changed, so {len(again)} attack{'s' if len(again) > 1 else ''} with results in {run} "
        "will run again from step 0: a model is measured while it is attacked, and its attacked weights are not kept."
    )


def _parent_keys(node: Node) -> list[str]:
    return [parent.key for parent in node.reads]


def _identity(kind: str, parents: Sequence[str], seed: int, depends: dict[str, Any]) -> str:
    """What two attacks share that differ in their steps only."""
    rest = {name: value for name, value in depends.items() if name not in _STEPS}
    return content_hash([kind, list(parents), seed, rest])


def _records(run: Path) -> Iterator[dict[str, Any]]:
    """The node.json of the attacks that have a result in a folder."""
    for path in (run / NODES).glob(f"*/{NODE}"):
        try:
            record = read_json(path)
            if _STEPS & record["depends"].keys():
                yield {name: record[name] for name in ("kind", "parents", "seed", "depends")}
        except (UserError, KeyError, TypeError, AttributeError):  # damaged: it is computed again anyway
            continue
