"""Tokens per second of scoring: tamperfuse against lm-eval's own loop, on the same items in the same run.

    python benchmarks/scoring_speed.py [--quick]

The items are lm-eval's requests for the bundled tasks: every question of `everyday` with each of its four choices, and 500
minimal pairs of `grammar`. The rival is lm-eval's HFLM in batches of 32, with the same weights and dtype. Tokens are those of
contexts and continuations of all requests, however often a side computes them. Tokenization is included on both sides. Each
side runs in a process of its own; they take turns, and a side's rate is the better of its rounds. The last line is JSON;
`same_choice` is the share of questions on which both sides make the same choice.
"""

import argparse
import json
import multiprocessing
import time
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import tamperfuse  # noqa: F401  # before torch, as on the command line: it sets how memory is allocated

# isort: split
import torch

MODEL, BATCH = "smollm2-135m", 32


@dataclass(frozen=True)
class Run:
    """One measurement: (log p, greedy) of every request, useful tokens, seconds, peak resident memory in bytes."""

    results: list[tuple[float, bool]]
    tokens: int
    seconds: float
    peak: int

    @property
    def rate(self) -> float:
        """Useful tokens per second."""
        return self.tokens / self.seconds


def requests(limit: int) -> list[Any]:
    """lm-eval's requests for the bundled tasks; at most `limit` items a task."""
    from tamperfuse.evaluation.capability_tasks import BUILTIN_TASKS, load_tasks

    instances = []
    for task in (part for group in load_tasks(BUILTIN_TASKS) for part in group.parts):
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        instances += task.instances
    return instances


def ours(limit: int) -> Run:
    """tamperfuse.evaluation.score, through the capability tasks' interface to lm-eval."""
    from tamperfuse.evaluation.capability import lm_eval_model
    from tamperfuse.models.load import load_model

    return timed(lm_eval_model(load_model(MODEL)), limit)


def rival(limit: int) -> Run:
    """lm-eval's HFLM."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    from tamperfuse.models.load import load_model, resolve_model
    from tamperfuse.models.precision import compute_dtype

    dtype, _ = compute_dtype(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    model = AutoModelForCausalLM.from_pretrained(str(resolve_model(MODEL) or MODEL), dtype=dtype)
    return timed(HFLM(pretrained=model, tokenizer=load_model(MODEL).tokenizer, batch_size=BATCH), limit)


def timed(side: Any, limit: int) -> Run:
    """Measure one side on all requests."""
    from tamperfuse.models.load import load_model
    from tamperfuse.records.memory import peak_memory

    instances = requests(limit)
    tokenizer = load_model(MODEL).tokenizer
    tokens = sum(len(ids) for ids in tokenizer(["".join(request.args) for request in instances])["input_ids"])
    side.loglikelihood(instances[:8])  # warm-up, not counted
    start = time.perf_counter()
    results = side.loglikelihood(instances)
    seconds = time.perf_counter() - start
    return Run(results, tokens, seconds, peak_memory())


def measure(name: str, limit: int) -> Run:
    """One measurement in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        run: Run = pool.apply({"ours": ours, "rival": rival}[name], (limit,))
    print(f"{name}: {run.tokens:,} tokens in {run.seconds:.1f} s, {run.rate:.0f} tokens/s, "
          f"peak {run.peak / 2**30:.2f} GiB", flush=True)  # fmt: skip
    return run


def choices(instances: list[Any], run: Run) -> list[int]:
    """The choice with the highest log p of every question."""
    answered = zip(instances, run.results, strict=True)
    by_question = (list(group) for _, group in groupby(answered, key=lambda pair: (pair[0].task_name, pair[0].doc_id)))
    return [max(range(len(q)), key=lambda i: q[i][1][0]) for q in by_question]


def main() -> None:
    """Measure both sides and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 items a task, one round")
    quick = parser.parse_args().quick
    limit = 60 if quick else 500
    rounds = [(measure("ours", limit), measure("rival", limit)) for _ in range(1 if quick else 2)]
    best, best_rival = (max(side, key=lambda run: run.rate) for side in zip(*rounds, strict=True))
    instances = requests(limit)
    same = [a == b for a, b in zip(choices(instances, best), choices(instances, best_rival), strict=True)]
    differences = [abs(a[0] - b[0]) for a, b in zip(best.results, best_rival.results, strict=True)]
    print(
        json.dumps(
            {
                "benchmark": "scoring_speed",
                "ours": round(best.rate, 1),
                "rival": round(best_rival.rate, 1),
                "unit": "useful tokens/s",
                "ratio": round(best.rate / best_rival.rate, 2),
                "same_choice": round(sum(same) / len(same), 4),
                "mean_difference_nats": round(sum(differences) / len(differences), 4),
                "ours_peak_bytes": best.peak,
                "rival_peak_bytes": best_rival.peak,
                "requests": len(instances),
                "model": MODEL,
                "rival_batch": BATCH,
                "threads": torch.get_num_threads(),
                "quick": quick,
            }
        )
    )


if __name__ == "__main__":
    main()
