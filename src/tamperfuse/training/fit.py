"""`fit`: the function through which every defense and attack trains.

This module decides which weights train (all, an adapter's, some layers'), in which precision, and from which checkpoint. The
loop itself is in :mod:`tamperfuse.training.loop`, and what is computed on a batch in :mod:`tamperfuse.training.objectives`.
"""

import logging
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from tamperfuse.models.dropout import without_dropout
from tamperfuse.models.finite import diverged, not_finite
from tamperfuse.models.layers import attention_modules, decoder_layers
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.precision import Masters, compute_dtype, reduced_precision
from tamperfuse.records.errors import UserError, check_seed, is_out_of_memory, shown
from tamperfuse.records.process import world_size
from tamperfuse.records.progress import progress
from tamperfuse.records.provenance import versions
from tamperfuse.records.timing import add_seconds
from tamperfuse.training.accelerations import accelerated
from tamperfuse.training.adapters import lora_adapter, qlora_adapter
from tamperfuse.training.batches import schedule
from tamperfuse.training.checkpoints import Checkpoints, current_block, fingerprint
from tamperfuse.training.distributed import placed_like, sharding
from tamperfuse.training.loop import Hook, Loop, run_hook, sharded_by_loop
from tamperfuse.training.objectives import Objective, SupervisedObjective
from tamperfuse.training.parameters import Trainable, Training, sequences_of
from tamperfuse.training.result import FitResult
from tamperfuse.training.telemetry import useful_work

__all__ = ["FitResult", "Hook", "Trainable", "Training", "fit"]

log = logging.getLogger("tamperfuse")

LARGEST_SCHEDULE = 20_000_000  # samples in all steps of a training
ADAPTERS = {"lora": lora_adapter, "qlora": qlora_adapter}


def fit(
    loaded: LoadedModel,
    samples: Sequence[Trainable],
    training: Training,
    *,
    seed: int,
    objective: Objective[Any] | None = None,
    at_steps: Collection[int] = (),
    hook: Hook | None = None,
    label: str = "training",
) -> FitResult:
    """Train a model in place, without dropout.

    Within :func:`tamperfuse.training.checkpoints.resumable`, an interrupted training continues from its last checkpoint.

    Args:
        loaded: the model; float32 before and after.
        samples: what to train on, of the type that the objective takes; those longer than the model's window are left out.
        training: training parameters.
        seed: decides the order of samples and the initial values of adapters.
        objective: what to minimise; supervised fine-tuning by default.
        at_steps: after which steps the hook is called; 0 is before the first. A resumed run skips the steps up to its
            checkpoint.
        hook: called with the step's number; training ends at a step ≥ 1 where it returns True. The model is in evaluation
            mode, and in reduced precision unless the training shards it. With several processes, every process calls it.
        label: text of the progress bar, and name of the run for messages and trackers.

    Raises:
        Diverged: the loss, the weights or the predictions become NaN or infinite; a UserError, too.
        UserError: there are no samples, or all are longer than the model's window; adapter targets match no layer; the model
            has fewer layers than are to be trained; Adafactor over shards; an objective that changes gradients under DeepSpeed;
            the checkpoint belongs to another training; the disk is full; memory ran out.
    """
    samples = _within_window(loaded, samples, label)
    objective = objective or SupervisedObjective()
    _check(training, objective)
    check_seed(seed)
    set_seed(seed)
    order = [samples[i] for i in schedule(len(samples), training.batch, training.steps, seed)]
    dtype, reason = compute_dtype(loaded.model.device)
    result = FitResult(precision=reason, tokens=_tokens(order), steps=training.steps)
    block = current_block()
    hashes = fingerprint(loaded, samples) if block.folder or world_size() > 1 else {}
    checkpoints = _checkpoints(hashes, training, seed, objective)
    with (
        without_dropout(loaded.model),
        _trained_module(loaded, training) as module,
        reduced_precision(module, torch.float32 if sharded_by_loop(module) else dtype) as masters,
    ):
        result.work = useful_work(module, order)
        saved = checkpoints.load() if checkpoints else None
        if saved:
            _restore(masters, saved, result)
            log.info("      %s: resumes after step %d of %d", label, result.resumed_at, training.steps)
        elif hook and 0 in at_steps:
            run_hook(hook, 0, module)
        result.seconds_before = result.seconds
        if saved and saved["ended"]:
            objective.load_recorded(saved["recorded"])
        else:
            with (
                accelerated(module, loaded, training, dtype) as acceleration,
                progress(label, training.steps) as advance,
            ):
                advance(result.resumed_at)
                loop = Loop(
                    objective,
                    module,
                    masters,
                    dtype,
                    order[result.resumed_at * training.batch :],
                    training,
                    result,
                    fingerprint={**hashes, "step": str(result.resumed_at)},
                    seed=seed,
                    checkpoints=checkpoints,
                    saved=saved,
                    at_steps=at_steps,
                    hook=hook,
                    advance=advance,
                    block=block,
                    label=label,
                    eight_bit=acceleration.eight_bit,
                )
                saved = None  # the loop forgets it, too, once it has begun
                _run(loop)
        if len(result.losses) < training.steps:  # the hook ended it
            result.steps = len(result.losses)
            order = order[: result.steps * training.batch]
            result.tokens, result.work = _tokens(order), useful_work(module, order)
    loaded.model.eval()
    if problem := not_finite(loaded.model):  # after the last step there is no loss that would show it
        raise diverged(label, result.steps, problem)
    add_seconds("training", result.seconds)
    block.results.append(result)
    return result


