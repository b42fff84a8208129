"""log p(response | prompt) for many responses at once, for judges, benign NLL and capability tasks.

Samples with a common prefix (a question with its choices) are scored together so that the prefix is computed once. Logits are
computed only at positions that predict a response token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tamperfuse.evaluation.generate import inference
from tamperfuse.models.chat import Sample
from tamperfuse.models.cpu import enabled
from tamperfuse.models.cpu.packed_tree import pack_tree
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed import common_prefix, is_packed, packed_logits
from tamperfuse.models.sharded import check_same_texts, measured_by_main_process
from tamperfuse.records.batching import group_by_budget
from tamperfuse.records.errors import UserError
from tamperfuse.records.progress import progress
from tamperfuse.records.timing import count_time

# Tokens in a batch.
BATCH_TOKENS = 2_048
# Largest group of samples with a common prefix, in tokens: the cost of attention grows with its square.
GROUP_TOKENS = 256
LOGITS_AT_ONCE = 2**20


@count_time("scoring")
@torch.no_grad()
def score(loaded: LoadedModel, samples: Sequence[Sample], *, label: str = "scoring") -> list[tuple[float, bool]]:
    """Score responses.

    Args:
        loaded: the model; not modified.
        samples: prompts with their responses.
        label: text of the progress bar.

    Returns:
        For each sample: log p(response | prompt) in nats, summed over the response's tokens, and whether greedy decoding
        yields the response. Of a sharded model, the same numbers on every process.

    Raises:
        UserError: a sample is longer than the model's context window, or the processes of a sharded model received different
            samples.
    """
    longest = max((len(sample.tokens) for sample in samples), default=0)
    if longest - 1 > loaded.window:  # the last token is predicted only
        raise UserError(
            f"A text of {longest} tokens exceeds the model's context window of {loaded.window} tokens: shorten it."
        )
    check_same_texts(loaded.model, [(sample.tokens, sample.start) for sample in samples])
    sliding = getattr(loaded.model.config.get_text_config(), "sliding_window", None)
    # A group, including its prefix, must fit into a sliding window: the attention mask separates branches only within it.
    limit = GROUP_TOKENS if sliding is None else min(GROUP_TOKENS, sliding - longest)
    groups, sizes = _groups(samples, limit if enabled("packed_tree") and is_packed(loaded.model) else 0)
    results: list[tuple[float, bool]] = [(0.0, False)] * len(samples)
    with inference(loaded), progress(label, len(samples)) as advance:
        for batch in group_by_budget(sizes, BATCH_TOKENS):
            chosen = [groups[number] for number in batch]
            scores = _score_batch(loaded, [[samples[i] for i in group] for group in chosen])
            for index, result in zip((i for group in chosen for i in group), scores, strict=True):
                results[index] = result
            advance(len(scores))
    scored: list[tuple[float, bool]] = measured_by_main_process(loaded.model, results)
    return scored


def _groups(samples: Sequence[Sample], limit: int) -> tuple[list[list[int]], list[int]]:
    """Group samples with a common prefix where computing it once saves at least a quarter of a sample.

    The prefix common to all samples is not counted: a packed row contains it once in any case.

    Args:
        samples: in any order.
        limit: maximum number of tokens in a group, with the common prefix counted once; a longer sample forms a group alone.

    Returns:
        The sample indices of each group, and its number of tokens, at least 1.
    """
    groups: list[list[int]] = []
    sizes: list[int] = []
    trunk = 0  # length of the prefix of the last group
    order = sorted(range(len(samples)), key=lambda i: samples[i].tokens)
    shortest = min((len(sample.tokens) for sample in samples), default=0)
    everywhere = common_prefix([samples[i].tokens for i in (order[0], order[-1])], shortest - 1) if samples else 0
    for index in order:
        tokens = samples[index].tokens
        length = len(tokens) - everywhere
        if groups:
            # The samples are sorted, so the common prefix of the first and the last of a group is that of all.
            shared = common_prefix([samples[groups[-1][0]].tokens, tokens], trunk)
            saved = shared - everywhere - (len(groups[-1]) - 1) * (trunk - shared)
            if 4 * saved >= length and sizes[-1] + length - saved <= limit:
                groups[-1].append(index)
                sizes[-1] += length - saved
                trunk = shared
                continue
        groups.append([index])
        sizes.append(length)
        trunk = len(tokens)
    return groups, sizes


def _score_batch(loaded: LoadedModel, groups: Sequence[Sequence[Sample]]) -> list[tuple[float, bool]]:
    """Score groups of samples in one packed row; results in order."""
    device = loaded.model.device
    row, layout, places = pack_tree([[s.tokens[:-1] for s in group] for group in groups], device)
    samples = [sample for group in groups for sample in group]
    positions = (sample_places for group in places for sample_places in group)
    at = [
        place for sample, row_places in zip(samples, positions, strict=True) for place in row_places[sample.start - 1 :]
    ]
    distinct = sorted(set(at))  # words common to several choices are predicted once
    numbers = {place: number for number, place in enumerate(distinct)}
    which = torch.tensor([numbers[place] for place in at], device=device)
    targets = torch.tensor([token for sample in samples for token in sample.tokens[sample.start :]], device=device)
    logits = packed_logits(loaded.model, row, layout, torch.tensor(distinct, device=device))
    log_probs, greedy = _token_scores(logits, which, targets)
    counts = [sample.response_tokens for sample in samples]
    return [
        (float(values.sum()), bool(best.all()))
        for values, best in zip(torch.split(log_probs.cpu(), counts), torch.split(greedy.cpu(), counts), strict=True)
    ]


def _token_scores(logits: Tensor, which: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target (float64), and whether it is the most likely token; both (tokens,).

    Computed in float32 for as many positions at a time as fit into the processor's cache.

    Args:
        logits: (positions, vocabulary).
        which: (tokens,), index of the position that predicts each token.
        targets: (tokens,), token ids.
    """
    norm, best = [], []
    for part in torch.split(logits, max(1, LOGITS_AT_ONCE // logits.shape[1])):
        wide = part.float()
        norm.append(wide.logsumexp(-1))
        best.append(wide.max(-1).indices)
    log_probs = logits[which, targets].double() - torch.cat(norm)[which].double()
    return log_probs, torch.cat(best)[which] == targets
