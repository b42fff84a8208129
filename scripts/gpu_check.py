"""Run each path that only a GPU takes once, on the bundled model, and print one line for each. Without a GPU it says so.

python scripts/gpu_check.py

A path whose package is not installed is skipped, and sharding over several GPUs is not covered (docs/training.md says how to
start it). float32, generation and full have run on a GPU, the others have not. Exit code 1 if a path fails.
"""

import copy
import importlib.util
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from unittest.mock import patch

import torch

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.evaluation.generate import generate
from tamperfuse.evaluation.vllm_engine import vllm_generate
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.models.packed import pack, packed_logits
from tamperfuse.training import accelerations
from tamperfuse.training.accelerations import Machine
from tamperfuse.training.fit import fit
from tamperfuse.training.parameters import Training

MODEL = "smollm2-135m"
EXACT = 1e-3  # largest difference of two logits in float32, as a share of their spread
NEW_TOKENS = 64


class Skipped(Exception):
    """Why a path is not run."""


def needs(package: str) -> None:
    """Skip a path if a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise Skipped(f"{package} is not installed")


def samples(loaded: LoadedModel) -> list[Sample]:
    """Samples to train on."""
    rows = builtin_rows("benign")[:64]
    return [loaded.chat.sample(row["prompt"] or "Go on.", row["response"], 64) for row in rows]


def prompts(loaded: LoadedModel) -> list[list[int]]:
    """Prompts to answer."""
    return [loaded.chat.prompt(row["prompt"]) for row in builtin_rows("cooking")[:64]]


@torch.no_grad()
def float32(loaded: LoadedModel) -> str:
    """Logits of a packed row are those of the CPU."""
    sequences = prompts(loaded)[:8]
    on_cpu = copy.deepcopy(loaded.model).to("cpu")
    logits = []
    for model in (loaded.model, on_cpu):
        row, layout = pack(sequences, 1024, model.device)
        positions = torch.arange(row.shape[1], device=model.device)
        logits.append(packed_logits(model, row, layout, positions).float().cpu())
    difference = float((logits[0] - logits[1]).abs().max() / logits[1].std())
    if not difference <= EXACT:
        raise ValueError(f"logits differ from those on the CPU by {difference:.1g} of their spread")
    return f"largest difference from the CPU {difference:.0e} of the logits' spread"


def generation(loaded: LoadedModel) -> str:
    """Greedy decoding."""
    start = time.perf_counter()
    answers = generate(loaded, prompts(loaded), new_tokens=NEW_TOKENS)
    return f"{sum(map(len, answers)) / (time.perf_counter() - start):,.0f} tokens/s"


def trained(loaded: LoadedModel, training: Training) -> str:
    """Train, and check that the loss falls."""
    result = fit(loaded, samples(loaded), training, seed=0)
    quarter = max(1, len(result.losses) // 4)
    first, last = (sum(part) / quarter for part in (result.losses[:quarter], result.losses[-quarter:]))
    if not last < first:
        raise ValueError(f"the loss went from {first:.3f} to {last:.3f}")
    return f"loss {first:.3f} to {last:.3f}, {result.tokens / result.seconds:,.0f} tokens/s"


def full(loaded: LoadedModel) -> str:
    """All weights, without other libraries."""
    return trained(loaded, Training(steps=20, batch=16))


def liger(loaded: LoadedModel) -> str:
    """Fused kernels."""
    needs("liger_kernel")
    return trained(loaded, Training(steps=20, batch=16))


def eight_bit(loaded: LoadedModel) -> str:
    """Gradient checkpointing and the 8-bit optimizer, as on a GPU without memory."""
    needs("bitsandbytes")
    small = Machine("cuda", 1, frozenset({"bitsandbytes"}))
    with patch.object(accelerations.Machine, "of", lambda device: small):
        return trained(loaded, Training(steps=20, batch=16))


def qlora(loaded: LoadedModel) -> str:
    """An adapter on weights in 4 bits."""
    needs("bitsandbytes")
    return trained(loaded, Training(steps=20, batch=16, method="qlora", learning_rate=1e-3))


def vllm(loaded: LoadedModel) -> str:
    """Generation with vLLM, beside this package's."""
    needs("vllm")
    start = time.perf_counter()
    answers = vllm_generate(loaded, prompts(loaded), NEW_TOKENS, None)
    seconds = time.perf_counter() - start
    same = sum(a == b for a, b in zip(answers, generate(loaded, prompts(loaded), new_tokens=NEW_TOKENS), strict=True))
    return f"{sum(map(len, answers)) / seconds:,.0f} tokens/s with the start, {same} of {len(answers)} answers equal"


PATHS: tuple[Callable[[LoadedModel], str], ...] = (float32, generation, full, liger, eight_bit, qlora, vllm)


def main(paths: Sequence[Callable[[LoadedModel], str]] = PATHS) -> int:
    """Run the paths; the exit code."""
    if not torch.cuda.is_available():
        print("No GPU: nothing was run.")
        return 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    failed = False
    for path in paths:
        try:
            line = path(load_model(MODEL))
        except Skipped as reason:
            line = f"skipped, {reason}"
        except Exception:
            failed, line = True, "FAILED"
            traceback.print_exc()
        print(f"{path.__name__}: {line}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
