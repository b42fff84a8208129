"""Generation with vLLM, used for large jobs if the extra `vllm` is installed and the model is on a GPU.

The tests replace vLLM by a stub and check the arguments that it is called with. It has not run on several GPUs.
"""

import logging
import tempfile
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from tamperfuse.evaluation.sampling import Sampling
from tamperfuse.models.load import LoadedModel, write_checkpoint
from tamperfuse.records.process import world_size
from tamperfuse.records.provenance import Provenance

log = logging.getLogger("tamperfuse")
# vLLM loads the weights from a checkpoint and takes about a minute to start; with fewer tokens, generating directly is faster.
MIN_TOKENS = 200_000


def use_vllm(loaded: LoadedModel, tokens: int) -> bool:
    """Whether to generate with vLLM: if installed, with one process, its model on a GPU and at least MIN_TOKENS `tokens`.

    With several processes each would start an engine of its own on all GPUs. A model that trains an adapter has weights under
    names that vLLM does not know.
    """
    alone = world_size() == 1 and loaded.model.device.type == "cuda"
    return tokens >= MIN_TOKENS and alone and find_spec("vllm") is not None and not _has_adapter(loaded)


def _has_adapter(loaded: LoadedModel) -> bool:
    layer: Any = import_module("peft.tuners.tuners_utils").BaseTunerLayer
    return any(isinstance(module, layer) for module in loaded.model.modules())


def tensor_parallel_size(loaded: LoadedModel) -> int:
    """On how many of the visible GPUs vLLM splits each layer: as many as divide the number of attention heads, which it demands.

    1 for a model without attention heads.
    """
    heads = int(getattr(loaded.model.config.get_text_config(), "num_attention_heads", 1))
    return max(size for size in range(1, max(1, torch.cuda.device_count()) + 1) if heads % size == 0)


def vllm_generate(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], new_tokens: int, sampling: Sampling | None
) -> list[list[int]]:
    """Generate with vLLM; arguments and result as in :func:`tamperfuse.evaluation.generate.generate`.

    Sampling uses vLLM's random numbers, seeded for each prompt, so samples differ from those of `generate`.
    """
    vllm: Any = import_module("vllm")
    log.info("generating with vLLM: it is installed, the model is on a GPU, and there are %d prompts", len(prompts))
    shared = {"max_tokens": new_tokens, "stop_token_ids": sorted(loaded.chat.ends), "detokenize": False}
    if sampling is None:
        parameters = [vllm.SamplingParams(temperature=0.0, **shared) for _ in prompts]
    else:
        options = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        parameters = [vllm.SamplingParams(seed=seed, **options, **shared) for seed in sampling.seeds(prompts)]
    free, total = torch.cuda.mem_get_info()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(loaded, Path(folder), Provenance(origin=loaded.origin, made_by="generate", source=loaded.name))
        engine = vllm.LLM(
            model=folder,
            dtype="bfloat16",
            gpu_memory_utilization=round(0.9 * free / total, 2),
            tensor_parallel_size=tensor_parallel_size(loaded),
        )
        outputs = engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts], sampling_params=parameters
        )
    answers = [list(output.outputs[0].token_ids) for output in outputs]
    return [list(takewhile(lambda token: token not in loaded.chat.ends, answer)) for answer in answers]
