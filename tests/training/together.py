"""Run by torchrun on every process, and once in one process: trainings whose losses and weights the main process writes.

PYTHONPATH=tests python together.py MODEL OUT        ACCELERATE_USE_FSDP and FSDP_VERSION as `accelerate launch` sets them
"""

import json
import sys
from contextlib import suppress
from pathlib import Path

import torch

from stand_ins import Trap
from tamperfuse.attacks import ATTACKS, AttackData
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.models.precision import Masters
from tamperfuse.records.process import is_main, world_size
from tamperfuse.training import checkpoints, rows
from tamperfuse.training.distillation import anchored, predict
from tamperfuse.training.distributed import sum_over_processes, unsharded
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.trap import TrapObjective, mean_nll, trap_units
from tamperfuse.training.weights import perturbed

rows.ROW_TOKENS = 80  # several rows per step
TRAINING = Training(steps=8, batch=6, learning_rate=3e-3, schedule="linear")


class Watched(Trap):
    """The trap; also checks that a perturbation is restored bit by bit on each process's shards."""

    restored = True
    sharded = False

    def begin(self, masters: Masters) -> None:
        super().begin(masters)
        before = [parameter.detach().clone() for parameter, _ in masters.trainable()]
        with perturbed(masters, [torch.ones_like(master) for _, master in masters.trainable()], 0.3):
            moved = all(
                bool((unsharded(p.detach()) != unsharded(b)).any())
                for (p, _), b in zip(masters.trainable(), before, strict=True)
            )
        same = (torch.equal(local(p), local(b)) for (p, _), b in zip(masters.trainable(), before, strict=True))
        self.restored = moved and all(same)
        self.sharded = any(hasattr(parameter, "device_mesh") for parameter, _ in masters.trainable())


def local(tensor: torch.Tensor) -> torch.Tensor:
    shard: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor.detach()  # type: ignore[operator]
    return shard


def pairs() -> list[tuple[str, str]]:
    """Pairs of very different lengths, so that one process needs more rows than the other."""
    return [(f"request {i}", f"the answer is {i * 3}. " * (1 + 5 * (i % 3))) for i in range(12)]


def fuse(loaded: LoadedModel, samples: list) -> tuple[list[float], list[float]]:
    """Losses at the weights, and NLL at the attacked weights as a hook measures it."""
    units = trap_units(anchored(samples, predict(loaded, samples[::-1]), 2), samples[4:], 1)
    objective, attacked = TrapObjective(weight=0.2, rates=(3e-3,), horizon=5, harmful=0.3, benign=0.3), []

    def hook(step: int) -> None:
        with objective.attacked(loaded.model):
            attacked.append(mean_nll(loaded, samples))
        objective.scale = sum_over_processes(objective.scale / world_size(), loaded.model.device)

    losses = fit(loaded, units, TRAINING, seed=0, objective=objective, at_steps=(4, 8), hook=hook).losses
    return losses, attacked


def main(model: str, out: str) -> None:
    torch.set_num_threads(1)
    results: dict[str, list[float]] = {}
    weight_rows: list[list[float]] = []

    def loaded_with(pairs: list[tuple[str, str]]) -> tuple[LoadedModel, list]:
        loaded = load_model(model)
        return loaded, [loaded.chat.sample(prompt, response, 60) for prompt, response in pairs]

    loaded, samples = loaded_with(pairs())

    def hook(step: int) -> None:
        weights = [p.detach().float().sum() for p in loaded.model.parameters()]
        assert not loaded.model.training and all(not hasattr(w, "device_mesh") for w in weights)
        weight_rows.append([step, *map(float, weights)])

    results["sft"] = fit(loaded, samples, TRAINING, seed=0, at_steps=(0, 4, 8), hook=hook).losses
    results["hooks"] = [row[0] for row in weight_rows]
    results["moved"] = [abs(a - b) for a, b in zip(weight_rows[0][1:], weight_rows[1][1:], strict=True)]
    ended = [p.detach().clone() for p in loaded.model.parameters()]
    assert all(p.dtype == torch.float32 and type(p) is torch.nn.Parameter for p in loaded.model.parameters())
    loaded, samples = loaded_with(pairs())
    plainly = TRAINING.model_copy(update={"optimizer": "sgd", "learning_rate": 0.3})
    results["sgd"] = fit(loaded, samples, plainly, seed=0).losses
    objective = Watched()
    loaded, samples = loaded_with(pairs())
    results["trap"] = fit(loaded, samples, TRAINING, seed=0, objective=objective).losses
    results["restored"], results["sharded"] = [float(objective.restored)], [float(objective.sharded)]
    trapped = [p.detach().clone() for p in loaded.model.parameters()]

    def stop(step: int) -> None:
        if step > 4:
            raise InterruptedError

    checkpoints.INTERVAL = 0.0
    with suppress(InterruptedError), checkpoints.resumable(Path(out).with_suffix(".unfinished")):
        loaded, samples = loaded_with(pairs())
        fit(loaded, samples, TRAINING, seed=0, objective=Trap(), at_steps=range(9), hook=stop)
    with checkpoints.resumable(Path(out).with_suffix(".unfinished")):
        loaded, samples = loaded_with(pairs())
        resumed = fit(loaded, samples, TRAINING, seed=0, objective=Trap())
    same = all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), trapped, strict=True))
    results["resumed"] = [resumed.resumed_at, float(same), float(resumed.losses == results["trap"])]
    loaded, samples = loaded_with(pairs())
    results["fuse"], results["fuse_attacked"] = fuse(loaded, samples)
    losses: list[float] = []
    plain = fit

    def spy(*arguments, **rest):  # type: ignore[no-untyped-def]
        result = plain(*arguments, **rest)
        losses.extend(result.losses)
        return result

    from tamperfuse.attacks import base

    base.fit = spy
    component = ATTACKS.get("harmful_finetune")
    values = {"shots": 9, "steps": 6, "batch": 4, "method": "lora", "lora_rank": 4, "learning_rate": 1e-2}
    attack_data = AttackData(pairs(), [], model, lambda prompts: [], 60, (), lambda step: None)
    component.run(loaded_with([])[0], attack_data, component.parse(values, "attack"), 0)
    results["attack"] = losses
    if is_main():
        torch.save(ended, Path(out).with_suffix(".pt"))
        Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
