"""Memory of training in shards: peak memory of each of two processes under FSDP2, and of one process, beside the computed one.

    python benchmarks/sharded_memory.py [--shape 1B|0.5B] [--quick] [--save FILE]

A randomly initialised Llama with the bundled model's tokenizer is saved in bfloat16, and loaded and trained in full for three
steps on 2 × 128 tokens: first by two processes over gloo, each of which holds half of every weight, then by one. It has the shape
of Llama 3.2 1B but for the vocabulary (1,074 million parameters), six of its 16 layers (`--shape 0.5B`, 466 million), or 32
million parameters (`--quick`). The peaks of loading and of training are printed separately. Computed is what
scripts/cost_model.py says of training, with its 0.4 GiB for libraries. 1B needs 20 GiB of free memory, and 3 GiB on the disk of
temporary files. The last line is JSON.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import tamperfuse  # noqa: F401  # before torch, as on the command line: it sets how memory is allocated

# isort: split
import torch

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
# Vocabulary, width, width of the MLP, layers, heads, key-value heads, whether the embeddings are tied.
SHAPES = {
    "32M": (49_152, 384, 1_024, 8, 6, 2, True),
    "0.5B": (49_152, 2_048, 8_192, 6, 32, 8, True),
    "1B": (49_152, 2_048, 8_192, 16, 32, 8, True),
}
STEPS, SAMPLES, TOKENS = 3, 2, 128
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


def make(shape: str, folder: Path) -> None:
    """Save a randomly initialised model, in bfloat16, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from cost_model import FIELDS
    from tamperfuse.models.load import load_model

    load_model("smollm2-135m").tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(**dict(zip(FIELDS, SHAPES[shape], strict=True)), max_position_embeddings=8_192)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder)


def work(folder: Path, out: Path) -> None:
    """Load and train; run on every process. Writes this process's peaks, in bytes, to `out` with its rank."""
    from tamperfuse.models.load import load_model
    from tamperfuse.models.sharded import is_sharded
    from tamperfuse.records.memory import peak_memory, reset_peak_memory
    from tamperfuse.records.process import rank, world_size
    from tamperfuse.training.fit import Training, fit

    before = peak_memory()
    reset_peak_memory()
    loaded = load_model(str(folder), sharded=world_size() > 1)
    assert is_sharded(loaded.model) == (world_size() > 1)
    loading = peak_memory()
    text = "the same few words " * TOKENS
    samples = [loaded.chat.sample(f"request {i}", text, TOKENS) for i in range(SAMPLES)]
    samples = [type(sample)(sample.tokens[:TOKENS], sample.start) for sample in samples]
    reset_peak_memory()
    fit(loaded, samples, Training(steps=STEPS, batch=SAMPLES, learning_rate=1e-5), seed=0)
    peaks = {"imports": before, "loading": loading, "training": peak_memory()}
    out.with_suffix(f".{rank()}").write_text(json.dumps(peaks), encoding="utf-8")


def peaks(processes: int, folder: Path) -> list[dict[str, int]]:
    """Run :func:`work` on some processes; their peaks by rank."""
    out = folder.parent / f"peaks-{processes}"
    command = [sys.executable]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", port]
        environment |= FSDP
    subprocess.run([*command, __file__, "--worker", str(folder), str(out)], env=environment, check=True)
    files = [out.with_suffix(f".{number}") for number in range(processes)]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def computed(shape: str, processes: int) -> float:
    """Bytes of training by scripts/cost_model.py."""
    from cost_model import LIBRARIES, Shards

    model = Shards.of(SHAPES[shape], TOKENS * SAMPLES // processes)
    if processes > 1:
        return model.total(processes) + LIBRARIES
    return model.shard(1) + model.activations + LIBRARIES  # nothing is gathered


def measure(shape: str) -> dict[str, Any]:
    """Make the model, and measure two processes and one; refuses to start without enough memory."""
    from tamperfuse.records.memory import available_memory

    needed = max(2 * computed(shape, 2), computed(shape, 1))
    if available_memory() < needed:
        raise SystemExit(f"{needed / 2**30:.1f} GiB of free memory are needed: close other programs, or use --quick.")
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        subprocess.run([sys.executable, __file__, "--make", shape, str(folder)], check=True)
        for processes in (2, 1):
            measured = peaks(processes, folder)
            result[str(processes)] = {"peaks": measured, "computed": round(computed(shape, processes))}
            for number, one in enumerate(measured):
                parts = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in one.items())
                print(
                    f"{shape}, process {number + 1} of {processes}, peak in GiB: {parts}; computed for training "
                    f"{computed(shape, processes) / 2**30:.2f}",
                    flush=True,
                )
    return result


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", choices=("1B", "0.5B"), default="1B", help="size of the model (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="a model of 32 million parameters")
    parser.add_argument("--save", type=Path, help="also write the result to this file")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make[0], Path(arguments.make[1]))
        return
    if arguments.worker:
        work(*arguments.worker)
        return
    shape = "32M" if arguments.quick else arguments.shape
    result = measure(shape)
    ours, rival = (max(one["training"] for one in result[number]["peaks"]) for number in ("2", "1"))
    line = json.dumps(
        {
            "benchmark": "sharded_memory",
            "ours": ours,
            "rival": rival,
            "unit": "bytes, peak of training: the larger of two processes; rival: one process",
            "ratio": round(rival / ours, 2),
            "shape": shape,
            "processes": result,
            "date": date.today().isoformat(),
            "quick": arguments.quick,
        }
    )
    if arguments.save:
        arguments.save.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
