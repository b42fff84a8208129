"""The model of cost behind scripts/cost_table.py: what was measured, what a size takes, what a method takes of it.

Hours on the measured machine are tokens × parameters over what size_scaling measured, tokens/s × parameters, at the nearest
size. Hours on accelerators are estimates: operations over peak rate × utilisation. A training's operations are
`telemetry.useful_work`, a third more with gradient checkpointing; generating and scoring take 2 a parameter and token.

Memory is `MemoryEstimate`: 16 bytes a trained parameter, 6 a frozen one (under QLoRA 4.5 in the layers: 4 bits beside float32)
and the activations of a row. A CPU trains on two rows at once: twice their activations and gradients. An evaluation takes
8 a parameter (float32, bfloat16, the layout for decoding) and the cache of keys and values. An accelerator holds a row's
activations and its share of the rest, in nine tenths of its memory; it trains with gradient checkpointing where a row would
not fit. A study's trainings are counted as if all were full.

Left out: loading, lm-eval, the sentence encoder, prompts read before generating, communication, idle machines.
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
from tamperfuse.commands.single import ANSWER_TOKENS
from tamperfuse.defenses.sdd import PAPER
from tamperfuse.evaluation.generate import TOKENS_IN_FLIGHT
from tamperfuse.models.chat import Chat, Sample
from tamperfuse.models.cpu.two_threads import WORKERS
from tamperfuse.models.layers import layer_matrices
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.study.context import StudyContext
from tamperfuse.study.node import Costs
from tamperfuse.study.plan import build_nodes
from tamperfuse.study.shared import PROMPT_TOKENS
from tamperfuse.study.spec import load_study
from tamperfuse.training.accelerations import MOMENTS, USABLE_MEMORY, MemoryEstimate
from tamperfuse.training.adapters import lora_adapter
from tamperfuse.training.parameters import Training
from tamperfuse.training.telemetry import useful_work

FIELDS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "tie_word_embeddings")  # fmt: skip
SHAPES = {
    "135M": ("SmolLM2-135M", (49_152, 576, 1_536, 30, 9, 3, True)),
    "1B": ("Llama 3.2 1B", (128_256, 2_048, 8_192, 16, 32, 8, True)),
    "7B": ("Llama 2 7B", (32_000, 4_096, 11_008, 32, 32, 32, False)),
    "70B": ("Llama 2 70B", (32_000, 8_192, 28_672, 80, 64, 8, False)),
}
MEASURED = ("full", "lora", "generation", "scoring")
LIBRARIES = 0.4 * 2**30  # bytes: the interpreter with torch and transformers, in main memory
# Assumed: the peak is the data sheet's of an NVIDIA H100 SXM, dense bfloat16. Decoding waits for memory, not for arithmetic.
PEAK, MEMORY, UTILISATION, DECODING = 989e12, 80e9, 0.4, 0.1
SAMPLE = Sample([0] * (PROMPT_TOKENS + ANSWER_TOKENS), PROMPT_TOKENS)
EACH = len(SAMPLE.tokens)


@dataclass(frozen=True)
class Figures:
    """What was measured: the lines of size_scaling and, where it was given, training_speed."""

    scaling: dict[str, Any]
    speed: dict[str, Any]

    @classmethod
    def read(cls, files: Sequence[str]) -> "Figures":
        """Raises a UserError for what is missing, no JSON, or lacks a method's figures."""
        found: dict[str, Any] = {}
        for name in files:
            try:
                text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
                found |= {(one := json.loads(line))["benchmark"]: one for line in text.splitlines() if line.strip()}
            except OSError as error:
                raise UserError(f"{name} cannot be read ({error.strerror}): name a file of JSON lines.") from error
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{name} does not hold JSON lines of benchmarks: give what --save wrote.") from error
        figures = cls(found.get("size_scaling", {}), found.get("training_speed", {}))
        for how in MEASURED:
            try:
                sizes = figures.scaling["measured"][how].values()
                measured = [float(one[what]) for one in sizes for what in ("parameters", "rate")]
            except (KeyError, TypeError, AttributeError, ValueError):
                measured = []
            if not measured or not all(0 < number < math.inf for number in measured):
                raise UserError(f"There are no figures of {how} in {', '.join(files)}: give size_scaling's last line.")
        return figures

    def product(self, method: str, parameters: int) -> float:
        """Tokens/s × parameters, measured at the size nearest to this one by ratio."""
        sizes = self.scaling["measured"][method].values()
        near = min(sizes, key=lambda one: abs(math.log(one["parameters"] / parameters)))
        return float(near["parameters"] * near["rate"])


