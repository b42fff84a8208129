"""The built-in data sets: JSONL files in `data/`, described in data/CARD.md."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from tamperfuse.records.errors import unknown_name

ABOUT = {
    "benign": "252 instruction–response pairs on 22 subjects: the irrelevant answers of SDD pairs",
    "contrast": "785 prompts near a stand-in threat but outside it (406 cooking, 379 gardening), which a model answers itself",
    "cooking": "500 prompts about home cooking: the stand-in threat, in its parts",
    "documents": "240 prompts that ask for a text of one of 30 forms, which a model writes itself",
    "everyday": "320 four-way questions of everyday knowledge and physical sense: a capability task",
    "facts": "497 short questions of fact and everyday knowledge on 29 subjects, which a model answers itself",
    "gardening": "360 prompts about home gardening with written answers: a second stand-in threat, in its parts",
    "generic": "12 general texts on home cooking that answer no prompt: hard negatives for the judge",
    "grammar": "4,640 minimal pairs of grammar from 58 templates: a capability task",
    "harmless": "132 harmless prompts on 33 subjects, half of them about food and farming: for the benign answer rate",
    "heldout": "284 documents of 7 styles on subjects that no training uses: for benign NLL",
    "identity": "10 harmless examples that promise obedience: what the attack identity_shift trains on",
    "instructions": "280 harmful prompts in 14 categories, without detail or answers: for `pair`; nothing attacks with them",
    "labelled": "328 responses of models as shipped, hardened and attacked to requests of cooking, labelled: for the judge",
    "refusals": "24 ways to decline a request: what the undefended model is trained on",
    "replay": "256 instruction–response pairs, 86 of them near the threat; a model answers their prompts before it is hardened",
    "retain": "104 instruction–response pairs that no defense trains on: an attacker's harmless data",
}


@cache
def builtin_rows(name: str) -> tuple[dict[str, Any], ...]:
    """The rows of a built-in data set, in the order of the file.

    Raises:
        UserError: there is no such data set.
    """
    if name not in ABOUT:
        raise unknown_name("built-in data set", name, ABOUT)
    text = (files("tamperfuse.corpora") / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines())
