"""Tokens and time that a study will take, estimated before it runs."""

from dataclasses import dataclass

from tamperfuse.records.registry import Budget
from tamperfuse.study.spec import Evaluate
from tamperfuse.training.telemetry import matrix_rate

PROMPT_TOKENS = 42  # of a prompt in its chat template
ITEMS = 2_000  # capability items of a task, where all are measured
# Useful arithmetic as a share of the machine's matrix product rate, measured on SmolLM2-135M in bfloat16 on two cores.
TRAIN_SHARE, DECODE_SHARE, SCORE_SHARE = 0.65, 0.32, 0.70
OVERHEAD_SECONDS = 6.0  # of a node: loading a model, writing results


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
    return budget.steps * budget.batch * (PROMPT_TOKENS + evaluate.response_tokens)


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
    return generated * 2 * (PROMPT_TOKENS + evaluate.response_tokens) // evaluate.response_tokens


def seconds_for(costs: Costs, nodes: int, size: int) -> float:
    """Time that some work takes on this machine.

    Args:
        costs: tokens.
        nodes: nodes, or trials of a search, that share the work.
        size: parameters of the model.
    """
    forward = 2 * size / matrix_rate()
    seconds = costs.trained * 3 * forward / TRAIN_SHARE
    seconds += costs.generated * forward / DECODE_SHARE + costs.scored * forward / SCORE_SHARE
    return seconds + nodes * OVERHEAD_SECONDS