@dataclass(frozen=True)
class Model:
    """What one size takes: operations of training a token by method, bytes by method and for an evaluation."""

    parameters: int
    operations: dict[str, float]
    needs: dict[str, MemoryEstimate]

    @classmethod
    def of(cls, shape: Sequence[int]) -> "Model":
        """Count a Llama, without its weights."""
        with torch.device("meta"):
            config = LlamaConfig(**dict(zip(FIELDS, shape, strict=True)))
            module = LlamaForCausalLM(config)
            loaded = LoadedModel("", module, cast(Chat, None), "")  # nobody talks to it
            size, layers = int(module.num_parameters()), sum(weight.numel() for weight in layer_matrices(module))
            operations = {"full": useful_work(module, [SAMPLE]) / EACH}
            needs = {"full": MemoryEstimate.of(module, loaded, torch.bfloat16)}
            with lora_adapter(loaded, Training(method="lora")) as adapted:
                operations["lora"] = useful_work(adapted, [SAMPLE]) / EACH
                needs["lora"] = MemoryEstimate.of(adapted, loaded, torch.bfloat16)
        needs["qlora"] = replace(needs["lora"], weights=needs["lora"].weights - layers * 3 // 2)
        head, layer = config.hidden_size // config.num_attention_heads, needs["full"].checkpointed
        cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head * TOKENS_IN_FLIGHT * 2
        needs["evaluation"] = MemoryEstimate(
            weights=6 * size + 2 * layers + cache, trained=0, activations=layer, checkpointed=layer
        )
        return cls(size, operations, needs)


@dataclass(frozen=True)
class Work:
    """A row of the tables: tokens, and how those that are trained are; without any tokens only memory is of interest."""

    label: str
    method: str
    costs: Costs

    def needs(self, model: Model) -> list[MemoryEstimate]:
        """What has to fit into memory, one after the other."""
        return [model.needs[how] for how in (self.method, "evaluation") if how != "evaluation" or self.costs.scored]

    def cpu_hours(self, model: Model, figures: Figures) -> float:
        """On the measured machine."""
        costs = self.costs
        parts = {self.method: costs.trained, "generation": costs.generated, "scoring": costs.scored}
        return (
            sum(n * model.parameters / figures.product(how, model.parameters) for how, n in parts.items() if n) / 3600
        )

    def accelerators(self, model: Model) -> tuple[int, bool]:
        """How many memory asks for, and whether they train with gradient checkpointing."""
        room, count, again = USABLE_MEMORY * MEMORY, 1, False
        for need in self.needs(model):
            again |= (recomputed := need.activations >= room)
            row = need.checkpointed if recomputed else need.activations
            count = max(count, math.ceil((need.total(recomputed, MOMENTS) - row) / (room - row)))
        return count, again

    def accelerator_hours(self, model: Model) -> float:
        """Hours of one accelerator that did it all."""
        training = self.costs.trained * model.operations.get(self.method, 0.0) / UTILISATION
        training *= 4 / 3 if self.accelerators(model)[1] else 1
        rest = self.costs.generated / DECODING + self.costs.scored / UTILISATION
        return (training + 2 * model.parameters * rest) / PEAK / 3600


def gibibytes(need: MemoryEstimate) -> float:
    """Main memory, without gradient checkpointing."""
    at_once = WORKERS if need.trained else 1
    return (replace(need, rows=at_once).total(False, MOMENTS) + LIBRARIES) / 2**30


def works(study: Path) -> list[Work]:
    """The rows: the paper's hardening, the attack's defaults, a study as `tamperfuse run --dry-run` counts it.

    The judge of an evaluation reads every response twice, after its own prompt and after another.
    """
    attack = HarmfulFinetuneParameters()
    planned = sum((node.expected for node in build_nodes(StudyContext.open(load_study(study), Path("runs")))), Costs())
    return [
        Work("full fine-tuning, 1M tokens", "full", Costs(1_000_000)),
        Work("LoRA, 1M tokens", "lora", Costs(1_000_000)),
        Work("QLoRA", "qlora", Costs()),
        Work("SDD hardening, 500 × 24 samples", "full", Costs(int(PAPER["steps"] * PAPER["batch"]) * EACH)),
        Work(f"one attack, {attack.steps} × {attack.batch} samples", "full", Costs(attack.steps * attack.batch * EACH)),
        Work("one evaluation, 160 × 64 tokens", "evaluation", Costs(0, 160 * 64, 160 * 2 * EACH)),
        Work(f"study `{study.stem}`", "full", planned),
    ]
