"""How fast a training is, and how near to what the machine can do.

The useful work of a training is what its matrix products take: two operations for every weight and token going forward, two
for the gradient of what flowed in, and two more for a trained weight's own. The output matrix counts for response tokens
alone. Tokens are those of the samples: a prefix that a batch shares is computed once and counts for each.
"""

import importlib.util
import math
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from tamperfuse.models.precision import compute_dtype
from tamperfuse.records.errors import UserError, unknown_name
from tamperfuse.records.memory import peak_memory
from tamperfuse.records.process import world_size
from tamperfuse.training.parameters import Trainable
from tamperfuse.training.result import FitResult

#: Where a training may report to: transformers' name → the package that must be installed.
REPORTERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


@cache
def matrix_rate(side: int = 1536) -> float:
    """Floating-point operations a second of a square matrix product in the dtype that models run in; takes 0.2 s, once."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, _ = compute_dtype(device)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(6):
        began = time.perf_counter()
        (a @ b)[0, 0].item()
        best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


def useful_work(module: nn.Module, samples: Sequence[Trainable]) -> float:
    """Floating-point operations that training on these samples takes, in matrix products.

    Args:
        module: a causal language model, or an adapter around one; which of its weights train counts.
        samples: each as often as it is trained on.
    """
    tokens = sum(len(sample.tokens) for sample in samples)
    responses = sum(sample.response_tokens for sample in samples)
    read = module.get_input_embeddings().weight  # type: ignore[operator]
    written = module.get_output_embeddings().weight  # type: ignore[operator]
    work, flows_back = 0.0, read.requires_grad
    for weight in module.parameters():
        if weight.ndim < 2 or weight is read or weight is written:
            continue
        work += tokens * weight.numel() * (2 + 2 * flows_back + 2 * weight.requires_grad)
        flows_back = flows_back or weight.requires_grad
    return float(work + responses * written.numel() * (4 + 2 * written.requires_grad))


def speed(result: FitResult, device: torch.device) -> dict[str, float]:
    """What a training did up to its last step, as reported.

    Returns:
        loss: of the last step, nats a response token.
        tokens_per_second: of all processes, hooks and checkpoints left out.
        share_of_limit: useful work against this many processes' rate of matrix products.
        peak_memory_bytes: of this process, on its device.
    """
    done = len(result.losses) / max(result.steps, 1)
    seconds = max(result.seconds, 1e-9)
    limit = matrix_rate() * (world_size() if device.type == "cuda" else 1)  # processes share a machine's cores
    return {
        "loss": result.losses[-1] if result.losses else math.nan,
        "tokens_per_second": done * result.tokens / seconds,
        "share_of_limit": done * result.work / seconds / limit,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory(),
    }


def in_words(values: dict[str, float]) -> str:
    """For a progress bar."""
    return (
        f"loss {values['loss']:.3f} · {values['tokens_per_second']:,.0f} tokens/s · {values['share_of_limit']:.0%} of the "
        f"limit · {values['peak_memory_bytes'] / 2**30:.1f} GiB"
    )


def facts(results: Sequence[FitResult], device: torch.device) -> list[dict[str, Any]]:
    """For a record, of every training in it; what is not finite becomes None."""
    found = []
    for result in results:
        values = {**speed(result, device), "first_loss": result.losses[0], "steps": result.steps}
        found.append({"resumed_at": result.resumed_at, **values})
    return [{k: v if math.isfinite(v) else None for k, v in one.items()} for one in found]


def check_reporters(names: Sequence[str]) -> None:
    """Raises a UserError for a tracker that is unknown or not installed."""
    for name in names:
        if name not in REPORTERS:
            raise unknown_name("tracker", name, REPORTERS)
        if importlib.util.find_spec(REPORTERS[name]) is None:
            raise UserError(f"{name} is not installed: pip install {REPORTERS[name]}, or leave --report-to out.")
