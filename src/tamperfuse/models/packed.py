"""Forward passes over many sequences with no padding and nothing computed twice.

The sequences of a batch are laid end to end in one row, after the tokens that all of them begin with (a chat template's
system prompt, most often), which are computed once:

    sequences    S y s A a b c       row        S y s | A a b c | B d | C e f g
                 S y s B d           position   0 1 2   3 4 5 6   3 4   3 4 5 6
                 S y s C e f g       attends to the prefix and, causally, to its own segment

Linear layers, norms and rotary embeddings see the row as it is. Only attention looks at segments, so that is the one
piece replaced, through transformers' attention interface: no model code is patched. It is exact, gradients included.
When sequences are continued token by token, :class:`tamperfuse.models.cpu.kv_cache.Slots` keeps their keys and values and
takes over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from tamperfuse.models.cpu.kv_cache import Slots
from tamperfuse.records.errors import UserError

ATTENTION = "tamperfuse_packed"
# Up to this many keys, two matrix products beat the fused CPU kernel, whose backward pass is slow on short sequences;
# beyond it their quadratic memory (heads × length² a sequence) would count.
SHORT = 256


@dataclass(frozen=True)
class Layout:
    """Where the segments of a packed row lie.

    Attributes:
        prefix: tokens at the start of the row that every segment follows; 0 or more.
        lengths: tokens of each segment after the prefix, each at least 1.
        gather: (segments × longest,), index after the prefix of every segment's tokens; padding points at its first one.
        scatter: (row length − prefix,), index into the above of every token after the prefix: the way back.
        padding: (segments × longest,), true where there is no token; None where all segments are equally long.
        position_ids: (1, row length).
        together: (segments, longest, longest), false where a token of a segment must not look at another one although it
            comes later: branches of one trunk (:mod:`tamperfuse.models.cpu.packed_tree`). None where there are none.
    """

    prefix: int
    lengths: tuple[int, ...]
    gather: Tensor
    scatter: Tensor
    padding: Tensor | None
    position_ids: Tensor
    together: Tensor | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest segment."""
        return max(self.lengths)

    @classmethod
    def of(cls, prefix: int, lengths: Sequence[int], device: torch.device) -> "Layout":
        """Lay out segments of the given lengths behind a prefix."""
        sizes = torch.tensor(lengths)
        longest = int(sizes.max())
        column = torch.arange(longest)
        starts = torch.cumsum(sizes, 0) - sizes
        inside = column[None] < sizes[:, None]
        gather = torch.where(inside, starts[:, None] + column[None], starts[:, None])
        position = torch.cat([torch.arange(prefix), (prefix + column.expand(len(lengths), -1))[inside]])
        return cls(
            prefix=prefix,
            lengths=tuple(lengths),
            gather=gather.flatten().to(device),
            scatter=inside.flatten().nonzero().flatten().to(device),
            padding=None if bool(inside.all()) else ~inside.flatten().to(device),
            position_ids=position[None].to(device),
        )


class _Pad(torch.autograd.Function):
    """(tokens, …) → (segments × longest, …).

    Each token goes to one place, so the gradient is a plain copy back; autograd's rule for indexing adds up row by row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        """Spread tokens out; what lands on padding is never looked at."""
        ctx.layout = layout
        return x.index_select(0, layout.gather)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor, None]:
        """Take the gradients of tokens, leave those of padding."""
        return outer[0].index_select(0, ctx.layout.scatter), None


class _Unpad(torch.autograd.Function):
    """(segments × longest, …) → (tokens, …): the inverse of :class:`_Pad`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        """Take the tokens, leave the padding."""
        ctx.layout = layout
        return x.index_select(0, layout.scatter)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor, None]:
        """Spread the gradients out; padding gets none."""
        back = outer[0].index_select(0, ctx.layout.gather)
        if ctx.layout.padding is not None:
            back[ctx.layout.padding] = 0
        return back, None


