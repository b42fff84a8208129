"""Training speed, and its share of the machine's peak matrix-product rate.

The useful work of a training is that of its matrix products: for every weight and token, two floating-point operations in the
forward pass, two for the gradient of the layer's input, and two for the gradient of the weight if it is trained. The output
matrix counts for response tokens only. Tokens are those of the samples: a prefix that a batch shares is computed once, but
counts for every sample.
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
from tamperfuse.training.parameters import Trainable, sequences_of
from tamperfuse.training.result import FitResult

#: Trackers that a training can report to: transformers' name → the package that must be installed.
REPORTERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


@cache
def matrix_rate(side: int = 1536) -> float:
    """Floating-point operations per second of a (side × side) matrix product in the compute dtype; measured once, in 0.2 s."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, _ = compute_dtype(device)
    # Its own generator: a draw from the global one would change the results of the training that asks for the rate.
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(6):
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


def useful_work(module: nn.Module, samples: Sequence[Trainable]) -> float:
    """Floating-point operations of the matrix products in training on these samples.

    Of a mixture of experts all experts are counted for every token, also those that it does not pass through. Sequences that an
    objective runs several times in a step are counted once.

    Args:
        module: a causal language model, or an adapter around one, with its trained weights marked.
        samples: each sample as often as it is trained on.
    """
    tokens = sum(len(sample.tokens) for sample in samples)
    responses = sum(sequence.response_tokens for sample in samples for sequence in sequences_of(sample))
    input_weight = module.get_input_embeddings().weight  # type: ignore[operator]
    output_weight = module.get_output_embeddings().weight  # type: ignore[operator]
    work, input_gradient = 0.0, input_weight.requires_grad
    for weight in module.parameters():
        if weight.ndim < 2 or weight is input_weight or weight is output_weight:
            continue
        work += tokens * weight.numel() * (2 + 2 * input_gradient + 2 * weight.requires_grad)
        input_gradient = input_gradient or weight.requires_grad
    return float(work + responses * output_weight.numel() * (4 + 2 * output_weight.requires_grad))


def speed(result: FitResult, device: torch.device) -> dict[str, float]:
    """Speed of a training up to its last completed step.

    Returns:
        loss: of the last step.
        tokens_per_second: of all processes together, without the time of hooks and checkpoints.
        share_of_limit: useful work per second, divided by the matrix-product rate of all processes' devices.
        peak_memory_bytes: of this process, on its device.
    """
    share_done = len(result.losses) / max(result.steps, 1)
    seconds = max(result.seconds, 1e-9)
    limit = matrix_rate() * (world_size() if device.type == "cuda" else 1)  # on a CPU, processes share the cores
    return {
        "loss": result.losses[-1] if result.losses else math.nan,
        "tokens_per_second": share_done * result.tokens / seconds,
        "share_of_limit": share_done * result.work / seconds / limit,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory(),
    }


def format_speed(values: dict[str, float]) -> str:
    """The values of :func:`speed` for a progress bar."""
    return (
        f"loss {values['loss']:.3f} · {values['tokens_per_second']:,.0f} tokens/s · {values['share_of_limit']:.0%} of the "
        f"limit · {values['peak_memory_bytes'] / 2**30:.1f} GiB"
    )


def training_facts(results: Sequence[FitResult], device: torch.device) -> list[dict[str, Any]]:
    """A JSON-able record of each training; values that are not finite become None."""
    records = [
        {
            "resumed_at": result.resumed_at,
            **speed(result, device),
            "first_loss": result.losses[0],
            "steps": result.steps,
        }
        for result in results
    ]
    return [{name: value if math.isfinite(value) else None for name, value in record.items()} for record in records]


def check_reporters(names: Sequence[str]) -> None:
    """Check names of trackers.

    Raises:
        UserError: a tracker is unknown or its package is not installed.
    """
    for name in names:
        if name not in REPORTERS:
            raise unknown_name("tracker", name, REPORTERS)
        if importlib.util.find_spec(REPORTERS[name]) is None:
            raise UserError(f"{name} is not installed: pip install {REPORTERS[name]}, or leave --report-to out.")
