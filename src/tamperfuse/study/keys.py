"""What a node's result depends on, as a key: equal keys, equal results on the same machine, up to rounding.

A key is a hash of the resolved parameters, the keys of the nodes whose results are read, the data, the precision of the
model's arithmetic, the versions of torch, transformers and peft, :data:`NUMERICS`, and every constant of the modules that
compute results. A result is reused only under an equal key, so a change of any of these computes it anew.

The number of threads and the CPU kernels in use (`TAMPERFUSE_CPU_KERNELS`) are not part of a key, although they decide in which
order sums are added up. Results that differ in them alone differ by rounding, which can decide between two almost equally likely
tokens, and are reused for each other.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.evaluation.capability_tasks import BUILTIN_TASKS
from tamperfuse.models.device import own_device
from tamperfuse.models.fingerprint import model_fingerprint
from tamperfuse.models.precision import compute_dtype
from tamperfuse.records.files import content_hash
from tamperfuse.records.registry import Component
from tamperfuse.study.context import StudyContext
from tamperfuse.study.judging import Judging

#: Version of tamperfuse's own numerics: raise it whenever a change of the code changes a loss, a token, a score or a verdict.
#: tests/study/test_golden.py compares those of a tiny model with recorded ones and fails until this is raised.
NUMERICS = 16

# Modules whose constants decide results, apart from the components' own modules.
MODULES = (
    "corpora.dates",
    "corpora.examples",
    "corpora.overlap",
    "corpora.routing",
    "corpora.texts",
    "corpora.threats",
    "evaluation.calibrate",
    "evaluation.capability",
    "evaluation.capability_tasks",
    "evaluation.generate",
    "evaluation.judges.base",
    "evaluation.judges.builtin",
    "evaluation.judges.negatives",
    "evaluation.judges.text",
    "evaluation.sampling",
    "evaluation.score",
    "evaluation.self_samples",
    "evaluation.vllm_engine",
    "models.chat",
    "models.cpu.short_attention",
    "models.dropout",
    "models.encoder",
    "models.packed",
    "models.plain",
    "models.precision",
    "models.text_tokens",
    "models.turn_format",
    "pairing.filters",
    "pairing.matching",
    "pairing.pairs",
    "pairing.prompts",
    "pairing.sampling",
    "training.adapters",
    "training.attackers",
    "training.batches",
    "training.cross_entropy",
    "training.distillation",
    "training.objectives",
    "training.optimizers",
    "training.preference",
    "training.rows",
    "training.weights",
    "study.benign",
    "study.judging",
    "study.observe",
    "study.search.node",
    "study.search.proposals",
    "study.search.space",
)


def node_key(kind: str, depends: Mapping[str, Any], parents: Sequence[str], seed: int) -> str:
    """Key of a node: 16 hexadecimal digits.

    Args:
        kind: of the node.
        depends: everything else that its result depends on, JSON-able.
        parents: keys of the nodes whose results it reads.
        seed: of its randomness.
    """
    device = own_device()
    return content_hash(
        {
            "numerics": NUMERICS,
            "constants": _constants_hash(),
            "kind": kind,
            "depends": depends,
            "parents": list(parents),
            "seed": seed,
            "precision": str(compute_dtype(device)[0]),
            **{package: _version(package) for package in ("torch", "transformers", "peft")},
            **({} if device.type == "cpu" else _accelerators()),
        }
    )[:16]


_version = cache(version)


@cache
def _accelerators() -> dict[str, str]:
    """The GPU, whose memory decides on the 8-bit optimizer, and the versions of installed packages that change results on one."""
    packages = {name: _version(name) for name in ("vllm", "bitsandbytes", "liger_kernel") if find_spec(name)}
    return {"gpu": torch.cuda.get_device_name(), **packages}


# The constants that were hashed last, and their hash: hashing them takes longer than all else that a study does for a node.
_hashed: tuple[list[Any], str] = ([], "")


def _constants_hash() -> str:
    """Hash of the constants of :data:`MODULES`; computed anew if any of them has been replaced."""
    global _hashed
    values = [value for name in MODULES for key, value in vars(_module(name)).items() if key.isupper()]
    before, digest = _hashed
    if len(values) != len(before) or any(value is not old for value, old in zip(values, before, strict=True)):
        digest = content_hash([module_constants(_module(name)) for name in MODULES])
        _hashed = (values, digest)
    return digest


def component_key(component: Component[Any, Any], parameters: Mapping[str, Any]) -> list[Any]:
    """What a key says of a defense, an attack or a judge: its identity, its module's constants and its parameters.

    Args:
        component: the component.
        parameters: resolved ones, JSON-able.
    """
    constants = module_constants(sys.modules[component.run.__module__])
    return [*component.identity, constants, dict(parameters)]


def module_constants(module: ModuleType) -> dict[str, Any]:
    """The constants of a module (names in capitals) that are plain data, JSON-able; functions and classes are left out."""
    values = ((name, _plain(value)) for name, value in sorted(vars(module).items()) if name.isupper())
    return {name: value for name, value in values if value is not None}


def _plain(value: Any) -> Any:
    """A constant as JSON-able data; None for anything else."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, re.Pattern):
        return value.pattern
    if isinstance(value, range):  # tens of thousands of characters, in one case
        return repr(value)
    if isinstance(value, Mapping):
        items = {str(key): _plain(item) for key, item in value.items()}
        return None if None in items.values() else items
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        parts = [_plain(item) for item in value]
        return None if None in parts else sorted(parts, key=repr) if isinstance(value, set | frozenset) else parts
    return None


