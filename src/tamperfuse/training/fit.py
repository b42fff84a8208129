"""`fit`: the one training loop, on transformers' Trainer.

The Trainer brings schedule, accumulation, clipping and accelerate (several processes, sharding); what is ours is passed in:
the step (a backward pass), the order of samples, the optimizer over float32 masters, hooks at given steps.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from peft import LoraConfig, get_peft_model
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    Adafactor,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from tamperfuse.models.load import LoadedModel
from tamperfuse.models.parts import attention_modules, decoder_layers
from tamperfuse.models.precision import Masters, compute_dtype, reduced_precision
from tamperfuse.records.clock import note
from tamperfuse.records.errors import UserError
from tamperfuse.records.progress import progress
from tamperfuse.records.registry import Parameters
from tamperfuse.training.batches import schedule
from tamperfuse.training.steps import Step, SupervisedStep

Hook = Callable[[int], None]


class Trainable(Protocol):
    """What a step can be given: a sample, a preference, whatever has tokens and a weight."""

    @property
    def tokens(self) -> list[int]:
        """All tokens that a step has to carry."""
        ...

    @property
    def response_tokens(self) -> int:
        """How much it counts in the loss's denominator."""
        ...


class Training(Parameters):
    """How weights are trained; part of the parameters of every defense and attack that trains.

    Attributes:
        steps: optimizer steps.
        batch: samples a step, over all processes.
        learning_rate: peak.
        optimizer: AdamW (betas .9 and .999), SGD with momentum .9, or Adafactor (its learning rate absolute, as with the
            others: neither relative steps nor parameter scaling); none decays weights.
        schedule: what the learning rate does after warm-up.
        warmup: share of the steps over which it rises from 0, in [0, 1).
        clip: largest gradient norm; 0 for none.
        method: which weights change: all, a LoRA adapter's that is merged afterwards, those of every layer's attention,
            or those of the last layers (without the final norm, the embeddings and the output).
        layers: how many layers `last_layers` trains, at most as many as there are.
        lora_rank: rank of the adapter's updates.
        lora_alpha: the update is scaled by alpha / rank.
        lora_targets: which linear layers get adapters, by the end of their names; `all-linear` for all but the output.
    """

    steps: int = Field(50, ge=1)
    batch: int = Field(10, ge=1)
    learning_rate: float = Field(3e-5, gt=0, lt=10)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = Field(0.0, ge=0, lt=1)
    clip: float = Field(1.0, ge=0)
    optimizer: Literal["adamw", "sgd", "adafactor"] = "adamw"
    method: Literal["full", "lora", "attention", "last_layers"] = "full"
    layers: int = Field(4, ge=1)
    lora_rank: int = Field(16, ge=1)
    lora_alpha: float = Field(32, gt=0)
    lora_targets: str | tuple[str, ...] = "all-linear"


@dataclass
class FitResult:
    """What a training run did.

    Attributes:
        losses: mean loss of every step, nats a response token.
        tokens: tokens trained on, prompts included, shared prefixes counted for every sample.
        seconds: spent training, hooks left out.
        precision: the dtype computed in, and why.
    """

    precision: str
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0


def fit(
    loaded: LoadedModel,
    samples: Sequence[Trainable],
    training: Training,
    *,
    seed: int,
    step: Step | None = None,
    at_steps: Collection[int] = (),
    hook: Hook | None = None,
    what: str = "training",
) -> FitResult:
    """Train a model in place.

    Args:
        loaded: the model; float32 before and after.
        samples: what to train on: samples, or whatever the step takes.
        training: how.
        seed: decides the order of samples and the adapter's initial values.
        step: the objective; supervised fine-tuning by default.
        at_steps: after which steps the hook runs; 0 is before the first.
        hook: called with the step's number, the model in evaluation mode and reduced precision.
        what: a few words for the progress bar.

    Raises:
        UserError: no samples, or a sample longer than the model's window, or an adapter that fits no layer, or more last
            layers than there are.
    """
    longest = max((len(sample.tokens) for sample in samples), default=0)
    if longest > loaded.window:
        raise UserError(f"A sample has {longest} tokens, the model takes {loaded.window}: lower the length limit.")
    set_seed(seed)
    order = [samples[i] for i in schedule(len(samples), training.batch, training.steps, seed)]
    dtype, reason = compute_dtype(loaded.model.device)
    result = FitResult(precision=reason)
    with _trained_part(loaded, training) as module, reduced_precision(module, dtype) as masters:
        if hook and 0 in at_steps:
            _run_hook(hook, 0, module)
        with progress(what, training.steps) as advance:
            callback = _AtSteps(set(at_steps), hook, advance, result)
            trainer = _StepTrainer(step or SupervisedStep(), module, order, training, masters, callback, seed)
            try:
                trainer.train()
            finally:
                shutil.rmtree(trainer.args.output_dir or "", ignore_errors=True)
    loaded.model.eval()
    result.tokens = sum(len(sample.tokens) for sample in order)
    note("training", result.seconds)
    return result


