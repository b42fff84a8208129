"""Tokens a second of greedy generation: tamperfuse against transformers' `generate`, on the same prompts in the same run.

    python benchmarks/generation_speed.py [--quick]

160 prompts of the stand-in threat, 64 new tokens each. The rival decodes them in batches of 32, padded on the left, in the
order in which they come. Both compute in bfloat16 where the processor multiplies it, on the same weights; tokens count up to
the end of an answer on either side. Every measurement runs in a process of its own, so that its peak memory is its own; both
sides take turns, and a side's rate is the better of its rounds.

Greedy answers in bfloat16 depend on rounding, which depends on the shapes of batches: where two tokens are as likely as each
other to three digits, another batch size takes the other one. So equality is reported three ways: `equal_same_dtype` (ours
and the rival's, bfloat16), `rival_self_equal` (the rival at batch 32 and at batch 16, bfloat16: what can be asked for at
all) and `equal_float32` (ours and the rival's, where rounding hardly matters); `ours_exact` and `rival_exact` are the shares of
each side's bfloat16 answers that are those of float32. `ratio` compares both sides in the same dtype; `ratio_to_float32` is
against the rival in float32, the dtype that it loads this checkpoint in when nothing is said. The last line is JSON.
"""

import argparse
import json
import multiprocessing
import time
from dataclasses import dataclass
from unittest import mock

import tamperfuse  # noqa: F401  # before torch, as on the command line: it says how memory is to be had

# isort: split
import torch

MODEL, BATCH = "smollm2-135m", 32


@dataclass(frozen=True)
class Asked:
    """What is to be generated: so many prompts of the threat, so many new tokens each, in this dtype."""

    prompts: int
    new_tokens: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Run:
    """One measurement: the answers' tokens, seconds, and the process's largest resident size in bytes."""

    answers: list[list[int]]
    seconds: float
    peak: int

    @property
    def rate(self) -> float:
        """Useful tokens a second."""
        return sum(map(len, self.answers)) / self.seconds


def ours(asked: Asked) -> Run:
    """tamperfuse.evaluation.generate."""
    from tamperfuse.evaluation.generate import generate
    from tamperfuse.models.load import load_model
    from tamperfuse.records.memory import peak_memory

    loaded = load_model(MODEL)
    tokens = [loaded.chat.prompt(prompt) for prompt in prompts(asked.prompts)]
    with mock.patch("tamperfuse.evaluation.generate.compute_dtype", lambda _: (asked.dtype, "as asked")):
        generate(loaded, tokens[:4], new_tokens=2)  # warm-up, not counted
        began = time.perf_counter()
        answers = generate(loaded, tokens, new_tokens=asked.new_tokens)
        return Run(answers, time.perf_counter() - began, peak_memory())


def rival(asked: Asked, batch: int = BATCH) -> Run:
    """Transformers' `generate` in padded batches."""
    from transformers import AutoModelForCausalLM

    from tamperfuse.models.load import load_model, resolve_model
    from tamperfuse.records.memory import peak_memory

    loaded = load_model(MODEL)
    # As a user would: `model.to(bfloat16)` instead would round the rotary embedding's frequencies as well.
    model = AutoModelForCausalLM.from_pretrained(str(resolve_model(MODEL) or MODEL), dtype=asked.dtype)
    end = loaded.chat.end
    tokens = [loaded.chat.prompt(prompt) for prompt in prompts(asked.prompts)]

    def run(some: list[list[int]], new_tokens: int) -> list[list[int]]:
        longest = max(map(len, some))
        rows = torch.tensor([[end] * (longest - len(t)) + t for t in some])
        mask = torch.tensor([[0] * (longest - len(t)) + [1] * len(t) for t in some])
        made = model.generate(
            input_ids=rows,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )
        answers = made[:, longest:].tolist()
        return [answer[: answer.index(end)] if end in answer else answer for answer in answers]

    run(tokens[:4], 2)
    began = time.perf_counter()
    answers = [a for i in range(0, len(tokens), batch) for a in run(tokens[i : i + batch], asked.new_tokens)]
    return Run(answers, time.perf_counter() - began, peak_memory())


def prompts(count: int) -> list[str]:
    """Evaluation prompts of the stand-in threat."""
    from tamperfuse.corpora.builtin import builtin_rows

    return [row["prompt"] for row in builtin_rows("cooking") if row["part"] == "evaluation"][:count]


def measured(name: str, asked: Asked, *rest: int) -> Run:
    """One measurement in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        run: Run = pool.apply({"ours": ours, "rival": rival}[name], (asked, *rest))
    print(f"{name}{''.join(f', batch {n}' for n in rest)}, {asked.dtype}: {sum(map(len, run.answers)):,} tokens in "
          f"{run.seconds:.1f} s, {run.rate:.0f} tokens/s, peak {run.peak / 2**30:.2f} GiB", flush=True)  # fmt: skip
    return run


def equal(a: Run, b: Run) -> float:
    """Share of answers that are the same, token by token."""
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
    asked, exact = Asked(*size, dtype), Asked(*size, torch.float32)
    rounds = [(measured("ours", asked), measured("rival", asked)) for _ in range(1 if quick else 2)]
    mine, theirs = (max(side, key=lambda run: run.rate) for side in zip(*rounds, strict=True))
    other = measured("rival", asked, BATCH // 2)
    mine_exact, theirs_exact = measured("ours", exact), measured("rival", exact)
    print(
        json.dumps(
            {
                "benchmark": "generation_speed",
                "ours": round(mine.rate, 1),
                "rival": round(theirs.rate, 1),
                "unit": "tokens/s",
                "ratio": round(mine.rate / theirs.rate, 2),
                "dtype": str(dtype).removeprefix("torch."),
                "equal_same_dtype": equal(mine, theirs),
                "rival_self_equal": equal(theirs, other),
                "equal_float32": equal(mine_exact, theirs_exact),
                "ours_exact": equal(mine, mine_exact),
                "rival_exact": equal(theirs, theirs_exact),
                "ratio_to_float32": round(mine.rate / theirs_exact.rate, 2),
                "ours_float32": round(mine_exact.rate, 1),
                "rival_float32": round(theirs_exact.rate, 1),
                "ours_peak_bytes": mine.peak,
                "rival_peak_bytes": theirs.peak,
                "model": MODEL,
                "prompts": asked.prompts,
                "new_tokens": asked.new_tokens,
                "rival_batch": BATCH,
                "threads": torch.get_num_threads(),
                "quick": quick,
            }
        )
    )


if __name__ == "__main__":
    main()
