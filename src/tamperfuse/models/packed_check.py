"""Switch a model to packed attention, after a check that its outputs stay the same.

Architectures that carry state along the row (recurrent, convolutional), use their attention differently or give it arguments that
packed attention does not know cannot be packed. This is found by running a few short sequences both ways, instead of by a list of
architectures. What only shows on sequences longer than these is found in the configuration.
"""

import logging
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from tamperfuse.models.decoding import PackedDecoder
from tamperfuse.models.packed import ATTENTION, is_packed, pack
from tamperfuse.models.precision import compute_dtype, reduced_precision
from tamperfuse.models.sharded import gather_objects, is_sharded, model_class
from tamperfuse.records.cache import cache_folder
from tamperfuse.records.errors import UserError, first_line
from tamperfuse.records.files import content_hash, write_text

log = logging.getLogger("tamperfuse")

# Largest difference of two logits, as a share of the spread of logits. In float32 exact architectures stay below 1e-4.
TOLERANCE = 1e-3
PREFIX, SUFFIXES = 3, (7, 40, 23)  # numbers of tokens that the sequences share, and that each adds
DECODED = 2  # tokens at the end of each sequence that are decoded one by one
# What earlier tokens change in the logits, as a share of their spread, below which the check cannot tell: models that have not
# collapsed stay above 1.
CONTEXT = 0.1
VERSION = 3  # of this check; raise it when it becomes stricter


def prepare_forward(model: PreTrainedModel) -> None:
    """Switch a model to packed attention if its outputs stay the same; otherwise check that it can run without, and say so.

    The result for a configuration is remembered in the cache, so that its models are not run again. With a sharded model every
    process calls this function, and what the main process remembers counts. With `TAMPERFUSE_PACKED=0` in the environment no
    model is switched.

    Raises:
        UserError: the model is not causal, selects tokens by an indexer, or its forward pass fails, in float32 or in the dtype
            that this device computes in.
    """
    if model.config._attn_implementation == ATTENTION:
        return
    if getattr(model.config.get_text_config(), "index_topk", None):
        # A tiny DeepSeek V3.2 with random weights: logits changed with later tokens beyond `index_topk` positions.
        raise UserError(
            f"{model_class(model).__name__} attends to tokens that an indexer selects (`index_topk` in its config.json), and "
            "transformers computes this with tokens that come later: choose a model without an indexer."
        )
    training = model.training
    model.eval()
    try:
        reason = _turned_off(model) or _checked(model)
    finally:
        model.train(training)
    if reason:
        log.warning(
            "%s is run one sequence length at a time instead of on packed batches, because %s. Results are the same; training "
            "takes about twice as long, and generation up to 30 times as long.",
            *(model_class(model).__name__, reason),
        )


def _turned_off(model: PreTrainedModel) -> str:
    """Why a model is not packed if the user does not want any to be; "" otherwise."""
    if os.environ.get("TAMPERFUSE_PACKED") != "0":
        return ""
    _check_causal(model)
    _check_dtype(model)
    return "TAMPERFUSE_PACKED is 0"


def _checked(model: PreTrainedModel) -> str:
    """Switch a model to packed attention unless it is known, or shown now, to be wrong there; the reason, "" for none."""
    remembered = _remembered(model)
    reason = _recalled(model, remembered)
    if reason is None:
        reason, lasting = _not_packed_because(model, model.config._attn_implementation)
        if reason:
            _check_causal(model)
        _check_dtype(model)
        if lasting:
            _remember(remembered, reason)
    elif not reason:
        _switch(model)
    return reason


def is_remembered(model: PreTrainedModel) -> bool:
    """Whether :func:`prepare_forward` need not run a model. A collective operation if it is sharded."""
    return _recalled(model, _remembered(model)) is not None


def prepare_like(model: PreTrainedModel, checked: PreTrainedModel) -> None:
    """Switch a model to packed attention if another model of its configuration passed :func:`prepare_forward`."""
    if is_packed(checked):
        _switch(model)


class _NotPacked(Exception):
    """Why a model cannot be run on packed batches; its text follows "because"."""


class _CannotTell(_NotPacked):
    """Likewise, for a reason that lies in its weights: other models of its configuration are checked anew."""


