"""What each CPU kernel gains: tokens per second with all kernels on, against the same work with one of them off.

    python benchmarks/cpu_kernels.py [--quick] [--kernels NAME …]

The work is that of the other benchmarks, on SmolLM2-135M-Instruct: full fine-tuning and LoRA on batches of 24 (6 with `--quick`)
(`training_speed.py`), greedy generation (`generation_speed.py`) and scoring (`scoring_speed.py`), in the device's fastest dtype.
A kernel is measured on the work that it takes part in. Every measurement runs in a process of its own, with
`TAMPERFUSE_CPU_KERNELS` set; all of them take turns, and a rate is the best of its rounds. `large_pages` is the allocation of
large tensors in huge pages (`THP_MEM_ALLOC_ENABLE`), which is part of the same switch.

Results are only meaningful on a machine that does nothing else. The last line is JSON:

    ours, rival    tokens per second of full fine-tuning, all kernels on and all off
    gain           for each kernel and kind of work: tokens per second with all kernels on / with this one off
    memory         the same for peak memory: with this kernel off / with all on
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import tamperfuse  # noqa: F401  # before torch, as on the command line: it sets how memory is allocated

# isort: split
import torch

import generation_speed
import scoring_speed
import training_speed
from tamperfuse.models.cpu import KERNELS, VARIABLE

LARGE_PAGES, PAGES_VARIABLE = "large_pages", "THP_MEM_ALLOC_ENABLE"
# The work that each kernel takes part in.
WORK = {
    "fused_layers": ("full", "lora", "generation", "scoring"),
    "short_attention": ("full", "lora", "generation", "scoring"),
    "prepacked_linear": ("generation",),
    "kv_cache": ("generation",),
    "packed_tree": ("scoring",),
    "two_threads": ("full", "lora", "scoring"),
    "lora_linear": ("lora",),
    "cross_entropy": ("full", "lora"),
    LARGE_PAGES: ("full", "lora", "generation", "scoring"),
}


@dataclass(frozen=True)
class Measurement:
    """Tokens per second, and the process's peak resident memory in bytes."""

    rate: float
    peak: int


def measure(work: str, quick: bool) -> Measurement:
    """Do one kind of work in this process, with the kernels that the environment selects."""
    from tamperfuse.models.precision import compute_dtype

    if work in ("full", "lora"):
        training = training_speed.train(*((2, work, 6) if quick else (8, work, training_speed.BATCH)))
        return Measurement(training["tokens"] / training["seconds"], int(training["peak"]))
    if work == "generation":
        dtype, _ = compute_dtype(torch.device("cpu"))
        generation = generation_speed.ours(generation_speed.Workload(*((48, 24) if quick else (160, 64)), dtype))
        return Measurement(generation.rate, generation.peak)
    scoring = scoring_speed.ours(60 if quick else 500)
    return Measurement(scoring.rate, scoring.peak)


@contextmanager
def kernels(off: str) -> Iterator[None]:
    """Set the environment of child processes: one kernel off, "" for all on, "all" for all off."""
    before = {name: os.environ.get(name) for name in (VARIABLE, PAGES_VARIABLE)}
    os.environ[VARIABLE] = "0" if off == "all" else ",".join(name for name in KERNELS if name != off)
    os.environ[PAGES_VARIABLE] = "0" if off in ("all", LARGE_PAGES) else "1"
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def measure_alone(off: str, work: str, quick: bool) -> Measurement:
    """One measurement in a process of its own."""
    with kernels(off), multiprocessing.get_context("spawn").Pool(1) as pool:
        result: Measurement = pool.apply(measure, (work, quick))
    print(f"{work}, {f'{off} off' if off else 'all on'}: {result.rate:.0f} tokens/s, peak {result.peak / 2**30:.2f} GiB",
          flush=True)  # fmt: skip
    return result


def best(rounds: list[Measurement]) -> Measurement:
    """The highest rate and the lowest peak of several rounds."""
    return Measurement(max(one.rate for one in rounds), min(one.peak for one in rounds))


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of less work")
    parser.add_argument("--kernels", nargs="+", choices=list(WORK), default=list(WORK), help="measure only these")
    arguments = parser.parse_args()
    gain: dict[str, dict[str, float]] = {kernel: {} for kernel in arguments.kernels}
    memory: dict[str, dict[str, float]] = {kernel: {} for kernel in arguments.kernels}
    on, off = {}, {}
    for work in ("full", "lora", "generation", "scoring"):
        measured = [kernel for kernel in arguments.kernels if work in WORK[kernel]]
        rounds = [
            {setting: measure_alone(setting, work, arguments.quick) for setting in ("", *measured, "all")}
            for _ in range(1 if arguments.quick else 3)
        ]
        results = {setting: best([one[setting] for one in rounds]) for setting in rounds[0]}
        on[work], off[work] = results[""], results["all"]
        for kernel in measured:
            gain[kernel][work] = round(on[work].rate / results[kernel].rate, 3)
            memory[kernel][work] = round(results[kernel].peak / on[work].peak, 3)
    print(
        json.dumps(
            {
                "benchmark": "cpu_kernels",
                "ours": round(on["full"].rate, 1),
                "rival": round(off["full"].rate, 1),
                "unit": "useful tokens/s, full fine-tuning",
                "ratio": round(on["full"].rate / off["full"].rate, 2),
                "all_on": {work: round(one.rate, 1) for work, one in on.items()},
                "all_off": {work: round(one.rate, 1) for work, one in off.items()},
                "gain": gain,
                "memory": memory,
                "model": training_speed.MODEL,
                "threads": torch.get_num_threads(),
                "quick": arguments.quick,
            }
        )
    )


if __name__ == "__main__":
    main()
