"""Token-by-token decoding of many sequences at once: prefill, then one forward pass per new token.

:class:`PackedDecoder` prefills the prompts as one packed row and continues them with
:class:`~tamperfuse.models.cpu.kv_cache.KVCache`. :class:`PaddedDecoder` is the plain path: left-padded rows, transformers'
DynamicCache and `scaled_dot_product_attention`. `TAMPERFUSE_CPU_KERNELS` chooses between them (:mod:`tamperfuse.models.cpu`).
A model without packed attention uses :class:`~tamperfuse.models.plain.PlainDecoder`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tamperfuse.models.cpu import enabled
from tamperfuse.models.cpu.kv_cache import KVCache
from tamperfuse.models.packed import is_packed, pack, packed_logits
from tamperfuse.models.plain import PlainDecoder


class Decoder(Protocol):
    """Sequences that are being decoded.

    Attributes:
        logits: (rows, vocabulary), of each sequence's next token.
    """

    logits: Tensor

    def select(self, unfinished: Tensor) -> Tensor:
        """Remove finished sequences.

        Args:
            unfinished: (rows,), true for sequences that remain.

        Returns:
            (remaining rows,), the previous index of each remaining row. `logits` keeps the previous order.
        """
        ...

    def step(self, tokens: Tensor) -> None:
        """Append a token, (rows,), to each sequence and compute the next logits."""
        ...


@contextmanager
def decoding(model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> Iterator[Decoder]:
    """Prefill prompts; within the block the decoder continues them. The model's weights must not change meanwhile.

    Args:
        model: a causal language model.
        prompts: token ids, at least one prompt of at least one token.
        new_tokens: maximum number of new tokens per prompt.
    """
    if not is_packed(model):
        yield PlainDecoder(model, prompts)
        return
    if enabled("kv_cache"):
        yield PackedDecoder(model, prompts, new_tokens)
        return
    attention = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield PaddedDecoder(model, prompts)
    finally:
        model.set_attn_implementation(attention)


class PackedDecoder:
    """Decoding with a packed prefill; the common prefix of the prompts is computed and stored once.

    Args:
        model: the model.
        prompts: token ids.
        new_tokens: maximum number of new tokens per prompt.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        self.model = model
        longest = max(map(len, prompts))
        window = getattr(model.config.get_text_config(), "sliding_window", None)
        # A prefix is shared only if the whole of it stays within the sliding window.
        row, layout = pack(prompts, 0 if window and window < longest + new_tokens else longest, model.device)
        ends = layout.prefix - 1 + torch.cumsum(torch.tensor(layout.lengths), 0)
        self.cache = KVCache(layout.prefix, layout.lengths, new_tokens, model.device)
        self.logits = packed_logits(model, row, layout, ends.to(model.device), self.cache)

    def select(self, unfinished: Tensor) -> Tensor:
        """See :meth:`Decoder.select`."""
        return self.cache.select(unfinished)

    def step(self, tokens: Tensor) -> None:
        """See :meth:`Decoder.step`."""
        position = self.cache.position[:, None]
        out = self.model(input_ids=tokens[:, None], position_ids=position, kv_cache=self.cache, use_cache=False)
        self.cache.advance()
        self.logits = out.logits[:, -1]


class PaddedDecoder:
    """Decoding with left-padded rows and transformers' DynamicCache.

    Args:
        model: the model, with one of transformers' own attention implementations.
        prompts: token ids.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        longest, device = max(map(len, prompts)), model.device
        rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        blanks = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
        self.model, self.cache = model, DynamicCache(config=model.config)
        self.mask = (torch.arange(longest, device=device)[None] >= blanks[:, None]).long()
        self.position = longest - blanks
        out = model(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=self.mask,
            position_ids=(self.mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits: Tensor = out.logits[:, -1]

    def select(self, unfinished: Tensor) -> Tensor:
        """See :meth:`Decoder.select`."""
        order = unfinished.nonzero().flatten()
        self.cache.batch_select_indices(order)
        self.mask, self.position = self.mask[order], self.position[order]
        return order

    def step(self, tokens: Tensor) -> None:
        """See :meth:`Decoder.step`."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        out = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.position = self.position + 1
        self.logits = out.logits[:, -1]
