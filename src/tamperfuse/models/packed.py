"""Packed batches: forward passes over many sequences without padding.

The sequences of a batch are concatenated in one row, after the tokens that all of them begin with (usually the chat template's
system prompt), which are computed once:

    sequences    S y s A a b c       row        S y s | A a b c | B d | C e f g
                 S y s B d           position   0 1 2   3 4 5 6   3 4   3 4 5 6
                 S y s C e f g       attends to the prefix and, causally, to its own segment

Linear layers, norms and rotary embeddings process the row as it is. Only attention depends on segments, so it is replaced,
through transformers' attention interface: no model code is patched. Results are exact, including gradients. When sequences
are continued token by token, attention uses :class:`tamperfuse.models.cpu.kv_cache.KVCache`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AttentionInterface

from tamperfuse.models.cpu.kv_cache import KVCache
from tamperfuse.models.cpu.short_attention import grouped_attention
from tamperfuse.models.layout import Layout
from tamperfuse.models.plain import plain_logits
from tamperfuse.records.errors import UserError

ATTENTION = "tamperfuse_packed"
# Arguments of the attention interface that do not change its result in a packed row: dropout is not applied, attention is causal,
# positions were applied to queries and keys, and the others say what a forward pass returns.
IGNORED = {
    *("dropout", "is_causal", "position_ids", "cache_position", "use_cache", "logits_to_keep"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
}


class _Pad(torch.autograd.Function):
    """(tokens, …) → (segments × longest, …).

    The indices are unique, so the gradient is a copy; autograd's rule for indexing would accumulate row by row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        """Copy tokens to their padded positions; nothing attends to padding."""
        ctx.layout = layout
        return x.index_select(0, layout.gather)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor, None]:
        """Copy the gradients of tokens and drop those of padding."""
        return outer[0].index_select(0, ctx.layout.scatter), None


