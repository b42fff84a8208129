"""`fit`: the one way to train a model.

What is trained (the whole model, an adapter, some layers), in which precision, from which checkpoint is settled here; the
loop itself is in :mod:`tamperfuse.training.loop`, what a batch's backward pass is in :mod:`tamperfuse.training.objectives`.
"""

import logging
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from tamperfuse.models.layers import attention_modules, decoder_layers
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.precision import Masters, compute_dtype, reduced_precision
from tamperfuse.records.errors import UserError
from tamperfuse.records.process import world_size
from tamperfuse.records.progress import progress
from tamperfuse.records.provenance import versions
from tamperfuse.records.timing import note
from tamperfuse.training.accelerations import extras
from tamperfuse.training.adapters import low_rank, low_rank_on_4_bits
from tamperfuse.training.batches import schedule
from tamperfuse.training.checkpoints import Checkpoints, current, fingerprint
from tamperfuse.training.distributed import sharding
from tamperfuse.training.loop import Hook, Loop, run_hook
from tamperfuse.training.objectives import Objective, SupervisedObjective
from tamperfuse.training.parameters import Trainable, Training
from tamperfuse.training.result import FitResult
from tamperfuse.training.telemetry import useful_work

__all__ = ["FitResult", "Hook", "Trainable", "Training", "fit"]

log = logging.getLogger("tamperfuse")

ADAPTERS = {"lora": low_rank, "qlora": low_rank_on_4_bits}


def fit(
    loaded: LoadedModel,
    samples: Sequence[Trainable],
    training: Training,
    *,
    seed: int,
    step: Objective | None = None,
    at_steps: Collection[int] = (),
    hook: Hook | None = None,
    what: str = "training",
) -> FitResult:
    """Train a model in place; within :func:`tamperfuse.training.checkpoints.resumable`, go on from where it was interrupted.

    Args:
        loaded: the model; float32 before and after.
        samples: what to train on: samples, or whatever the step takes.
        training: how.
        seed: decides the order of samples and the adapter's initial values.
        step: the objective; supervised fine-tuning by default. One that keeps something between batches is torch's
            `Stateful`: it has `state_dict` and `load_state_dict`.
        at_steps: after which steps the hook runs; 0 is before the first. A resumed run skips those before its checkpoint.
        hook: called with the step's number, the model in evaluation mode, in reduced precision unless it is trained in
            shards. Of several processes each calls it.
        what: a few words for the progress bar.

    Raises:
        UserError: no samples, or a sample longer than the model's window, or an adapter that fits no layer, or more last
            layers than there are; Adafactor over shards; a checkpoint of something else; the disk is full, or memory is.
    """
    _check(loaded, samples, training)
    set_seed(seed)
    order = [samples[i] for i in schedule(len(samples), training.batch, training.steps, seed)]
    dtype, reason = compute_dtype(loaded.model.device)
    tokens = sum(len(sample.tokens) for sample in order)
    result = FitResult(precision=reason, tokens=tokens, steps=training.steps)
    step = step or SupervisedObjective()
    same = fingerprint(loaded, samples) if current().folder or world_size() > 1 else {}
    checkpoints = _checkpoints(loaded, same, training, seed, step)
    held = torch.float32 if sharding() else dtype
    with _trained_part(loaded, training) as module, reduced_precision(module, held) as masters:
        result.work = useful_work(module, order)
        saved = checkpoints.load() if checkpoints else None
        if saved:
            _restore(masters, saved, result)
            log.info("      %s: goes on from step %d of %d", what, result.resumed_at, training.steps)
        elif hook and 0 in at_steps:
            run_hook(hook, 0, module)
        before = result.seconds
        if result.resumed_at < training.steps:
            with extras(module, loaded, training, dtype) as chosen, progress(what, training.steps) as advance:
                advance(result.resumed_at)
                loop = Loop(
                    step,
                    module,
                    masters,
                    dtype,
                    order[result.resumed_at * training.batch :],
                    training,
                    result,
                    same={**same, "step": str(result.resumed_at)},
                    seed=seed,
                    checkpoints=checkpoints,
                    saved=saved,
                    at_steps=at_steps,
                    hook=hook,
                    advance=advance,
                    fits=current(),
                    what=what,
                    eight_bit=chosen.eight_bit,
                )
                try:
                    with _enough_memory(what):
                        loop.train()
                        loop.gather()
                finally:
                    shutil.rmtree(loop.args.output_dir or "", ignore_errors=True)
    loaded.model.eval()
    note("training", result.seconds - before)
    current().results.append(result)
    return result


def _check(loaded: LoadedModel, samples: Sequence[Trainable], training: Training) -> None:
    longest = max((len(sample.tokens) for sample in samples), default=0)
    if longest > loaded.window:
        raise UserError(f"A sample has {longest} tokens, the model takes {loaded.window}: lower the length limit.")
    if training.optimizer == "adafactor" and sharding() == "fsdp":
        raise UserError("Adafactor cannot step weights that lie in shards: use adamw or sgd, or DDP instead of FSDP2.")
    if training.batch % world_size():
        raise UserError(f"batch {training.batch} does not divide among {world_size()} processes: choose a multiple.")


def _checkpoints(
    loaded: LoadedModel, same: dict[str, str], training: Training, seed: int, step: Objective
) -> Checkpoints | None:
    """Where this fit keeps its state, if its caller wants that."""
    fits = current()
    number = fits.begun
    fits.begun += 1
    if fits.folder is None:
        return None
    if sharding() == "deepspeed":
        log.info("DeepSpeed keeps its optimizer to itself: this training cannot go on from where it is interrupted.")
        return None
    of: dict[str, Any] = {
        "model": loaded.name,
        **same,
        "objective": type(step).__name__,
        "training": training.model_dump(mode="json"),
        "seed": seed,
        "processes": world_size(),
        "versions": versions(),
    }
    return Checkpoints(fits.folder, f"fit-{number}", of)


@contextmanager
def _enough_memory(what: str) -> Iterator[None]:
    """Say what to change where memory runs out; a CPU's allocator raises a plain RuntimeError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search(
            r"(can't|cannot) allocate memory|out of memory", str(error), re.I
        ):
            raise
        raise UserError(
            f"Memory ran out during {what}: train fewer weights (method lora, attention or last_layers), on shorter "
            "responses or with a smaller batch; a checkpoint that was written is kept."
        ) from error


def _restore(masters: Masters, saved: dict[str, Any], result: FitResult) -> None:
    """Weights, and what was done so far."""
    with torch.no_grad():
        for (parameter, master), kept in zip(masters.trainable(), saved["weights"], strict=True):
            master.copy_(kept)
            parameter.copy_(master)
    result.losses, result.seconds = list(saved["losses"]), saved["seconds"]
    result.resumed_at = saved["step"]


@contextmanager
def _trained_part(loaded: LoadedModel, training: Training) -> Iterator[nn.Module]:
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
