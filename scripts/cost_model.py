"""The cost model of scripts/cost_table.py: measured rates, and the operations and memory of each model size and method.

Hours on the measured machine are tokens × parameters divided by the measured rate (tokens/s × parameters, by size_scaling) of the
nearest size. Hours on accelerators are estimates: operations divided by peak rate × utilisation. Operations of training are
`telemetry.useful_work`, a third more with gradient checkpointing; generating and scoring take 2 per parameter and token.

Memory is `MemoryEstimate`: 16 bytes per trained parameter, 6 per frozen one (with QLoRA 4.5 in the layers: 4 bits and float32)
and the activations of a row. An evaluation takes 6 bytes per parameter (float32, bfloat16) and the KV cache. An accelerator
holds the activations of a row and its share of the rest in nine tenths of its memory, with gradient checkpointing if a row
would not fit otherwise. All training in a study is counted as full fine-tuning. `Shards` is what a process needs that trains in
shards (FSDP2), where a block and the output layer are complete on every process for a moment.

Not included: loading, lm-eval, the sentence encoder, prefilling prompts, communication, idle machines.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tamperfuse.attacks.harmful_finetune import HarmfulFinetuneParameters
from tamperfuse.defenses.sdd import PAPER
from tamperfuse.evaluation.generate import TOKENS_IN_FLIGHT
from tamperfuse.models.chat import Chat, Sample
from tamperfuse.models.layers import layer_matrices
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.study.context import StudyContext
from tamperfuse.study.estimates import CHAT_PROMPT_TOKENS, DECODING, H100, UTILISATION, Costs
from tamperfuse.study.plan import build_nodes
from tamperfuse.study.sections import RESPONSE_TOKENS
from tamperfuse.study.spec import load_study
from tamperfuse.training.accelerations import MOMENTS, USABLE_MEMORY, MemoryEstimate
from tamperfuse.training.adapters import lora_adapter
from tamperfuse.training.parameters import Training
from tamperfuse.training.rows import ROW_TOKENS
from tamperfuse.training.telemetry import useful_work

FIELDS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "tie_word_embeddings")  # fmt: skip
SHAPES = {
    "135M": ("SmolLM2-135M", (49_152, 576, 1_536, 30, 9, 3, True)),
    "1B": ("Llama 3.2 1B", (128_256, 2_048, 8_192, 16, 32, 8, True)),
    "7B": ("Llama 2 7B", (32_000, 4_096, 11_008, 32, 32, 32, False)),
    "8B": ("Llama 3 8B", (128_256, 4_096, 14_336, 32, 32, 8, False)),
    "70B": ("Llama 2 70B", (32_000, 8_192, 28_672, 80, 64, 8, False)),
}
MEASURED = ("full", "lora", "generation", "scoring")
LIBRARIES = 0.4 * 2**30  # bytes: the interpreter with torch and transformers, in main memory
# Assumptions: peak rate and memory from the data sheet of an NVIDIA H100 SXM, dense bfloat16. Decoding is limited by memory.
PEAK, MEMORY = H100.rate, H100.memory
SAMPLE = Sample([0] * (CHAT_PROMPT_TOKENS + RESPONSE_TOKENS), CHAT_PROMPT_TOKENS)
SAMPLE_TOKENS = len(SAMPLE.tokens)


@dataclass(frozen=True)
class Figures:
    """Measured rates: the results of size_scaling and, if present, of training_speed."""

    scaling: dict[str, Any]
    speed: dict[str, Any]

    @classmethod
    def read(cls, files: Sequence[str]) -> "Figures":
        """Read files of JSON lines; raises UserError if one is missing or invalid, or if a method has no figures."""
        results: dict[str, Any] = {}
        for name in files:
            try:
                text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
                lines = [json.loads(line) for line in text.splitlines() if line.strip()]
                results |= {line["benchmark"]: line for line in lines}
            except OSError as error:
                raise UserError(f"{name} cannot be read ({error.strerror}): name a file of JSON lines.") from error
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{name} does not hold JSON lines of benchmarks: name a file written by their --save."
                ) from error
        figures = cls(results.get("size_scaling", {}), results.get("training_speed", {}))
        for method in MEASURED:
            try:
                sizes = figures.scaling["measured"][method].values()
                measured = [float(size[key]) for size in sizes for key in ("parameters", "rate")]
            except (KeyError, TypeError, AttributeError, ValueError):
                measured = []
            if not measured or not all(0 < number < math.inf for number in measured):
                raise UserError(
                    f"There are no figures of {method} in {', '.join(files)}: add the last line of size_scaling."
                )
        return figures

    def product(self, method: str, parameters: int) -> float:
        """Tokens/s × parameters at the measured size with the smallest ratio to this one."""
        sizes = self.scaling["measured"][method].values()
        nearest = min(sizes, key=lambda size: abs(math.log(size["parameters"] / parameters)))
        return float(nearest["parameters"] * nearest["rate"])


@dataclass(frozen=True)
class Model:
    """Costs of one model size: operations per trained token by method, memory by method and for an evaluation."""

    parameters: int
    operations: dict[str, float]
    needs: dict[str, MemoryEstimate]

    @classmethod
    def of(cls, shape: Sequence[int]) -> "Model":
        """Compute the costs of a Llama model without creating its weights."""
        with torch.device("meta"):
            config = LlamaConfig(**dict(zip(FIELDS, shape, strict=True)))
            module = LlamaForCausalLM(config)
            loaded = LoadedModel("", module, cast(Chat, None), "")  # the chat template is not used
            size, layers = int(module.num_parameters()), sum(weight.numel() for weight in layer_matrices(module))
            operations = {"full": useful_work(module, [SAMPLE]) / SAMPLE_TOKENS}
            needs = {"full": MemoryEstimate.of(module, loaded, torch.bfloat16)}
            with lora_adapter(loaded, Training(method="lora")) as adapted:
                operations["lora"] = useful_work(adapted, [SAMPLE]) / SAMPLE_TOKENS
                needs["lora"] = MemoryEstimate.of(adapted, loaded, torch.bfloat16)
        needs["qlora"] = replace(needs["lora"], weights=needs["lora"].weights - layers * 3 // 2)
        head, layer = config.hidden_size // config.num_attention_heads, needs["full"].checkpointed
        cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head * TOKENS_IN_FLIGHT * 2
        needs["evaluation"] = MemoryEstimate(weights=6 * size + cache, trained=0, activations=layer, checkpointed=layer)
        return cls(size, operations, needs)


@dataclass(frozen=True)
class Shards:
    """Full fine-tuning of a Llama in shards (FSDP2), in bfloat16 with float32 weights and AdamW.

    Attributes:
        parameters: of the model.
        block: parameters of a transformer block.
        head: parameters of the output layer, as many as those of the embeddings.
        tied: whether both are the same. FSDP2 then gathers them twice.
        activations: of one row, in bytes.
        checkpointed: likewise, with gradient checkpointing.
    """

    parameters: int
    block: int
    head: int
    tied: bool
    activations: int
    checkpointed: int

    @classmethod
    def of(cls, shape: Sequence[int], tokens: int = ROW_TOKENS) -> "Shards":
        """The memory of a shape; `tokens` in a row of each process."""
        words, hidden, inner, layers, heads, groups, tied = shape
        block = 2 * hidden**2 * (1 + groups / heads) + 3 * hidden * inner + 2 * hidden
        layer = tokens * 2 * (12 * hidden + 5 * inner)
        head = words * hidden
        return cls(
            parameters=round(layers * block) + head * (1 if tied else 2) + hidden,
            block=round(block),
            head=head,
            tied=bool(tied),
            activations=layers * layer,
            checkpointed=layer + layers * tokens * 2 * hidden,
        )

    def shard(self, processes: int) -> float:
        """Bytes of a process's shards: float32 weights and gradients, and two moments."""
        return 16 * self.parameters / processes

    def gathered(self) -> int:
        """Most bytes that are gathered at a time.

        That is in the backward pass of the output layer, with the next block, or of a block, with the next one: weights in
        bfloat16, and the gradients of one of them in bfloat16 and, to be summed over processes, in float32.
        """
        output = (4 if self.tied else 2) * self.head + 2 * self.block + 6 * self.head
        return max(output, 2 * 2 * self.block + 6 * self.block)

    def total(self, processes: int, checkpointing: bool = False) -> float:
        """Bytes that each of some processes needs on its device."""
        return self.shard(processes) + self.gathered() + (self.checkpointed if checkpointing else self.activations)


