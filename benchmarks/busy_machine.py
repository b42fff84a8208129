"""Training on a machine that is busy with other work, as a user's laptop is.

    python benchmarks/busy_machine.py            3 rounds
    python benchmarks/busy_machine.py --quick    1 round

Full fine-tuning of SmolLM2-135M-Instruct, alone and beside one busy process for each core, with two settings of OpenMP's threads:
tamperfuse's, with which a thread that waits for the others tries 1,000 times before it sleeps (`GOMP_SPINCOUNT`), and libgomp's
default of 300,000. Beside as many busy processes as there are cores, the fair share of the processor is one half. Each
measurement is a process of its own; the settings take turns, and a rate is the median of the rounds. The last line is JSON:

    ours, rival            tokens per second beside the busy processes, with tamperfuse's setting and with the default
    alone, alone_default   the same without busy processes
    share, share_default   rate beside the busy processes / (rate alone with the default / 2)
"""

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

CONTEXT = multiprocessing.get_context("spawn")
MODEL, STEPS, BATCH, RESPONSE_LIMIT = "smollm2-135m", 3, 8, 64
OURS, DEFAULT = "tamperfuse", "default"
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
SETTINGS = {OURS: {}, DEFAULT: {"GOMP_SPINCOUNT": "300000"}}  # with nothing set, tamperfuse chooses


def train() -> float:
    """Tokens per second of a short training, without the first step."""
    from tamperfuse.corpora.builtin import builtin_rows
    from tamperfuse.models.load import load_model
    from tamperfuse.training.fit import Training, fit

    loaded = load_model(MODEL)
    rows = builtin_rows("benign")[: STEPS * BATCH]
    samples = [loaded.chat.sample(row["prompt"], row["response"], RESPONSE_LIMIT) for row in rows]
    fit(loaded, samples, Training(steps=1, batch=BATCH, learning_rate=5e-7), seed=0)
    result = fit(loaded, samples, Training(steps=STEPS, batch=BATCH, learning_rate=5e-7), seed=0)
    return result.tokens / result.seconds


def spin() -> None:
    """Keep one core busy."""
    while True:
        pass


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that each keep a core busy."""
    processes = [CONTEXT.Process(target=spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def rate(setting: str, busy: int) -> float:
    """Tokens per second in a process of its own, beside a number of busy ones."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | SETTINGS[setting]
    with mock.patch.dict(os.environ, environment, clear=True), busy_processes(busy), CONTEXT.Pool(1) as pool:
        return float(pool.apply(train))


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    rounds = 1 if parser.parse_args().quick else 3
    cores = os.cpu_count() or 1
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for busy in (0, cores):
            for setting in SETTINGS:
                rates.setdefault((setting, busy), []).append(rate(setting, busy))
                print(f"{setting}, {busy} busy processes: {rates[setting, busy][-1]:.0f} tokens/s", flush=True)
    median = {key: statistics.median(values) for key, values in rates.items()}
    fair = median[DEFAULT, 0] / 2
    print(
        json.dumps(
            {
                "benchmark": "busy_machine",
                "ours": round(median[OURS, cores], 1),
                "rival": round(median[DEFAULT, cores], 1),
                "unit": "tokens/s of full fine-tuning beside busy processes",
                "ratio": round(median[OURS, cores] / median[DEFAULT, cores], 2),
                "alone": round(median[OURS, 0], 1),
                "alone_default": round(median[DEFAULT, 0], 1),
                "share": round(median[OURS, cores] / fair, 2),
                "share_default": round(median[DEFAULT, cores] / fair, 2),
                "cores": cores,
                "model": MODEL,
            }
        )
    )


if __name__ == "__main__":
    main()
