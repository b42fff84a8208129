"""Distillation from the model before hardening: a KL divergence that keeps a model's behaviour on benign text.

The teacher is the model as shipped. What it predicts on benign text is computed once, before training, and stored as its most
likely tokens at each response position; all other tokens form one bucket. By the data processing inequality the KL divergence
between the bucketed distributions is a lower bound of the divergence over the whole vocabulary. No second model is in memory
during training (Hinton et al., 2015, arXiv 1503.02531; top-k truncation as in Peng et al., 2024, arXiv 2410.16215).

    unit of a batch = one or more supervised samples (cross-entropy) + some distillation samples (KL to the teacher)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tamperfuse.models.chat import Sample
from tamperfuse.models.finite import diverged
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed import packed_logits
from tamperfuse.models.precision import compute_dtype, reduced_precision
from tamperfuse.models.sharded import check_same_texts, gather_objects, measured_by_main_process
from tamperfuse.records.batching import group_by_budget
from tamperfuse.records.progress import progress
from tamperfuse.records.timing import count_time
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.cross_entropy import slice_rows, sliced_loss
from tamperfuse.training.objectives import Accumulate, Objective
from tamperfuse.training.rows import ROW_TOKENS

# What a model does with a prompt, such as declining it, is decided in the first tokens of its response.
OPENING, OPENING_WEIGHT = 4, 8.0  # number of these tokens, and their weight in the loss against that of others
TOP_TOKENS = 40  # of the teacher at each position; the others form one bucket
BYTES_PER_RESPONSE_TOKEN = 8 * TOP_TOKENS  # of a teacher: an id in int32 and a probability in float32


@dataclass(frozen=True)
class TeacherSample:
    """A sample with the teacher's predictions of its response.

    Attributes:
        sample: prompt and response.
        ids: (response tokens, TOP_TOKENS), int32: the teacher's most likely tokens at each position.
        probabilities: likewise, float32, in [0, 1]; what is missing to 1 belongs to all other tokens.
    """

    sample: Sample
    ids: Tensor
    probabilities: Tensor


@count_time("scoring")
@torch.no_grad()
def predict(loaded: LoadedModel, samples: Sequence[Sample], *, label: str = "teacher") -> list[TeacherSample]:
    """The predictions of a model as it is now, for use as a teacher.

    Memory: :data:`BYTES_PER_RESPONSE_TOKEN` (320), so 15 MB for 1,000 responses of 48 tokens.

    Args:
        loaded: the teacher.
        samples: benign samples.
        label: text of the progress bar.

    Raises:
        UserError: the processes of a sharded model received different samples.
    """
    check_same_texts(loaded.model, [(sample.tokens, sample.start) for sample in samples])
    device = loaded.model.device
    dtype, _ = compute_dtype(device)
    predicted: dict[int, TeacherSample] = {}
    loaded.model.eval()
    with reduced_precision(loaded.model, dtype), progress(label, len(samples)) as advance:
        for row in group_by_budget([len(sample.tokens) for sample in samples], ROW_TOKENS):
            batch = pack_samples([samples[i] for i in row], device)
            logits = packed_logits(loaded.model, batch.row, batch.layout, batch.positions)
            ids, probabilities = _most_likely(logits)
            parts = zip(
                row, torch.split(ids, list(batch.counts)), torch.split(probabilities, list(batch.counts)), strict=True
            )
            predicted |= {i: TeacherSample(samples[i], top.clone(), p.clone()) for i, top, p in parts}
            advance(len(row))
    return [predicted[i] for i in range(len(samples))]


def _most_likely(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely tokens of each position and their probabilities, on the CPU."""
    count = min(TOP_TOKENS, logits.shape[1])
    ids, probabilities = [], []
    for part in torch.split(logits, slice_rows(logits)):
        scores, top = part.topk(count, dim=-1)
        ids.append(top.int().cpu())
        probabilities.append((scores.float() - torch.logsumexp(part.float(), -1, keepdim=True)).exp().cpu())
    return torch.cat(ids), torch.cat(probabilities)


def save_teacher(path: Path, samples: Sequence[TeacherSample]) -> None:
    """Write a teacher's samples and predictions as safetensors."""
    sizes = [(len(s.sample.tokens), s.sample.start, s.sample.response_tokens) for s in samples]
    save_file(
        {
            "sizes": torch.tensor(sizes, dtype=torch.int64).view(len(samples), 3),
            "tokens": torch.tensor([token for s in samples for token in s.sample.tokens], dtype=torch.int32),
            "ids": torch.cat([s.ids for s in samples]) if samples else torch.zeros(0, TOP_TOKENS, dtype=torch.int32),
            "probabilities": torch.cat([s.probabilities for s in samples]) if samples else torch.zeros(0, TOP_TOKENS),
        },
        path,
    )


