"""The rotation by kernel against upstream's functions."""

import pytest
import torch
from parity import error, feature, results_and_gradients
from torch import nn
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as partial
from transformers.models.gpt_oss.modeling_gpt_oss import apply_rotary_pos_emb as half_rows
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as full
from transformers.models.olmo2.modeling_olmo2 import apply_rotary_pos_emb as float32_rows

from runtime.training.kernels.rotary import rotary

SIZE, LENGTH = 12, 3
ATTENTION = feature(nn.Module(), "rope")


def inputs(dtype=torch.float32, rows=None, width=SIZE, repeat=True, batch=1, row_batch=1, layout=1):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(batch, LENGTH, heads, SIZE, generator=generator).to(dtype).requires_grad_() for heads in (3, 1))
    angles = torch.randn(row_batch, LENGTH, width // 2 if repeat else width, generator=generator)
    angles = torch.cat((angles, angles), -1) if repeat else angles
    heads = (q.transpose(1, 2), k.transpose(1, 2)) if layout == 1 else (q, k)
    return (q, k), heads, angles.cos().to(rows or dtype), angles.sin().to(rows or dtype)


def both(function, leaves, heads, cos, sin, **kwargs):
    expected = results_and_gradients(lambda: function(*heads, cos, sin, **kwargs), leaves)
    found = results_and_gradients(lambda: rotary(ATTENTION, function)(*heads, cos, sin, **kwargs), leaves)
    return found, expected


CASES = {
    "full": (full, {}),
    "one row for each sample": (full, {"batch": 2, "row_batch": 2}),
    "one row for all samples": (full, {"batch": 2}),
    "partial": (partial, {"width": 8}),
    "partial, half of the head": (partial, {"width": SIZE // 2 + SIZE // 2 % 2}),
    "rows of half the width": (half_rows, {"width": SIZE // 2, "repeat": False}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_same_bits(case, dtype, launches):
    function, how = CASES[case]
    found, expected = both(function, *inputs(dtype, **how))
    assert error(found, expected) == 0
    assert launches["_triton_rope"] == 2


def test_float32_rows_for_bfloat16_heads(launches):
    """Upstream's function decides: one that casts back is the kernel's arithmetic, one that does not is called."""
    found, expected = both(float32_rows, *inputs(torch.bfloat16, rows=torch.float32))
    assert error(found, expected) <= 1e-2 and torch.equal(found[0], expected[0])
    assert launches["_triton_rope"] == 2
    found, expected = both(full, *inputs(torch.bfloat16, rows=torch.float32))
    assert all(map(torch.equal, found, expected)) and found[0].dtype == torch.float32
    assert launches["_triton_rope"] == 2


def test_heads_behind_the_sequence(launches):
    found, expected = both(full, *inputs(layout=2), unsqueeze_dim=2)
    assert error(found, expected) == 0
    assert launches["_triton_rope"] == 2


@pytest.mark.parametrize("producer", [torch.tanh, torch.sigmoid, torch.exp, nn.Identity()])
def test_what_produced_the_heads_keeps_its_results(producer):
    """Backward of these reads their results, which a rotation in place would overwrite."""
    leaves, _, cos, sin = inputs()

    def through(function):
        return lambda: function(*(producer(leaf).transpose(1, 2) for leaf in leaves), cos, sin)

    expected = results_and_gradients(through(full), leaves)
    assert error(results_and_gradients(through(rotary(ATTENTION, full)), leaves), expected) <= 1e-6


def test_heads_are_as_before_and_so_are_gradients():
    _, heads, cos, sin = inputs()
    before = heads[0].detach().clone()
    q, k = rotary(ATTENTION, full)(*heads, cos, sin)
    assert torch.equal(heads[0], before)
    given = [torch.randn(x.shape).transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k)]
    kept = given[0].clone()
    torch.autograd.grad((q, k), heads, given)
    assert torch.equal(given[0], kept)


def test_a_gradient_that_has_two_readers():
    leaves, heads, cos, sin = inputs()

    def added(function):
        return lambda: tuple(r + h for r, h in zip(function(*heads, cos, sin), heads, strict=True))

    expected = results_and_gradients(added(full), leaves)
    assert error(results_and_gradients(added(rotary(ATTENTION, full)), leaves), expected) <= 1e-6


def test_two_backwards_through_one_graph():
    leaves, heads, cos, sin = inputs()
    q, k = rotary(ATTENTION, full)(*heads, cos, sin)
    loss = q.pow(2).sum() + k.pow(3).sum()
    first = [gradient.clone() for gradient in torch.autograd.grad(loss, leaves, retain_graph=True)]
    assert all(map(torch.equal, first, torch.autograd.grad(loss, leaves)))


def test_other_calls_are_upstreams(launches):
    _, heads, cos, sin = inputs()
    for call in (
        lambda f: f(*heads, cos.requires_grad_(), sin),  # a gradient for the rows
        lambda f: f(*heads, cos[:, :1].detach(), sin[:, :1]),  # one position for all
        lambda f: f(heads[0].double(), heads[1].double(), cos.detach().double(), sin.double()),
    ):
        assert all(map(torch.equal, call(rotary(ATTENTION, full)), call(full)))
    assert not launches
    assert rotary(feature(nn.Module(), "rms_norm"), full) is full
