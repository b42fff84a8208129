"""Hours, memory and price of each method at 135M to 70B parameters, from the results of benchmarks.

    python scripts/cost_table.py FIGURES.json …                        prints the tables; - reads standard input
    python scripts/cost_table.py FIGURES.json … --write docs/cost.md   replaces the tables in the page

Each file holds JSON lines of benchmarks. size_scaling is required; of training_speed only the peak memory is used.
scripts/cost_model.py documents the assumptions.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from cost_model import (
    MEASURED,
    MEMORY,
    PEAK,
    SHAPES,
    Figures,
    Model,
    Shards,
    Work,
    gibibytes,
    works,
)
from pages import replace_tables, table
from tamperfuse.records.errors import UserError
from tamperfuse.study.estimates import CHAT_PROMPT_TOKENS, DECODING, UTILISATION, Costs
from tamperfuse.study.sections import RESPONSE_TOKENS
from tamperfuse.training.accelerations import USABLE_MEMORY
from tamperfuse.training.rows import ROW_TOKENS

SHARDED, PROCESSES = ("1B", "8B", "70B"), (2, 8, 16, 64)
MEASURED_SIZE = "135M"  # trained on a GPU about 90 times slower than the assumed utilisation gives
DEMO = Path(__file__).parents[1] / "studies/demo.yaml"


def tables(figures: Figures, rows: Sequence[Work], cpu: float, gpu: float, memory: float) -> str:
    """All tables, as Markdown.

    Args:
        figures: measured rates.
        rows: work to estimate.
        cpu: price of an hour on the measured machine.
        gpu: price of an hour on an accelerator.
        memory: main memory of the measured machine in GiB.
    """
    models, on_cpu, on_accelerators = {size: Model.of(shape) for size, (_, shape) in SHAPES.items()}, [], []
    for size, model in models.items():
        for row in rows:
            needed, hours = max(map(gibibytes, row.needs(model))), row.cpu_hours(model, figures)
            (count, checkpointing), spent = row.accelerators(model), row.accelerator_hours(model)
            bound = "≥ " if needed > memory else ""
            on_cpu.append([size, row.label, short(hours), short(needed), bound * (hours > 0) + short(hours * cpu)])
            note = "estimate, checkpointing" if checkpointing else "estimate"
            if size != MEASURED_SIZE:
                on_accelerators.append([size, row.label, str(count), short(spent / count), short(spent * gpu), note])
    scaling, measured = figures.scaling, figures.scaling["measured"]
    products = [
        [part, ", ".join(f"{p['rate'] * p['parameters'] / 1e9:.1f}e9 ({s})" for s, p in measured[part].items())]
        for part in MEASURED
    ]
    peaks = [(part, measured[part].get("135M", {}).get("peak_bytes")) for part in MEASURED]
    peaks.append(("full, 16 × 128 tokens", figures.speed.get("peak_bytes_16x128")))
    needs = models["135M"].needs
    compared = [
        (part, gibibytes(needs.get(part.split(",")[0], needs["evaluation"])), peak) for part, peak in peaks if peak
    ]
    costs = [(row.label, row.costs) for row in rows if row.costs != Costs()]
    shapes = ", ".join(f"{name} ({models[size].parameters / 1e6:,.0f}M)" for size, (name, _) in SHAPES.items())
    quick = ", a quick run" if scaling.get("quick") else ""
    lines = [
        f"Tokens/s × parameters by `benchmarks/size_scaling.py`, {scaling.get('date', 'undated')}{quick}."
        f" {scaling.get('note', '')}".rstrip(),
        *("", *table(["method", "tokens/s × parameters (size)"], products), ""),
        f"Sizes: {shapes}. A sample is a prompt of {CHAT_PROMPT_TOKENS} tokens and a response of {RESPONSE_TOKENS}.",
        *("", *table(["work", "trained", "generated", "scored"],
                     [[n, f"{c.trained:,}", f"{c.generated:,}", f"{c.scored:,}"] for n, c in costs]), ""),
        f"On the measured machine, at a price of {cpu:g} per hour (an assumption, in any currency). ≥ marks work that does not "
        f"fit into its {memory:g} GiB: it needs a larger machine, and the hours are for the same speed with enough memory.",
        *("", *table(["size", "method", "hours", "peak memory, GiB", "price"], on_cpu), ""),
        f"On accelerators (estimates): {PEAK / 1e12:.0f}e12 bfloat16 operations/s (data sheet of the NVIDIA H100 SXM) at a "
        f"utilisation of {UTILISATION:.0%} in training and scoring and {DECODING:.0%} in generation, {MEMORY / 1e9:.0f} GB of "
        f"memory, a price of {gpu:g} per hour. All of these are assumptions, not measurements: read hours and price as lower "
        f"bounds. {MEASURED_SIZE} has no rows: where it was measured it was far slower.",
        *("", *table(["size", "method", "accelerators", "hours, at least", "price, at least", ""], on_accelerators), ""),
        f"Memory, in GiB, that each process needs on its device to train all weights in shards (FSDP2), a row of {ROW_TOKENS:,} "
        f"tokens. ✗: more than {USABLE_MEMORY:.0%} of {MEMORY / 1e9:.0f} GB.",
        *("", *table(["size", "processes", "its shards", "gathered", "activations", "total", "total, recomputed"],
                     sharded_rows()), ""),
        "The memory model compared with measured peaks, for the shape of SmolLM2-135M:",
        *("", *table(["", "model, GiB", "measured, GiB", "error of the model"],
                     [[part, short(a), short(b / 2**30), f"{a / b * 2**30 - 1:+.0%}"] for part, a, b in compared])),
    ]  # fmt: skip
    return "\n".join(lines)


def sharded_rows() -> list[list[str]]:
    """Rows of the table of training in shards."""
    rows = []
    for size in SHARDED:
        model = Shards.of(SHAPES[size][1])
        for processes in PROCESSES:
            parts = (model.shard(processes), model.gathered(), model.activations)
            totals = (model.total(processes), model.total(processes, checkpointing=True))
            marked = [short(total / 2**30) + " ✗" * (total > USABLE_MEMORY * MEMORY) for total in totals]
            rows.append([size, str(processes), *(short(part / 2**30) for part in parts), *marked])
    return rows


def short(value: float) -> str:
    """Format with two or three digits; a dash for 0."""
    if value < 0.001:
        return "< 0.001" if value else "–"
    return f"{value:.2g}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def positive(text: str) -> float:
    """Parse a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def main(arguments: Sequence[str]) -> None:
    """Print the tables or write them into a page."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, usage=argparse.SUPPRESS)
    parser.add_argument("figures", nargs="+", help="files of JSON lines; - for standard input")
    parser.add_argument(
        "--price-cpu",
        type=positive,
        default=0.1,
        help="price of an hour on the measured machine (default: %(default)s)",
    )
    parser.add_argument(
        "--price-gpu", type=positive, default=2.0, help="price of an hour on an accelerator (default: %(default)s)"
    )
    parser.add_argument(
        "--memory-cpu",
        type=positive,
        default=24.0,
        help="main memory of the measured machine in GiB (default: %(default)s)",
    )
    parser.add_argument("--study", type=Path, default=DEMO, help="study of the last row (default: studies/demo.yaml)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="page to write the tables into")
    options = parser.parse_args(arguments)
    try:
        figures = Figures.read(options.figures)
        text = tables(figures, works(options.study), options.price_cpu, options.price_gpu, options.memory_cpu)
        if options.write:
            replace_tables(options.write, shlex.join(["python", "scripts/cost_table.py", *arguments]), text)
    except UserError as error:
        parser.error(str(error))
    if not options.write:
        print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
