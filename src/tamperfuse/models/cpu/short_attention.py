"""Attention over few keys on a CPU, as two batched matrix products; used in training.

The plain path is `F.scaled_dot_product_attention`. Its CPU kernel computes the attention weights again in the backward pass,
which takes longer than keeping them while sequences are short: training is faster with two products, by the factors in
docs/training.md. Without gradients there is nothing to keep, and that kernel is the faster one, so generation and scoring use
it. For longer sequences the weights, heads × length² per sequence, would need too much memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tamperfuse.models.cpu import enabled

# Largest number of keys.
SHORT = 256


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float) -> Tensor:
    """Attention with grouped key–value heads: as two products where gradients are enabled and there are at most `SHORT` keys.

    Args:
        query: (batch, heads, queries, size).
        key: (batch, groups, keys, size).
        value: (batch, groups, keys, size of values).
        bias: broadcastable to (batch, 1, queries, keys); 0 where a query may attend, −∞ elsewhere.
        scaling: factor for the products of queries and keys.

    Returns:
        (batch, heads, queries, size of values).
    """
    short = query.device.type == "cpu" and key.shape[2] <= SHORT
    if short and torch.is_grad_enabled() and enabled("short_attention"):
        return _two_products(query, key, value, bias, scaling)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling, enable_gqa=True)


def _two_products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float) -> Tensor:
    batch, heads, queries, size = query.shape
    groups, keys = key.shape[1], key.shape[2]
    per_group = heads // groups
    folded = (query * scaling).reshape(batch * groups, per_group * queries, size)
    scores = torch.bmm(folded, key.reshape(batch * groups, keys, size).transpose(1, 2))
    if bias is not None:
        scores.view(batch, groups, per_group, queries, keys).add_(bias[:, :, None])
    weights = F.softmax(scores, -1)  # computed in float32, stored in the model's dtype
    return torch.bmm(weights, value.reshape(batch * groups, keys, -1)).view(batch, heads, queries, -1)
