"""Outputs with the places of their tokens, and logits in the layout that the caller expects."""

import copy
import pickle

import pytest
import torch
from packed_reference import Patched
from torch.utils import _pytree as pytree
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MoeModelOutputWithPast,
)

from runtime.training.outputs import of_all_tokens, unpacked, with_packing
from runtime.training.packing import Packing, pack

MASK = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]])


def packing_of(layout: str | None = None) -> Packing:
    *_, packing = pack(Patched(), torch.zeros_like(MASK), None, None, MASK, {"logits_layout": layout})
    assert isinstance(packing, Packing)
    return packing


@pytest.mark.parametrize("output_class", [BaseModelOutputWithPast, MoeModelOutputWithPast, CausalLMOutputWithPast])
def test_an_output_says_where_its_tokens_are(output_class: type) -> None:
    states = (torch.ones(1, 5, 2), torch.zeros(1, 5, 2))
    first = "logits" if output_class is CausalLMOutputWithPast else "last_hidden_state"
    plain = output_class(**{first: states[0], "hidden_states": states})
    found = with_packing(plain, packing_of())
    assert isinstance(found, output_class) and type(found) is type(with_packing(plain, packing_of()))
    assert found.seq_lens.tolist() == [0, 3, 5] and found.seq_lens.dtype == torch.int32
    assert found.word_idx.tolist() == [1, 2, 3, 8, 9] and found.word_idx.dtype == torch.int64
    assert found[first] is states[0] and found[0] is states[0] and found.hidden_states is states
    assert list(found) == [first, "hidden_states", "seq_lens", "word_idx"]
    assert type(found).__name__ == output_class.__name__ + "WithPacking"


def test_an_output_stays_what_wrappers_handle() -> None:
    found = with_packing(BaseModelOutputWithPast(last_hidden_state=torch.ones(1, 5, 2)), packing_of())
    doubled = pytree.tree_map(lambda leaf: leaf * 2, found)
    assert type(doubled) is type(found) and doubled.word_idx.tolist() == [2, 4, 6, 16, 18]
    assert bool((doubled.last_hidden_state == 2).all())
    for twin in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found), copy.copy(found)):
        assert type(twin) is type(found) and list(twin) == list(found)
        assert torch.equal(twin.word_idx, found.word_idx) and twin.past_key_values is None
    found["hidden_states"] = (found.last_hidden_state,)  # as `capture_outputs` does
    assert found.hidden_states is not None and "hidden_states" in found


def test_without_a_packing_the_output_returns_as_it_came() -> None:
    plain = BaseModelOutputWithPast(last_hidden_state=torch.ones(1, 5, 2))
    assert with_packing(plain, None) is plain and with_packing(plain, MASK) is plain
    assert with_packing((1, 2), packing_of()) == (1, 2)


@pytest.mark.parametrize(
    ("layout", "training", "shape"),
    [
        (None, True, (1, 5, 7)),
        (None, False, (3, 4, 7)),
        ("packed", True, (1, 5, 7)),
        ("packed", False, (1, 5, 7)),
        ("padded", True, (3, 4, 7)),
        ("padded", False, (3, 4, 7)),
    ],
)
def test_logits_have_the_layout_that_is_expected(layout: str | None, training: bool, shape: tuple[int, ...]) -> None:
    logits = torch.randn(1, 5, 7, requires_grad=True)
    found = unpacked(Patched().train(training), logits, packing_of(layout))
    assert found is not None and found.shape == shape
    if shape[0] == 1:
        assert found is logits
        return
    assert torch.equal(found[MASK.bool()], logits[0]) and not found[~MASK.bool()].any()
    found.sum().backward()
    assert logits.grad is not None and bool((logits.grad == 1).all())


@pytest.mark.parametrize("layout", [None, "packed", "padded"])
def test_packed_input_has_one_layout(layout: str | None) -> None:
    ids = torch.zeros(1, 5, dtype=torch.int64)
    *_, packing = pack(Patched(), ids, None, None, None, {"cu_seqlens": [0, 2, 5], "logits_layout": layout})
    logits = torch.randn(1, 5, 7)
    found = unpacked(Patched().eval(), logits, packing)
    assert found is not None and torch.equal(found, logits)


def test_logits_that_were_cut_are_an_error() -> None:
    with pytest.raises(ValueError, match="5 packed tokens, but logits of 1; logits_to_keep"):
        unpacked(Patched().eval(), torch.randn(1, 1, 7), packing_of())


def test_what_is_not_packed_returns_as_it_came() -> None:
    logits = torch.randn(3, 4, 7)
    assert unpacked(Patched(), logits, None) is logits and unpacked(Patched(), logits, MASK) is logits
    assert unpacked(Patched(), None, packing_of()) is None


def test_an_auxiliary_loss_counts_every_packed_token() -> None:
    def mask_of(attention_mask: object) -> object:
        return attention_mask

    for attention_mask, seen in ((packing_of(), None), (MASK, MASK), (None, None)):
        assert of_all_tokens(mask_of, attention_mask)(attention_mask) is seen
