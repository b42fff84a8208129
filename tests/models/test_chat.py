from dataclasses import replace

import pytest

from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError


def test_a_target_may_render_messages_its_own_way(tiny: LoadedModel) -> None:
    chat = replace(tiny.chat, system="be brief", request="please: {prompt}!", prefill="{prompt}? Sure, ")
    opening = "<|system|>be brief<|end|><|user|>please: hi!<|end|><|assistant|>"
    assert tiny.tokenizer.decode(chat.prompt("hi")) == opening + "hi? Sure, "
    sample = chat.sample("hi", "hello", 20)
    assert tiny.tokenizer.decode(sample.tokens) == opening + "hello<|end|>", "what is trained on has no prefill"
    assert tiny.tokenizer.decode(sample.tokens[sample.start :]) == "hello<|end|>"
    assert chat.text(tiny.tokenizer.encode("here it is")) == "here it is", "what the model itself said"
    assert tiny.chat.prompt("hi") == replace(chat, system="", request="{prompt}", prefill="").prompt("hi")


def test_a_request_may_hold_braces(tiny: LoadedModel) -> None:
    chat = replace(tiny.chat, request="{prompt} Reply as {json}.")
    assert "{x} Reply as {json}." in tiny.tokenizer.decode(chat.prompt("{x}"))


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages if m['role'] != 'system' %}<|user|>{{ m['content'] }}<|end|>{% endfor %}",
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}",
    ],
)
def test_a_template_that_drops_system_prompts(tiny: LoadedModel, template: str) -> None:
    tiny.tokenizer.chat_template = template
    assert replace(tiny.chat, prefill="Sure").system == ""
    with pytest.raises(UserError, match="ignores system prompts"):
        replace(tiny.chat, system="be brief")
