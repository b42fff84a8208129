"""What each CPU kernel gains: time and memory with all kernels on, against the same work with one of them off.

    python benchmarks/cpu_kernels.py [--quick] [--kernels NAME …]

The work is that of the other benchmarks, on SmolLM2-135M-Instruct, in small pieces: full fine-tuning and LoRA
(`training_speed.py`), greedy generation (`generation_speed.py`) and scoring (`scoring_speed.py`), in the device's fastest dtype.
A kernel is measured on the work that it takes part in. One process does the work with all kernels, with each one off, and with
none, in turn, and repeats that; a gain is the median over the rounds of a ratio within one round, so slow changes of the
machine's speed cancel. `large_pages` is the allocation of large tensors in huge pages (`THP_MEM_ALLOC_ENABLE`), which is part of
the same switch; it is chosen when a process starts, so it is compared between processes.

Results are only meaningful on a machine that does nothing else. The last line is JSON:

    ours, rival    tokens per second of full fine-tuning, all kernels on and all off
    gain           for each kernel and kind of work: time with this kernel off / time with all on; above 1, the kernel is faster
    memory_mib     the same for peak memory: with this kernel off − with all on, in MiB
"""

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import tamperfuse  # noqa: F401  # before torch, as on the command line: it sets how memory is allocated

# isort: split
import torch

import generation_speed
import scoring_speed
import training_speed
from tamperfuse.models.cpu import KERNELS, VARIABLE

LARGE_PAGES, PAGES_VARIABLE = "large_pages", "THP_MEM_ALLOC_ENABLE"
ON, OFF = "", "all"
WORK = ("full", "lora", "generation", "scoring")
# The work that each kernel takes part in.
KERNEL_WORK = {
    "short_attention": ("full", "lora"),
    "kv_cache": ("generation",),
    "packed_tree": ("scoring",),
    "lora_linear": ("lora",),
    "cross_entropy": ("full", "lora"),
    LARGE_PAGES: WORK,
}


@dataclass(frozen=True)
class Measurement:
    """Seconds for one piece of work, its tokens, and the process's peak resident memory meanwhile, in bytes."""

    seconds: float
    tokens: int
    peak: int


@contextmanager
def kernels(off: str) -> Iterator[None]:
    """Select the kernels: one off, or all of them (:data:`OFF`), or none (:data:`ON`)."""
    selected = "0" if off == OFF else ",".join(name for name in KERNELS if name != off)
    with mock.patch.dict(os.environ, {VARIABLE: selected}):
        yield


def piece(work: str) -> Callable[[str], Measurement]:
    """Prepare one kind of work; the result does a piece of it, with one kernel off."""
    from tamperfuse.evaluation.capability import lm_eval_model
    from tamperfuse.evaluation.generate import generate
    from tamperfuse.models.load import load_model
    from tamperfuse.records.memory import peak_memory, reset_peak_memory
    from tamperfuse.records.timing import measure_work
    from tamperfuse.training.fit import Training, fit

    loaded = load_model(training_speed.MODEL)
    samples = [loaded.chat.sample(p, r, training_speed.RESPONSE_LIMIT) for p, r in training_speed.rows()[:8]]
    prompts = [loaded.chat.prompt(prompt) for prompt in generation_speed.prompts(96)]
    training = Training.model_validate({"steps": 1, "batch": 8, "learning_rate": 5e-7, "method": "full"})

    def run(off: str) -> Measurement:
        reset_peak_memory()
        with kernels(off):
            if work in ("full", "lora"):
                result = fit(loaded, samples, training.model_copy(update={"method": work}), seed=0)
                seconds, tokens = result.seconds, result.tokens
            elif work == "generation":
                with measure_work() as spent:
                    tokens = sum(map(len, generate(loaded, prompts, new_tokens=24)))
                seconds = spent["generating"]
            else:
                scored = scoring_speed.timed(lm_eval_model(loaded), 40)
                seconds, tokens = scored.seconds, scored.tokens
        return Measurement(seconds, tokens, peak_memory())

    return run


def measure(work: str, settings: Sequence[str], rounds: int) -> dict[str, list[Measurement]]:
    """Do one kind of work with each setting, in turn, several times; the first round is not counted."""
    run = piece(work)
    measured: dict[str, list[Measurement]] = {setting: [] for setting in settings}
    for number in range(rounds + 1):
        for setting in settings:
            one = run(setting)
            if number:
                measured[setting].append(one)
    return measured


def in_process(work: str, settings: Sequence[str], rounds: int, pages: bool = True) -> dict[str, list[Measurement]]:
    """:func:`measure` in a process of its own, with or without huge pages."""
    with (
        mock.patch.dict(os.environ, {PAGES_VARIABLE: str(int(pages))}),
        multiprocessing.get_context("spawn").Pool(1) as pool,
    ):
        return pool.apply(measure, (work, settings, rounds))


def gain(on: Sequence[Measurement], off: Sequence[Measurement]) -> tuple[float, float]:
    """Time off / time on, and peak memory off − on in MiB: medians over the rounds."""
    pairs = list(zip(on, off, strict=True))
    ratio = statistics.median(b.seconds / a.seconds for a, b in pairs)
    return round(ratio, 3), round(statistics.median(b.peak - a.peak for a, b in pairs) / 2**20)


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--kernels", nargs="+", choices=list(KERNEL_WORK), default=list(KERNEL_WORK), help="only these")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else 5
    gains: dict[str, dict[str, float]] = {kernel: {} for kernel in arguments.kernels}
    memory: dict[str, dict[str, float]] = {kernel: {} for kernel in arguments.kernels}
    rate: dict[str, dict[str, float]] = {ON: {}, OFF: {}}
    for work in WORK:
        named = [kernel for kernel in arguments.kernels if work in KERNEL_WORK[kernel] and kernel != LARGE_PAGES]
        measured = in_process(work, (ON, *named, OFF), rounds)
        for kernel in named:
            gains[kernel][work], memory[kernel][work] = gain(measured[ON], measured[kernel])
        if LARGE_PAGES in arguments.kernels:
            without = in_process(work, (ON,), rounds, pages=False)
            again = in_process(work, (ON,), rounds)
            gains[LARGE_PAGES][work], memory[LARGE_PAGES][work] = gain(again[ON], without[ON])
        for setting in (ON, OFF):
            rate[setting][work] = round(statistics.median(m.tokens / m.seconds for m in measured[setting]), 1)
        print(work, {kernel: gains[kernel][work] for kernel in arguments.kernels if work in gains[kernel]}, flush=True)
    print(
        json.dumps(
            {
                "benchmark": "cpu_kernels",
                "ours": rate[ON]["full"],
                "rival": rate[OFF]["full"],
                "unit": "useful tokens/s, full fine-tuning",
                "ratio": round(rate[ON]["full"] / rate[OFF]["full"], 2),
                "all_on": rate[ON],
                "all_off": rate[OFF],
                "gain": gains,
                "memory_mib": memory,
                "model": training_speed.MODEL,
                "threads": torch.get_num_threads(),
                "rounds": rounds,
            }
        )
    )


if __name__ == "__main__":
    main()
