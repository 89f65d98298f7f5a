"""Gated activations by kernel against upstream's MLPs."""

import functools

import pytest
import torch
from parity import error, feature, results_and_gradients
from torch import nn
from torch.nn import functional as F
from transformers import GemmaConfig, LlamaConfig, Phi3Config
from transformers.activations import ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaMLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.phi3.modeling_phi3 import Phi3MLP

from runtime.training.kernels.activation import gated

SIZES = {"hidden_size": 12, "intermediate_size": 20, "num_attention_heads": 2, "num_key_value_heads": 2}
MLP = feature(nn.Module(), "swiglu")
BACKWARD = {
    "silu": "_swiglu_backward_kernel",
    "silu of halves": "_swiglu_fused_gate_up_backward_kernel",
    "gelu": "_geglu_tanh_backward_kernel",
}


def separate(module, act, x):
    return module.down_proj(gated(MLP, act, module.gate_proj(x), module.up_proj(x)))


def halves(module, act, x):
    gate, up = module.gate_up_proj(x).chunk(2, dim=-1)
    return module.down_proj(gated(MLP, act, gate, up))


CASES = {
    "silu": (LlamaMLP, LlamaConfig(**SIZES), separate, "act_fn", "silu"),
    "silu with biases": (LlamaMLP, LlamaConfig(**SIZES, mlp_bias=True), separate, "act_fn", "silu"),
    "tanh gelu": (GemmaMLP, GemmaConfig(**SIZES, hidden_activation="gelu_pytorch_tanh"), separate, "act_fn", "gelu"),
    "fused product": (Phi3MLP, Phi3Config(**SIZES, pad_token_id=0), halves, "activation_fn", "silu of halves"),
}


def both(case, dtype):
    cls, config, ours, name, _ = CASES[case]
    torch.manual_seed(0)
    module = cls(config).to(dtype)
    x = torch.randn(1, 5, SIZES["hidden_size"]).to(dtype).requires_grad_()
    leaves = [x, *module.parameters()]
    expected = results_and_gradients(lambda: module(x), leaves)
    return results_and_gradients(lambda: ours(module, getattr(module, name), x), leaves), expected


@pytest.mark.parametrize("case", CASES)
def test_float32(case, launches):
    assert error(*both(case, torch.float32)) <= 1e-6
    assert launches[BACKWARD[CASES[case][-1]]] == 1


@pytest.mark.parametrize("case", CASES)
def test_bfloat16(case, launches):
    found, expected = both(case, torch.bfloat16)
    assert torch.equal(found[0], expected[0])
    assert error(found, expected) <= 1e-2
    assert launches[BACKWARD[CASES[case][-1]]] == 1


KERNEL_FOR = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_python_tanh": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_accurate": "gelu",
}


@pytest.mark.parametrize("name", sorted(set(ACT2FN) - {"prelu", "xielu"}))
def test_every_activation_of_transformers(name, launches):
    act = ACT2FN[name]
    gate, up = (torch.randn(4, 9, generator=torch.Generator().manual_seed(s), requires_grad=True) for s in (0, 1))
    expected = results_and_gradients(lambda: act(gate) * up, [gate, up])
    found = results_and_gradients(lambda: gated(MLP, act, gate, up), [gate, up])
    assert error(found, expected) <= 1e-6
    kernel = KERNEL_FOR.get(name)
    assert sum(launches.values()) == (2 if kernel else 0)
    assert kernel is None or launches[BACKWARD[kernel]] == 1


@pytest.mark.parametrize(
    "act", [F.silu, nn.SiLU(), nn.GELU(approximate="tanh"), functools.partial(F.gelu, approximate="tanh")]
)
def test_functions_and_modules_of_torch(act, launches):
    gate, up = torch.randn(4, 9), torch.randn(4, 9)
    assert error([gated(MLP, act, gate, up)], [act(gate) * up]) <= 1e-6
    assert sum(launches.values()) == 1


