"""How much slower a model runs the plain way than on packed batches, and what the check at load takes.

    python benchmarks/plain_path.py [--quick]

The bundled model, which can be packed, runs both ways: training (batch 16, defender prompts with benign answers of up to 64
tokens), greedy generation (96 prompts, 32 new tokens) and scoring of the same samples. Every measurement runs in a process of its
own, the two ways take turns, and a rate is the better of its rounds. The plain way is selected by TAMPERFUSE_PACKED=0. Rates are
in useful tokens a second, `check` is the time of the check at load in seconds, without what it remembers. The last line is JSON.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

MODEL, BATCH, RESPONSE_LIMIT, PROMPTS, NEW_TOKENS = "smollm2-135m", 16, 64, 96, 32
KINDS, WAYS = ("training", "generation", "scoring"), ("packed", "plain")


def timed(run: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(packed: bool, quick: bool) -> dict[str, float]:
    """Rates of one way, and the time of the check at load."""
    os.environ["TAMPERFUSE_PACKED"] = "1" if packed else "0"
    import tamperfuse
    from tamperfuse.corpora.builtin import builtin_rows
    from tamperfuse.evaluation.generate import generate
    from tamperfuse.models import packed_check
    from tamperfuse.training.fit import Training, fit
    from tamperfuse.training.trap import mean_nll

    checks: list[float] = []
    check = packed_check._check
    packed_check._check = lambda model: checks.append(timed(lambda: check(model)))
    packed_check._remembered = lambda model: None  # checked anew
    loaded = tamperfuse.load(MODEL)
    prompts = [row["prompt"] for row in builtin_rows("cooking") if row["part"] == "defender"]
    responses = [row["response"] for row in builtin_rows("benign")]
    samples = [loaded.chat.sample(*row, RESPONSE_LIMIT) for row in zip(prompts, responses, strict=False)]
    encoded = [loaded.chat.prompt(prompt) for prompt in prompts[: PROMPTS // (4 if quick else 1)]]
    scored = samples[: 24 if quick else 192]
    training = Training.model_validate({"steps": 2 if quick else 8, "batch": BATCH, "learning_rate": 5e-7})
    answers: list[list[int]] = []
    seconds = timed(lambda: answers.extend(generate(loaded, encoded, new_tokens=NEW_TOKENS)))
    rates = {"generation": sum(map(len, answers)) / seconds}
    rates["scoring"] = sum(len(sample.tokens) for sample in scored) / timed(lambda: mean_nll(loaded, scored))
    fit(loaded, samples, training.model_copy(update={"steps": 1}), seed=0)  # warm-up, not counted
    result = fit(loaded, samples, training, seed=0)
    return {**rates, "training": result.tokens / result.seconds, "check": sum(checks)}


def in_a_process(packed: bool, quick: bool) -> dict[str, float]:
    """What a process of its own measures."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(measure, packed, quick).result()


def main() -> None:
    """Measure both ways in turns, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, fewer samples")
    quick, rounds = parser.parse_args().quick, []
    for _ in range(1 if quick else 2):
        rounds.append({way: in_a_process(way == "packed", quick) for way in WAYS})
    best = {way: {kind: max(r[way][kind] for r in rounds) for kind in KINDS} for way in WAYS}
    for kind in KINDS:
        print(f"{kind}: packed {best['packed'][kind]:.0f}, plain {best['plain'][kind]:.0f} tokens/s")
    ratios = {f"{kind}_ratio": round(best["packed"][kind] / best["plain"][kind], 2) for kind in KINDS}
    check = round(min(r["packed"]["check"] for r in rounds), 2)
    print(json.dumps({"benchmark": "plain_path", "ours": check, "unit": "s", **ratios}))


if __name__ == "__main__":
    main()
