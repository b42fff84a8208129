"""Prompts longer than a model's context window are left out and counted."""

from dataclasses import replace
from pathlib import Path

import pytest

from tamperfuse.corpora.threats import PARTS, Threat, ThreatPrompt
from tamperfuse.corpora.window import check_lengthened, within_window
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError


def threat(*long: str) -> Threat:
    """Three prompts in each part, one of them long in some."""
    prompts = {
        part: [f"{part} {i}" for i in range(2)] + [f"{part} " + "peas " * 600 * (part in long)] for part in PARTS
    }
    return Threat(
        "a.jsonl", {p: tuple(ThreatPrompt(text[:30], text) for text in texts) for p, texts in prompts.items()}
    )


def test_long_prompts_are_left_out_and_counted(
    tiny: LoadedModel, tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = threat()
    assert within_window(whole, tiny, 48) is whole and within_window(whole, tiny_folder, 48) is whole
    with caplog.at_level("WARNING", "tamperfuse"):
        shorter = within_window(threat("evaluation"), str(tiny_folder), 48)
    assert "1 of the 3 prompts of the part evaluation of a.jsonl are left out" in caplog.text
    assert [len(shorter.part(part)) for part in PARTS] == [3, 3, 3, 2]


def test_the_response_needs_room_too(tiny: LoadedModel) -> None:
    whole = threat()
    longest = max(len(tiny.chat.prompt(prompt)) for prompt in whole.prompts)
    assert within_window(whole, tiny, tiny.window - longest) is whole
    with pytest.raises(UserError, match=r"has [01] prompts that fit into the context window"):
        within_window(whole, tiny, tiny.window - 5)


def test_prompts_that_an_attack_makes_too_long_name_the_attack_as_the_cause(tiny: LoadedModel) -> None:
    prompt = "a request"
    room = tiny.window - len(tiny.chat.prompt(prompt))
    check_lengthened(tiny, [prompt], room)
    tiny.chat = replace(tiny.chat, request="{prompt} Answer at once.")
    added = tiny.window - room
    with pytest.raises(UserError, match=rf"adds \d+ tokens to a prompt of {added}, .*leave this attack out"):
        check_lengthened(tiny, ["short", prompt], room)
    check_lengthened(tiny, [prompt], tiny.window)  # too long in any case: the attack is not to blame
    check_lengthened(tiny, [], room)
