"""Apply a defense to one model: what `tamperfuse harden` does."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tamperfuse.commands.hub_upload import prepare_upload, upload
from tamperfuse.commands.model_card import Hardening, write_model_card
from tamperfuse.commands.training import in_shards, print_notes, resumable_beside, work_of
from tamperfuse.corpora.examples import Pair
from tamperfuse.defenses import DEFENSES, DefenseData, DefenseResult
from tamperfuse.defenses.base import DefenseTraits
from tamperfuse.models.chat_template import read_template
from tamperfuse.models.conversion import absolute_name
from tamperfuse.models.load import (
    LoadedModel,
    load_model,
    origin_of,
    provenance_of,
    stated_template,
    write_checkpoint,
)
from tamperfuse.models.sharded import gather_objects
from tamperfuse.models.sharded_loading import connect_processes
from tamperfuse.models.stored_dtype import stored_dtype
from tamperfuse.pairing import read_pairs
from tamperfuse.records.cache import cache_folder, locked_cache
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import NODE, NODES, check_fresh, clear_staging, output_folder
from tamperfuse.records.process import is_main
from tamperfuse.records.provenance import Provenance
from tamperfuse.records.registry import Component, Parameters
from tamperfuse.study.context import StudyContext
from tamperfuse.study.data_nodes import PAIRS, check_pairs, defense_data, defense_data_nodes
from tamperfuse.study.node import Node, execute, node_folder, reuse_result
from tamperfuse.study.spec import parse_study

DATA = "data"  # folder of the cache


def harden_model(
    model: str,
    defense: str,
    threat: str,
    out: Path,
    *,
    pairs: Path | None,
    benign: Sequence[str],
    settings: dict[str, Any],
    seed: int,
    report_to: Sequence[str] = (),
    chat_template: Path | None = None,
    push_to_hub: str | None = None,
) -> None:
    """Apply a defense and save the checkpoint, in the dtype of the model's own, with a model card.

    Args:
        model: the model, as of :func:`load_model`.
        defense: name of the defense.
        threat: source of the threat, whose defender part the defense receives.
        out: folder to write; must not exist, or be empty.
        pairs: folder of `tamperfuse pair`; None to draw pairs from the built-in responses, if the defense needs any.
        benign: sources of benign samples, as `benign` in a study.
        settings: parameters of the defense.
        seed: of pairs and training.
        report_to: trackers that trainings report to.
        chat_template: file with a chat template, in place of that of the model and of the model before hardening. It is saved
            with the checkpoint.
        push_to_hub: repository of the Hub, `OWNER/NAME`, to upload the checkpoint to; None to upload nothing. Experimental.

    Raises:
        UserError: bad input; nothing is written then. Or the upload failed, after the checkpoint was written.
    """
    component = DEFENSES.get(defense)
    parameters = component.parse(settings, f"defense {defense}")
    check_fresh(out)
    if pairs is not None:
        _check_takes_pairs(component)
    matched = read_pairs(pairs) if pairs is not None else None
    template, dtype = read_template(chat_template) or stated_template(model), stored_dtype(model)
    origin = origin_of(model)
    if push_to_hub is not None and is_main():
        prepare_upload(push_to_hub)
    data, parameters = prepare_data(
        origin, component, parameters, threat, benign, seed, pairs=matched, chat_template=template
    )
    work, budget = work_of(component, parameters, seed), component.traits.budget(parameters)
    with resumable_beside(out, report_to, work, budget), output_folder(out) as staging:
        loaded = load_model(model, chat_template=template, sharded=in_shards(budget))
        notes = apply_defense(loaded, component, parameters, data, seed)
        provenance = Provenance(
            origin=loaded.origin,
            made_by=f"{defense} (seed {seed})",
            source=absolute_name(model),
            threat=absolute_name(threat),
            parameters=parameters.model_dump(mode="json"),
        )
        write_checkpoint(loaded, staging, provenance, dtype)
        if is_main():
            write_model_card(
                staging,
                provenance,
                Hardening(
                    defense=defense,
                    seed=seed,
                    threat=threat,
                    prompts=len(data.prompts),
                    pairs=len(data.pairs),
                    benign=benign,
                    benign_samples=len(data.benign),
                    dtype=str(dtype).removeprefix("torch."),
                    notes=notes,
                    before=made_by(model),
                ),
            )
    if push_to_hub is not None and is_main():
        upload(out, push_to_hub)


def made_by(model: str) -> str:
    """The defense, attack or conversion that made a checkpoint, as its tamperfuse.json names it; "" if it has none."""
    provenance = provenance_of(model)
    return provenance.made_by if provenance else ""


def _check_takes_pairs(component: Component[DefenseTraits, DefenseResult]) -> None:
    if not component.traits.needs_pairs:
        raise UserError(f"The defense {component.name} trains on no pairs: leave out --pairs, `pairs` in Python.")


def prepare_data(
    origin: str,
    component: Component[DefenseTraits, DefenseResult],
    parameters: Parameters,
    threat: str,
    benign: Sequence[str],
    seed: int,
    *,
    pairs: Sequence[Pair] | None = None,
    chat_template: str = "",
) -> tuple[DefenseData, Any]:
    """The data that a defense receives, made as a study makes it, and the defense's resolved parameters.

    What takes long, such as the benign set, is computed once for a model and a threat, and stored in the cache: by all of several
    processes if the defense is trained in shards, since the model before hardening is then loaded in shards, too.

    Args:
        origin: the model before any hardening.
        component: the defense.
        parameters: of the defense, validated.
        threat: source of the threat.
        benign: sources of benign samples.
        seed: of the pairs.
        pairs: SDD pairs; None to draw them from the built-in responses.
        chat_template: of the origin, as of :func:`load_model`.

    Raises:
        UserError: a source or the model cannot be read, the cache cannot be written, a pair's prompt is in another part of the
            threat than the defender's, or the defense trains on no pairs.
    """
    if pairs is not None:
        _check_takes_pairs(component)
    study = {
        "model": origin,
        "threat": threat,
        "benign": list(benign),
        "defenses": {"defense": {"defense": component.name, **parameters.model_dump(mode="json")}},
        "evaluate": {"prompts": 2, "dev_prompts": 2},
    }
    folder = cache_folder() / DATA
    context = StudyContext.open(parse_study(study, "harden"), folder, chat_template)
    check_pairs(pairs or (), context.threat)
    resolved = component.parse(context.study.defenses["defense"].parameters, f"defense {component.name}")
    context.sharded = in_shards(component.traits.budget(resolved))
    nodes = [n for n in defense_data_nodes(context, "defense", seed) if pairs is None or n.kind != PAIRS]
    if nodes:
        _make(folder, nodes, context.sharded)
    context.free_reference()  # only one model is in memory while the defense trains
    return defense_data(context, "defense", nodes, pairs), resolved


def _make(folder: Path, nodes: Sequence[Node], sharded: bool) -> None:
    """Run nodes whose results are not in the cache.

    Args:
        folder: of the cache.
        nodes: each after those that it reads.
        sharded: whether several processes run them together; otherwise the main one does, and the others wait for it.
    """
    if sharded:
        connect_processes()
    with locked_cache(folder.with_name(f"{folder.name}.lock")) if is_main() else nullcontext():
        if is_main():
            clear_staging(folder / NODES)  # of a command that was killed
        for node in nodes:
            if sharded:
                _execute_together(folder, node)
            elif is_main():
                execute(folder, node)
            else:
                while not (node_folder(folder, node) / NODE).exists():
                    time.sleep(0.5)


def _execute_together(folder: Path, node: Node) -> None:
    """Run a node on every process, unless its result exists. The files of the main process become the result.

    A collective operation: every process must call it.
    """
    exists = gather_objects(is_main() and reuse_result(folder, node) is not None)[0]
    if not exists and is_main():
        execute(folder, node)
    elif not exists:
        with TemporaryDirectory() as unused:
            node.run(Path(unused))
    gather_objects(None)  # the next node reads the result, which is in place now


def apply_defense(
    loaded: LoadedModel,
    component: Component[DefenseTraits, DefenseResult],
    parameters: Any,
    data: DefenseData,
    seed: int,
) -> tuple[str, ...]:
    """Apply a defense to a model, in place, and print its notes.

    Args:
        loaded: the model.
        component: the defense.
        parameters: of the defense, resolved.
        data: of the defense.
        seed: of the training.

    Returns:
        The notes.
    """
    notes = component.run(loaded, data, parameters, seed).notes
    print_notes(notes)
    return notes