def _grouped(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float) -> Tensor:
    """Attention with grouped key-value heads.

    Args:
        query: (batch, heads, queries, size).
        key: (batch, groups, keys, size).
        value: (batch, groups, keys, size).
        bias: broadcastable to (batch, 1, queries, keys); 0 where a query may look, −∞ where not.
        scaling: factor on the products.

    Returns:
        (batch, heads, queries, size).
    """
    batch, heads, queries, size = query.shape
    groups, keys = key.shape[1], key.shape[2]
    if query.device.type != "cpu" or keys > SHORT:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling, enable_gqa=True)
    shared = heads // groups
    folded = (query * scaling).reshape(batch * groups, shared * queries, size)
    scores = torch.bmm(folded, key.reshape(batch * groups, keys, size).transpose(1, 2))
    if bias is not None:
        scores.view(batch, groups, shared, queries, keys).add_(bias[:, :, None])
    weights = F.softmax(scores, -1)  # computed in float32, kept in the model's dtype
    return torch.bmm(weights, value.reshape(batch * groups, keys, size)).view(batch, heads, queries, size)


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to scores: 0 where the mask is true, −∞ elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def _window(mask: Tensor, offset: int, window: int | None) -> Tensor:
    """Narrow a causal mask (queries, keys) to a sliding window; the first query stands at key `offset`."""
    if window is None or mask.shape[-1] <= window:
        return mask
    queries = torch.arange(mask.shape[-2], device=mask.device)[:, None] + offset
    return mask & (torch.arange(mask.shape[-1], device=mask.device)[None] > queries - window)


