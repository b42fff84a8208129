"""Attacks on published weights, one file each. Importing this package registers the built-in ones."""

from tamperfuse.attacks import (
    benign_finetune,
    gguf_roundtrip,
    harmful_finetune,
    identity_shift,
    jailbreak_finetune,
    merge,
    mixed_finetune,
    preference_finetune,
    prefill,
    prune,
    quantize,
    refusal_ablation,
    repair_finetune,
    retain_finetune,
    system_prompt,
)
from tamperfuse.attacks.base import ATTACKS, AttackData, AttackResult

__all__ = [
    "ATTACKS",
    "AttackData",
    "AttackResult",
    "benign_finetune",
    "gguf_roundtrip",
    "harmful_finetune",
    "identity_shift",
    "jailbreak_finetune",
    "merge",
    "mixed_finetune",
    "preference_finetune",
    "prefill",
    "prune",
    "quantize",
    "refusal_ablation",
    "repair_finetune",
    "retain_finetune",
    "system_prompt",
]
