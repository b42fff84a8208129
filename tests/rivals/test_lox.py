"""Low-rank extrapolation: the formula, and models that it cannot be applied to."""

from pathlib import Path

import pytest
import torch

from rival_stand_ins import defense_data, hardened
from tamperfuse.defenses import DEFENSES
from tamperfuse.defenses.lox import leading_part
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.records.errors import UserError


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (3, 5, 4)])
def test_the_projection_is_on_the_first_left_singular_vectors(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    change = torch.randn(shape)
    for rank in (1, 2, 4, 50):
        # The eigenvectors of Δ Δᵀ are the left singular vectors of Δ.
        _, vectors = torch.linalg.eigh(change.double() @ change.double().mT)
        left = vectors[..., -rank:]
        expected = left @ left.mT @ change.double()
        assert torch.allclose(leading_part(change, rank), expected.float(), atol=1e-5)


def test_what_alignment_changed_is_extrapolated_along_its_main_directions(tiny_folder: Path) -> None:
    before = dict(load_model(str(tiny_folder)).model.named_parameters())
    aligned = dict(hardened(tiny_folder, "lox", alpha=0.0)[0].model.named_parameters())
    extrapolated, result = hardened(tiny_folder, "lox", rank=2, alpha=0.5)
    changed = 0
    for name, weight in extrapolated.model.named_parameters():
        change = aligned[name] - before[name]
        added = (weight - aligned[name]).detach()
        if weight.ndim < 2:
            assert not added.any() and change.any()
            continue
        u, s, v = torch.linalg.svd(change.detach())
        expected = 0.5 * u[:, :2] @ s[:2].diag() @ v[:2]
        assert torch.allclose(added, expected, atol=1e-6)
        changed += 1
    assert changed == 2 * 7 + 1  # seven matrices in each of two layers, and the embeddings
    assert 0 < result.facts["share_of_change"] < 1 and "rank 2 has" in result.notes[0]
    assert not result.tokens_trained


def test_a_model_that_was_not_aligned_or_is_another_one_is_refused(tiny: LoadedModel, tiny_folder: Path) -> None:
    component = DEFENSES.get("lox")
    with pytest.raises(UserError, match="no alignment to extrapolate"):
        component.run(tiny, defense_data(tiny, tiny_folder), component.parse({}, "lox"), 0)
    data = defense_data(tiny, tiny_folder)
    tiny.model.resize_token_embeddings(500)
    with pytest.raises(UserError, match=r"differ in model\.embed_tokens\.weight: lox needs"):
        component.run(tiny, data, component.parse({}, "lox"), 0)
