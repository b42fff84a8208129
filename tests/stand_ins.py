"""What tests use in place of the sentence encoder and other slow parts."""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.models.chat import Sample
from tamperfuse.models.encoder import TextEncoder
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.precision import Masters
from tamperfuse.records.errors import UserError
from tamperfuse.study import observe
from tamperfuse.study.estimates import Costs
from tamperfuse.study.node import Node, Outcome, node_folder
from tamperfuse.study.run import study_nodes
from tamperfuse.study.spec import Study
from tamperfuse.training import checkpoints
from tamperfuse.training.loop import Loop
from tamperfuse.training.objectives import Accumulate, Objective, SupervisedObjective
from tamperfuse.training.weights import SimulatedAttacker, gradients, inner

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with 480 tokens and a chat template."""
    raw = Tokenizer(models.BPE(unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([row["prompt"] for row in builtin_rows("cooking")], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_tiny_model(folder: Path) -> Path:
    """Save a tiny Llama with random weights and a tokenizer of its own."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass
class WordCountEncoder:
    """Word counts instead of MiniLM: tests of mechanics need no encoder."""

    name: str = "words"

    def encode(self, texts: list[str]) -> np.ndarray:
        vectors = np.full((len(texts), 64), 1e-3, dtype=np.float32)
        for i, text in enumerate(texts):
            for word in text.casefold().split():
                vectors[i, sum(map(ord, word)) % 64] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Trap(Objective[Sample]):
    """An objective on weights: the loss is lowered at the weights and raised where a persistent simulated attacker stands.

    It draws a random number in every step, so a resumed run shows whether random number generators were restored.
    """

    weight = 0.2
    attacker: SimulatedAttacker
    masters: Masters

    def begin(self, masters: Masters) -> None:
        self.masters, self.attacker = masters, SimulatedAttacker(masters, learning_rate=1e-3)

    def loss(self, model: nn.Module, samples: Sequence[Sample], total: int, device: torch.device) -> Tensor:
        return SupervisedObjective().loss(model, samples, total, device)

    def backward(self, accumulate: Accumulate) -> Tensor:
        parameters = [parameter for parameter, _ in self.masters.trainable()]
        with self.attacker.applied():
            attack_gradient = gradients(parameters, lambda: accumulate(self.loss))
        self.attacker.step(attack_gradient)
        loss = accumulate(self.loss)
        direction = [p.grad.float() for p in parameters if p.grad is not None]
        along = inner(attack_gradient, direction) / inner(direction, direction)
        share = self.weight * (0.5 + float(torch.rand(())))
        for parameter, attack, plain in zip(parameters, attack_gradient, direction, strict=True):
            assert parameter.grad is not None
            parameter.grad -= (share * (attack - along * plain)).to(parameter.grad.dtype)
        return loss

    def state_dict(self) -> dict[str, Any]:
        return self.attacker.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.attacker.load_state_dict(state)


class Killed(BaseException):
    """What a `kill -9` is to the code: no handler sees it coming, nothing is tidied."""


def results(run: Path) -> bytes:
    """The results table, byte for byte."""
    return (run / "results.parquet").read_bytes()


@dataclass(frozen=True)
class GraphOfNodes:
    """Builds a graph of small nodes, in this process and in workers: node i writes a number that depends on its parents'.

    Attributes:
        out: the run's folder.
        parents: of every node, numbers of earlier ones.
        depends: what each node's result depends on beside them.
        dies: number of a node that ends its process; the file `deaths` counts how often.
        deaths: how often it does so before it gives a result.
        fails: number of a node that raises a UserError.
        seconds: that every node takes.
    """

    out: Path
    parents: tuple[tuple[int, ...], ...]
    depends: tuple[int, ...]
    dies: int = -1
    deaths: int = 0
    fails: int = -1
    seconds: float = 0.0

    def __call__(self) -> list[Node]:
        nodes: list[Node] = []
        for i, numbers in enumerate(self.parents):
            parents = tuple(nodes[j] for j in numbers)
            depends = {"node": i, "value": self.depends[i]}
            run = partial(self._run, i, parents)
            nodes.append(Node(f"node {i}", "pairs", parents, depends, 0, run, Costs()))
        return nodes

    def _run(self, number: int, parents: Sequence[Node], folder: Path) -> Outcome:
        time.sleep(self.seconds)
        if number == self.fails:
            raise UserError(f"Node {number} fails: mend it.")
        count = self.out / "deaths"
        if number == self.dies and (not count.exists() or len(count.read_text()) < self.deaths):
            with count.open("a") as file:
                file.write("x")
            (folder / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        values = [int((node_folder(self.out, parent) / "value").read_text()) for parent in parents]
        (folder / "value").write_text(
            str(self.depends[number] + sum((i + 2) * value for i, value in enumerate(values)))
        )
        return Outcome(notes=(f"in process {os.getpid()} with {torch.get_num_threads()} threads",))


def quick_capability(loaded: LoadedModel, tasks: object, limit: object) -> tuple[list[observe.ItemRow], int]:
    """Twelve items without lm-eval, whose outcomes depend on the weights."""
    bias = float(next(loaded.model.parameters()).detach().abs().sum()) % 1
    return [observe.ItemRow(0, "t", i, f"g{i % 3}", i / 12 < 0.6 + 0.3 * bias, 0.25) for i in range(12)], 10


def quick_study_nodes(study: Study, out: Path, encoder: TextEncoder) -> list[Node]:
    """The nodes of a study in a worker, which measures capability as the fixture `quick_judging` does in the tests' process."""
    observe.measure_capability = quick_capability  # type: ignore[assignment]
    return study_nodes(study, out, encoder)


def failing_study_nodes(study: Study, out: Path, encoder: TextEncoder) -> list[Node]:
    """As :func:`quick_study_nodes`; the first attack raises a UserError."""
    nodes = quick_study_nodes(study, out, encoder)
    first = next(i for i, node in enumerate(nodes) if node.kind == "attack")

    def fail(folder: Path) -> Outcome:
        raise UserError("This node fails: mend it.")

    return [replace(node, run=fail) if i == first else node for i, node in enumerate(nodes)]


def dying_study_nodes(study: Study, out: Path, encoder: TextEncoder) -> list[Node]:
    """As :func:`quick_study_nodes`; the first training of three steps kills its process after the first one, once."""
    checkpoints.INTERVAL = 0.0
    plain = Loop.checkpoint

    def checkpoint(self: Loop, ends: bool) -> None:
        plain(self, ends)
        if (self.state.global_step, self.state.max_steps) == (1, 3):
            with suppress(FileExistsError):
                (out / "killed").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)

    Loop.checkpoint = checkpoint  # type: ignore[method-assign]
    return quick_study_nodes(study, out, encoder)


def is_alive(pid: int) -> bool:
    """Whether a process runs. One that ended without a parent that waits for it is a zombie, in a container for ever."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
