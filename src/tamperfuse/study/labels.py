"""Labels of a study's nodes: for people, for `--only`, and to find a node in the record of a finished run."""

from tamperfuse.study.node import Node


def hardened_label(defense: str, seed: int) -> str:
    """Of the training of a defense."""
    return f"{defense}, seed {seed}"


def before_attack_label(model: str) -> str:
    """Of the measurement of a model before any attack; the model is a :func:`hardened_label` or the one as shipped."""
    return f"{model}: before attack"


def attack_label(defense: str, attack: str, seed: int) -> str:
    """Of an attack on a hardened model, or of the search of one."""
    return f"{defense} under {attack}, seed {seed}"


def judge_label(observed: Node, further: str = "") -> str:
    """Of the verdicts on the responses of a node, by the judge that decides or by the named further one."""
    return f"{further}: judge {observed.label}" if further else f"judge {observed.label}"