def _not_packed_because(model: PreTrainedModel, before: str) -> tuple[str, bool]:
    """Switch a model to packed attention and compare; on failure switch back.

    Returns:
        The reason, "" for none, and whether it holds for all models of this configuration.
    """
    try:
        _check(model)
    except (_NotPacked, UserError) as error:  # a UserError is that of the attention function
        model.set_attn_implementation(before)
        return str(error), not isinstance(error, _CannotTell)
    return "", True


def _switch(model: PreTrainedModel) -> None:
    try:
        model.set_attn_implementation(ATTENTION)
    except (ValueError, TypeError) as error:
        raise _NotPacked("its layers do not use transformers' attention interface") from error


@torch.no_grad()
def _check_causal(model: PreTrainedModel) -> None:
    """Check that logits do not depend on later tokens, and that the model runs on tokens alone.

    Raises:
        UserError: they do, or it does not.
    """
    tokens = torch.tensor([_sequences(model)[1]], device=model.device)
    half = tokens.shape[1] // 2
    try:
        whole, first = (model(input_ids=part, use_cache=False).logits[0].float() for part in (tokens, tokens[:, :half]))
    except Exception as error:  # the model's own code raises what it likes
        raise UserError(
            f"{model_class(model).__name__} cannot be run on a sequence of tokens alone ({type(error).__name__}): choose a "
            "decoder-only language model."
        ) from error
    if not float((whole[:half] - first).abs().max()) <= TOLERANCE * float(whole.std()):
        raise UserError(
            f"{model_class(model).__name__} is not a causal language model: its logits depend on later tokens. Choose a "
            "decoder-only language model such as Llama, Qwen or Mistral."
        )


@torch.no_grad()
def _check_dtype(model: PreTrainedModel) -> None:
    """Check that a model runs in the dtype that its device computes in; shards are read in that dtype and run by training only.

    Raises:
        UserError: it does not, because its code creates values of another dtype.
    """
    dtype, _ = compute_dtype(model.device)
    if dtype == torch.float32 or is_sharded(model):
        return
    sequences = _sequences(model)
    try:
        with reduced_precision(model, dtype):
            if is_packed(model):
                _packed_logits(model, sequences, set())
            else:
                model(input_ids=torch.tensor(sequences[:1], device=model.device), use_cache=False)
    except RuntimeError as error:
        raise UserError(
            f"{model_class(model).__name__} does not run in {str(dtype).removeprefix('torch.')}, in which this "
            f"{model.device.type} computes ({first_line(error)}): choose another model, or a machine that computes in float32."
        ) from error


@torch.no_grad()
def _check(model: PreTrainedModel) -> None:
    """Compare packed rows and decoding with the model's own forward pass; the model is packed afterwards.

    Raises:
        _NotPacked: they differ, or packed rows fail.
        _CannotTell: the logits hardly depend on earlier tokens, so wrong attention would not show.
        UserError: the attention function was given something that it does not support, or the model's own forward pass fails.
    """
    sequences = _sequences(model)
    try:
        alone = [model(input_ids=torch.tensor([tokens], device=model.device)).logits[0].float() for tokens in sequences]
    except Exception as error:  # the model's own code raises what it likes
        raise _NotPacked(f"{type(error).__name__} in its forward pass") from error
    spread = float(torch.cat(alone).std())
    _check_context(model, sequences[1], alone[1], spread)
    _switch(model)
    windows: set[int | None] = set()
    try:
        packed, decoded = _packed_logits(model, sequences, windows), _decoded_logits(model, sequences)
    except UserError:
        raise
    except Exception as error:  # the model's own code raises what it likes
        raise _NotPacked(f"{type(error).__name__} in its forward pass") from error
    ends = [logits[-DECODED - 1 :] for logits in alone]
    for expected, computed, name in ((alone, packed, "packed rows"), (ends, decoded, "decoding")):
        difference = max(float((a - b).abs().max()) for a, b in zip(expected, computed, strict=True)) / spread
        if not difference <= TOLERANCE:  # NaN is a failure as well
            raise _NotPacked(f"its logits in {name} differ by {difference:.2g} of their spread")
    _check_windows(model, windows)


