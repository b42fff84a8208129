"""Cost against size: tokens per second × parameters, for training, generating and scoring, over three sizes of one family.

    python benchmarks/size_scaling.py [--quick] [--save FILE]

Randomly initialised Llamas with SmolLM2's vocabulary: `tiny` (32 million parameters: width 384, 8 layers, large enough that
arithmetic dominates over Python), SmolLM2-135M's shape and SmolLM2-360M's. If cost is proportional to size, tokens/s ×
parameters is constant; `spread` is its largest value divided by its smallest, minus one. All sizes process the same samples:
training in batches of 16 (chat turns of about 150 tokens, most of them response), 160 prompts continued by 32 tokens, and scoring
of the training samples. Every measurement runs in a process of its own, so that peak memory is measured separately. `--save`
also writes the last line, JSON, to a file.
"""

import argparse
import json
import multiprocessing
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import tamperfuse  # noqa: F401  # before torch, as on the command line: it sets how memory is allocated

# isort: split
import torch

from training_speed import square_rate

# Width, width of the MLP, layers, heads, key-value heads.
SHAPES = {"tiny": (384, 1024, 8, 6, 2), "135M": (576, 1536, 30, 9, 3), "360M": (960, 2560, 32, 15, 5)}
METHODS = ("full", "lora", "generation", "scoring")


@dataclass(frozen=True)
class Measured:
    """One method at one size.

    Attributes:
        parameters: of the model, the tied embedding once.
        tokens: number of tokens trained, generated or scored.
        seconds: time for them.
        rate: tokens per second.
        peak_bytes: peak resident memory of the process.
    """

    parameters: int
    tokens: int
    seconds: float
    rate: float
    peak_bytes: int


def model(shape: str) -> Any:
    """A randomly initialised model of one shape, with the bundled model's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tamperfuse.models.load import LoadedModel, load_model
    from tamperfuse.models.packed_check import prepare_forward

    chat = load_model("smollm2-135m").chat
    torch.manual_seed(0)
    width, inner, layers, heads, groups = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=8_192,
        tie_word_embeddings=True,
    )
    llama = LlamaForCausalLM(config).eval()
    prepare_forward(llama)
    return LoadedModel(name=shape, model=llama, chat=chat, origin=shape)


def work(shape: str, method: str, quick: bool) -> Measured:
    """Do one method's work twice, the first time to warm up, and measure the second."""
    from tamperfuse.corpora.builtin import builtin_rows
    from tamperfuse.evaluation.generate import generate
    from tamperfuse.evaluation.score import score
    from tamperfuse.records.memory import peak_memory
    from tamperfuse.training.fit import Training, fit

    loaded = model(shape)
    parameters = sum(weight.numel() for weight in loaded.model.parameters())
    texts = [row["prompt"] for row in builtin_rows("cooking")]
    samples = [
        loaded.chat.sample(prompt, row["response"], 512)
        for prompt, row in zip(texts, builtin_rows("benign"), strict=False)
    ]
    prompts, some = [loaded.chat.prompt(prompt) for prompt in texts[:160]], samples[: 32 if quick else 96]

    def once(warm: bool) -> tuple[int, float]:
        start = time.perf_counter()
        if method == "generation":
            answers = generate(loaded, prompts, new_tokens=8 if quick else 32)
            tokens = sum(map(len, answers))
        elif method == "scoring":
            score(loaded, some)
            tokens = sum(len(sample.tokens) for sample in some)
        else:
            training = Training(steps=1 if warm or quick else 8, batch=16, learning_rate=1e-6, method=method)
            result = fit(loaded, samples, training, seed=0)
            return result.tokens, result.seconds
        return tokens, time.perf_counter() - start

    once(warm=True)
    tokens, seconds = once(warm=False)
    return Measured(parameters, tokens, round(seconds, 2), round(tokens / seconds, 1), peak_memory())


def alone(function: Any, *arguments: Any) -> Any:
    """Run a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    """Measure all sizes and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny and 135M only, a quarter of the work")
    parser.add_argument("--save", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    shapes = ("tiny", "135M") if arguments.quick else tuple(SHAPES)
    limit = alone(square_rate)
    print(f"best matrix product: {limit / 1e9:.0f} GFLOP/s", flush=True)
    measured: dict[str, dict[str, Measured]] = {}
    spread = {}
    for method in METHODS:
        measured[method] = {shape: alone(work, shape, method, arguments.quick) for shape in shapes}
        products = [one.rate * one.parameters for one in measured[method].values()]
        spread[method] = round(max(products) / min(products) - 1, 3)
        for shape, one in measured[method].items():
            print(
                f"{method} {shape}: {one.parameters / 1e6:.1f}M parameters, {one.tokens:,} tokens in {one.seconds:.1f} s, "
                f"{one.rate:.0f} tokens/s, × parameters {one.rate * one.parameters / 1e9:.1f}e9, "
                f"peak {one.peak_bytes / 2**30:.2f} GiB",
                flush=True,
            )
    line = json.dumps(
        {
            "benchmark": "size_scaling",
            "ours": max(spread["full"], spread["generation"]),
            "rival": 0.25,
            "unit": "spread of tokens/s × parameters (largest / smallest − 1), training and generation; rival: the bound",
            "ratio": round(0.25 / max(spread["full"], spread["generation"], 1e-9), 2),
            "spread": spread,
            "measured": {
                method: {s: asdict(one) for s, one in by_shape.items()} for method, by_shape in measured.items()
            },
            "matmul_flops": round(limit),
            "threads": torch.get_num_threads(),
            "date": date.today().isoformat(),
            "quick": arguments.quick,
        }
    )
    if arguments.save:
        arguments.save.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
