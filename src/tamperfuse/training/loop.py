"""The training loop of :func:`tamperfuse.training.fit.fit`: transformers' Trainer with this project's parts plugged in.

The Trainer provides learning-rate schedule, gradient clipping and accelerate (several processes, sharding). :class:`Loop`
replaces the order of samples, the training step (an :class:`~tamperfuse.training.objectives.Objective`), the optimizer over
float32 masters, and adds hooks at chosen steps and checkpoints.

With several processes each holds the model, unless the accelerate configuration shards it. A model that was loaded in shards is
trained as it is, and accelerate is not told of FSDP. Of a complete model a copy is sharded and trained;
the original stays in main memory, receives the weights before every hook and at the end, and is the result.

When training resumes, `fit` restores the weights before the loop is created. Optimizer, schedule, the objective's state and
random number generators exist only after the model was distributed, so the loop restores them when training begins.
"""

import copy
import math
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from tamperfuse.models.finite import diverged
from tamperfuse.models.precision import Masters
from tamperfuse.models.sharded import check_same_on_every_process, gather_objects, is_shard, is_sharded, on_main_process
from tamperfuse.models.sharded_loading import hidden_from_accelerate
from tamperfuse.records.process import world_size
from tamperfuse.records.progress import Advance, is_shown
from tamperfuse.training.checkpoints import Checkpoints, TrainingBlock, random_state, set_random_state
from tamperfuse.training.distributed import max_over_processes, sharding, unsharded_weight
from tamperfuse.training.objectives import Objective, accumulate_gradient
from tamperfuse.training.optimizers import load_optimizer, make_optimizer
from tamperfuse.training.parameters import Trainable, Training
from tamperfuse.training.result import FitResult
from tamperfuse.training.telemetry import format_speed, speed

#: Called with the number of the step that was just completed; training ends there if it returns True.
Hook = Callable[[int], bool | None]


def run_hook(hook: Hook, step: int, module: nn.Module) -> bool:
    """Call a hook with the model in evaluation mode; the random numbers that it draws do not affect training.

    Returns:
        Whether training ends at this step.
    """
    training, generators = module.training, random_state()
    module.eval()
    ends = bool(hook(step))
    module.train(training)
    set_random_state(generators)
    return ends


