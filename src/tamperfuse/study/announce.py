"""What a run logs: its plan with the cost beforehand, every node when it starts and ends, and where the time went."""

import logging
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from tamperfuse.corpora.threats import shared_prompts
from tamperfuse.records.amounts import duration, gigabytes
from tamperfuse.records.errors import shown
from tamperfuse.records.files import UNFINISHED
from tamperfuse.records.plan import LONGEST, PlannedNode, RunPlan
from tamperfuse.records.timing import WORK
from tamperfuse.study.context import StudyContext
from tamperfuse.study.disk import result_bytes, working_bytes
from tamperfuse.study.estimates import Costs, seconds_for
from tamperfuse.study.node import FinishedNode, Node, work_seconds
from tamperfuse.study.observe import heldout_documents
from tamperfuse.study.remaining import folder_bytes
from tamperfuse.study.selection import reruns_for_steps

log = logging.getLogger("tamperfuse")


def plan_nodes(nodes: Sequence[Node], size: int, workers: int, threads: int) -> RunPlan:
    """The plan of a run, with what every node is expected to take.

    Args:
        nodes: parents first.
        size: parameters of the model.
        workers: number of nodes that run at a time.
        threads: threads of each.
    """
    planned = [
        PlannedNode(
            key=node.key,
            what=node.label,
            kind=node.kind,
            parents=[parent.key for parent in node.reads],
            seconds=min(LONGEST, seconds_for(node.expected, int(node.about.get("trials", 1)), size)),
            disk=min(2**62, result_bytes(node, size)),
            working=min(2**62, working_bytes(node, size)),
        )
        for node in nodes
    ]
    return RunPlan(schema=1, workers=workers, threads=threads, nodes=planned)


def announce(nodes: Sequence[Node], done: Collection[str], out: Path, size: int, disk: int) -> float:
    """Print the nodes, which of them have a result, and what the others will cost.

    Args:
        nodes: parents first.
        done: keys of the nodes with a result.
        out: the run's folder.
        size: parameters of the model.
        disk: bytes that the others need at most at one time.

    Returns:
        The estimated time of the others, in seconds.
    """
    todo = list({node.key: node for node in nodes if node.key not in done}.values())
    log.info("%d nodes, %d of them finished", len(nodes), sum(node.key in done for node in nodes))
    for node in nodes:
        parents = ", ".join(parent.label for parent in node.reads)
        log.info("  %s %s%s", "✓" if node.key in done else "·", node.label, f"  ← {parents}" if parents else "")
    if not todo:
        return 0.0
    if sentence := reruns_for_steps(out, todo):
        log.warning("%s", sentence)
    total = sum((node.expected for node in todo), Costs())
    seconds = seconds_for(total, sum(int(node.about.get("trials", 1)) for node in todo), size)
    log.info(
        "Budget: about %s tokens trained, %s generated, %s scored; %s; at most %s on disk.",
        *(shown(f"{round(value, -3):,}") for value in (total.trained, total.generated, total.scored)),
        time_estimate(seconds),
        gigabytes(disk),
    )
    return seconds


def time_estimate(seconds: float) -> str:
    """An estimated time in words: on a GPU a lower bound."""
    if torch.cuda.is_available():
        return f"at least {duration(seconds)} on this GPU (many times as long for small models, which do not fill it)"
    return f"about {duration(seconds)} on this machine"


def log_fewer(context: StudyContext) -> None:
    """Say where fewer harmless prompts or documents are measured than the study asks for, since no more are built in."""
    evaluate = context.study.evaluate
    for name, limit, there, what in (
        ("harmless", evaluate.harmless, len(context.harmless), "harmless prompts outside the threat"),
        ("heldout", evaluate.heldout, len(heldout_documents(evaluate.heldout)), "held-out documents"),
    ):
        if limit > there:
            log.warning("The study asks for %d %s (`%s`); there are %d, which are all used.", limit, what, name, there)


def log_shared_prompts(context: StudyContext) -> None:
    """Say if the parts that a user's file names share near-duplicates: models are then measured on what they were trained on."""
    if context.threat.named and (shared := shared_prompts(context.threat, context.encoder)):
        log.warning(
            "Near-duplicates in different parts of %s: %d, such as %s and %s. Models are then hardened, attacked and measured "
            "with the same requests: keep them in one part, or leave `part` out, so that the file is split without them.",
            context.threat.source,
            len(shared),
            *(shown(repr(prompt)) for prompt in shared[0]),
        )


def log_left_over(out: Path, keys: Collection[str]) -> None:
    """Name what interrupted nodes left in the folder that are of no node of the study, since nothing removes it.

    Args:
        out: the run's folder.
        keys: of all nodes of the study.
    """
    folders = sorted(folder for folder in (out / UNFINISHED).glob("*/") if folder.name not in keys)
    if folders:
        log.info(
            "%d folders hold resume states of nodes that are not part of this study (%s). If no other study continues here, "
            "remove them: rm -r %s",
            len(folders),
            gigabytes(sum(map(folder_bytes, folders))),
            " ".join(shlex.quote(str(folder)) for folder in folders),
        )


def log_start(place: str) -> None:
    """A node starts."""
    log.info("%s …", place)


def log_end(place: str, done: FinishedNode, *, parallel: bool = False) -> None:
    """A node has a result.

    Args:
        place: number and label of the node.
        done: its result.
        parallel: whether other nodes run at the same time, so that each line has to name its node.
    """
    if done.reused:
        log.info("%s: reused", place)
        return
    record = done.record
    start = f"{place}: " if parallel else "      "
    for note in record["notes"]:
        log.info("%s%s", start, note)
    used = [
        f"{record[name]:,} tokens {word}"
        for name, word in (
            ("tokens_trained", "trained"),
            ("tokens_generated", "generated"),
            ("tokens_scored", "scored"),
        )
        if record[name]
    ]
    log.info(
        "%s%.0f s (%.0f%% training, generating and scoring)%s, peak %.1f GiB",
        start,
        record["seconds"],
        100 * work_seconds(record) / max(record["seconds"], 1e-9),
        "".join(f", {u}" for u in used),
        record["peak_memory_bytes"] / 2**30,
    )


def log_work(finished: Sequence[FinishedNode]) -> None:
    """Print the share of time spent on training, generating and scoring; the rest is loading, the encoder and files."""
    records = {done.node.key: done.record for done in finished}.values()
    seconds = sum(float(record["seconds"]) for record in records)
    parts = {work: sum(float(record.get(f"seconds_{work}", 0.0)) for record in records) for work in WORK}
    log.info(
        "Training, generating and scoring took %.0f%% of %.1f min (%s).",
        100 * sum(parts.values()) / max(seconds, 1e-9),
        seconds / 60,
        ", ".join(f"{work} {100 * part / max(seconds, 1e-9):.0f}%" for work, part in parts.items()),
    )
