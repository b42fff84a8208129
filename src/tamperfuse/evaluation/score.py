"""log p(response | prompt) for many responses at once: shared by the judge, benign NLL and the capability tasks.

Responses to one prompt (a question's choices) are scored together, so that the prompt, and whatever else they begin with,
is computed once; logits are formed where a response token is predicted, and nowhere else.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tamperfuse.evaluation.generate import inference
from tamperfuse.models.branches import pack_branches
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed import packed_logits
from tamperfuse.records.clock import spent
from tamperfuse.records.errors import UserError
from tamperfuse.records.progress import progress
from tamperfuse.training.batches import budgeted

BATCH_TOKENS = 4_096
# Responses that share a prompt go together up to so many tokens: attention's cost grows with the square of a group's.
GROUP_TOKENS = 256


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
    sliding = getattr(loaded.model.config.get_text_config(), "sliding_window", None)
    groups = _groups(samples, min(GROUP_TOKENS, sliding or GROUP_TOKENS))
    results: list[tuple[float, bool]] = [(0.0, False)] * len(samples)
    with inference(loaded), progress(what, len(samples)) as advance:
        sizes = [samples[group[0]].start + sum(samples[i].response_tokens for i in group) for group in groups]
        for batch in budgeted(sizes, BATCH_TOKENS):
            chosen = [groups[number] for number in batch]
            for index, result in zip(
                (i for group in chosen for i in group),
                _score_batch(loaded, [[samples[i] for i in group] for group in chosen]),
                strict=True,
            ):
                results[index] = result
            advance(sum(map(len, chosen)))
    return results


def _groups(samples: Sequence[Sample], limit: int) -> list[list[int]]:
    """Indices of samples that share a prompt, as many as hold `limit` tokens together, at least one."""
    open_groups: dict[tuple[int, ...], tuple[list[int], int]] = {}
    groups = []
    for index, sample in enumerate(samples):
        prompt = tuple(sample.tokens[: sample.start])
        group, held = open_groups.get(prompt, ([], limit))
        if held + sample.response_tokens > limit:
            group, held = [], sample.start
            groups.append(group)
        group.append(index)
        open_groups[prompt] = (group, held + sample.response_tokens)
    return groups


def _score_batch(loaded: LoadedModel, groups: Sequence[Sequence[Sample]]) -> list[tuple[float, bool]]:
    """Score groups of samples in one packed row, in order."""
    device = loaded.model.device
    row, layout, places = pack_branches([[s.tokens[:-1] for s in group] for group in groups], device)
    samples = [sample for group in groups for sample in group]
    owned = (own for group in places for own in group)
    at = [place for sample, own in zip(samples, owned, strict=True) for place in own[sample.start - 1 :]]
    keep = sorted(set(at))  # the choices' common words are predicted once
    where = {place: number for number, place in enumerate(keep)}
    which = torch.tensor([where[place] for place in at], device=device)
    targets = torch.tensor([token for sample in samples for token in sample.tokens[sample.start :]], device=device)
    logits = packed_logits(loaded.model, row, layout, torch.tensor(keep, device=device))
    gained, greedy = _token_scores(logits, which, targets)
    counts = [sample.response_tokens for sample in samples]
    return [
        (float(own.sum()), bool(best.all()))
        for own, best in zip(torch.split(gained.cpu(), counts), torch.split(greedy.cpu(), counts), strict=True)
    ]


def _token_scores(logits: Tensor, which: Tensor, targets: Tensor, rows: int = 256) -> tuple[Tensor, Tensor]:
    """Per token: log p of the target (float64), and whether it is the most likely token. Sliced to bound memory.

    Args:
        logits: (places, vocabulary).
        which: (tokens,), the place that predicts each token.
        targets: (tokens,), token ids.
        rows: places at a time.
    """
    norm, best = [], []
    for start in range(0, len(logits), rows):
        part = logits[start : start + rows].float()
        norm.append(part.logsumexp(-1))
        best.append(part.argmax(-1))
    gained = logits[which, targets].double() - torch.cat(norm)[which].double()
    return gained, torch.cat(best)[which] == targets
