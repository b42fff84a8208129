"""Tokens per second of greedy generation: tamperfuse against transformers' `generate`, on the same prompts in the same run.

    python benchmarks/generation_speed.py [--quick]

160 prompts of the stand-in threat, 64 new tokens each. The rival decodes them in left-padded batches of 32, in the original
order. Both use the same weights and compute in bfloat16 if the processor supports it; on both sides only tokens up to the end of
an answer count. Every measurement runs in a process of its own, so that peak memory is measured separately; both sides take
turns, and a side's rate is the better of its rounds.

Greedy answers in bfloat16 depend on rounding, which depends on the shapes of batches: if two tokens are nearly equally likely,
another batch size may choose the other one. Equality is therefore reported in three ways: `equal_same_dtype` (ours and the
rival's, bfloat16), `rival_self_equal` (the rival at batch 32 and at batch 16, bfloat16: an upper bound of what can be expected)
and `equal_float32` (ours and the rival's, with little rounding); `ours_exact` and `rival_exact` are the shares of each side's
bfloat16 answers that equal its float32 answers. `ratio` compares both sides in the same dtype; `ratio_to_float32` compares with
the rival in float32, the dtype in which it loads this checkpoint by default. The last line is JSON.
"""

import argparse
import json
import multiprocessing
import time
from dataclasses import dataclass
from unittest import mock

import tamperfuse  # noqa: F401  # before torch, as on the command line: it sets how memory is allocated

# isort: split
import torch

MODEL, BATCH = "smollm2-135m", 32


@dataclass(frozen=True)
class Workload:
    """Number of prompts of the threat, maximum number of new tokens for each, and compute dtype."""

    prompts: int
    new_tokens: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Run:
    """One measurement: the answers' token ids, seconds, and the process's peak resident memory in bytes."""

    answers: list[list[int]]
    seconds: float
    peak: int

    @property
    def rate(self) -> float:
        """Useful tokens per second."""
        return sum(map(len, self.answers)) / self.seconds


def ours(workload: Workload) -> Run:
    """tamperfuse.evaluation.generate."""
    from tamperfuse.evaluation.generate import generate
    from tamperfuse.models.load import load_model
    from tamperfuse.records.memory import peak_memory

    loaded = load_model(MODEL)
    tokens = [loaded.chat.prompt(prompt) for prompt in prompts(workload.prompts)]
    with mock.patch("tamperfuse.evaluation.generate.compute_dtype", lambda _: (workload.dtype, "for the benchmark")):
        generate(loaded, tokens[:4], new_tokens=2)  # warm-up, not counted
        start = time.perf_counter()
        answers = generate(loaded, tokens, new_tokens=workload.new_tokens)
        return Run(answers, time.perf_counter() - start, peak_memory())


def rival(workload: Workload, batch: int = BATCH) -> Run:
    """Transformers' `generate` in padded batches."""
    from transformers import AutoModelForCausalLM

    from tamperfuse.models.load import load_model, resolve_model
    from tamperfuse.records.memory import peak_memory

    loaded = load_model(MODEL)
    # As a user would: `model.to(bfloat16)` instead would round the rotary embedding's frequencies as well.
    model = AutoModelForCausalLM.from_pretrained(str(resolve_model(MODEL) or MODEL), dtype=workload.dtype)
    end = loaded.chat.end
    tokens = [loaded.chat.prompt(prompt) for prompt in prompts(workload.prompts)]

    def run(some: list[list[int]], new_tokens: int) -> list[list[int]]:
        longest = max(map(len, some))
        rows = torch.tensor([[end] * (longest - len(t)) + t for t in some])
        mask = torch.tensor([[0] * (longest - len(t)) + [1] * len(t) for t in some])
        output = model.generate(
            input_ids=rows,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )
        answers = output[:, longest:].tolist()
        return [answer[: answer.index(end)] if end in answer else answer for answer in answers]

    run(tokens[:4], 2)
    start = time.perf_counter()
    answers = [a for i in range(0, len(tokens), batch) for a in run(tokens[i : i + batch], workload.new_tokens)]
    return Run(answers, time.perf_counter() - start, peak_memory())


def prompts(count: int) -> list[str]:
    """Evaluation prompts of the stand-in threat."""
    from tamperfuse.corpora.builtin import builtin_rows

    return [row["prompt"] for row in builtin_rows("cooking") if row["part"] == "evaluation"][:count]


def measure(name: str, workload: Workload, *rest: int) -> Run:
    """One measurement in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        run: Run = pool.apply({"ours": ours, "rival": rival}[name], (workload, *rest))
    print(f"{name}{''.join(f', batch {n}' for n in rest)}, {workload.dtype}: {sum(map(len, run.answers)):,} tokens in "
          f"{run.seconds:.1f} s, {run.rate:.0f} tokens/s, peak {run.peak / 2**30:.2f} GiB", flush=True)  # fmt: skip
    return run


def equal(a: Run, b: Run) -> float:
    """Share of answers with equal tokens."""
    return round(sum(x == y for x, y in zip(a.answers, b.answers, strict=True)) / len(a.answers), 4)


def main() -> None:
    """Measure both sides and print one line of JSON."""
    from tamperfuse.models.precision import compute_dtype

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="48 prompts, 24 new tokens, one round")
    quick = parser.parse_args().quick
    size = (48, 24) if quick else (160, 64)
    dtype, why = compute_dtype(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(why)
    workload, exact = Workload(*size, dtype), Workload(*size, torch.float32)
    rounds = [(measure("ours", workload), measure("rival", workload)) for _ in range(1 if quick else 2)]
    best, best_rival = (max(side, key=lambda run: run.rate) for side in zip(*rounds, strict=True))
    other = measure("rival", workload, BATCH // 2)
    ours_exact, rival_exact = measure("ours", exact), measure("rival", exact)
    print(
        json.dumps(
            {
                "benchmark": "generation_speed",
                "ours": round(best.rate, 1),
                "rival": round(best_rival.rate, 1),
                "unit": "tokens/s",
                "ratio": round(best.rate / best_rival.rate, 2),
                "dtype": str(dtype).removeprefix("torch."),
                "equal_same_dtype": equal(best, best_rival),
                "rival_self_equal": equal(best_rival, other),
                "equal_float32": equal(ours_exact, rival_exact),
                "ours_exact": equal(best, ours_exact),
                "rival_exact": equal(best_rival, rival_exact),
                "ratio_to_float32": round(best.rate / rival_exact.rate, 2),
                "ours_float32": round(ours_exact.rate, 1),
                "rival_float32": round(rival_exact.rate, 1),
                "ours_peak_bytes": best.peak,
                "rival_peak_bytes": best_rival.peak,
                "model": MODEL,
                "prompts": workload.prompts,
                "new_tokens": workload.new_tokens,
                "rival_batch": BATCH,
                "threads": torch.get_num_threads(),
                "quick": quick,
            }
        )
    )


if __name__ == "__main__":
    main()
