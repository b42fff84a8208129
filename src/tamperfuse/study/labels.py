"""Labels of a study's nodes: for people, for `--only`, and to find a node in the record of a finished run."""

from tamperfuse.study.node import Node


def hardened_label(defense: str, seed: int) -> str:
    """Label of the node that trains a defense."""
    return f"{defense}, seed {seed}"


def before_attack_label(model: str) -> str:
    """Label of the node that measures a model before any attack.

    Args:
        model: a :func:`hardened_label`, or the name of the model as shipped.
    """
    return f"{model}: before attack"


def attack_label(defense: str, attack: str, seed: int) -> str:
    """Label of the node that attacks a hardened model, or searches for the strongest attack."""
    return f"{defense} under {attack}, seed {seed}"


def judge_label(observed: Node, further: str = "") -> str:
    """Label of the node that judges the responses of another.

    Args:
        observed: the node with the responses.
        further: name of the further judge; "" for the judge that decides.
    """
    return f"{further}: judge {observed.label}" if further else f"judge {observed.label}"