class Loop(Trainer):  # type: ignore[misc]  # transformers is not type-checked
    """One training run.

    Args:
        objective: computes the gradient of each micro-batch.
        module: the model, or an adapter around it.
        masters: its trained weights, in float32.
        dtype: to compute in where the loop shards the model; otherwise the module computes in this dtype already.
        order: the samples of all remaining steps, in order.
        training: training parameters.
        result: losses and seconds are added to it; holds those of the completed steps.
        fingerprint: hashes of the model and the data, and the step to continue from; must be equal on all processes.
        seed: for whatever the Trainer draws.
        checkpoints: where to write checkpoints; None for none.
        saved: the state to continue from; None to start.
        at_steps: after which steps the hook is called.
        hook: called with the step's number; training ends where it returns True.
        advance: moves the progress bar.
        block: the block of trainings that this one belongs to: trackers and their log folder.
        label: name of the run for messages and trackers.
        eight_bit: whether AdamW keeps its moments in 8 bits.
    """

    optimizer: Any  # the Trainer's: accelerate wraps what `create_optimizer` returned
    inner_optimizer: torch.optim.Optimizer

    def __init__(
        self,
        objective: Objective[Any],
        module: nn.Module,
        masters: Masters,
        dtype: torch.dtype,
        order: Sequence[Trainable],
        training: Training,
        result: FitResult,
        *,
        fingerprint: dict[str, str],
        seed: int,
        checkpoints: Checkpoints | None,
        saved: dict[str, Any] | None,
        at_steps: Collection[int],
        hook: Hook | None,
        advance: Advance,
        block: TrainingBlock,
        label: str,
        eight_bit: bool,
    ) -> None:
        self.objective, self.order, self.training, self.result = objective, order, training, result
        self.masters, self.checkpoints, self.saved, self.eight_bit = masters, checkpoints, saved, eight_bit
        self.at_steps, self.hook, self.advance, self.label = set(at_steps), hook, advance, label
        self.original, self.device, self.fingerprint = module, next(module.parameters()).device, fingerprint
        shards = sharded_by_loop(module)
        if shards:
            module = copy.deepcopy(module)
            self.masters = _own_masters(module)
            self.original.to("cpu")
        cached = bool(getattr(module.config, "use_cache", False))
        with nullcontext() if shards else hidden_from_accelerate():
            arguments = self._arguments(training, seed, block, shards and dtype == torch.bfloat16, cached)
            if shards and self.device.type == "cpu" and sharding() == "fsdp":
                # accelerate applies FSDP only if the type is MULTI_GPU; with this type it works over gloo as well.
                PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
            super().__init__(model=module, args=arguments, callbacks=[_Events(self)])
        # The objective forms the loss. A model class that takes no denominator for a loss of its own (Gemma 4) must not keep the
        # Trainer from counting it.
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None and block.logs:
                callback.logging_dir = str(block.logs / f"{block.started}-{label.replace(' ', '-')}")

    def _arguments(
        self, training: Training, seed: int, block: TrainingBlock, mixed: bool, use_cache: bool
    ) -> TrainingArguments:
        """The Trainer's arguments. `mixed`: whether accelerate casts float32 weights to bfloat16 for each forward pass."""
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(prefix="tamperfuse-"),
            max_steps=training.steps,
            per_device_train_batch_size=training.batch // world_size(),
            learning_rate=training.learning_rate,
            lr_scheduler_type="constant_with_warmup" if training.schedule == "constant" else training.schedule,
            warmup_steps=round(training.warmup * training.steps),
            max_grad_norm=training.clip,
            use_cpu=self.device.type == "cpu",
            bf16=mixed,
            ddp_find_unused_parameters=False,
            ddp_broadcast_buffers=False,
            save_strategy="no",
            logging_strategy="steps" if block.report_to else "no",
            logging_steps=1,
            report_to=list(block.report_to),
            run_name=self.label,
            disable_tqdm=True,
            seed=seed,
            # The Trainer writes it into the configuration, which is saved; forward passes say themselves that they need no cache.
            use_cache=use_cache,
        )
        _ = arguments.device  # connects the processes and sets the number of GPUs
        # The accelerate configuration does not decide this: unless the loop shards the model, it computes in its dtype already.
        arguments.mixed_precision = "bf16" if mixed else "no"
        arguments._n_gpu = 1  # nn.DataParallel cannot split a packed row; several GPUs need several processes
        return arguments

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Average the gradients of weights that every process holds whole beside shards: those of an adapter.

        In place of transformers' method, whose operation gloo does not have. Their initial values are equal: the seed is.
        """
        for parameter in model.parameters():
            if parameter.requires_grad and not is_shard(parameter):
                parameter.register_post_accumulate_grad_hook(_average_gradient)  # type: ignore[no-untyped-call]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer named by the training parameters, over the float32 masters."""
        if self.optimizer is None:
            weights = [master for _, master in self.masters.trainable()]
            self.inner_optimizer = make_optimizer(self.training, weights, self.eight_bit)
            self.masters.attach(self.inner_optimizer)
            self.optimizer = self.inner_optimizer
        return self.inner_optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of samples in the given order, split among processes."""
        loader: DataLoader[Any] = DataLoader(
            self.order,  # type: ignore[arg-type]
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=_collate,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def training_step(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Compute the gradient of one micro-batch.

        Raises:
            Diverged: the loss is NaN or infinite.
        """
        assert num_items_in_batch is not None, "the Trainer counts the labels of every batch"
        model.train()
        world = self.accelerator.num_processes
        loss = accumulate_gradient(
            self.objective,
            model,
            inputs["samples"],
            max(1, int(num_items_in_batch)),
            self.args.device,
            # Gradients are averaged over processes, but the loss was divided by the count over all of them already.
            lambda value: self.accelerator.backward(value * world),
        )
        reduced: Tensor = self.accelerator.reduce(loss, "sum")
        value = float(reduced)
        if not math.isfinite(value):
            raise diverged(self.label, self.state.global_step + 1, f"its loss is {value}")
        self.result.losses.append(value)
        return reduced

    def begin(self) -> None:
        """Initialise the objective and, when resuming, restore optimizer, schedule and objective.

        Called before the first step, after the model was distributed.
        """
        check_same_on_every_process(self.fingerprint, "weights or samples")
        if self.original is not self.model:
            self.masters = _own_masters(self.model)
        self.objective.begin(self.masters)
        if self.saved:
            load_optimizer(self.inner_optimizer, self.saved["optimizer"])
            self.lr_scheduler.load_state_dict(self.saved["schedule"])
            self.objective.load_state_dict(self.saved["objective"])
            self.state.global_step = self.saved["step"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Report a step to trackers: the Trainer's loss, gradient norm and learning rate, and the speed."""
        super().log({**logs, **speed(self.result, self.device)}, start_time)

    def call_hook(self) -> bool:
        """Call the hook if this step is one of its steps; returns whether training ends, on every process alike."""
        if not self.hook or self.state.global_step not in self.at_steps:
            return False
        self.gather()
        ends = run_hook(self.hook, self.state.global_step, self.original)
        if self.original is not self.model:
            self.original.to("cpu")
        return bool(max_over_processes(int(ends), self.args.device))

    def gather(self) -> None:
        """Copy the weights of a sharded model into the original, on every process."""
        if self.original is self.model:
            return
        self.original.to(self.device)
        weights = [weight for weight in self.original.parameters() if weight.requires_grad]
        with torch.no_grad():
            for weight, (trained, _) in zip(weights, self.masters.trainable(), strict=True):
                weight.copy_(unsharded_weight(trained))

    def checkpoint(self, ends: bool) -> None:
        """Write a checkpoint after the last step, and when the interval has passed.

        Args:
            ends: whether the hook ended the training at this step.
        """
        if self.checkpoints is None:
            return
        step, last = self.state.global_step, ends or self.state.global_step == self.training.steps
        if last or max_over_processes(self.checkpoints.due, self.args.device):
            self.checkpoints.save(step, self._resume_state(last))

    def _resume_state(self, last: bool) -> dict[str, Any]:
        """What is needed to continue; after the last step, the final weights and what hooks recorded only.

        The main process gathers all shards.
        """
        state = {
            "step": self.state.global_step,
            "ended": last,
            "losses": self.result.losses,
            "seconds": self.result.seconds,
            "weights": [on_main_process(master.detach()) for _, master in self.masters.trainable()],
        }
        if last:
            return state | {"recorded": self.objective.recorded()}
        return state | {
            "optimizer": on_main_process(self.inner_optimizer.state_dict()),
            "schedule": self.lr_scheduler.state_dict(),
            "objective": on_main_process(self.objective.state_dict()),
            "random": gather_objects(random_state()),
        }


def sharded_by_loop(module: nn.Module) -> bool:
    """Whether the training shards a complete model, since accelerate is configured to."""
    return bool(sharding()) and not is_sharded(module)


def _average_gradient(parameter: Tensor) -> None:
    """Replace an accumulated gradient by its mean over processes; what was accumulated before is that already."""
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad)
    parameter.grad /= world_size()


