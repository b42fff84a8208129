"""An optimizer over float32 masters that steps a few weights at a time does what it does with all at once."""

import copy

import pytest
import torch
from torch import nn

from tamperfuse.models import precision


@pytest.mark.parametrize("stepped", [1, 60, 2**24])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_weights_are_those_of_one_step_over_all(
    monkeypatch: pytest.MonkeyPatch, kind: type[torch.optim.Optimizer], stepped: int
) -> None:
    monkeypatch.setattr(precision, "OPTIMIZER_CHUNK", stepped)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(3, 2))
    model[1].requires_grad_(False)
    plain = copy.deepcopy(model)
    gradients = [[torch.randn_like(p).bfloat16() for p in model.parameters()] for _ in range(4)]
    expected = kind([p for p in plain.parameters() if p.requires_grad], lr=0.1)
    with precision.reduced_precision(model, torch.bfloat16) as masters:
        optimizer = kind([master for _, master in masters.trainable()], lr=0.1)
        masters.attach(optimizer)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=4)
        slower = torch.optim.lr_scheduler.LinearLR(expected, total_iters=4)
        for step, drawn in enumerate(gradients):
            for parameter, reference, gradient in zip(model.parameters(), plain.parameters(), drawn, strict=True):
                # Weights without a gradient, in one step out of four, are left alone.
                if parameter.requires_grad and not (step == 2 and gradient.ndim == 1):
                    parameter.grad, reference.grad = gradient, gradient.float()
            optimizer.step()
            expected.step()
            schedule.step()
            slower.step()
            expected.zero_grad()
            assert all(p.grad is None for p in model.parameters())
            assert all(master.grad is None for _, master in masters.trainable())
            for parameter, reference in zip(model.parameters(), plain.parameters(), strict=True):
                assert torch.equal(parameter, reference.bfloat16())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
