"""Useful tokens per second of SFT: tamperfuse against trl's SFTTrainer, on the same samples in the same run.

    python benchmarks/training_speed.py [--quick]

The rival has the settings of the public re-implementation of SDD: float32, gradient checkpointing, batch 24, max_length 512,
plain AdamW. Useful tokens are those of prompts and responses, without padding. Each side runs in a process of its own, so
that peak memory is measured separately. The last line is JSON:

    ratio          useful tokens per second, full fine-tuning, ours / rival's
    lora_ratio     the same, our LoRA / our full fine-tuning
    limit_share    operations of the weights' matrix products (2 × 3 × parameters × tokens; layers count for every token that is
                   computed, so for a shared prefix once per batch, and the output matrix for response tokens only) per
                   second / the highest rate of a square bfloat16 product (1,024 to 4,096) measured in the same process
    useful_share   the same, with a shared prefix counted for every sample
    peak_bytes_16x128   peak resident memory of full fine-tuning with batches of 16 samples of 128 tokens
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from typing import Any

MODEL, BATCH, RESPONSE_LIMIT = "smollm2-135m", 24, 512


def rows() -> list[tuple[str, str]]:
    """The same prompts and responses for both sides: full benign answers to the defender's prompts, as in SDD."""
    from tamperfuse.corpora.builtin import builtin_rows

    prompts = [row["prompt"] for row in builtin_rows("cooking") if row["part"] == "defender"]
    responses = [row["response"] for row in builtin_rows("benign")]
    return list(zip(prompts, responses, strict=False))


def train(steps: int, method: str, batch: int) -> dict[str, float]:
    """Train with tamperfuse.training.fit; tokens, seconds and peak memory."""
    return _train(steps, method, batch)[0]


def ours(steps: int, method: str = "full") -> dict[str, float]:
    """As :func:`train`, with the shares of the machine's limit."""
    result, model, samples = _train(steps, method, BATCH)
    return {**result, **shares(model, samples, steps, result["seconds"])}


def _train(steps: int, method: str, batch: int) -> tuple[dict[str, float], Any, list[Any]]:
    from tamperfuse.models.load import load_model
    from tamperfuse.records.memory import peak_memory
    from tamperfuse.training.fit import Training, fit

    loaded = load_model(MODEL)
    samples = [loaded.chat.sample(prompt, response, RESPONSE_LIMIT) for prompt, response in rows()]
    training = Training.model_validate({"steps": steps, "batch": batch, "learning_rate": 5e-7, "method": method})
    fit(loaded, samples, training.model_copy(update={"steps": 1}), seed=0)  # warm-up, not counted
    result = fit(loaded, samples, training, seed=0)
    measured = {"tokens": result.tokens, "seconds": result.seconds, "peak": peak_memory()}
    return measured, loaded.model, samples


def lora(steps: int) -> dict[str, float]:
    """tamperfuse.training.fit with a LoRA adapter."""
    return ours(steps, "lora")


def memory(steps: int) -> dict[str, float]:
    """tamperfuse.training.fit on batches of 16 samples, each of 128 tokens."""
    from tamperfuse.models.load import load_model
    from tamperfuse.records.memory import peak_memory
    from tamperfuse.training.fit import Training, fit

    loaded = load_model(MODEL)
    samples = [loaded.chat.sample(prompt, response, RESPONSE_LIMIT) for prompt, response in rows()]
    exact = [type(sample)(sample.tokens[:128], sample.start) for sample in samples if len(sample.tokens) >= 128]
    result = fit(loaded, exact, Training(steps=steps, batch=16, learning_rate=5e-7), seed=0)
    return {"tokens": result.tokens, "seconds": result.seconds, "peak": peak_memory()}


def shares(model: Any, samples: list[Any], steps: int, seconds: float) -> dict[str, float]:
    """Shares of the machine's limit, as defined at the top of this file."""
    from tamperfuse.training.batches import pack_samples, schedule

    order = [samples[i] for i in schedule(len(samples), BATCH, steps, 0)]
    output = model.get_output_embeddings().weight.numel()
    layers = sum(weight.numel() for weight in model.parameters()) - output  # the input embeddings are the same matrix
    computed = useful = responses = 0
    for start in range(0, len(order), BATCH):
        batch = pack_samples(order[start : start + BATCH], model.device)
        computed, useful = computed + batch.row.shape[1], useful + batch.tokens
        responses += len(batch.targets)
    limit = square_rate()
    return {
        "limit": limit,
        "limit_share": 6 * (layers * computed + output * responses) / seconds / limit,
        "useful_share": 6 * (layers * useful + output * responses) / seconds / limit,
    }


def square_rate() -> float:
    """Highest rate of a square bfloat16 product, in operations per second."""
    from tamperfuse.training.telemetry import matrix_rate

    return max(matrix_rate(side) for side in (1024, 2048, 4096))


def rival(steps: int) -> dict[str, float]:
    """Train with trl's SFTTrainer and the re-implementation's arguments."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from tamperfuse.models.load import load_model
    from tamperfuse.records.memory import peak_memory

    loaded = load_model(MODEL)
    loaded.model.set_attn_implementation("sdpa")
    turns = [
        {"prompt": [{"role": "user", "content": p}], "completion": [{"role": "assistant", "content": r}]}
        for p, r in rows()
    ]
    lengths: list[int] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        start = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = self.start or time.perf_counter()

    class Counted(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            lengths.append(int(inputs["attention_mask"].sum()))
            return super().training_step(model, inputs, *rest)

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            max_length=512,
            gradient_checkpointing=True,
            learning_rate=5e-7,
            bf16=False,
            fp16=False,
            optim="adamw_torch",
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            completion_only_loss=True,
        )
        trainer = Counted(
            model=loaded.model,
            args=arguments,
            train_dataset=Dataset.from_list(turns),
            processing_class=loaded.tokenizer,
            callbacks=[clock],
        )
        trainer.train()
        seconds = time.perf_counter() - clock.start
    return {"tokens": sum(lengths), "seconds": seconds, "peak": peak_memory()}


def measure(side: Any, steps: int) -> dict[str, float]:
    """One side in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result: dict[str, float] = pool.apply(side, (steps,))
    rate = result["tokens"] / result["seconds"]
    print(f"{side.__name__}: {result['tokens']:,.0f} tokens in {result['seconds']:.0f} s, {rate:.0f} tokens/s, "
          f"peak {result['peak'] / 2**30:.1f} GiB", flush=True)  # fmt: skip
    return {**result, "rate": rate}


def main() -> None:
    """Measure both sides and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one step of the rival, two of ours")
    quick = parser.parse_args().quick
    steps = 2 if quick else 12
    full, adapter, small = measure(ours, steps), measure(lora, steps), measure(memory, 2)
    trl = measure(rival, 1 if quick else 2)
    print(
        json.dumps(
            {
                "benchmark": "training_speed",
                "ours": round(full["rate"], 1),
                "rival": round(trl["rate"], 1),
                "unit": "useful tokens/s",
                "ratio": round(full["rate"] / trl["rate"], 2),
                "lora": round(adapter["rate"], 1),
                "lora_ratio": round(adapter["rate"] / full["rate"], 2),
                "limit_share": round(full["limit_share"], 3),
                "useful_share": round(full["useful_share"], 3),
                "limit_gflops": round(full["limit"] / 1e9),
                "ours_peak_bytes": int(full["peak"]),
                "peak_bytes_16x128": int(small["peak"]),
                "rival_peak_bytes": int(trl["peak"]),
                "batch": BATCH,
                "model": MODEL,
            }
        )
    )


if __name__ == "__main__":
    main()