def _check_context(model: PreTrainedModel, tokens: list[int], logits: Tensor, spread: float) -> None:
    """Check that the logits of the second half of a sequence depend on the first.

    Raises:
        _CannotTell: they hardly do, as in a model that has collapsed.
    """
    half = len(tokens) // 2
    without = model(input_ids=torch.tensor([tokens[half:]], device=model.device)).logits[0].float()
    if not float((logits[half:] - without).abs().max()) > CONTEXT * spread:
        raise _CannotTell("its logits hardly depend on earlier tokens, so the check at load cannot tell")


def _sequences(model: PreTrainedModel) -> list[list[int]]:
    """Sequences of different lengths with a common prefix, the same for every model of a vocabulary."""
    config = model.config.get_text_config()
    room = int(getattr(config, "max_position_embeddings", None) or 1 << 20) - PREFIX
    ids = torch.randint(
        config.vocab_size, (PREFIX + sum(SUFFIXES),), generator=torch.Generator().manual_seed(0)
    ).tolist()
    prefix, rest = ids[:PREFIX], ids[PREFIX:]
    starts = [sum(SUFFIXES[:i]) for i in range(len(SUFFIXES))]
    return [
        prefix + rest[start : start + min(length, max(room, DECODED + 1))]
        for start, length in zip(starts, SUFFIXES, strict=True)
    ]


def _packed_logits(model: PreTrainedModel, sequences: list[list[int]], windows: set[int | None]) -> list[Tensor]:
    """Logits at all positions of each sequence, from one packed row; collects the windows that attention received."""
    row, layout = pack(sequences, PREFIX, model.device)
    out = model(
        input_ids=row, position_ids=layout.position_ids, layout=layout, kv_cache=None, windows=windows, use_cache=False
    )
    logits = out.logits[0].float()
    segments = torch.split(logits[layout.prefix :], list(layout.lengths))
    return [torch.cat([logits[: layout.prefix], segment]) for segment in segments]


def _decoded_logits(model: PreTrainedModel, sequences: list[list[int]]) -> list[Tensor]:
    """Logits at the last positions of each sequence, whose last tokens are decoded one by one."""
    decoder = PackedDecoder(model, [tokens[:-DECODED] for tokens in sequences], DECODED)
    steps = [decoder.logits.float()]
    for i in range(DECODED, 0, -1):
        decoder.step(torch.tensor([tokens[-i] for tokens in sequences], device=model.device))
        steps.append(decoder.logits.float())
    return list(torch.stack(steps, dim=1))


def _check_windows(model: PreTrainedModel, windows: set[int | None]) -> None:
    """Find windows that a model puts into its attention mask, which packed attention does not use.

    Raises:
        _NotPacked: the configuration has one that attention did not receive.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    for name, kind in (("sliding_window", "sliding_attention"), ("attention_chunk_size", "chunked_attention")):
        size = getattr(config, name, None)
        used = kind in kinds if kinds else getattr(config, "use_sliding_window", True) is not False
        longest = getattr(config, "max_position_embeddings", None) or math.inf
        if isinstance(size, int) and used and 0 < size < longest and not windows - {None}:
            raise _NotPacked(
                f"its attention mask has a window of {size} tokens ({name}) that attention does not receive"
            )


def _recalled(model: PreTrainedModel, remembered: Path | None) -> str | None:
    """The result in a file, "" for packed; None if there is none. That of the main process if the model is sharded."""
    reason = remembered.read_text(encoding="utf-8") if remembered is not None and remembered.exists() else None
    recalled: str | None = gather_objects(reason)[0] if is_sharded(model) else reason
    return recalled


def _remembered(model: PreTrainedModel) -> Path | None:
    """The file with the result for models of this configuration, "" for packed; None if there is none.

    Code from a model's repository can change while the configuration stays the same.
    """
    kind = model_class(model)
    if not kind.__module__.startswith("transformers."):
        return None
    ignored = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}
    config: dict[str, Any] = {key: value for key, value in model.config.to_dict().items() if key not in ignored}
    device = [str(model.device.type), str(compute_dtype(model.device)[0])]
    versions = [torch.__version__, transformers.__version__, *device, VERSION, TOLERANCE]
    with suppress(UserError):
        return cache_folder() / "packed" / content_hash([kind.__qualname__, config, versions])[:32]
    return None


def _remember(path: Path | None, reason: str) -> None:
    if path is not None:
        with suppress(OSError, UserError):  # without a cache the check runs again
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, reason)