def _packed(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float, window: int | None) -> Tensor:
    """Attention over a packed row: (1, heads, row, size) → (1, row, heads, size)."""
    prefix, longest, count = layout.prefix, layout.longest, len(layout.lengths)
    sizes = [prefix, query.shape[2] - prefix]
    (query_head, query_own), (key_head, key_own), (value_head, value_own) = (
        torch.split(x, sizes, dim=2) for x in (query, key, value)
    )

    def segments(x: Tensor) -> Tensor:
        """(1, heads, tokens, size) → (segments, heads, longest, size)."""
        padded: Tensor = _Pad.apply(x[0].transpose(0, 1), layout)  # type: ignore[no-untyped-call]
        return padded.view(count, longest, *padded.shape[1:]).transpose(1, 2)

    keys, values = segments(key_own), segments(value_own)
    if prefix:
        keys = torch.cat([key_head.expand(count, -1, -1, -1), keys], dim=2)
        values = torch.cat([value_head.expand(count, -1, -1, -1), values], dim=2)
    causal = torch.ones(longest, prefix + longest, dtype=torch.bool, device=query.device).tril(prefix)
    seen = _window(causal, prefix, window)
    if layout.together is not None:
        seen = seen & F.pad(layout.together, (prefix, 0), value=True)
    bias = _bias(seen, query.dtype).view(-1, 1, longest, prefix + longest)
    own = _grouped(segments(query_own), keys, values, bias, scaling).transpose(1, 2)
    flat: Tensor = _Unpad.apply(own.reshape(count * longest, *own.shape[2:]), layout)  # type: ignore[no-untyped-call]
    if not prefix:
        return flat[None]
    bias = _bias(_window(causal.new_ones(prefix, prefix).tril(), 0, window), query.dtype)
    head = _grouped(query_head, key_head, value_head, bias[None, None], scaling).transpose(1, 2)
    return torch.cat([head, flat[None]], dim=1)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    slots: Slots | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface; `layout` and `slots` arrive as keyword arguments of the model's forward."""
    if rest.get("softcap") is not None or rest.get("s_aux") is not None:
        raise UserError(
            f"{type(module).__name__} caps its attention scores or uses attention sinks, which packed batches do not "
            "support: choose a model without them."
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer = int(getattr(module, "layer_idx", 0))
    if layout is None:
        assert slots is not None, "packed attention needs a layout or slots"
        return slots.attend(layer, query, key, value, scale, sliding_window), None
    if slots is not None:
        slots.fill(layer, key, value)
    return _packed(query, key, value, layout, scale, sliding_window), None


AttentionInterface.register(ATTENTION, _attention)


def common_prefix(sequences: Sequence[Sequence[int]], limit: int) -> int:
    """How many leading tokens all sequences share, at most `limit`."""
    first, last = min(map(list, sequences)), max(map(list, sequences))  # extremes in dictionary order differ earliest
    shared = 0
    while shared < min(limit, len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return shared


def pack(sequences: Sequence[Sequence[int]], prefix_limit: int, device: torch.device) -> tuple[Tensor, Layout]:
    """Token sequences → one row and its layout.

    Args:
        sequences: at least one, each of at least one token.
        prefix_limit: the shared prefix is no longer than this; every sequence must be longer.
        device: where the row goes.

    Returns:
        Row of token ids, (1, tokens), and the layout.
    """
    prefix = common_prefix(sequences, min(prefix_limit, min(map(len, sequences)) - 1)) if len(sequences) > 1 else 0
    row = [*sequences[0][:prefix], *(token for tokens in sequences for token in tokens[prefix:])]
    return torch.tensor([row], device=device), Layout.of(prefix, [len(tokens) - prefix for tokens in sequences], device)


def packed_logits(model: nn.Module, row: Tensor, layout: Layout, keep: Tensor, slots: Slots | None = None) -> Tensor:
    """Logits of a packed row at chosen places.

    Args:
        model: a causal language model (or a wrapper of one) that :func:`use_packed_attention` prepared.
        row: token ids, (1, tokens).
        layout: as :func:`pack` gave it.
        keep: (kept,), indices into the row; only these positions meet the vocabulary.
        slots: where keys and values go, if the sequences are to be continued.

    Returns:
        (kept, vocabulary), in the model's dtype.
    """
    out = model(
        input_ids=row,
        position_ids=layout.position_ids,
        layout=layout,
        slots=slots,
        use_cache=False,
        logits_to_keep=keep,
    )
    # Not `[0]`: the gradient of an index is a fresh tensor of zeros as large as the logits, filled by copying.
    logits: Tensor = out.logits.squeeze(0)
    return logits


def use_packed_attention(model: PreTrainedModel) -> None:
    """Switch a model to packed attention, and make sure that its outputs stay what they were.

    Architectures whose layers carry state along the row (recurrent, convolutional) cannot be packed; two short sequences
    are run both ways to find out, which is cheaper than a list of names that ages.

    Raises:
        UserError: the architecture cannot be packed.
    """
    if model.config._attn_implementation == ATTENTION:
        return
    device, vocabulary = model.device, model.config.get_text_config().vocab_size
    sequences = [[5, 9, 2, *((7 * i + k * k) % vocabulary for i in range(1 + 2 * k))] for k in (1, 2)]
    training = model.training
    model.eval()
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([tokens], device=device)).logits[0, -1].float() for tokens in sequences]
        before = model.config._attn_implementation
        try:
            model.set_attn_implementation(ATTENTION)
            row, layout = pack(sequences, 3, device)
            ends = layout.prefix - 1 + torch.cumsum(torch.tensor(layout.lengths), 0)
            packed = packed_logits(model, row, layout, ends.to(device)).float()
        except (ValueError, TypeError) as error:
            model.set_attn_implementation(before)
            raise UserError(_cannot_pack(model)) from error
    model.train(training)
    spread = torch.stack(alone).std()
    if not all(torch.allclose(a, b, atol=0.1 * float(spread)) for a, b in zip(alone, packed, strict=True)):
        model.set_attn_implementation(before)
        raise UserError(_cannot_pack(model))


def _cannot_pack(model: PreTrainedModel) -> str:
    return (
        f"{type(model).__name__} cannot be run on packed batches (its layers do not use transformers' attention "
        "interface, or carry state along the sequence): choose a decoder-only transformer such as Llama, Qwen or Mistral."
    )
