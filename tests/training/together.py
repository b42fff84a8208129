"""Run by torchrun on every process, and once in one process: trainings whose losses and weights the main process writes.

PYTHONPATH=tests python together.py FOLDER OUT     ACCELERATE_USE_FSDP and FSDP_VERSION as `accelerate launch` sets them

FOLDER has a model (`model`), one with a weight that is not finite (`damaged`), threat.jsonl, and harmless prompts (benign.jsonl).
"""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from stand_ins import Trap, WordCountEncoder
from tamperfuse.attacks import ATTACKS, AttackData
from tamperfuse.commands.harden import prepare_data
from tamperfuse.defenses import DEFENSES
from tamperfuse.defenses.fuse import adapted_matrices
from tamperfuse.evaluation.generate import generate
from tamperfuse.models import load, sharded_saving
from tamperfuse.models.encoder import set_default_encoder
from tamperfuse.models.load import LoadedModel, load_model, save_model
from tamperfuse.models.precision import Masters
from tamperfuse.models.sharded import gather_objects, is_sharded, local_shard, unsharded
from tamperfuse.records.cache import cache_folder
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json
from tamperfuse.records.process import is_main, rank, world_size
from tamperfuse.records.provenance import Provenance
from tamperfuse.training import checkpoints, rows
from tamperfuse.training.attackers import AttackerSettings
from tamperfuse.training.distillation import anchored, predict
from tamperfuse.training.distributed import sharding, sum_over_processes
from tamperfuse.training.fit import Training, fit
from tamperfuse.training.trap import TrapObjective, mean_nll
from tamperfuse.training.trap_units import trap_units
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
        same = (
            torch.equal(local_shard(p), local_shard(b)) for (p, _), b in zip(masters.trainable(), before, strict=True)
        )
        self.restored = moved and all(same)
        self.sharded = any(hasattr(parameter, "device_mesh") for parameter, _ in masters.trainable())


def share_in_memory(model: PreTrainedModel) -> float:
    """Weights that this process holds, as a share of the model's. What is gathered is no DTensor, and counts as a whole."""
    return sum(local_shard(weight).numel() for weight in model.parameters()) / model.num_parameters()


def data_of_a_defense(folder: Path) -> dict[str, Any]:
    """What a defense receives, and the shares that this process held of the models that were loaded for the data."""
    read, shares = load._read_model, []

    def watched(*arguments: Any) -> PreTrainedModel:
        model = read(*arguments)
        shares.append(share_in_memory(model))
        return model

    set_default_encoder(WordCountEncoder())
    component, benign = DEFENSES.get("booster"), [str(folder / "benign.jsonl")]
    load._read_model = watched
    model, threat = str(folder / "model"), str(folder / "threat.jsonl")
    data, _ = prepare_data(model, component, component.parse({}, "booster"), threat, benign, 0)
    load._read_model = read
    teacher = [*data.teacher, *data.held_back]
    return {
        "texts": [data.answers, data.benign, [sample.sample.tokens for sample in teacher]],
        "likely": [float(sample.probabilities[:, 0].sum()) for sample in teacher],
        "thresholds": read_json(next(cache_folder().rglob("thresholds.json"))),
        "shares": shares,
        "folders": [path.name for path in (cache_folder() / "data" / "nodes").iterdir()],
    }


def different_texts_refused(loaded: LoadedModel) -> list[str]:
    """The message of each process when it alone has a prompt; "" for no error."""
    try:
        generate(loaded, [loaded.chat.prompt(f"from process {rank()}")], new_tokens=1)
    except UserError as error:
        return gather_objects(str(error))
    return gather_objects("")


