"""The local model of a judge: loaded once, kept in memory until another one is needed or :func:`free_judge_model` is called."""

import gc
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tamperfuse.evaluation.judges.base import Answer
from tamperfuse.models.checks import check_config, check_loading, check_model
from tamperfuse.models.conversion import quiet
from tamperfuse.models.device import own_device
from tamperfuse.models.load import errors_explained, resolve_model
from tamperfuse.models.precision import compute_dtype
from tamperfuse.models.window import context_window


@dataclass(frozen=True)
class JudgeModel:
    """A model that judges, with its tokenizer.

    Attributes:
        name: the name it was loaded by.
        model: in evaluation mode, on its device, in the dtype that the device computes in.
        tokenizer: its tokenizer.
        window: longest sequence, in tokens.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    window: int

    @property
    def padding(self) -> int:
        """Id of the token that fills up sequences of a batch."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return int(next(token for token in ids if token is not None))


_loaded: list[tuple[tuple[str, str], JudgeModel]] = []  # the one in memory


def load_judge_model(name: str, architecture: Any) -> JudgeModel:
    """Load the model of a judge, or return the one that is in memory.

    Args:
        name: a local directory or a Hub id.
        architecture: transformers' Auto class, such as `AutoModelForSequenceClassification`.

    Raises:
        UserError: the model does not exist, is of another architecture, has only pickled weights, or weights that are not finite.
    """
    key = (name, architecture.__name__)
    if not _loaded or _loaded[0][0] != key:
        free_judge_model()
        _loaded.append((key, _load(name, architecture)))
    return _loaded[0][1]


def free_judge_model() -> None:
    """Free the judge's model, if there is one in memory."""
    if _loaded:
        _loaded.clear()
        gc.collect()


def _load(name: str, architecture: Any) -> JudgeModel:
    folder = resolve_model(name)
    place, device = str(folder or name), own_device()
    with quiet(), errors_explained(name, folder):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        check_config(config, place)
        model, info = architecture.from_pretrained(
            place,
            config=config,
            dtype=compute_dtype(device)[0],
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
        check_loading(info, place)  # a head that is not in the checkpoint would be random
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        check_model(model, tokenizer, place)
        model.to(device).eval()
    # The largest number stands for "unknown".
    longest = min(int(tokenizer.model_max_length), context_window(config))
    return JudgeModel(name, model, tokenizer, longest)


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices of items in batches of similar length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _has_response(template: str) -> str:
    if template and "{response}" not in template:
        raise ValueError("it lacks {response}")
    return template


#: A local directory, in which a leading `~` is expanded, or a Hub id.
ModelName = Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]
#: A text with {response} in it, or "" for none.
ResponseTemplate = Annotated[str, AfterValidator(_has_response)]


def filled(template: str, answer: Answer) -> str:
    """A template with `{prompt}` and `{response}` replaced."""
    values = {"{prompt}": answer.prompt, "{response}": answer.response}
    return re.sub(r"\{prompt\}|\{response\}", lambda match: values[match[0]], template)


def padded(rows: Sequence[Sequence[int]], padding: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, longest) token ids padded on the left, and their attention mask."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[i, longest - len(row) :] = 1
    return ids.to(device), mask.to(device)
