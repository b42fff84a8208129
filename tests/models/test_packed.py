import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from tamperfuse.models.chat import Sample
from tamperfuse.models.cpu.packed_tree import pack_tree
from tamperfuse.models.packed import ATTENTION, common_prefix, pack, packed_logits
from tamperfuse.models.packed_check import prepare_forward
from tamperfuse.training.batches import pack_samples
from tamperfuse.training.objectives import response_nll

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def twins(kind: type, config: type, **more: object) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(1)
    packed = kind(config(**SIZES, **more)).eval()
    plain = kind(config(**SIZES, **more)).eval()
    plain.load_state_dict(packed.state_dict())
    plain.set_attn_implementation("eager")
    prepare_forward(packed)
    assert packed.config._attn_implementation == ATTENTION
    return packed, plain


PACKED, PLAIN = twins(LlamaForCausalLM, LlamaConfig)

token = st.integers(0, 96)
sequences = st.lists(st.lists(token, min_size=2, max_size=12), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(prefix=st.lists(token, max_size=6), endings=sequences)
def test_packed_logits_equal_those_of_each_sequence_alone(prefix: list[int], endings: list[list[int]]) -> None:
    whole = [prefix + tokens for tokens in endings]
    row, layout = pack(whole, len(prefix), torch.device("cpu"))
    with torch.no_grad():
        logits = packed_logits(PACKED, row, layout, torch.arange(row.shape[1]))
        at = layout.prefix
        for tokens, length in zip(whole, layout.lengths, strict=True):
            alone = PLAIN(input_ids=torch.tensor([tokens])).logits[0]
            assert torch.allclose(logits[: layout.prefix], alone[: layout.prefix], atol=1e-5)
            assert torch.allclose(logits[at : at + length], alone[layout.prefix :], atol=1e-5)
            at += length


family = st.tuples(
    st.lists(token, min_size=1, max_size=5), st.lists(st.lists(token, max_size=4), min_size=1, max_size=4)
)


@settings(max_examples=25, deadline=None)
@given(prefix=st.lists(token, max_size=3), families=st.lists(family, min_size=1, max_size=4))
def test_branches_see_their_trunk_and_themselves(
    prefix: list[int], families: list[tuple[list[int], list[list[int]]]]
) -> None:
    groups = [[prefix + trunk + branch for branch in branches] for trunk, branches in families]
    row, layout, places = pack_tree(groups, torch.device("cpu"))
    assert row.shape[1] <= sum(map(len, (tokens for group in groups for tokens in group)))
    with torch.no_grad():
        logits = packed_logits(PACKED, row, layout, torch.arange(row.shape[1]))
        for group, owned in zip(groups, places, strict=True):
            for tokens, indices in zip(group, owned, strict=True):
                alone = PLAIN(input_ids=torch.tensor([tokens])).logits[0]
                assert torch.allclose(logits[indices], alone, atol=1e-5)


def test_what_a_group_shares_is_laid_out_once() -> None:
    row, _, places = pack_tree([[[1, 2, 3, 4], [1, 2, 3, 5, 6]], [[1, 7], [1, 7]]], torch.device("cpu"))
    assert row.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert places == [[[0, 1, 2, 3], [0, 1, 2, 4, 5]], [[0, 6], [0, 6]]]


def test_loss_and_gradients_equal_one_sample_at_a_time() -> None:
    samples = [Sample([1, 2, 3, 9, 4, 5], 4), Sample([1, 2, 3, 8, 7], 3), Sample([1, 2, 3, 9, 4, 4, 6, 2], 5)]
    total = sum(s.response_tokens for s in samples)
    packed, plain = twins(LlamaForCausalLM, LlamaConfig)
    loss = response_nll(packed, pack_samples(samples, torch.device("cpu"))).sum() / total
    loss.backward()
    expected = torch.zeros(())
    for s in samples:
        logits = plain(input_ids=torch.tensor([s.tokens])).logits[0, s.start - 1 : -1]
        part = torch.nn.functional.cross_entropy(logits, torch.tensor(s.tokens[s.start :]), reduction="sum") / total
        part.backward()
        expected += part.detach()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, weight), plain_weight in zip(packed.named_parameters(), plain.parameters(), strict=True):
        assert weight.grad is not None, name
        assert torch.allclose(weight.grad, plain_weight.grad, atol=1e-6), name


def test_sliding_windows_are_kept() -> None:
    packed, plain = twins(MistralForCausalLM, MistralConfig, sliding_window=5)
    whole = [[1, 2, 3, *range(10, 22)], [1, 2, 3, *range(40, 49)]]
    row, layout = pack(whole, 3, torch.device("cpu"))
    with torch.no_grad():
        logits = packed_logits(packed, row, layout, torch.arange(row.shape[1]))
        alone = plain(input_ids=torch.tensor([whole[0]])).logits[0]
    assert torch.allclose(logits[3 : 3 + layout.lengths[0]], alone[3:], atol=1e-5)


def test_common_prefix_stops_at_the_limit() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2, 3, 5]], 9) == 2
    assert common_prefix([[1, 2, 3], [1, 2, 3]], 2) == 2