class _Unpad(torch.autograd.Function):
    """(segments × longest, …) → (tokens, …): the inverse of :class:`_Pad`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        """Copy the tokens and drop the padding."""
        ctx.layout = layout
        return x.index_select(0, layout.scatter)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor, None]:
        """Copy the gradients to their padded positions; those of padding are zero."""
        padded = outer[0].index_select(0, ctx.layout.gather)
        if ctx.layout.padding is not None:
            padded[ctx.layout.padding] = 0
        return padded, None


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores: 0 where the mask is true, −∞ elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def _window(mask: Tensor, offset: int, window: int | None) -> Tensor:
    """Restrict a causal mask (queries, keys) to a sliding window; the first query is at key `offset`."""
    if window is None or mask.shape[-1] <= window:
        return mask
    queries = torch.arange(mask.shape[-2], device=mask.device)[:, None] + offset
    return mask & (torch.arange(mask.shape[-1], device=mask.device)[None] > queries - window)


def _packed(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float, window: int | None) -> Tensor:
    """Attention over a packed row: (1, heads, row, size) → (1, row, heads, size)."""
    prefix, longest, count = layout.prefix, layout.longest, len(layout.lengths)
    sizes = [prefix, query.shape[2] - prefix]
    (query_prefix, query_rest), (key_prefix, key_rest), (value_prefix, value_rest) = (
        torch.split(x, sizes, dim=2) for x in (query, key, value)
    )

    def segments(x: Tensor) -> Tensor:
        """(1, heads, tokens, size) → (segments, heads, longest, size)."""
        padded: Tensor = _Pad.apply(x[0].transpose(0, 1), layout)  # type: ignore[no-untyped-call]
        return padded.view(count, longest, *padded.shape[1:]).transpose(1, 2)

    keys, values = segments(key_rest), segments(value_rest)
    if prefix:
        keys = torch.cat([key_prefix.expand(count, -1, -1, -1), keys], dim=2)
        values = torch.cat([value_prefix.expand(count, -1, -1, -1), values], dim=2)
    causal = torch.ones(longest, prefix + longest, dtype=torch.bool, device=query.device).tril(prefix)
    mask = _window(causal, prefix, window)
    if layout.branch_mask is not None:
        mask = mask & F.pad(layout.branch_mask, (prefix, 0), value=True)
    bias = _bias(mask, query.dtype).view(-1, 1, longest, prefix + longest)
    rest = grouped_attention(segments(query_rest), keys, values, bias, scaling).transpose(1, 2)
    flat: Tensor = _Unpad.apply(rest.reshape(count * longest, *rest.shape[2:]), layout)  # type: ignore[no-untyped-call]
    if not prefix:
        return flat[None]
    bias = _bias(_window(causal.new_ones(prefix, prefix).tril(), 0, window), query.dtype)
    first = grouped_attention(query_prefix, key_prefix, value_prefix, bias[None, None], scaling).transpose(1, 2)
    return torch.cat([first, flat[None]], dim=1)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    kv_cache: KVCache | None = None,
    sliding_window: int | None = None,
    windows: set[int | None] | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """An attention function for transformers.

    `layout`, `kv_cache` and `windows`, which collects the windows of all layers, are arguments of the model's forward method.

    Raises:
        UserError: the layer gives an argument that changes attention and is not supported.
    """
    unknown = sorted(name for name, value in rest.items() if value is not None and name not in IGNORED)
    # Masks of transformers are not made for this attention function, so this one comes from the layer (Doge).
    unknown += ["a mask"] if attention_mask is not None else []
    if unknown:
        raise UserError(
            f"{type(module).__name__} gives its attention {', '.join(unknown)}, which packed attention does not support"
        )
    if windows is not None:
        windows.add(sliding_window)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer = int(getattr(module, "layer_idx", 0))
    if layout is None:
        if kv_cache is None:
            raise UserError(
                f"{type(module).__name__} received neither a layout nor a cache: its model does not pass arguments on"
            )
        return kv_cache.attend(layer, query, key, value, scale, sliding_window), None
    if kv_cache is not None:
        kv_cache.fill(layer, key, value)
    return _packed(query, key, value, layout, scale, sliding_window), None


AttentionInterface.register(ATTENTION, _attention)


def common_prefix(sequences: Sequence[Sequence[int]], limit: int) -> int:
    """Length of the longest common prefix of sequences, at most `limit`."""
    # The first and the last in lexicographic order have the shortest common prefix.
    first, last = min(map(list, sequences)), max(map(list, sequences))
    shared = 0
    while shared < min(limit, len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return shared


def pack(sequences: Sequence[Sequence[int]], prefix_limit: int, device: torch.device) -> tuple[Tensor, Layout]:
    """Pack token sequences into one row.

    Args:
        sequences: at least one, of at least one token each.
        prefix_limit: maximum length of the shared prefix; it is also shorter than every sequence.
        device: of the tensors.

    Returns:
        Token ids of the row, (1, tokens), and its layout.
    """
    prefix = common_prefix(sequences, min(prefix_limit, min(map(len, sequences)) - 1)) if len(sequences) > 1 else 0
    row = [*sequences[0][:prefix], *(token for tokens in sequences for token in tokens[prefix:])]
    return torch.tensor([row], device=device), Layout.of(prefix, [len(tokens) - prefix for tokens in sequences], device)


def is_packed(model: nn.Module) -> bool:
    """Whether a model, or the model inside a wrapper, uses packed attention."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    return bool(getattr(inner.config, "_attn_implementation", None) == ATTENTION)


def packed_logits(
    model: nn.Module, row: Tensor, layout: Layout, positions: Tensor, kv_cache: KVCache | None = None
) -> Tensor:
    """Logits of a packed row at some positions.

    Args:
        model: a causal language model (or a wrapper of one). Without packed attention, its sequences are run one length at a
            time (:mod:`tamperfuse.models.plain`).
        row: token ids, (1, tokens).
        layout: of the row, as :func:`pack` returned it.
        positions: indices into the row; logits are computed at these positions only.
        kv_cache: stores keys and values, if the sequences are to be continued.

    Returns:
        (positions, vocabulary), in the model's dtype.
    """
    if not is_packed(model):
        return plain_logits(model, row, layout, positions)
    out = model(
        input_ids=row,
        position_ids=layout.position_ids,
        layout=layout,
        kv_cache=kv_cache,
        use_cache=False,
        logits_to_keep=positions,
    )
    # Not `[0]`: the gradient of indexing is a new tensor as large as the logits.
    logits: Tensor = out.logits.squeeze(0)
    return logits
