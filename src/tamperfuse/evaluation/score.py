"""log p(response | prompt) for many responses at once: shared by the judge, benign NLL and the capability tasks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tamperfuse.evaluation.generate import inference
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed import packed_logits
from tamperfuse.records.clock import spent
from tamperfuse.records.errors import UserError
from tamperfuse.records.progress import progress
from tamperfuse.training.batches import budgeted, pack_samples

BATCH_TOKENS = 4_096


@spent("scoring")
@torch.no_grad()
def score(loaded: LoadedModel, samples: Sequence[Sample], *, what: str = "scoring") -> list[tuple[float, bool]]:
    """Score responses.

    Args:
        loaded: the model; left as it was.
        samples: prompts with their responses.
        what: a few words for the progress bar.

    Returns:
        For every sample: log p(response | prompt) in nats, summed over the response's tokens, and whether the response
        is what greedy decoding gives.

    Raises:
        UserError: a sample is longer than the model's window.
    """
    longest = max((len(sample.tokens) for sample in samples), default=0)
    if longest > loaded.window:
        raise UserError(f"A text of {longest} tokens exceeds the model's window of {loaded.window}: shorten it.")
    results: list[tuple[float, bool]] = [(0.0, False)] * len(samples)
    with inference(loaded), progress(what, len(samples)) as advance:
        for group in budgeted([len(sample.tokens) for sample in samples], BATCH_TOKENS):
            batch = pack_samples([samples[i] for i in group], loaded.model.device)
            logits = packed_logits(loaded.model, batch.row, batch.layout, batch.keep)
            gained, greedy = _token_scores(logits, batch.targets)
            ends = torch.cumsum(torch.tensor(batch.counts), 0).tolist()
            for index, end, count in zip(group, ends, batch.counts, strict=True):
                own = slice(end - count, end)
                results[index] = (float(gained[own].sum()), bool(greedy[own].all()))
            advance(len(group))
    return results


def _token_scores(logits: Tensor, targets: Tensor, rows: int = 256) -> tuple[Tensor, Tensor]:
    """Per token: log p of the target (float64), and whether it is the most likely token. Sliced to bound memory."""
    gained, greedy = [], []
    for start in range(0, len(targets), rows):
        part, wanted = logits[start : start + rows].float(), targets[start : start + rows]
        chosen = part.gather(1, wanted[:, None]).flatten()
        gained.append((chosen - part.logsumexp(-1)).double())
        greedy.append(part.argmax(-1) == wanted)
    return torch.cat(gained), torch.cat(greedy)
