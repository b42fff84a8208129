"""Tokens a second of scoring: tamperfuse against lm-eval's own loop, on the same items in the same run.

    python benchmarks/scoring_speed.py [--quick]

The items are what lm-eval asks of a model for the bundled tasks: every question of `everyday` with each of its four choices,
and 500 minimal pairs of `grammar`. The rival is lm-eval's HFLM in batches of 32, on the same weights, in the same dtype.
Tokens are those of contexts and continuations, as often as they are asked for, whether or not a side computes them more than
once. Tokenization counts on both sides. Each side runs in a process of its own; they take turns, and a side's rate is the
better of its rounds. The last line is JSON; `same_choice` is the share of questions on which both sides choose alike.
"""

import argparse
import json
import multiprocessing
import time
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import tamperfuse  # noqa: F401  # before torch, as on the command line: it says how memory is to be had

# isort: split
import torch

MODEL, BATCH = "smollm2-135m", 32


@dataclass(frozen=True)
class Run:
    """One measurement: (log p, greedy) of every request, useful tokens, seconds, largest resident size in bytes."""

    results: list[tuple[float, bool]]
    tokens: int
    seconds: float
    peak: int

    @property
    def rate(self) -> float:
        """Useful tokens a second."""
        return self.tokens / self.seconds


def requests(limit: int) -> list[Any]:
    """lm-eval's requests for the bundled tasks; at most `limit` items a task."""
    from tamperfuse.evaluation.capability import BUILTIN_TASKS, load_tasks

    made = []
    for task in (part for found in load_tasks(BUILTIN_TASKS) for part in found.parts):
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        made += task.instances
    return made


def ours(limit: int) -> Run:
    """tamperfuse.evaluation.score, as the capability tasks call it."""
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
    """Let a side answer all requests."""
    from tamperfuse.models.load import load_model
    from tamperfuse.records.memory import peak_memory

    asked = requests(limit)
    tokenizer = load_model(MODEL).tokenizer
    tokens = sum(len(ids) for ids in tokenizer(["".join(request.args) for request in asked])["input_ids"])
    side.loglikelihood(asked[:8])  # warm-up, not counted
    began = time.perf_counter()
    results = side.loglikelihood(asked)
    seconds = time.perf_counter() - began
    return Run(results, tokens, seconds, peak_memory())


def measured(name: str, limit: int) -> Run:
    """One measurement in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        run: Run = pool.apply({"ours": ours, "rival": rival}[name], (limit,))
    print(f"{name}: {run.tokens:,} tokens in {run.seconds:.1f} s, {run.rate:.0f} tokens/s, "
          f"peak {run.peak / 2**30:.2f} GiB", flush=True)  # fmt: skip
    return run


def choices(asked: list[Any], run: Run) -> list[int]:
    """The choice with the highest log p of every question."""
    answered = zip(asked, run.results, strict=True)
    by_question = (list(group) for _, group in groupby(answered, key=lambda pair: (pair[0].task_name, pair[0].doc_id)))
    return [max(range(len(q)), key=lambda i: q[i][1][0]) for q in by_question]


def main() -> None:
    """Measure both sides and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 items a task, one round")
    quick = parser.parse_args().quick
    limit = 60 if quick else 500
    rounds = [(measured("ours", limit), measured("rival", limit)) for _ in range(1 if quick else 2)]
    mine, theirs = (max(side, key=lambda run: run.rate) for side in zip(*rounds, strict=True))
    asked = requests(limit)
    same = [a == b for a, b in zip(choices(asked, mine), choices(asked, theirs), strict=True)]
    apart = [abs(a[0] - b[0]) for a, b in zip(mine.results, theirs.results, strict=True)]
    print(
        json.dumps(
            {
                "benchmark": "scoring_speed",
                "ours": round(mine.rate, 1),
                "rival": round(theirs.rate, 1),
                "unit": "useful tokens/s",
                "ratio": round(mine.rate / theirs.rate, 2),
                "same_choice": round(sum(same) / len(same), 4),
                "mean_difference_nats": round(sum(apart) / len(apart), 4),
                "ours_peak_bytes": mine.peak,
                "rival_peak_bytes": theirs.peak,
                "requests": len(asked),
                "model": MODEL,
                "rival_batch": BATCH,
                "threads": torch.get_num_threads(),
                "quick": quick,
            }
        )
    )


if __name__ == "__main__":
    main()
