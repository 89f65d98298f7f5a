"""What a backward may write over: only what nothing else can read."""

import pytest
import torch
from torch import nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from runtime.training.kernels import ownership
from runtime.training.kernels.ownership import writable


class Product(Function):
    """a * b, and in `written` which saved tensor, then gradient, it may write over."""

    written: tuple[bool, ...] = ()

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, *grads):
        saved = ctx.saved_tensors  # once only, under a checkpoint
        before = [t.data_ptr() for t in (*saved, *grads)]
        a, b = saved
        pair = (a, b)
        del a, b, saved
        handed = writable(pair, "saved") + writable(grads, "gradients")
        Product.written = tuple(h.data_ptr() == p for h, p in zip(handed, before, strict=True))
        return grads[0] * pair[1], grads[0] * pair[0]


torch.manual_seed(0)
plain, biased, after = nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 4)
x = torch.randn(1, 3, 4, requires_grad=True)


def written(make, *parts, **how: bool) -> tuple[bool, ...]:
    """For the product of what two functions make of x. (Pytest keeps what an assert's expression makes.)"""
    result = make if isinstance(make, torch.Tensor) else Product.apply(make(x), parts[0](x))
    Product.written = ()
    after(result).pow(2).sum().backward(**how)
    return Product.written


def test_results_of_products():
    assert written(plain, biased) == (True, True, True)
    assert written(lambda x: biased(x[0]), lambda x: plain(x[0])) == (True, True, True)
    for reentrant in (False, True):
        result = checkpoint(lambda x: Product.apply(plain(x), biased(x)) * 1, x, use_reentrant=reentrant)
        assert written(result) == (True, True, True)


def test_a_graph_that_is_kept():
    result = Product.apply(plain(x), biased(x))
    assert written(result, retain_graph=True) == (False, False, False)
    assert written(result) == (True, True, True)


@pytest.mark.parametrize("layer", [plain, biased])
def test_somebody_holds_it(layer):
    held = layer(x)
    assert written(lambda x: held, plain) == (False, True, True)
    kept = layer(x)
    result, view = Product.apply(kept, plain(x)), kept.detach()
    del kept
    assert written(result) == (False, True, True)
    del view
    kept = layer(x)
    result, view = Product.apply(kept, plain(x)), kept[:, :1]
    del kept
    assert written(result) == (False, True, True)
    assert view is not None


@pytest.mark.parametrize("producer", [torch.tanh, torch.sigmoid, torch.exp, lambda x: torch.softmax(x, -1)])
def test_the_producer_saved_its_result(producer):
    assert written(lambda x: producer(plain(x)), biased) == (False, True, True)
    assert written(lambda x: producer(plain(x)).view(3, 4), lambda x: biased(x).view(3, 4)) == (False, True, True)


def test_another_node_saved_it_and_runs_later():
    shared = plain(x)
    other = shared.pow(2)
    result = Product.apply(shared, biased(x)) + other
    del shared, other
    assert written(result)[:2] == (False, True)


def test_the_same_tensor_twice_and_chunks():
    shared = plain(x)
    result = Product.apply(shared, shared)
    del shared
    assert written(result)[:2] == (False, False)
    a, b = biased(x).chunk(2, dim=-1)
    result = Product.apply(a, b)
    del a, b
    Product.written = ()
    result.sum().backward()
    assert Product.written[:2] == (False, False)


def test_a_gradient_with_two_readers():
    """An addition hands one gradient to both of its terms."""
    term = plain(x)
    result = term + Product.apply(plain(x), biased(x))
    del term
    assert written(result)[2] is False
    held: list[torch.Tensor] = []
    result = Product.apply(plain(x), biased(x))
    result.register_hook(held.append)
    assert written(result)[2] is False


def test_saved_by_a_hook_of_the_callers():
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = Product.apply(plain(x), biased(x))
    assert written(result)[:2] == (False, False)


def test_without_the_means_to_count_everything_is_copied(monkeypatch):
    monkeypatch.delattr(torch._C, "_storage_Use_Count")
    assert written(plain, biased) == (False, False, False)
    monkeypatch.undo()
    monkeypatch.delattr(torch._C._autograd, "_get_current_graph_task_keep_graph")
    assert ownership.keeps_graph()
