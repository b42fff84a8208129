"""Write the hardened model of a run as a folder to publish, with what the run measured: what `tamperfuse publish` does."""

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from tamperfuse.commands.model_card import Hardening, short_name, write_model_card
from tamperfuse.models.load import load_model, origin_of, write_checkpoint
from tamperfuse.models.stored_dtype import stored_dtype
from tamperfuse.records.errors import UserError, unknown_name
from tamperfuse.records.files import NODE, NODES, check_fresh, output_folder
from tamperfuse.records.provenance import Provenance, read_provenance
from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.run import STUDY, read_run
from tamperfuse.records.run_files import read_run_file
from tamperfuse.records.summary import Summary, read_summary
from tamperfuse.report.card import card_sections
from tamperfuse.report.gate import GateResult, check_gate
from tamperfuse.report.gate_paths import defense_of
from tamperfuse.study.data_nodes import BENIGN, PAIRS
from tamperfuse.study.labels import hardened_label
from tamperfuse.study.node import damage_of
from tamperfuse.study.sections import AttackSpec
from tamperfuse.study.spec import Study, load_study


class NodeFacts(BaseModel):
    """What the card needs of the `node.json` of a defense, or of what it trained on.

    Attributes:
        kind: of the node.
        parents: keys of the nodes that it read.
        notes: what the training reported.
        facts: figures of the node by name.
    """

    kind: str
    parents: list[str]
    notes: list[str]
    facts: dict[str, Any]

    def count(self, name: str) -> int:
        """A number among the facts; 0 without it."""
        value = self.facts.get(name)
        return value if isinstance(value, int) else 0


def publish_model(run: Path, defense: str, out: Path, *, seed: int | None, policy: Path | None) -> GateResult | None:
    """Copy a run's hardened model, in the dtype of the model before hardening, with a card that holds what the run measured.

    Args:
        run: folder of a finished run.
        defense: as the study names it.
        out: folder to write; must not exist, or be empty.
        seed: of the hardened model; None for the first one of the study. Measures are those over all seeds.
        policy: a release policy, whose checks become a section of the card; None for none.

    Returns:
        The checks of the policy.

    Raises:
        UserError: the run has no such model, or a file of it is missing or damaged; the policy cannot be used, or is about
            another defense; the model before hardening does not exist any more. Nothing is written then.
    """
    check_fresh(out)
    summary, study = read_summary(run), load_study(run / STUDY)
    if defense not in summary.defenses or defense not in study.defenses:
        raise unknown_name("defense of this run", defense, summary.defenses)
    seed = study.seeds[0] if seed is None else seed
    gate = check_gate(run, policy) if policy else None
    if gate:
        _check_is_about(defense, gate, summary, policy)
    node = _hardened(run, defense, seed)
    checkpoint = node / "checkpoint"
    provenance = read_provenance(checkpoint)
    if provenance is None:
        raise UserError(f"{checkpoint} holds no tamperfuse.json: run the study again.")
    dtype = stored_dtype(origin_of(str(checkpoint)))
    public = {"model": short_name(summary.model), "threat": short_name(summary.threat)}  # no local folders in the card
    attacks = {name: _public_settings(spec) for name, spec in study.attacks.items()}
    checks = gate.model_copy(update=public) if gate else None
    measured = card_sections(summary.model_copy(update=public), attacks, defense, checks)
    hardening = _hardening(node, study, defense, seed, provenance, dtype)
    with output_folder(out) as staging:
        loaded = load_model(str(checkpoint))
        loaded.model.to(dtype)
        write_checkpoint(loaded, staging, provenance.public())
        write_model_card(staging, provenance, hardening, measured)
    return gate


def _check_is_about(defense: str, gate: GateResult, summary: Summary, policy: Path | None) -> None:
    """Check that a policy has rules for the defense, and none for another one but the undefended model.

    Raises:
        UserError: it is a policy for something else.
    """
    about = {defense_of(check.measure, summary, gate.defense) for check in gate.checks}
    others = sorted(name for name in about if name not in (None, defense, UNDEFENDED))
    if defense not in about:
        subject = others[0] if others else gate.defense or "another model"
        raise UserError(f"{policy} is a policy for {subject}, not for {defense}: name another policy or defense.")
    if others:
        raise UserError(
            f"{policy} has rules for {others[0]} as well as for {defense}: name a policy for {defense} alone."
        )


def _public_settings(attack: AttackSpec) -> dict[str, Any]:
    """An attack's component, search and parameters without local folders."""
    parameters = {
        name: short_name(value) if isinstance(value, str) else value for name, value in attack.parameters.items()
    }
    return {"attack": attack.attack, "search": attack.search and attack.search.model_dump(), **parameters}


def _hardened(run: Path, defense: str, seed: int) -> Path:
    """The folder of the node that hardened the model.

    Raises:
        UserError: the run has none for that seed, or its files are missing or damaged.
    """
    label = hardened_label(defense, seed)
    key = next((node.key for node in read_run(run).nodes if node.what == label), None)
    if key is None:
        raise UserError(f"{run} has no model {label}: choose another --seed.")
    folder = run / NODES / key
    if not (folder / NODE).exists():
        raise UserError(f"{run} holds results without the model {label}: name the folder in which the study ran.")
    damage = damage_of(folder)
    if damage:
        raise UserError(f"{damage}: run the study again, which repairs it.")
    return folder


def _hardening(
    folder: Path, study: Study, defense: str, seed: int, provenance: Provenance, dtype: torch.dtype
) -> Hardening:
    """How the model was hardened, from the records of its node and of the nodes that this one read."""
    spec = study.defenses[defense]
    record = read_run_file(folder / NODE, NodeFacts)
    parents = [folder.parent / parent / NODE for parent in record.parents]
    read = {node.kind: node for node in (read_run_file(path, NodeFacts) for path in parents if path.exists())}
    rounded = "" if dtype == torch.float32 else ", rounded from the float32 weights that were measured"
    return Hardening(
        defense=spec.defense,
        seed=seed,
        threat=provenance.threat,
        prompts=None,
        pairs=read[PAIRS].count("pairs") if PAIRS in read else 0,
        benign=study.benign.sources,
        benign_samples=read[BENIGN].count("samples") if BENIGN in read else 0,
        dtype=f"{str(dtype).removeprefix('torch.')}{rounded}",
        notes=record.notes,
        before="the same study" if spec.on else "",
    )
