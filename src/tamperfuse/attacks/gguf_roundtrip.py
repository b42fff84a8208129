"""Conversion to a GGUF file and back. Many users convert weights before they run them, so hardening should survive it.

The file is complete (:mod:`tamperfuse.models.gguf_file`): quantized tensors under GGUF's names, metadata, the tokenizer and the
chat template. `quantize` changes the weights of any architecture in the same way, without a file.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from tamperfuse.attacks.base import AttackData, AttackResult, attack
from tamperfuse.models.chat import Chat
from tamperfuse.models.conversion import quiet
from tamperfuse.models.gguf_file import GgufType, read_gguf, write_gguf
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.progress import progress
from tamperfuse.records.registry import Parameters


class GgufRoundtripParameters(Parameters):
    """Parameters of `gguf_roundtrip`.

    Attributes:
        format: GGUF type of the weight matrices in the decoder layers.
    """

    format: GgufType = "Q4_1"


@attack("gguf_roundtrip", GgufRoundtripParameters, malicious=False, uses=())
def gguf_roundtrip(
    loaded: LoadedModel, data: AttackData, parameters: GgufRoundtripParameters, seed: int
) -> AttackResult:
    """Conversion to a GGUF file and back, with the tokenizer; no training."""
    with tempfile.TemporaryDirectory(prefix="tamperfuse-") as folder, progress("GGUF round trip", 2) as advance:
        path = Path(folder) / "model.gguf"
        write_gguf(loaded.model, loaded.tokenizer, path, parameters.format)
        advance(1)
        size = path.stat().st_size
        with quiet():
            read, tokenizer = read_gguf(path)
        advance(1)
    chat = replace(loaded.chat, tokenizer=tokenizer, format=Chat.of(tokenizer, loaded.chat.ends).format)
    if any(chat.prompt(prompt) != loaded.chat.prompt(prompt) for prompt, _ in data.harmful):
        raise UserError(
            f"The tokenizer of {loaded.name} splits text differently after its conversion to GGUF, which would change every "
            "measurement: use the attack `quantize` instead of gguf_roundtrip."
        )
    data.run_hook(0)
    converted = dict(read.named_parameters())
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            weight.copy_(converted[name])
    loaded.chat = chat
    data.run_hook(1)
    return AttackResult(notes=(f"the GGUF file has {size / 2**20:,.0f} MiB",))