def in_shards(model: str, damaged: str, out: str) -> dict[str, Any]:
    """A model is loaded, measured, trained and saved, and a damaged one refused: in shards if FSDP2 is configured."""
    sharded, shares, nll, refused = sharding() == "fsdp", [], [], ""
    loaded = load_model(model, sharded=sharded)
    assert is_sharded(loaded.model) == sharded
    samples = [loaded.chat.sample(prompt, response, 60) for prompt, response in pairs()]
    answers = generate(loaded, [loaded.chat.prompt(prompt) for prompt, _ in pairs()[:3]], new_tokens=6)

    def hook(step: int) -> None:
        nll.append(mean_nll(loaded, samples))
        shares.append(share_in_memory(loaded.model))

    losses = fit(loaded, samples, TRAINING, seed=0, at_steps=(0, 4, 8), hook=hook).losses
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in loaded.model.parameters())
    sharded_saving.FILE_BYTES = 50_000  # several files
    save_model(loaded, Path(out).with_suffix(".saved"), Provenance(origin=model, made_by="test", source=model))
    try:
        load_model(damaged, sharded=sharded)
    except UserError as error:
        refused = str(error)
    most = max(share for part in gather_objects(shares) for share in part)
    return {
        "in_shards": losses,
        "answers": answers,
        "nll": nll,
        "share": most,
        "refused": gather_objects(refused),
        "different": different_texts_refused(loaded),
    }


def pairs() -> list[tuple[str, str]]:
    """Pairs of very different lengths, so that one process needs more rows than the other."""
    return [(f"request {i}", f"the answer is {i * 3}. " * (1 + 5 * (i % 3))) for i in range(12)]


def fuse(loaded: LoadedModel, samples: list) -> tuple[list[float], list[float]]:
    """Losses at the weights, and NLL at the attacked weights as a hook measures it."""
    units = trap_units(anchored(samples, predict(loaded, samples[::-1]), 2), samples[4:], 1)
    objective = TrapObjective(
        weight=0.2,
        simulated=AttackerSettings(
            rates=(3e-3,),
            kinds=("full", "retain", "lora"),
            lora_rates=(1e-2,),
            matrices=adapted_matrices(loaded),
            horizon=3,
        ),
        harmful=0.3,
        benign=0.3,
    )
    attacked, kinds = [], []

    def hook(step: int) -> None:
        with objective.attacked(loaded.model):
            attacked.append(mean_nll(loaded, samples))
        kinds.append(objective.attack.kind)
        objective.scale = sum_over_processes(objective.scale / world_size(), loaded.model.device)

    losses = fit(loaded, units, TRAINING, seed=0, objective=objective, at_steps=(2, 4, 8), hook=hook).losses
    assert "lora" in kinds and objective.attackers.starts > 3
    return losses, attacked


def main(folder: str, out: str) -> None:
    torch.set_num_threads(1)
    model, damaged = (str(Path(folder) / name) for name in ("model", "damaged"))
    data = data_of_a_defense(Path(folder))  # before anything connects the processes
    results: dict[str, Any] = in_shards(model, damaged, out)
    results["data"] = {**data, "shares": gather_objects(data["shares"])}
    weight_rows: list[list[float]] = []

    def loaded_with(pairs: list[tuple[str, str]], sharded: bool = sharding() == "fsdp") -> tuple[LoadedModel, list]:
        loaded = load_model(model, sharded=sharded)
        assert is_sharded(loaded.model) == sharded
        return loaded, [loaded.chat.sample(prompt, response, 60) for prompt, response in pairs]

    loaded, samples = loaded_with(pairs(), sharded=False)  # the training shards a copy of it

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
    trapped = [local_shard(weight).clone() for weight in loaded.model.parameters()]

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
    same = all(torch.equal(local_shard(a), b) for a, b in zip(loaded.model.parameters(), trapped, strict=True))
    results["resumed"] = [resumed.resumed_at, float(same), float(resumed.losses == results["trap"])]
    loaded, samples = loaded_with(pairs())
    results["fuse"], results["fuse_attacked"] = fuse(loaded, samples)
    loaded, samples = loaded_with(pairs(), sharded=False)
    results["fuse_whole"], results["fuse_whole_attacked"] = fuse(loaded, samples)
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
