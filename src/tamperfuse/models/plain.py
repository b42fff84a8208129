"""Forward passes of causal models that cannot be run on packed batches: sequences of one length at a time, without padding.

Exact for every causal model, because nothing depends on padding and no state crosses from one sequence into another; slower than
packed rows, since batches are small, a common prefix is computed for every sequence, and decoding recomputes the whole sequence.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tamperfuse.models.layout import Layout

BATCH_TOKENS = 2048  # most tokens of a forward pass without gradients, unless one sequence is longer


def plain_logits(model: nn.Module, row: Tensor, layout: Layout, positions: Tensor) -> Tensor:
    """As :func:`tamperfuse.models.packed.packed_logits`, from the sequences of the row one length at a time.

    Args:
        model: a causal language model, or a wrapper of one.
        row: token ids of a packed row, (1, tokens).
        layout: of the row, without branches.
        positions: indices into the row.

    Returns:
        (positions, vocabulary), in the model's dtype.
    """
    prefix, lengths = layout.prefix, torch.tensor(layout.lengths)
    ends = prefix + torch.cumsum(lengths, 0)
    places = positions.cpu()
    # Positions of the prefix are those of the first sequence.
    owner = torch.searchsorted(ends, places, right=True)
    offset = torch.where(places < prefix, places, places - (ends - lengths)[owner] + prefix)
    segments = torch.split(row[0, prefix:], list(layout.lengths))
    needed = sorted(set(owner.tolist()))
    parts, order = [], []
    for group in _of_one_length([prefix + layout.lengths[i] for i in needed]):
        sequences = [needed[i] for i in group]
        tokens = torch.stack([torch.cat([row[0, :prefix], segments[i]]) for i in sequences])
        logits = model(input_ids=tokens, use_cache=False).logits
        for line, sequence in enumerate(sequences):
            indices = (owner == sequence).nonzero().flatten()
            parts.append(logits[line, offset[indices].to(logits.device)])
            order.append(indices)
    back = torch.argsort(torch.cat(order)).to(row.device)
    return torch.cat(parts).index_select(0, back)


class PlainDecoder:
    """Decoding without a cache: every step runs the whole sequences; see :class:`tamperfuse.models.decoding.Decoder`.

    Args:
        model: a causal language model.
        prompts: token ids.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self.model = model
        self.sequences = [list(prompt) for prompt in prompts]
        self.logits = self._next_logits()

    def select(self, unfinished: Tensor) -> Tensor:
        """See :meth:`tamperfuse.models.decoding.Decoder.select`."""
        order = unfinished.nonzero().flatten()
        self.sequences = [self.sequences[i] for i in order.tolist()]
        return order

    def step(self, tokens: Tensor) -> None:
        """See :meth:`tamperfuse.models.decoding.Decoder.step`."""
        for sequence, token in zip(self.sequences, tokens.tolist(), strict=True):
            sequence.append(token)
        self.logits = self._next_logits()

    def _next_logits(self) -> Tensor:
        rows: dict[int, Tensor] = {}
        for group in _of_one_length(list(map(len, self.sequences))):
            tokens = torch.tensor([self.sequences[i] for i in group], device=self.model.device)
            logits = self.model(input_ids=tokens, use_cache=False).logits[:, -1]
            rows |= zip(group, logits, strict=True)
        return torch.stack([rows[i] for i in range(len(self.sequences))])


def _of_one_length(lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Batches of indices of sequences that have the same length."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        by_length[length].append(index)
    for length, indices in sorted(by_length.items()):
        size = max(1, BATCH_TOKENS // length)
        yield from (tuple(indices[start : start + size]) for start in range(0, len(indices), size))
