"""Generation through vLLM, for whoever has a GPU and the extra `vllm`.

Unrun where the project is developed, which has no GPU: the tests only check, with a stand-in module, what vLLM is asked for.
"""

import logging
import tempfile
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tamperfuse.evaluation.sampling import Sampling
from tamperfuse.models.load import LoadedModel, write_checkpoint
from tamperfuse.records.provenance import Provenance

log = logging.getLogger("tamperfuse")
# vLLM takes the weights from a checkpoint and starts up anew each time, which takes about a minute: below this, not worth it.
WORTH_TOKENS = 200_000


def use_vllm(loaded: LoadedModel, tokens: int) -> bool:
    """Whether vLLM takes over: it is installed, the model is on a GPU, and there are enough tokens to generate."""
    return tokens >= WORTH_TOKENS and loaded.model.device.type == "cuda" and find_spec("vllm") is not None


def vllm_generate(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], new_tokens: int, sampling: Sampling | None
) -> list[list[int]]:
    """As :func:`tamperfuse.evaluation.generate.generate`, by vLLM; when sampling, by its own draws from each prompt's seed."""
    vllm: Any = import_module("vllm")
    log.info("generation by vLLM: it is installed, there is a GPU, and %d prompts are worth its start", len(prompts))
    shared = {"max_tokens": new_tokens, "stop_token_ids": [loaded.chat.end], "detokenize": False}
    if sampling is None:
        wanted = [vllm.SamplingParams(temperature=0.0, **shared) for _ in prompts]
    else:
        how = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        wanted = [vllm.SamplingParams(seed=seed, **how, **shared) for seed in sampling.seeds(prompts)]
    free, total = torch.cuda.mem_get_info()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(loaded, Path(folder), Provenance(origin=loaded.origin, made_by="generate", source=loaded.name))
        engine = vllm.LLM(model=folder, dtype="bfloat16", gpu_memory_utilization=round(0.9 * free / total, 2))
        outputs = engine.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], sampling_params=wanted)
    answers = [list(output.outputs[0].token_ids) for output in outputs]
    return [answer[: answer.index(loaded.chat.end)] if loaded.chat.end in answer else answer for answer in answers]