def _within_window(loaded: LoadedModel, samples: Sequence[Trainable], label: str) -> Sequence[Trainable]:
    """Leave out samples that are longer than the model's context window, and print their number.

    Raises:
        UserError: no sample is shorter.
    """
    lengths = [_longest_sequence(sample) for sample in samples]
    left = [sample for sample, length in zip(samples, lengths, strict=True) if length <= loaded.window]
    if samples and not left:
        raise UserError(
            f"All {len(samples)} samples of the {label} are longer than the model's context window "
            f"({min(lengths)} tokens or more, {loaded.window} allowed): use shorter prompts and responses."
        )
    if len(left) < len(samples):
        log.warning(
            "%d of %d samples of the %s are longer than the model's context window of %d tokens and are left out.",
            *(len(samples) - len(left), len(samples), label, loaded.window),
        )
    return left


def _longest_sequence(sample: Trainable) -> int:
    """Tokens of a sample, or of the longest sequence of a sample that consists of several, such as a preference."""
    return max(len(sequence.tokens) for sequence in sequences_of(sample))


def _tokens(samples: Sequence[Trainable]) -> int:
    return sum(len(sample.tokens) for sample in samples)


def _check(training: Training, objective: Objective[Any]) -> None:
    if training.steps * training.batch > LARGEST_SCHEDULE:
        raise UserError(
            f"{shown(training.steps)} steps of {shown(training.batch)} samples are more than {LARGEST_SCHEDULE:,} samples in "
            "all: lower `steps` or `batch`."
        )
    if sharding() == "deepspeed" and type(objective).backward is not Objective.backward:
        raise UserError("This objective changes gradients, which DeepSpeed keeps to itself: use FSDP2 or DDP instead.")
    if training.optimizer == "adafactor" and sharding() == "fsdp":
        raise UserError("Adafactor cannot update sharded weights: use adamw or sgd, or DDP instead of FSDP2.")
    if training.batch % world_size():
        raise UserError(f"batch {training.batch} is not a multiple of {world_size()} processes: choose a multiple.")


def _checkpoints(
    hashes: dict[str, str], training: Training, seed: int, objective: Objective[Any]
) -> Checkpoints | None:
    """Where this training writes its checkpoints; None outside of `resumable`."""
    block = current_block()
    number = block.started
    block.started += 1
    if block.folder is None:
        return None
    if sharding() == "deepspeed":
        log.info("No checkpoints are written under DeepSpeed: an interrupted training starts from the beginning.")
        return None
    identity: dict[str, Any] = {
        **block.work,
        **hashes,
        "objective": {"type": type(objective).__name__, **objective.settings()},
        "training": training.model_dump(mode="json"),
        "seed": seed,
        "processes": world_size(),
        "versions": versions(),
    }
    return Checkpoints(block.folder, f"fit-{number}", identity)


def _run(loop: Loop) -> None:
    """Train, and delete the folder that the Trainer asks for. Out-of-memory errors become a UserError.

    The CPU allocator raises a plain RuntimeError.
    """
    try:
        loop.train()
        loop.gather()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"Memory ran out during {loop.label}: train fewer weights (method lora, attention or last_layers), on shorter "
            "responses or with a smaller batch; the last checkpoint, if there is one, remains."
        ) from error
    finally:
        shutil.rmtree(loop.args.output_dir or "", ignore_errors=True)


def _restore(masters: Masters, saved: dict[str, Any], result: FitResult) -> None:
    """Restore weights, losses and seconds from a checkpoint."""
    with torch.no_grad():
        for (parameter, master), weight in zip(masters.trainable(), saved["weights"], strict=True):
            master.copy_(placed_like(weight, master))
            parameter.copy_(master)
    result.losses, result.seconds = list(saved["losses"]), saved["seconds"]
    result.resumed_at = saved["step"]


@contextmanager
def _trained_module(loaded: LoadedModel, training: Training) -> Iterator[nn.Module]:
    """The module whose parameters train: the model, or an adapter around it that is merged when the block ends."""
    if training.method in ADAPTERS:
        with ADAPTERS[training.method](loaded, training) as adapted:
            yield adapted
        return
    loaded.model.requires_grad_(True)
    _freeze_others(loaded, training)
    try:
        yield loaded.model
    finally:
        loaded.model.requires_grad_(True)


def _freeze_others(loaded: LoadedModel, training: Training) -> None:
    """Freeze the weights that the method does not train."""
    if training.method == "full":
        return
    if training.method == "attention":
        trained = attention_modules(loaded.model)
    else:
        layers = decoder_layers(loaded.model)
        if training.layers > len(layers):
            raise UserError(f"{loaded.name} has {len(layers)} layers, not {training.layers}: lower `layers`.")
        trained = layers[-training.layers :]
    loaded.model.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)
