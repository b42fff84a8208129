"""Generate the table of docs/models.md: how a tiny random model of each decoder architecture of transformers runs.

python scripts/architectures_table.py                   prints the table
python scripts/architectures_table.py docs/models.md    replaces the table in the page
"""

import contextlib
import io
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pages import replace_tables, table
from tamperfuse.models import packed_check
from tamperfuse.models.decoding import decoding
from tamperfuse.models.packed import is_packed, pack, packed_logits
from tamperfuse.records.errors import UserError

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
# Architectures whose sizes have other names, or that cannot have all of the above.
NAMES = {"n_positions": 256, "n_embd": 32, "n_layer": 3, "n_head": 4, "ffn_dim": 64, "word_embed_proj_dim": 32}
DECODED = 4
LENGTHS = (90, 25, 60)  # tokens of the sequences that are compared, longer than those of the check at load
EXACT = 1e-3  # largest difference of two logits, as a share of their spread


def tiny_model(kind: str) -> PreTrainedModel:
    """A model with random weights; sizes that an architecture does not take are left out."""
    values = {**SIZES, **NAMES}
    while True:
        try:
            config = AutoConfig.for_model(kind, **values)
            break
        except AttributeError as error:
            refused = [name for name in values if name in str(error)]
            if not refused:
                raise
            del values[refused[0]]
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > 3_000_000:
        raise ValueError("its sizes have other names")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).float().eval()


@torch.no_grad()
def outcome(kind: str) -> tuple[str, str, str]:
    """("packed" | "plain" | "refused" | "WRONG" | "not built", largest difference, reason)."""
    try:
        plain, model = tiny_model(kind), tiny_model(kind)
        sequences = [
            [3, 4, *torch.randint(3, 97, (n,), generator=torch.Generator().manual_seed(n)).tolist()] for n in LENGTHS
        ]
        alone = [plain(input_ids=torch.tensor([tokens])).logits[0].float() for tokens in sequences]
    except Exception as error:  # of an architecture that cannot be built this small, or whose own code fails
        return "not built", "", type(error).__name__
    try:
        reason = reason_for_plain(model)
    except UserError as error:
        return "refused", "", str(error).partition(" ")[2].partition(":")[0]
    row, layout = pack(sequences, 2, model.device)
    logits = packed_logits(model, row, layout, torch.arange(row.shape[1]))
    segments = torch.split(logits[layout.prefix :], list(layout.lengths))
    with decoding(model, [tokens[:-DECODED] for tokens in sequences], DECODED) as decoder:
        steps = [decoder.logits]
        for i in range(DECODED, 0, -1):
            decoder.step(torch.tensor([tokens[-i] for tokens in sequences]))
            steps.append(decoder.logits)
    decoded = torch.stack(steps, dim=1)
    worst = max(
        *(float((a[layout.prefix :] - b).abs().max()) for a, b in zip(alone, segments, strict=True)),
        *(float((a[-DECODED - 1 :] - b).abs().max()) for a, b in zip(alone, decoded, strict=True)),
    ) / float(torch.cat(alone).std())
    result = "WRONG" if not worst <= EXACT else "packed" if is_packed(model) else "plain"
    return result, f"{worst:.0e}", reason


def reason_for_plain(model: PreTrainedModel) -> str:
    """Prepare a model; why it is not packed, "" if it is.

    Raises:
        UserError: it is refused.
    """
    with log_lines() as lines:
        packed_check.prepare_forward(model)
    warnings_ = [line for line in lines if " because " in line]
    return warnings_[0].partition(" because ")[2].rpartition(": exact")[0] if warnings_ else ""


@contextlib.contextmanager
def log_lines() -> Iterator[list[str]]:
    """Collect what tamperfuse logs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    packed_check.log.addHandler(handler)
    try:
        yield lines
    finally:
        packed_check.log.removeHandler(handler)


def tables() -> str:
    """The table of what could be built, the names of the rest, and the totals, as Markdown."""
    rows: list[list[str]] = []
    counts: Counter[str] = Counter()
    missing: list[str] = []
    for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        with contextlib.redirect_stderr(io.StringIO()):
            result, difference, reason = outcome(kind)
        print(f"{kind}: {result} {difference} {reason}", file=sys.stderr)
        counts[result] += 1
        if result == "not built":
            missing.append(f"`{kind}`")
        else:
            rows.append([f"`{kind}`", result, difference, reason.replace("|", "/")])
    total = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    notes = [f"Not built: {', '.join(missing)}.", "", f"{total}; transformers {transformers.__version__}."]
    return "\n".join([*table(["architecture", "runs", "largest difference", "reason"], rows), "", *notes])


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    packed_check.log.propagate = False
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    packed_check._remembered = lambda model: None  # type: ignore[assignment]  # checked anew
    text = tables()
    if len(sys.argv) == 1:
        print(text)
    else:
        replace_tables(Path(sys.argv[1]), f"python scripts/architectures_table.py {sys.argv[1]}", text)