@dataclass(frozen=True)
class Work:
    """A row of the tables: number of tokens and method of training; a row without tokens shows memory only."""

    label: str
    method: str
    costs: Costs

    def needs(self, model: Model) -> list[MemoryEstimate]:
        """Memory needs of the steps, which run one after the other."""
        return [model.needs[step] for step in (self.method, "evaluation") if step != "evaluation" or self.costs.scored]

    def cpu_hours(self, model: Model, figures: Figures) -> float:
        """Hours on the measured machine."""
        costs = self.costs
        parts = {self.method: costs.trained, "generation": costs.generated, "scoring": costs.scored}
        return (
            sum(n * model.parameters / figures.product(part, model.parameters) for part, n in parts.items() if n) / 3600
        )

    def accelerators(self, model: Model) -> tuple[int, bool]:
        """Number of accelerators that the memory requires, and whether they need gradient checkpointing."""
        available, count, checkpointing = USABLE_MEMORY * MEMORY, 1, False
        for need in self.needs(model):
            checkpointing |= (recomputed := need.activations >= available)
            row = need.checkpointed if recomputed else need.activations
            count = max(count, math.ceil((need.total(recomputed, MOMENTS) - row) / (available - row)))
        return count, checkpointing

    def accelerator_hours(self, model: Model) -> float:
        """Hours of a single accelerator, whatever its memory."""
        training = self.costs.trained * model.operations.get(self.method, 0.0) / UTILISATION
        training *= 4 / 3 if self.accelerators(model)[1] else 1
        rest = self.costs.generated / DECODING + self.costs.scored / UTILISATION
        return (training + 2 * model.parameters * rest) / PEAK / 3600