def _own_masters(module: nn.Module) -> Masters:
    """Masters of a module whose parameters are the float32 masters themselves."""
    return Masters([(parameter, parameter) for parameter in module.parameters()])


class _Events(TrainerCallback):  # type: ignore[misc]
    """Calls the loop around each step. Time spent in hooks and on checkpoints is not counted as training time."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.step_start = loop, 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Model, optimizer and schedule exist and are distributed."""
        self.loop.begin()
        self.step_start = time.perf_counter()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The first batch was drawn: restore the random number generators of the interrupted run."""
        if self.loop.saved:
            set_random_state(self.loop.saved["random"][args.process_index])
            self.loop.saved = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After every optimizer step."""
        self.loop.result.seconds += time.perf_counter() - self.step_start
        self.loop.advance(1, format_speed(speed(self.loop.result, self.loop.device)) if is_shown() else "")
        ends = self.loop.call_hook()
        self.loop.checkpoint(ends)
        control.should_training_stop = control.should_training_stop or ends
        self.step_start = time.perf_counter()


def _collate(samples: list[Trainable]) -> dict[str, Any]:
    """The samples as they are, and labels from whose size the Trainer computes the loss's denominator."""
    counted = torch.zeros(sum(sample.response_tokens for sample in samples), dtype=torch.long)
    return {"shift_labels": counted, "labels": counted, "samples": samples}