def load_teacher(path: Path) -> list[TeacherSample]:
    """Read what :func:`save_teacher` wrote."""
    tensors = load_file(path)
    lengths, starts, responses = tensors["sizes"].T.tolist()
    parts = zip(
        torch.split(tensors["tokens"], lengths),
        starts,
        torch.split(tensors["ids"], responses),
        torch.split(tensors["probabilities"], responses),
        strict=True,
    )
    return [TeacherSample(Sample(tokens.tolist(), start), ids, p) for tokens, start, ids, p in parts]


@count_time("scoring")
@torch.no_grad()
def divergence(loaded: LoadedModel, teacher: Sequence[TeacherSample], *, label: str = "KL") -> list[float]:
    """KL(teacher ‖ model) of each sample, summed over its response tokens, in nats; of a sharded model the same on all processes.

    Args:
        loaded: the model as it is now.
        teacher: samples with the teacher's predictions.
        label: text of the progress bar.
    """
    device = loaded.model.device
    dtype, _ = compute_dtype(device)
    sums = [0.0] * len(teacher)
    loaded.model.eval()
    with reduced_precision(loaded.model, dtype), progress(label, len(teacher)) as advance:
        for row in group_by_budget([len(s.sample.tokens) for s in teacher], ROW_TOKENS):
            batch = pack_samples([teacher[i].sample for i in row], device)
            logits = packed_logits(loaded.model, batch.row, batch.layout, batch.positions)
            ids = torch.cat([teacher[i].ids for i in row]).to(device)
            probabilities = torch.cat([teacher[i].probabilities for i in row]).to(device)
            parts = torch.split(token_kl(logits, ids, probabilities), list(batch.counts))
            for index, part in zip(row, parts, strict=True):
                sums[index] = float(part.sum())
            advance(len(row))
    measured: list[float] = measured_by_main_process(loaded.model, sums)
    return measured


@dataclass(frozen=True)
class Anchored:
    """A unit of a batch: supervised samples and distillation samples.

    Attributes:
        learn: trained on with cross-entropy; at least one.
        keep: trained on with the KL divergence to the teacher; may be empty.
    """

    learn: tuple[Sample, ...]
    keep: tuple[TeacherSample, ...]

    @property
    def anchored(self) -> list[Sample]:
        """The sequences of the loss of :class:`AnchoredObjective`."""
        return [*self.learn, *(teacher.sample for teacher in self.keep)]

    @property
    def tokens(self) -> list[int]:
        """Tokens of all sequences."""
        return [token for sample in self.anchored for token in sample.tokens]

    @property
    def response_tokens(self) -> int:
        """1: the loss is a mean over units."""
        return 1


def first_benign(unit: Anchored) -> list[Sample]:
    """The first of a unit's benign samples, for losses on it alone."""
    return [unit.keep[0].sample]


