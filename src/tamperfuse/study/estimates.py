"""Tokens and time that a study will take, estimated before it runs."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from tamperfuse.records.amounts import gigabytes
from tamperfuse.records.errors import UserError
from tamperfuse.records.memory import machine_memory
from tamperfuse.records.reading import path_exists
from tamperfuse.records.registry import Budget
from tamperfuse.study.sections import Evaluate
from tamperfuse.training.telemetry import matrix_rate

CHAT_PROMPT_TOKENS = 42  # of a prompt in its chat template
ITEMS = 2_000  # capability items of a task, where all are measured
# Useful arithmetic as a share of the machine's matrix product rate, measured on SmolLM2-135M in bfloat16 on two cores.
TRAIN_SHARE, DECODE_SHARE, SCORE_SHARE = 0.65, 0.32, 0.70
LONGEST_DAYS = 30  # that a study may take without confirmation
LARGEST_COUNT = 2**62  # tokens or nodes
BYTES_PER_PARAMETER = 4  # float32
# Main memory of a node: of a parameter where none is trained, and of libraries, activations and the encoder.
OTHER_MEMORY, OVERHEAD_MEMORY = 6, 2 * 2**30
OVERHEAD_SECONDS = 6.0  # of a node: loading a model, writing results


# An assumption for GPUs, not a measurement: the share of the rate in its data sheet that training and scoring reach, and
# generation, which memory limits. The tables of docs/cost.md rest on it too.
UTILISATION, DECODING = 0.4, 0.1


@dataclass(frozen=True)
class Accelerator:
    """A GPU by its data sheet.

    Attributes:
        name: of the product.
        rate: dense bfloat16 operations per second.
        memory: bytes.
    """

    name: str
    rate: float
    memory: float


H100 = Accelerator("NVIDIA H100 SXM", 989e12, 80e9)
ACCELERATORS = (H100, Accelerator("NVIDIA H200 SXM", 989e12, 141e9))


@dataclass(frozen=True)
class Speed:
    """Arithmetic of a device.

    Attributes:
        rate: operations per second of a large matrix product.
        training: share of it that training reaches, in (0, 1].
        decoding: likewise, generation.
        scoring: likewise, scoring.
    """

    rate: float
    training: float
    decoding: float
    scoring: float

    @classmethod
    def here(cls) -> "Speed":
        """That of this machine: of a GPU by the assumed utilisation, which small models do not reach."""
        if torch.cuda.is_available():
            return cls(matrix_rate(), UTILISATION, DECODING, UTILISATION)
        return cls(matrix_rate(), TRAIN_SHARE, DECODE_SHARE, SCORE_SHARE)

    @classmethod
    def of(cls, accelerator: Accelerator) -> "Speed":
        """That of an accelerator, by its data sheet and the assumed utilisation."""
        return cls(accelerator.rate, UTILISATION, DECODING, UTILISATION)


@dataclass
class Costs:
    """Tokens that a node uses: an estimate before it runs, a count afterwards."""

    trained: int = 0
    generated: int = 0
    scored: int = 0

    def __add__(self, other: "Costs") -> "Costs":
        return Costs(self.trained + other.trained, self.generated + other.generated, self.scored + other.scored)


def training_tokens(budget: Budget, evaluate: Evaluate) -> int:
    """Tokens that a training takes."""
    return budget.steps * budget.batch * (CHAT_PROMPT_TOKENS + evaluate.response_tokens)


def capability_tokens(evaluate: Evaluate, *, documents: bool = True) -> int:
    """Tokens scored to measure capability once.

    Args:
        evaluate: what is measured.
        documents: whether the documents for benign NLL are included.
    """
    items = ITEMS if evaluate.capability_items == "all" else evaluate.capability_items
    return items * 4 * 20 + items * 2 * 9 + (evaluate.heldout * 150 if documents else 0)


def judging_tokens(generated: int, evaluate: Evaluate) -> int:
    """Tokens that the reference model scores to judge so many generated ones: each answer under two prompts."""
    return generated * 2 * (CHAT_PROMPT_TOKENS + evaluate.response_tokens) // evaluate.response_tokens


def memory_needed(size: int, copies: int | None) -> int:
    """Main memory that a node needs, in bytes; docs/cost.md compares it with measured peaks.

    Args:
        size: parameters of the model.
        copies: of the weights in float32 that a training holds; None for a node that trains nothing.
    """
    return OVERHEAD_MEMORY + size * (OTHER_MEMORY if copies is None else copies * BYTES_PER_PARAMETER)


def check_affordable(seconds: float, disk: int, size: int, out: Path, *, confirmed: bool, processes: int = 1) -> None:
    """Check, before anything runs, that this machine can hold the work and ends it within 30 days.

    Args:
        seconds: estimated time.
        disk: bytes that the rest of the run needs at most at one time.
        size: parameters of the model.
        out: the run's folder.
        confirmed: whether the user accepts a longer time.
        processes: that hold a model each on this machine.

    Raises:
        UserError: the models do not fit into memory, the results do not fit on the disk, or the time is longer.
    """
    weights, memory = BYTES_PER_PARAMETER * size, machine_memory()
    if not torch.cuda.is_available() and processes * weights > memory:
        where = f" in each of {processes} processes" if processes > 1 else ""
        raise UserError(
            f"The model's weights take {_gib(weights)} in float32{where}, and this machine has {_gib(memory)} of memory: use a "
            f"larger machine or a smaller model{', or fewer workers' if processes > 1 else ''}."
        )
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path_exists(path))
    free = shutil.disk_usage(existing).free
    if disk > free:
        raise UserError(
            f"The study writes up to {gigabytes(disk)} of models, resume states and results, and the disk of {out} has "
            f"{gigabytes(free)} free: free some space, choose another --out, or lower the number of defenses or seeds."
        )
    if seconds > LONGEST_DAYS * 86_400 and not confirmed:
        days = f"{seconds / 86_400:,.0f}" if seconds < 1e15 else "more than a billion"
        raise UserError(
            f"The study would take about {days} days on this machine: lower its sizes (steps, batch, trials, prompts, "
            "response_tokens, seeds), or start it all the same with --yes of `tamperfuse run`."
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def seconds_for(costs: Costs, nodes: int, size: int, speed: Speed | None = None) -> float:
    """Time that some work takes; infinity for sizes beyond any machine.

    Args:
        costs: tokens.
        nodes: nodes, or trials of a search, that share the work.
        size: parameters of the model.
        speed: of the device; None for this machine.
    """
    if max(costs.trained, costs.generated, costs.scored, nodes) > LARGEST_COUNT:
        return math.inf
    speed = speed or Speed.here()
    forward = 2 * size / speed.rate
    seconds = costs.trained * 3 * forward / speed.training
    seconds += costs.generated * forward / speed.decoding + costs.scored * forward / speed.scoring
    return seconds + nodes * OVERHEAD_SECONDS