@pytest.mark.parametrize("act", [F.gelu, nn.GELU(), F.relu, functools.partial(F.gelu), lambda x: x])
def test_what_has_no_kernel_is_upstreams(act, launches):
    gate, up = torch.randn(4, 9), torch.randn(4, 9)
    assert torch.equal(gated(MLP, act, gate, up), act(gate) * up)
    assert not launches


def test_other_tensors_are_upstreams(launches):
    act, gate, up = nn.SiLU(), torch.randn(4, 9), torch.randn(4, 9)
    for g, u in ((gate, up[:1]), (gate, up.bfloat16()), (gate.double(), up.double()), (gate[:0], up[:0])):
        assert torch.equal(gated(MLP, act, g, u), act(g) * u)
    assert torch.equal(gated(feature(nn.Module()), act, gate, up), act(gate) * up)
    assert not launches


@pytest.mark.parametrize("act", [nn.SiLU(), nn.GELU(approximate="tanh")])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("sizes", [(2, 3, 16), (6, 16), (16,)])
def test_parts_of_one_product(act, order, sizes, launches):
    product = torch.randn(sizes, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def parts():
        return (product.chunk(2, dim=-1)[i] for i in order)

    expected = results_and_gradients(lambda: (lambda g, u: act(g) * u)(*parts()), [product])
    assert error(results_and_gradients(lambda: gated(MLP, act, *parts()), [product]), expected) <= 1e-6
    in_place = isinstance(act, nn.SiLU) and order == (0, 1)
    assert launches["_swiglu_fused_gate_up_forward_kernel"] == in_place


def test_a_part_of_one_product_that_others_read_too():
    act, product = nn.SiLU(), torch.randn(3, 16, requires_grad=True)

    def graph(combine):
        whole = product.tanh()
        gate, up = whole.chunk(2, dim=-1)
        return combine(gate, up) + gate.pow(2), whole

    expected = results_and_gradients(lambda: graph(lambda g, u: act(g) * u), [product])
    assert error(results_and_gradients(lambda: graph(lambda g, u: gated(MLP, act, g, u)), [product]), expected) <= 1e-6


@pytest.mark.parametrize("act", [nn.SiLU(), nn.GELU(approximate="tanh")])
def test_two_backwards_through_one_graph(act):
    gate, up = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9, requires_grad=True)
    expected = torch.autograd.grad((act(gate) * up).pow(2).sum(), (gate, up))
    loss = gated(MLP, act, gate * 1, up * 1).pow(2).sum()
    first = torch.autograd.grad(loss, (gate, up), retain_graph=True)
    assert error(first, expected) <= 1e-6
    assert error(torch.autograd.grad(loss, (gate, up)), expected) <= 1e-6


@pytest.mark.parametrize("producer", [torch.tanh, torch.sigmoid, torch.exp, nn.Identity()])
def test_what_produced_gate_and_up_keeps_its_results(producer):
    act, gate, up = nn.SiLU(), torch.randn(4, 9, requires_grad=True), torch.randn(4, 9, requires_grad=True)
    expected = results_and_gradients(lambda: act(producer(gate)) * producer(up), (gate, up))
    found = results_and_gradients(lambda: gated(MLP, act, producer(gate), producer(up)), (gate, up))
    assert error(found, expected) <= 1e-6


def test_gate_and_up_that_others_read_too():
    """A product's result that is read by someone else, in this graph or by hand, is not ours to write on."""
    act = nn.SiLU()
    x, a, b = (torch.randn(4, 4, generator=torch.Generator().manual_seed(s), requires_grad=True) for s in range(3))

    def graph(combine):
        gate, up = F.linear(x, a), F.linear(x, b)
        return combine(gate, up) + gate.pow(2) + up.detach().mul(gate).exp()

    expected = results_and_gradients(lambda: graph(lambda g, u: act(g) * u), (x, a, b))
    assert error(results_and_gradients(lambda: graph(lambda g, u: gated(MLP, act, g, u)), (x, a, b)), expected) <= 1e-6
    gate = F.linear(x, a)
    kept, before = gate.detach(), gate.detach().clone()
    result = gated(MLP, act, gate, F.linear(x, b))
    del gate
    result.sum().backward()
    assert torch.equal(kept, before)
