"""peft adapters given as a model: merged into their base model."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tamperfuse.models.checks import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_loading, is_adapter
from tamperfuse.records.errors import UserError, first_line
from tamperfuse.records.files import read_json

log = logging.getLogger("tamperfuse")


def base_of(folder: Path) -> str:
    """The name of the model that an adapter was trained on; a relative path may be relative to the adapter's folder.

    Raises:
        UserError: the adapter does not name it, or names another adapter.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    name = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise UserError(
            f"{folder / ADAPTER_CONFIG} does not name the model that the adapter was trained on: set base_model_name_or_path."
        )
    if not Path(name).is_absolute() and not Path(name).is_dir() and (folder / name).is_dir():
        name = str(folder / name)
    if is_adapter(Path(name)):
        raise UserError(
            f"{folder} is a peft adapter of {name!r}, which is itself a peft adapter: set base_model_name_or_path in its "
            f"{ADAPTER_CONFIG} to the folder of a model."
        )
    return name


def merged(folder: Path, load_base: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    """The base model of an adapter with the adapter merged into its weights.

    Args:
        folder: of the adapter.
        load_base: loads a model by name, in float32.

    Raises:
        UserError: the base model cannot be loaded, the adapter does not fit it or changes weights that two layers share, or its
            kind cannot be merged.
    """
    base = base_of(folder)
    try:
        model = load_base(base)
    except UserError as error:
        raise UserError(
            f"{folder} is a peft adapter of {base!r}, which cannot be loaded ({str(error).rstrip('.')}): set "
            f"base_model_name_or_path in its {ADAPTER_CONFIG} to the model's folder."
        ) from error
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            f"{folder} lacks {ADAPTER_WEIGHTS}, the weights of the peft adapter: download or save the adapter again."
        )
    from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict

    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        adapted = PeftModel(model, config)
        if not hasattr(adapted.base_model, "merge_and_unload"):
            raise ValueError(f"adapters of the kind {config.peft_type} cannot be merged")
        weights = load_peft_weights(str(folder), device="cpu")
        loading = set_peft_model_state_dict(adapted, weights)
    except Exception as error:  # peft raises various exceptions on damaged adapters
        raise UserError(
            f"The peft adapter in {folder} cannot be merged into {base!r} "
            f"({first_line(error)}): check that it was trained on this model, or "
            "merge it with peft's merge_and_unload and save the result."
        ) from error
    if tied := adapted_tied_layers(adapted):
        raise UserError(
            f"The peft adapter in {folder} changes {tied[0]}, whose weights {base!r} uses as embeddings and as output, and would "
            "change both: untie them in the base model (`tie_word_embeddings`), or train the adapter without this layer."
        )
    adapter_keys = {name for name in loading.missing_keys if _is_of_adapter(name, adapted)}
    check_loading({"missing_keys": adapter_keys, "unexpected_keys": loading.unexpected_keys}, str(folder))
    result: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    log.info("%s is a peft adapter of %s: it was merged into the model's weights.", folder, base)
    return result


def adapted_tied_layers(adapted: Any) -> list[str]:
    """Names of the layers of a peft model that have an adapter, and whose weights another layer has as well."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = adapted.get_base_model()
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    first, last = (getattr(getattr(end, "base_layer", end), "weight", None) for end in ends)
    if first is None or first is not last:
        return []
    return [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer) and module in ends]


def _is_of_adapter(name: str, adapted: Any) -> bool:
    prefix = getattr(adapted.base_model, "prefix", "lora_")
    return prefix in name or ".modules_to_save." in name