@cache
def _module(name: str) -> ModuleType:
    return import_module(f"tamperfuse.{name}")


@cache
def builtin_hash(*names: str) -> str:
    """Hash of built-in data sets."""
    return content_hash([builtin_rows(name) for name in names])


def uses_key(context: StudyContext, name: str) -> str:
    """Hash of data that an attack declares in `uses`: the samples to retain, or a built-in data set."""
    if name == "retain":
        return content_hash([(example.prompt, example.response) for example in context.retain])
    return builtin_hash(name)


def judging_key(judging: Judging, fingerprint: str) -> dict[str, Any]:
    """What verdicts depend on, apart from the responses, the threat and the thresholds.

    Args:
        judging: the judge.
        fingerprint: of the model before hardening, which only some judges depend on.
    """
    key = {
        "judge": component_key(judging.component, judging.judge.parameters),
        "reference": fingerprint if judging.traits.needs_reference else "",
        "encoder": judging.encoder.name,
    }
    name = judging.traits.model
    return key if name is None else {**key, "judge_model": model_fingerprint(name(judging.parameters))}


def observation_key(context: StudyContext, *, evaluation: int, dev: int) -> dict[str, Any]:
    """What the measurements under an attack depend on, apart from the model and the steps.

    Args:
        context: of the study.
        evaluation: number of prompts of the evaluation part that are answered at a step.
        dev: likewise, of the attacker_dev part.
    """
    evaluate = context.study.evaluate
    measured = {"response_tokens", "capability", "capability_items"}
    tasks: list[Any] = [builtin_hash(*BUILTIN_TASKS), version("lm-eval")]
    if context.tasks_fingerprint:
        tasks.append(context.tasks_fingerprint)
    return {
        "threat": context.threat.fingerprint,
        "prompts": {"evaluation": evaluation, "attacker_dev": dev},
        "evaluate": evaluate.model_dump(mode="json", include=measured),
        "tasks": tasks,
    }


def before_attack_key(context: StudyContext, *, dev: int) -> dict[str, Any]:
    """What the measurements before an attack depend on, apart from the model; `dev` as of :func:`observation_key`."""
    evaluate = context.study.evaluate
    return {
        **observation_key(context, evaluation=evaluate.prompts, dev=dev),
        "harmless": content_hash([asdict(prompt) for prompt in context.harmless]),
        "heldout": [builtin_hash("heldout"), evaluate.heldout],
    }
