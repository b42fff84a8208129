"""Generate the table of docs/models.md: how a tiny random model of each decoder architecture of transformers runs.

python scripts/architectures_table.py                            prints the table
python scripts/architectures_table.py docs/models.md             replaces the table in the page
python scripts/architectures_table.py docs/models.md llama …     replaces the rows of some architectures
"""

import contextlib
import io
import logging
import math
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pages import replace_tables, table
from tamperfuse.models import packed_check
from tamperfuse.models.chat import Sample
from tamperfuse.models.decoding import decoding
from tamperfuse.models.packed import is_packed, pack, packed_logits
from tamperfuse.records.errors import UserError
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.objectives import response_nll
from tiny_architectures import SIZES, tiny_model

DECODED = 4
LENGTHS = (90, 25, 60)  # tokens of the sequences that are compared, longer than those of the check at load
EXACT = 1e-3  # largest relative difference of two logits, and of two gradients
STEPS, LEARNING_RATE = 20, 1e-2  # of the training of the second comparison

# Architecture, "packed" | "plain" | "refused" | "WRONG" | "not built", difference of logits, of gradients, reason.
Row = tuple[str, str, str, str, str]


def row_of(kind: str) -> Row:
    """How an architecture runs, with random weights and after a short training; the larger differences of the two."""
    results, logits, gradients, reasons = [], [], [], []
    for trained in (False, True):
        result, differences, reason = outcome(kind, trained)
        if trained and result == "not built":
            reasons.append(f"cannot be trained: {reason}")
            break
        results.append(result)
        reasons.append(reason)
        if result in ("not built", "refused"):
            return kind, result, "", "", reason
        logits.append(differences[0])
        gradients.append(differences[1])
    result = next(name for name in ("WRONG", "plain", "packed") if name in results)
    reason = next(filter(None, reasons), "").replace("|", "/")
    compared = [difference for difference in gradients if difference is not None]
    return kind, result, f"{max(logits):.0e}", f"{max(compared):.0e}" if compared else "–", reason


def outcome(kind: str, trained: bool) -> tuple[str, tuple[float, float | None], str]:
    """Result, largest relative differences of two logits and of two gradients, and the reason for whatever is not packed.

    The difference of gradients is None if they are not compared.
    """
    sequences = [
        [3, 4, *torch.randint(3, SIZES["vocab_size"], (n,), generator=torch.Generator().manual_seed(n)).tolist()]
        for n in LENGTHS
    ]
    try:
        plain, model = tiny_model(kind), tiny_model(kind)
        if trained:
            train(plain, sequences)
            model.load_state_dict(plain.state_dict())
        with torch.no_grad():
            alone = [forward(plain, tokens) for tokens in sequences]
    except Exception as error:  # of an architecture that cannot be built this small, or whose own code fails
        first = (str(error).strip().splitlines() or [""])[0]
        return "not built", (0.0, None), f"{type(error).__name__}: {first[:90]}"
    try:
        reason = reason_for_plain(model)
    except UserError as error:
        return "refused", (0.0, None), str(error).partition(" ")[2].partition(":")[0]
    logits, gradients = logit_difference(model, sequences, alone), gradient_difference(plain, model, sequences)
    exact = logits <= EXACT and (gradients is None or gradients <= EXACT)  # logits that are NaN are wrong as well
    result = "packed" if is_packed(model) else "plain"
    return result if exact else "WRONG", (logits, gradients), reason


@torch.no_grad()
def logit_difference(model: PreTrainedModel, sequences: Sequence[list[int]], alone: Sequence[torch.Tensor]) -> float:
    """Largest difference of packed rows and decoding to each sequence alone, as a share of the spread of logits."""
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
    )
    return worst / float(torch.cat(list(alone)).std())


def gradient_difference(plain: PreTrainedModel, model: PreTrainedModel, sequences: Sequence[list[int]]) -> float | None:
    """Largest difference of two gradients of the NLL, of a batch to each sequence alone, relative to the parameter's largest.

    Gradients below a thousandth of the model's largest are relative to that.

    Returns:
        None if the model's own backward pass fails, so that there is nothing to compare with; inf if a gradient is NaN.
    """
    plain.zero_grad()  # of its training
    for tokens in sequences:
        loss = torch.nn.functional.cross_entropy(
            forward(plain, tokens)[1:-1], torch.tensor(tokens[2:]), reduction="sum"
        )
        try:
            torch.autograd.backward(loss)
        except Exception:  # Reformer's asserts that the model is in training mode
            return None
    batch = pack_samples([Sample(tokens, 2) for tokens in sequences], model.device)
    torch.autograd.backward(response_nll(model, batch).sum())
    pairs = [
        (a.grad, b.grad)
        for a, b in zip(model.parameters(), plain.parameters(), strict=True)
        if a.grad is not None and b.grad is not None
    ]
    largest = max(float(b.abs().max()) for _, b in pairs)
    shares = [float((a - b).abs().max()) / max(float(b.abs().max()), largest / 1000) for a, b in pairs]
    return max(math.inf if math.isnan(share) else share for share in shares)


def forward(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    """Logits of a sequence alone, (tokens, vocabulary), from the model's own forward pass."""
    logits: torch.Tensor = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
    return logits.float()


def train(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> None:
    """Train a model on a few sequences, at a rate that changes all of its weights."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for step in range(STEPS):
        tokens = list(sequences[step % len(sequences)])
        loss = torch.nn.functional.cross_entropy(forward(model, tokens)[:-1], torch.tensor(tokens[1:]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def reason_for_plain(model: PreTrainedModel) -> str:
    """Prepare a model; why it is not packed, "" if it is.

    Raises:
        UserError: it is refused.
    """
    with log_lines() as lines:
        packed_check.prepare_forward(model)
    warnings_ = [line for line in lines if " because " in line]
    return warnings_[0].partition(" because ")[2].partition(". Results are the same")[0] if warnings_ else ""


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


def rows_in(page: str) -> list[Row]:
    """The rows of a page's table."""
    cells = re.findall(r"^\| `(.+?)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", page, re.M)
    return [(kind, result, logits, gradients, reason) for kind, result, logits, gradients, reason in cells]


def computed(kinds: Sequence[str]) -> list[Row]:
    """The rows of architectures."""
    rows = []
    for kind in kinds:
        with contextlib.redirect_stderr(io.StringIO()):
            row = row_of(kind)
        print(": ".join(row), file=sys.stderr)
        rows.append(row)
    return rows


def tables(rows: Sequence[Row]) -> str:
    """The table and the totals, as Markdown."""
    counts = Counter(result for _, result, *_ in rows)
    total = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    lines = [[f"`{kind}`", *rest] for kind, *rest in sorted(rows)]
    header = ["architecture", "runs", "logits", "gradients", "reason"]
    return "\n".join([*table(header, lines), "", f"{total}; transformers {transformers.__version__}."])


def main(arguments: Sequence[str]) -> None:
    """Print the table, or write it into a page."""
    page, kinds = (Path(arguments[0]) if arguments else None), arguments[1:]
    for kind in kinds:
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            sys.exit(f"{kind} is not a causal language model of transformers {transformers.__version__}.")
    packed_check.log.propagate = False
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    packed_check._remembered = lambda model: None  # checked anew
    rows = computed(kinds or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    if page is None:
        print(tables(rows))
        return
    if kinds:
        rows += [row for row in rows_in(page.read_text(encoding="utf-8")) if row[0] not in kinds]
    replace_tables(page, f"python scripts/architectures_table.py {page}", tables(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