def gibibytes(need: MemoryEstimate) -> float:
    """Main memory on a CPU without gradient checkpointing, in GiB."""
    return (need.total(False, MOMENTS) + LIBRARIES) / 2**30


def works(study: Path) -> list[Work]:
    """The rows of the tables: the paper's hardening, the attack with its defaults, a study as in `tamperfuse run --dry-run`.

    In an evaluation the judge scores each response twice: given its prompt and given another one.
    """
    attack = HarmfulFinetuneParameters()
    evaluation = Costs(0, 160 * RESPONSE_TOKENS, 160 * 2 * SAMPLE_TOKENS)
    planned = sum((node.expected for node in build_nodes(StudyContext.open(load_study(study), Path("runs")))), Costs())
    return [
        Work("full fine-tuning, 1M tokens", "full", Costs(1_000_000)),
        Work("LoRA, 1M tokens", "lora", Costs(1_000_000)),
        Work("QLoRA", "qlora", Costs()),
        Work("SDD hardening, 500 × 24 samples", "full", Costs(int(PAPER["steps"] * PAPER["batch"]) * SAMPLE_TOKENS)),
        Work(
            f"one attack, {attack.steps} × {attack.batch} samples",
            "full",
            Costs(attack.steps * attack.batch * SAMPLE_TOKENS),
        ),
        Work(f"one evaluation, 160 × {RESPONSE_TOKENS} tokens", "evaluation", evaluation),
        Work(f"study `{study.stem}`", "full", planned),
    ]
