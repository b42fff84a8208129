"""A GGUF file, written and read back: what publishers and users do with weights before they run them. Hardening must survive.

The file is a real one (:mod:`tamperfuse.models.gguf_file`): quantized tensors under GGUF's names, metadata, the tokenizer and
the chat template. `quantize` does the same to the weights of any architecture, without the file.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from tamperfuse.attacks.base import AttackData, AttackResult, attack
from tamperfuse.models.chat import Chat
from tamperfuse.models.gguf_file import GgufType, read_gguf, write_gguf
from tamperfuse.models.load import LoadedModel, quiet
from tamperfuse.records.progress import progress
from tamperfuse.records.registry import Parameters


class GgufRoundtripParameters(Parameters):
    """Parameters of `gguf_roundtrip`.

    Attributes:
        format: type of the layers' matrices.
    """

    format: GgufType = "Q4_1"


@attack("gguf_roundtrip", GgufRoundtripParameters, malicious=False, uses=())
def gguf_roundtrip(
    loaded: LoadedModel, data: AttackData, parameters: GgufRoundtripParameters, seed: int
) -> AttackResult:
    """A GGUF file is written and read back, tokenizer included: what publishers do; no training."""
    data.run_hook(0)
    with tempfile.TemporaryDirectory(prefix="tamperfuse-") as folder, progress("GGUF, there and back", 2) as advance:
        path = Path(folder) / "model.gguf"
        write_gguf(loaded.model, loaded.tokenizer, path, parameters.format)
        advance(1)
        size = path.stat().st_size
        with quiet():
            read, tokenizer = read_gguf(path)
        advance(1)
    back = dict(read.named_parameters())
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            weight.copy_(back[name])
    loaded.chat = replace(loaded.chat, tokenizer=tokenizer, end=Chat.of(tokenizer).end)
    data.run_hook(1)
    return AttackResult(notes=(f"a file of {size / 2**20:,.0f} MiB",))