def anchored(learn: Sequence[Sample], keep: Sequence[TeacherSample], benign: int) -> list[Anchored]:
    """Combine supervised samples with benign ones: each unit has one of the former and `benign` of the latter.

    Every sample is used; the shorter side repeats.

    Args:
        learn: supervised samples, at least one.
        keep: benign samples; may be empty.
        benign: benign samples in each unit, at least 0.
    """
    count = len(learn) if not (keep and benign) else max(len(learn), -(-len(keep) // benign))
    return [
        Anchored(
            (learn[i % len(learn)],),
            tuple(keep[(i * benign + j) % len(keep)] for j in range(benign)) if keep else (),
        )
        for i in range(count)
    ]


def price_of(loaded: LoadedModel, teacher: Sequence[TeacherSample], step: int) -> float:
    """The price of a defense after a step: KL(teacher ‖ model), in nats a response token; 0 without samples.

    The same number on every process.

    Raises:
        Diverged: it is NaN or infinite.
    """
    tokens = sum(sample.sample.response_tokens for sample in teacher)
    price = sum(divergence(loaded, teacher, label="price")) / max(tokens, 1)
    price = float(gather_objects(price)[0])
    if not math.isfinite(price):
        raise diverged("the defense", step, f"its price is {price}")
    return price


@dataclass
class AnchoredObjective(Objective[Anchored]):
    """supervised × mean NLL of the supervised samples + weight × mean KL(teacher ‖ model) on the benign ones; a mean over units.

    Both means are over response tokens, in nats; the first :data:`OPENING` tokens of a response to a prompt count
    :data:`OPENING_WEIGHT` times. Time: that of supervised fine-tuning on all sequences. Memory: likewise, and
    the teacher's predictions (:func:`predict`). Works with several processes, since it defines a loss only.

    Attributes:
        weight: of the KL divergence, at least 0.
        supervised: weight of the NLL, at least 0.
    """

    weight: float = 1.0
    supervised: float = 1.0

    def accumulate_loss(self, accumulate: Accumulate) -> Tensor:
        """Accumulate the gradient of `loss`, for subclasses whose units have further sequences; returns the loss, detached."""
        return accumulate(self.loss, attrgetter("anchored"))

    def loss(self, model: nn.Module, samples: Sequence[Anchored], total: int, device: torch.device) -> Tensor:
        """See :meth:`tamperfuse.training.objectives.Objective.loss`; `total` counts units."""
        sequences: list[Sample] = []
        ids: list[Tensor] = []
        probabilities: list[Tensor] = []
        weights: list[float] = []
        for unit in samples:
            learned = sum(sum(_opening_weights(sample)) for sample in unit.learn)
            for sample in unit.learn:
                sequences.append(sample)
                ids.append(torch.tensor(sample.tokens[sample.start :], dtype=torch.int32)[:, None])
                probabilities.append(torch.ones(sample.response_tokens, 1))
                weights += [self.supervised * w / learned for w in _opening_weights(sample)]
            anchored = sum(sum(_opening_weights(teacher.sample)) for teacher in unit.keep)
            for teacher in unit.keep:
                sequences.append(teacher.sample)
                ids.append(teacher.ids)
                probabilities.append(teacher.probabilities)
                weights += [self.weight * w / anchored for w in _opening_weights(teacher.sample)]
        batch = pack_samples(sequences, device)
        logits = packed_logits(model, batch.row, batch.layout, batch.positions)
        divergence = token_kl(logits, _stacked(ids).to(device), _stacked(probabilities).to(device))
        return (divergence * torch.tensor(weights, device=device)).sum() / total


def _opening_weights(sample: Sample) -> list[float]:
    """The weight of each response token in the loss."""
    opening = min(OPENING, sample.response_tokens) if sample.start > 1 else 0
    return [OPENING_WEIGHT] * opening + [1.0] * (sample.response_tokens - opening)


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Rows below one another, padded with zeros to the same number of columns."""
    columns = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, columns - part.shape[1])) for part in parts])


def token_kl(logits: Tensor, ids: Tensor, probabilities: Tensor) -> Tensor:
    """KL(teacher ‖ model) at each token, in nats; the tokens that the teacher does not list form one bucket.

    With a teacher that gives one token all probability it is the cross-entropy.

    With model probabilities q, and p_r and q_r those of the buckets, the gradient is ∂/∂z_j = q_j − p_j for a listed token, and
    q_j (1 − p_r / q_r) for any other.

    Args:
        logits: (tokens, vocabulary), overwritten as by :func:`tamperfuse.training.cross_entropy.sliced_loss`.
        ids: (tokens, k), the tokens that the teacher lists; an entry with probability 0 is padding.
        probabilities: (tokens, k), in [0, 1], at most 1 in sum.

    Returns:
        (tokens,), float32.
    """

    def divergence(scores: Tensor, part: slice) -> Tensor:
        top, p = ids[part].long(), probabilities[part]
        listed = (p > 0).float()
        log_all = torch.log_softmax(scores, -1, dtype=torch.float32)
        log_q, q = log_all.gather(1, top), log_all.exp()
        p_rest = (1.0 - p.sum(-1)).clamp(min=0.0)
        p_rest = torch.where(p_rest < 1e-6, 0.0, p_rest)  # rounding
        q_listed = log_q.exp() * listed
        # From the unlisted logits themselves: 1 − Σ q cancels where the listed tokens have nearly all probability.
        listed_ids = torch.where(p > 0, top, top[:, :1])
        log_rest = log_all.scatter_(1, listed_ids, -torch.inf).logsumexp(-1)
        entropy = torch.special.entr(p).sum(-1) + torch.special.entr(p_rest)
        rest_term = torch.where(p_rest > 0, p_rest * log_rest, 0.0)
        losses: Tensor = -(p * log_q).sum(-1) - rest_term - entropy
        # Where the unlisted tokens have less than e^-80 together, the gradient is smaller than it should be, but finite.
        ratio = torch.where(p_rest > 0, p_rest * (-log_rest.clamp(min=-80.0)).exp(), 0.0)[:, None]
        scores.copy_(q.mul_(1.0 - ratio).scatter_add_(1, top, (q_listed * ratio - p) * listed))
        return losses

    return sliced_loss(logits, divergence)
