"""Each CPU kernel can be switched off, is used when it is on, and gives what the plain path gives."""

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tamperfuse
from tamperfuse.evaluation import score as scoring
from tamperfuse.evaluation.generate import generate
from tamperfuse.evaluation.sampling import Sampling
from tamperfuse.evaluation.score import score
from tamperfuse.models import decoding
from tamperfuse.models.cpu import KERNELS, VARIABLE, enabled, lora_linear, short_attention
from tamperfuse.models.load import load_model
from tamperfuse.records.errors import UserError
from tamperfuse.training import cross_entropy
from tamperfuse.training.adapters import lora_adapter
from tamperfuse.training.objectives import SupervisedObjective, accumulate_gradient
from tamperfuse.training.parameters import Training

# What only runs where the kernel is used.
IMPLEMENTATIONS = {
    "short_attention": (short_attention, "_two_products"),
    "kv_cache": (decoding, "PackedDecoder"),
    "lora_linear": (lora_linear, "_LoraLinear"),
    "cross_entropy": (cross_entropy, "_SlicedLoss"),
}


@dataclass
class Results:
    losses: list[float]
    gradients: list[Tensor]
    tokens: list[list[int]]
    scores: list[tuple[float, bool]]


def results(folder: Path, kernels: str) -> Results:
    """Losses and gradients (of all weights, and of an adapter), generated tokens and scores of the tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, kernels)
        patch.setattr("tamperfuse.evaluation.generate.compute_dtype", lambda device: (torch.float32, ""))
        loaded = load_model(str(folder))
        loaded.model.to("cpu")  # on a GPU some kernels are never used
        samples = [loaded.chat.sample(f"question {i // 3}", f"the answer is {i * 3}", 30) for i in range(9)]
        losses, gradients = [], []

        def differentiate(module: nn.Module) -> None:
            loss = accumulate_gradient(SupervisedObjective(), module, samples, 100, loaded.model.device)
            losses.append(float(loss))
            gradients.extend(p.grad.clone() for p in module.parameters() if p.grad is not None)
            module.zero_grad()

        differentiate(loaded.model)
        torch.manual_seed(0)
        with lora_adapter(loaded, Training(method="lora", lora_rank=3)) as adapted:
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:  # zero at first, which would hide errors
                    nn.init.normal_(weight, std=0.1)
            differentiate(adapted)
        prompts = [loaded.chat.prompt(f"request {'more ' * (i % 4)}{i}") for i in range(8)]
        tokens = generate(loaded, prompts, new_tokens=12)
        tokens += generate(loaded, prompts, new_tokens=12, sampling=Sampling(seed=1))
        return Results(losses, gradients, tokens, score(loaded, samples))


@pytest.fixture(scope="module")
def all_on(tiny_folder: Path) -> Results:
    return results(tiny_folder, "1")


def without(kernel: str) -> str:
    return ",".join(name for name in KERNELS if name != kernel)


@pytest.mark.parametrize("kernels", ["0", *map(without, KERNELS)], ids=["none", *(f"no {name}" for name in KERNELS)])
def test_plain_paths_give_the_same_losses_gradients_tokens_and_scores(
    tiny_folder: Path, all_on: Results, kernels: str
) -> None:
    plain = results(tiny_folder, kernels)
    assert plain.losses == pytest.approx(all_on.losses, rel=1e-5)
    for gradient, expected in zip(plain.gradients, all_on.gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
    assert plain.tokens == all_on.tokens
    assert [value for value, _ in plain.scores] == pytest.approx([value for value, _ in all_on.scores], abs=1e-4)
    assert [greedy for _, greedy in plain.scores] == [greedy for _, greedy in all_on.scores]


class Used(BaseException):
    pass


class Tripwire:
    """Raises when it is called or applied."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise Used

    apply = __call__


@pytest.mark.parametrize("kernel", IMPLEMENTATIONS)
def test_a_kernel_runs_only_if_it_is_on(tiny_folder: Path, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name = IMPLEMENTATIONS[kernel]
    monkeypatch.setattr(module, name, Tripwire())
    results(tiny_folder, without(kernel))
    with pytest.raises(Used):
        results(tiny_folder, kernel)


def test_attention_without_gradients_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = torch.randn(2, 6, 5, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)
    mask = torch.zeros(1, 1, 5, 5)
    monkeypatch.setattr(short_attention, "_two_products", Tripwire())
    with torch.no_grad():
        short_attention.grouped_attention(query, key, value, mask, 0.3)
    with pytest.raises(Used):
        short_attention.grouped_attention(query, key, value, mask, 0.3)


def test_samples_share_a_trunk_only_with_packed_trees(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_tree, sizes = scoring.pack_tree, set()

    def spy(groups: Any, device: torch.device) -> Any:
        sizes.update(map(len, groups))
        return pack_tree(groups, device)

    monkeypatch.setattr(scoring, "pack_tree", spy)
    results(tiny_folder, without("packed_tree"))
    assert sizes == {1}
    results(tiny_folder, "packed_tree")
    assert max(sizes) == 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", set(KERNELS)), ("", set(KERNELS)), ("0", set()), ("kv_cache, lora_linear", {"kv_cache", "lora_linear"})],
)
def test_the_variable_selects_kernels(value: str, expected: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, value)
    assert {kernel for kernel in KERNELS if enabled(kernel)} == expected


def test_an_unknown_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "kv_cach")
    with pytest.raises(UserError, match="did you mean 'kv_cache'"):
        enabled("cross_entropy")


def test_large_pages_are_left_alone_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("0", None), ("1", "1")):
        monkeypatch.setenv(VARIABLE, value)
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
        importlib.reload(tamperfuse)
        assert os.environ.get("THP_MEM_ALLOC_ENABLE") == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_waiting_threads_sleep_soon_unless_the_user_set_something_else(
    environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    importlib.reload(tamperfuse)
    assert os.environ.get("GOMP_SPINCOUNT") == expected