@contextmanager
def _trained_part(loaded: LoadedModel, training: Training) -> Iterator[nn.Module]:
    """The module whose parameters train: the model, or an adapter around it that is merged when the block ends."""
    loaded.model.requires_grad_(True)
    if training.method != "lora":
        _freeze_others(loaded, training)
        try:
            yield loaded.model
        finally:
            loaded.model.requires_grad_(True)
        return
    config = LoraConfig(
        r=training.lora_rank,
        lora_alpha=training.lora_alpha,
        target_modules=training.lora_targets if isinstance(training.lora_targets, str) else list(training.lora_targets),
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(loaded.model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise UserError(
            f"lora_targets {training.lora_targets!r} match no layer of {loaded.name}: name the ends of linear layers' "
            "names, such as q_proj, or all-linear."
        ) from error
    try:
        yield adapted
    finally:
        loaded.model = adapted.merge_and_unload()
        loaded.model.requires_grad_(True)


def _freeze_others(loaded: LoadedModel, training: Training) -> None:
    """Leave only those weights trainable that the method names."""
    if training.method == "full":
        return
    if training.method == "attention":
        chosen = attention_modules(loaded.model)
    else:
        layers = decoder_layers(loaded.model)
        if training.layers > len(layers):
            raise UserError(f"{loaded.name} has {len(layers)} layers, not {training.layers}: lower `layers`.")
        chosen = layers[-training.layers :]
    loaded.model.requires_grad_(False)
    for module in chosen:
        module.requires_grad_(True)


def _optimizer(training: Training, weights: list[Tensor]) -> torch.optim.Optimizer:
    if training.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=training.learning_rate, weight_decay=0.0, fused=True)
    if training.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=training.learning_rate, momentum=0.9)
    # Not torch's own, which knows only steps relative to a parameter's size.
    adafactor: torch.optim.Optimizer = Adafactor(
        weights, lr=training.learning_rate, scale_parameter=False, relative_step=False
    )
    return adafactor


def _run_hook(hook: Hook, step: int, module: nn.Module) -> None:
    training = module.training
    module.eval()
    hook(step)
    module.train(training)


class _AtSteps(TrainerCallback):  # type: ignore[misc]  # transformers is taken on trust
    """Runs the hook, moves the bar, keeps the time that training itself took."""

    def __init__(
        self, steps: Collection[int], hook: Hook | None, advance: Callable[[int], None], out: FitResult
    ) -> None:
        self.steps, self.hook, self.advance, self.out = steps, hook, advance, out
        self.began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """After every optimizer step."""
        self.out.seconds += time.perf_counter() - self.began
        self.advance(1)
        if self.hook and state.global_step in self.steps:
            _run_hook(self.hook, state.global_step, rest["model"])
        self.began = time.perf_counter()


class _StepTrainer(Trainer):  # type: ignore[misc]
    """transformers' loop around our step."""

    def __init__(
        self,
        step: Step,
        module: nn.Module,
        order: Sequence[Trainable],
        training: Training,
        masters: Masters,
        callback: _AtSteps,
        seed: int,
    ) -> None:
        self.step, self.order, self.report = step, order, callback.out
        step.begin(masters)
        optimizer = _optimizer(training, [master for _, master in masters.trainable()])
        masters.attach(optimizer)
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(prefix="tamperfuse-"),
            max_steps=training.steps,
            per_device_train_batch_size=training.batch,
            learning_rate=training.learning_rate,
            lr_scheduler_type="constant_with_warmup" if training.schedule == "constant" else training.schedule,
            warmup_steps=round(training.warmup * training.steps),
            max_grad_norm=training.clip,
            use_cpu=next(module.parameters()).device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=seed,
        )
        _ = arguments.device  # settles the count of GPUs
        arguments._n_gpu = 1  # a packed row cannot be scattered; several GPUs go through accelerate's processes
        super().__init__(model=module, args=arguments, optimizers=(optimizer, None), callbacks=[callback])
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of samples in the order that the schedule gave, split among processes."""
        world = self.args.world_size
        if self.args.per_device_train_batch_size % world:
            raise UserError(f"batch {self.args.per_device_train_batch_size} does not divide among {world} processes.")
        loader: DataLoader[Any] = DataLoader(
            self.order,  # type: ignore[arg-type]
            batch_size=self.args.per_device_train_batch_size // world,
            collate_fn=_collate,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def training_step(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch through the step."""
        model.train()
        world = self.accelerator.num_processes
        total = int(num_items_in_batch or 1)
        loss = self.step.backward(
            model,
            inputs["samples"],
            total,
            # Processes average their gradients; the loss was divided by the count over all of them already.
            lambda value: self.accelerator.backward(value * world),
            self.args.device,
        )
        self.report.losses.append(float(loss))
        return loss


def _collate(samples: list[Trainable]) -> dict[str, Any]:
    """What the Trainer counts (`shift_labels`, to get the loss's denominator) beside what the step packs itself."""
    counted = torch.zeros(sum(sample.response_tokens for sample in samples), dtype=torch.long)
    return {"shift_labels": counted, "labels": counted, "samples": samples}
