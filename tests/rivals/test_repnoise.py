"""RepNoise's loss and gradient, compared with its formula in plain PyTorch."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rival_stand_ins import distance, gradient_of, plain_gradient, plain_model, units_of
from tamperfuse.defenses.repnoise import RepNoiseObjective, squared_mmd
from tamperfuse.models.chat import Sample
from tamperfuse.models.load import LoadedModel
from tamperfuse.models.packed import ATTENTION
from tamperfuse.records.errors import UserError
from tamperfuse.training.distillation import AnchoredObjective
from tamperfuse.training.layer_losses import evenly_spaced


def plain_layers(model: nn.Module, sample: Sample) -> tuple[list[Tensor], list[Tensor]]:
    """The NLL of a response at each layer, and the MLPs' outputs on it."""
    activations: list[Tensor] = []
    hooks = [
        layer.mlp.register_forward_hook(lambda _, __, output: activations.append(output))
        for layer in model.model.layers
    ]
    out = model(input_ids=torch.tensor([sample.tokens], device=model.device), output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    places = slice(sample.start - 1, len(sample.tokens) - 1)
    logits = [*(model.lm_head(model.model.norm(h)) for h in out.hidden_states[1:-1]), out.logits]
    target = torch.tensor(sample.tokens[sample.start :], device=model.device)
    return [nn.functional.cross_entropy(x[0, places], target) for x in logits], [a[0, places] for a in activations]


def plain_mmd(first: Tensor, second: Tensor) -> Tensor:
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return sum(torch.exp(-(x - y).square().sum() / (mean * factor)) for factor in (0.25, 0.5, 1, 2, 4))

    points = [*first, *second]
    pairs = [(x - y).square().sum().detach() for i, x in enumerate(points) for j, y in enumerate(points) if i != j]
    mean = torch.stack(pairs).mean()

    def average(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
        return torch.stack([kernel(x, y) for x in xs for y in ys]).mean()

    return average(first, first) + average(second, second) - 2 * average(first, second)


def test_the_discrepancy_is_that_of_five_gaussian_kernels() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(5, 3), torch.randn(5, 3) + 1
    assert squared_mmd(first, second) == pytest.approx(float(plain_mmd(first, second)), rel=1e-4)
    assert squared_mmd(first, first) == pytest.approx(0, abs=1e-5)
    assert squared_mmd(first, second) > squared_mmd(first, torch.randn(5, 3))


def test_the_gradient_is_that_of_the_formula(tiny: LoadedModel, tiny_folder: Path) -> None:
    units = units_of(tiny)[:3]
    plain = gradient_of(tiny, AnchoredObjective(3.0), units)
    torch.manual_seed(7)
    taken = gradient_of(tiny, RepNoiseObjective(weight=3.0, noise=2.0, ascent=0.5, layers=2), units)
    model = plain_model(tiny_folder)
    layers = [plain_layers(model, unit.answer) for unit in units]
    torch.manual_seed(7)
    noise = [
        squared_mmd(activations[i], torch.randn_like(activations[i])) for i in range(2) for _, activations in layers
    ]
    ascent = [torch.log(1 + torch.stack(nll).mean()) for nll, _ in layers]
    loss = 2.0 * torch.stack(noise).sum() / 2 / 3 - 0.5 * torch.stack(ascent).mean()
    expected = plain_gradient(model, loss)
    assert distance([t - p for t, p in zip(taken, plain, strict=True)], expected) < 1e-3


def test_the_loss_does_not_depend_on_how_a_batch_is_split(tiny: LoadedModel) -> None:
    units = units_of(tiny)[:4]
    objective = RepNoiseObjective(noise=0.0, ascent=1.0, layers=2)
    with torch.no_grad():
        whole = objective.answers_loss(tiny.model, units, 4, tiny.model.device)
        parts = sum(objective.answers_loss(tiny.model, part, 4, tiny.model.device) for part in (units[:1], units[1:]))
    assert float(whole) == pytest.approx(float(parts), rel=1e-5)


def test_layers_are_evenly_spaced_and_end_with_the_last() -> None:
    layers = nn.ModuleList(nn.Identity() for _ in range(30))
    for count, expected in ((1, [29]), (3, [9, 19, 29]), (8, [2, 6, 10, 14, 17, 21, 25, 29]), (99, list(range(30)))):
        chosen = evenly_spaced(list(layers), count)
        assert [list(layers).index(layer) for layer in chosen] == expected


def test_a_model_without_packed_batches_is_refused(tiny: LoadedModel) -> None:
    assert tiny.model.config._attn_implementation == ATTENTION
    tiny.model.config._attn_implementation = "eager"
    with pytest.raises(UserError, match="cannot be run on packed batches"):
        RepNoiseObjective().answers_loss(tiny.model, units_of(tiny)[:1], 1, tiny.model.device)
