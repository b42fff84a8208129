"""The loop of :func:`tamperfuse.training.fit.fit`: transformers' Trainer around our step.

The Trainer brings schedule, clipping and accelerate (several processes, sharding); what is ours is passed in: the step (a
backward pass), the order of samples, the optimizer over float32 masters, hooks at given steps, checkpoints.

Of several processes each holds the model, unless the user's accelerate file shards it: then a copy is sharded and trained, and
the model itself waits in main memory, gets the weights for every hook and at the end, and is what remains.

Where a run goes on from a checkpoint, the weights are in place already when the loop is made; what only exists once the
model is on its processes (optimizer, schedule, what the step keeps, random numbers) is put back when it begins.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from tamperfuse.models.precision import Masters
from tamperfuse.records.errors import UserError
from tamperfuse.records.process import world_size
from tamperfuse.records.progress import Advance, drawn
from tamperfuse.training.checkpoints import Checkpoints, Fits, random_state, set_random_state
from tamperfuse.training.distributed import everyone, most, sharding, whole, whole_weight
from tamperfuse.training.objectives import Objective
from tamperfuse.training.optimizers import load_optimizer, make_optimizer
from tamperfuse.training.parameters import Trainable, Training
from tamperfuse.training.result import FitResult
from tamperfuse.training.telemetry import in_words, speed

Hook = Callable[[int], None]


def run_hook(hook: Hook, step: int, module: nn.Module) -> None:
    """Let a hook look at the model, in evaluation mode; whatever random numbers it draws, training goes on as without it."""
    training, generators = module.training, random_state()
    module.eval()
    hook(step)
    module.train(training)
    set_random_state(generators)


class Loop(Trainer):  # type: ignore[misc]  # transformers is taken on trust
    """One training run.

    Args:
        step: the objective.
        module: the model, or an adapter around it.
        masters: its trained weights, in float32.
        dtype: to compute in, where the model is sharded; otherwise the module is in it already.
        order: the samples of every step that is left to do, one after the other.
        training: how.
        result: where losses and seconds go; holds those of the steps done.
        same: hashes of the model and its data and the step to go on from, on which all processes must agree.
        seed: of whatever the Trainer draws.
        checkpoints: where to keep the state; None not to.
        saved: the state to go on from.
        at_steps: after which steps the hook runs.
        hook: what looks at the model.
        advance: moves the progress bar.
        fits: the block that this training is part of: what it reports to.
        what: a few words, for those who follow it.
        eight_bit: whether memory asks for AdamW's moments in 8 bits.
    """

    optimizer: Any  # the Trainer's; accelerate wraps what `create_optimizer` made
    made: torch.optim.Optimizer

    def __init__(
        self,
        step: Objective,
        module: nn.Module,
        masters: Masters,
        dtype: torch.dtype,
        order: Sequence[Trainable],
        training: Training,
        result: FitResult,
        *,
        same: dict[str, str],
        seed: int,
        checkpoints: Checkpoints | None,
        saved: dict[str, Any] | None,
        at_steps: Collection[int],
        hook: Hook | None,
        advance: Advance,
        fits: Fits,
        what: str,
        eight_bit: bool,
    ) -> None:
        self.step, self.order, self.training, self.result = step, order, training, result
        self.masters, self.checkpoints, self.saved, self.eight_bit = masters, checkpoints, saved, eight_bit
        self.at_steps, self.hook, self.advance = set(at_steps), hook, advance
        self.kept, self.device, self.same = module, next(module.parameters()).device, same
        if sharding():
            module = copy.deepcopy(module)
            self.masters = _plain(module)
            self.kept.to("cpu")
        half = bool(sharding()) and dtype == torch.bfloat16
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(prefix="tamperfuse-"),
            max_steps=training.steps,
            per_device_train_batch_size=training.batch // world_size(),
            learning_rate=training.learning_rate,
            lr_scheduler_type="constant_with_warmup" if training.schedule == "constant" else training.schedule,
            warmup_steps=round(training.warmup * training.steps),
            max_grad_norm=training.clip,
            use_cpu=self.device.type == "cpu",
            bf16=half,
            ddp_find_unused_parameters=False,
            ddp_broadcast_buffers=False,
            save_strategy="no",
            logging_strategy="steps" if fits.report_to else "no",
            logging_steps=1,
            report_to=list(fits.report_to),
            run_name=what,
            disable_tqdm=True,
            seed=seed,
        )
        _ = arguments.device  # connects the processes, settles the count of GPUs
        # Not the accelerate file's: unless the model is sharded, its weights are in their precision already.
        arguments.mixed_precision = "bf16" if half else "no"
        if self.device.type == "cpu" and sharding() == "fsdp":
            # accelerate shards on GPUs alone; told that these are some, it does the same over gloo.
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        arguments._n_gpu = 1  # a packed row cannot be scattered; several GPUs go through accelerate's processes
        super().__init__(model=module, args=arguments, callbacks=[_Events(self)])
        self.remove_callback(PrinterCallback)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None and fits.logs:
                callback.logging_dir = str(fits.logs / f"{fits.begun}-{what.replace(' ', '-')}")

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The training's own, over the float32 masters."""
        if self.optimizer is None:
            weights = [master for _, master in self.masters.trainable()]
            self.made = make_optimizer(self.training, weights, self.eight_bit)
            self.masters.attach(self.made)
            self.optimizer = self.made
        return self.made

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of samples in the order that the schedule gave, split among processes."""
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
        """One micro-batch through the step."""
        model.train()
        world = self.accelerator.num_processes
        loss: Tensor = self.step.backward(
            model,
            inputs["samples"],
            int(num_items_in_batch or 1),
            # Processes average their gradients; the loss was divided by the count over all of them already.
            lambda value: self.accelerator.backward(value * world),
            self.args.device,
        )
        loss = self.accelerator.reduce(loss, "sum")
        self.result.losses.append(float(loss))
        return loss

    def begin(self) -> None:
        """Before the first step, the model on its processes: the step gets the weights, a resumed run its state."""
        if any(other != self.same for other in everyone(self.same)):
            raise UserError(
                "The processes hold different weights or samples: give each the same model and the same files."
            )
        if self.kept is not self.model:
            self.masters = _plain(self.model)
        self.step.begin(self.masters)
        if self.saved:
            load_optimizer(self.made, self.saved["optimizer"])
            self.lr_scheduler.load_state_dict(self.saved["schedule"])
            if isinstance(self.step, Stateful):
                self.step.load_state_dict(self.saved["objective"])
            self.state.global_step = self.saved["step"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """What trackers get to see of a step: the Trainer's loss, gradient norm and learning rate, and the speed."""
        super().log({**logs, **speed(self.result, self.device)}, start_time)

    def look(self) -> None:
        """Run the hook if it wants to see this step."""
        if self.hook and self.state.global_step in self.at_steps:
            self.gather()
            run_hook(self.hook, self.state.global_step, self.kept)
            if self.kept is not self.model:
                self.kept.to("cpu")

    def gather(self) -> None:
        """Bring the weights of a sharded model back into the whole one, on every process."""
        if self.kept is self.model:
            return
        self.kept.to(self.device)
        weights = [weight for weight in self.kept.parameters() if weight.requires_grad]
        with torch.no_grad():
            for weight, (trained, _) in zip(weights, self.masters.trainable(), strict=True):
                weight.copy_(whole_weight(trained))

    def keep(self) -> None:
        """Write a checkpoint if it is time: at the end, and after every interval."""
        if self.checkpoints is None:
            return
        step, last = self.state.global_step, self.state.global_step == self.training.steps
        if last or most(self.checkpoints.due, self.args.device):
            self.checkpoints.save(step, self._state(last))

    def _state(self, last: bool) -> dict[str, Any]:
        """What a run goes on from; after the last step only what it ended with. All processes gather their shards."""
        state = {
            "step": self.state.global_step,
            "losses": self.result.losses,
            "seconds": self.result.seconds,
            "weights": [whole(master) for _, master in self.masters.trainable()],
        }
        if last:
            return state
        return state | {
            "optimizer": whole(self.made.state_dict()),
            "schedule": self.lr_scheduler.state_dict(),
            "objective": whole(self.step.state_dict()) if isinstance(self.step, Stateful) else None,
            "random": everyone(random_state()),
        }


def _plain(module: nn.Module) -> Masters:
    """The weights of a module that computes in the precision in which it keeps them, or leaves that to its shards."""
    return Masters([(parameter, parameter) for parameter in module.parameters()])


class _Events(TrainerCallback):  # type: ignore[misc]
    """What happens around a step: the clock stands still while others look at the model or write."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.began = loop, 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The model, its optimizer and the schedule are ready."""
        self.loop.begin()
        self.began = time.perf_counter()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The batch is drawn; from here on random numbers must be those of the run that was interrupted."""
        if self.loop.saved:
            set_random_state(self.loop.saved["random"][args.process_index])
            self.loop.saved = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After every optimizer step."""
        self.loop.result.seconds += time.perf_counter() - self.began
        self.loop.advance(1, in_words(speed(self.loop.result, self.loop.device)) if drawn() else "")
        self.loop.look()
        self.loop.keep()
        self.began = time.perf_counter()


def _collate(samples: list[Trainable]) -> dict[str, Any]:
    """What the Trainer counts (`shift_labels`, to get the loss's denominator) beside what the step packs itself."""
    counted = torch.zeros(sum(sample.response_tokens for sample in samples), dtype=torch.long)
    return {"shift_labels": counted, "labels": counted, "samples": samples}
