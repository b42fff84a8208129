"""Hours, memory and price of every method at 135M, 1B, 7B and 70B, from the figures that the benchmarks measured.

    python scripts/cost_table.py FIGURES.json …                        prints the tables; - reads standard input
    python scripts/cost_table.py FIGURES.json … --write docs/cost.md   puts them between the page's marks

A file holds the JSON lines of benchmarks. size_scaling's is needed; of training_speed's only the peak memory is compared.
What is assumed, beside prices: scripts/cost_model.py.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from cost_model import (
    DECODING,
    MEASURED,
    MEMORY,
    PEAK,
    SHAPES,
    UTILISATION,
    Figures,
    Model,
    Work,
    gibibytes,
    works,
)
from pages import put, table
from tamperfuse.commands.single import ANSWER_TOKENS
from tamperfuse.records.errors import UserError
from tamperfuse.study.node import Costs
from tamperfuse.study.shared import PROMPT_TOKENS

DEMO = Path(__file__).parents[1] / "studies/demo.yaml"


def tables(figures: Figures, rows: Sequence[Work], cpu: float, gpu: float, memory: float) -> str:
    """All tables, as Markdown.

    Args:
        figures: what was measured.
        rows: the methods.
        cpu: price of an hour of the measured machine.
        gpu: price of an hour of an accelerator.
        memory: of the measured machine, GiB.
    """
    models, here, there = {size: Model.of(shape) for size, (_, shape) in SHAPES.items()}, [], []
    for size, model in models.items():
        for row in rows:
            needed, hours = max(map(gibibytes, row.needs(model))), row.cpu_hours(model, figures)
            (count, again), spent = row.accelerators(model), row.accelerator_hours(model)
            least = "≥ " if needed > memory else ""
            here.append([size, row.label, short(hours), short(needed), least * (hours > 0) + short(hours * cpu)])
            words = "estimate, checkpointing" if again else "estimate"
            there.append([size, row.label, str(count), short(spent / count), short(spent * gpu), words])
    scaling, measured = figures.scaling, figures.scaling["measured"]
    products = [
        [how, ", ".join(f"{p['rate'] * p['parameters'] / 1e9:.1f}e9 ({s})" for s, p in measured[how].items())]
        for how in MEASURED
    ]
    peaks = [(how, measured[how].get("135M", {}).get("peak_bytes")) for how in MEASURED]
    peaks.append(("full, 16 × 128 tokens", figures.speed.get("peak_bytes_16x128")))
    needs = models["135M"].needs
    said = [(how, gibibytes(needs.get(how.split(",")[0], needs["evaluation"])), peak) for how, peak in peaks if peak]
    costs = [(row.label, row.costs) for row in rows if row.costs != Costs()]
    shapes = ", ".join(f"{name} ({models[size].parameters / 1e6:,.0f}M)" for size, (name, _) in SHAPES.items())
    quick = ", a quick run" if scaling.get("quick") else ""
    lines = [
        f"Tokens/s × parameters by `benchmarks/size_scaling.py`, {scaling.get('date', 'undated')}{quick}."
        f" {scaling.get('note', '')}".rstrip(),
        *("", *table(["method", "tokens/s × parameters (size)"], products), ""),
        f"Sizes: {shapes}. A sample is a prompt of {PROMPT_TOKENS} tokens and a response of {ANSWER_TOKENS}.",
        *("", *table(["work", "trained", "generated", "scored"],
                     [[n, f"{c.trained:,}", f"{c.generated:,}", f"{c.scored:,}"] for n, c in costs]), ""),
        f"On the measured machine, at {cpu:g} an hour (an assumption, in any currency). ≥ marks what does not fit into its "
        f"{memory:g} GiB: a larger machine is needed, and the hours are what this one would take if it had the memory.",
        *("", *table(["size", "method", "hours", "peak memory, GiB", "price"], here), ""),
        f"On accelerators, estimated: {PEAK / 1e12:.0f}e12 bfloat16 operations/s (an NVIDIA H100 SXM by its data sheet), used to "
        f"{UTILISATION:.0%} in training and scoring and to {DECODING:.0%} in generating, {MEMORY / 1e9:.0f} GB each, "
        f"{gpu:g} an hour each (all assumptions). Nothing was run on one.",
        *("", *table(["size", "method", "accelerators", "hours", "price", ""], there), ""),
        "The memory model against the peaks that were measured, SmolLM2-135M's shape:",
        *("", *table(["", "model, GiB", "measured, GiB", "model is off by"],
                     [[how, short(a), short(b / 2**30), f"{a / b * 2**30 - 1:+.0%}"] for how, a, b in said])),
    ]  # fmt: skip
    return "\n".join(lines)


def short(value: float) -> str:
    """Two digits or three; a dash for none."""
    if value < 0.001:
        return "< 0.001" if value else "–"
    return f"{value:.2g}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def main(words: Sequence[str]) -> None:
    """Print the tables, or put them into a page."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, usage=argparse.SUPPRESS)
    parser.add_argument("figures", nargs="+", help="files of JSON lines; - for standard input")
    parser.add_argument("--price-cpu", type=positive, default=0.1, help="of an hour of the measured machine")
    parser.add_argument("--price-gpu", type=positive, default=2.0, help="of an hour of an accelerator")
    parser.add_argument("--memory-cpu", type=positive, default=24.0, help="of the measured machine, GiB")
    parser.add_argument("--study", type=Path, default=DEMO, help="the study of the last row")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="the page to put the tables into")
    given = parser.parse_args(words)
    try:
        read = Figures.read(given.figures)
        text = tables(read, works(given.study), given.price_cpu, given.price_gpu, given.memory_cpu)
        if given.write:
            put(given.write, shlex.join(["python", "scripts/cost_table.py", *words]), text)
    except UserError as error:
        parser.error(str(error))
    if not given.write:
        print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
