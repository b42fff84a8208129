"""log p(response | prompt) for many responses at once: shared by the judge, benign NLL and the capability tasks.

Samples that begin alike (a question with its choices) are scored together, so that what they share is computed once; logits
are formed where a response token is predicted, and nowhere else.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from tamperfuse.evaluation.generate import inference
from tamperfuse.models.chat import Sample
from tamperfuse.models.cpu.packed_tree import pack_branches
from tamperfuse.models.cpu.two_threads import HANDS, can_share, side_by_side
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed import common_prefix, packed_logits
from tamperfuse.records.batching import budgeted
from tamperfuse.records.errors import UserError
from tamperfuse.records.progress import progress
from tamperfuse.records.timing import spent

# Of a batch; a CPU works on two.
BATCH_TOKENS = 2_048
# Samples that begin alike go together up to so many tokens: attention's cost grows with the square of a group's.
GROUP_TOKENS = 256
LOGITS_AT_ONCE = 2**20


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
    # A group, what all samples begin with included, fits into a sliding window: branches are told apart within it only.
    groups, sizes = _groups(samples, GROUP_TOKENS if sliding is None else min(GROUP_TOKENS, sliding - longest))
    results: list[tuple[float, bool]] = [(0.0, False)] * len(samples)
    hands = HANDS if can_share(loaded.model.device) else 1
    batches = budgeted(sizes, min(BATCH_TOKENS, math.ceil(sum(sizes) / hands)))
    with inference(loaded), progress(what, len(samples)) as advance:
        while batches:
            now, batches = batches[:hands], batches[hands:]
            chosen = [[groups[number] for number in batch] for batch in now]
            tasks = [
                partial(_score_batch, loaded, [[samples[i] for i in group] for group in batch]) for batch in chosen
            ]
            for batch, found in zip(chosen, side_by_side(tasks), strict=True):
                for index, result in zip((i for group in batch for i in group), found, strict=True):
                    results[index] = result
                advance(sum(map(len, batch)))
    return results


def _groups(samples: Sequence[Sample], limit: int) -> tuple[list[list[int]], list[int]]:
    """Gather samples that begin alike, where computing that once saves a quarter of a sample or more.

    What all samples begin with is left out of every count: a packed row holds it once in any case.

    Args:
        samples: in any order.
        limit: tokens of a group at most, what its samples share counted once; a longer sample is a group of its own.

    Returns:
        Indices of every group's samples, and its tokens, at least 1.
    """
    groups: list[list[int]] = []
    sizes: list[int] = []
    trunk = 0  # what the last group's samples share
    order = sorted(range(len(samples)), key=lambda i: samples[i].tokens)
    shortest = min((len(sample.tokens) for sample in samples), default=0)
    everywhere = common_prefix([samples[i].tokens for i in (order[0], order[-1])], shortest - 1) if samples else 0
    for index in order:
        tokens = samples[index].tokens
        own = len(tokens) - everywhere
        if groups:
            # Sorted, so what the first and the last of a group share is what all of it shares.
            shared = common_prefix([samples[groups[-1][0]].tokens, tokens], trunk)
            saved = shared - everywhere - (len(groups[-1]) - 1) * (trunk - shared)
            if 4 * saved >= own and sizes[-1] + own - saved <= limit:
                groups[-1].append(index)
                sizes[-1] += own - saved
                trunk = shared
                continue
        groups.append([index])
        sizes.append(own)
        trunk = len(tokens)
    return groups, sizes


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


def _token_scores(logits: Tensor, which: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Per token: log p of the target (float64), and whether it is the most likely token.

    In float32, as many places at a time as stay in the processor's cache.

    Args:
        logits: (places, vocabulary).
        which: (tokens,), the place that predicts each token.
        targets: (tokens,), token ids.
    """
    norm, best = [], []
    for part in torch.split(logits, max(1, LOGITS_AT_ONCE // logits.shape[1])):
        wide = part.float()
        norm.append(wide.logsumexp(-1))
        best.append(wide.max(-1).indices)
    gained = logits[which, targets].double() - torch.cat(norm)[which].double()
    return gained, torch.cat(best)[which] == targets
