"""The context window of a model."""

from transformers import PretrainedConfig


def context_window(config: PretrainedConfig) -> int:
    """Maximum sequence length of a model, in tokens; a large number if its configuration has none.

    With longrope it is the length up to which the short factors hold: beyond it, the factors of all sequences of a batch change
    with the longest of them.
    """
    text = config.get_text_config()
    longest = int(getattr(text, "max_position_embeddings", None) or 1 << 20)
    rope = getattr(text, "rope_parameters", None) or {}
    if "longrope" in (rope.get("rope_type"), rope.get("type")):
        original = rope.get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", None
        )
        return min(longest, int(original or longest))
    return longest
