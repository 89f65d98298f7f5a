"""The fused loss and cross entropy by kernel against upstream's logits and ``ForCausalLMLoss``."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from parity import error, feature
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers.loss.loss_utils import ForCausalLMLoss

from runtime.training.kernels.loss import fused_loss, liger_cross_entropy
from runtime.training.packing import Packing

HIDDEN, VOCABULARY, ROWS, LENGTH = 16, 40, 2, 5


class Model(nn.Module):
    """What `fused_loss` asks of a model with a head."""

    loss_function = staticmethod(ForCausalLMLoss)

    def __init__(self, bias: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lm_head = nn.Linear(HIDDEN, VOCABULARY, bias=bias, dtype=dtype)
        feature(self, "fused_linear_cross_entropy")


def upstream(model, states, labels, scale=None, softcap=None, **kwargs):
    logits = model.lm_head(states)
    logits = logits if scale is None else logits * scale
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    return ForCausalLMLoss(logits, labels, VOCABULARY, **kwargs)


def fused(model, states, labels, packing=None, **kwargs):
    loss = fused_loss(model, model.lm_head, states, labels, packing, **kwargs)
    assert loss is not None
    return loss


def batch(dtype=torch.float32, ignored=(2,)):
    generator = torch.Generator().manual_seed(1)
    states = (torch.randn(ROWS, LENGTH, HIDDEN, generator=generator) * 2).to(dtype).requires_grad_()
    labels = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
    labels[0, list(ignored)] = -100
    return states, labels


def values(loss, model, states, factor=1.0):
    """The loss and its gradients under a gradient of `factor`."""
    leaves = [leaf for leaf in (states, *model.parameters()) if leaf.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss * factor, leaves)]


CASES = {
    "mean": ({}, {}),
    "bias": ({"bias": True}, {}),
    "softcap": ({}, {"softcap": 3.0}),
    "scale": ({}, {"scale": 0.25}),
    "scale, bias and softcap": ({"bias": True}, {"scale": 1 / 3, "softcap": 2.0}),
    "number of items": ({}, {"num_items_in_batch": 7}),
    "number of items, a tensor": ({}, {"num_items_in_batch": torch.tensor(7)}),
    "number of items without a value": ({}, {"num_items_in_batch": None}),
    "another label to ignore": ({}, {"ignore_index": 3}),
    "shifted labels": ({}, {"shift_labels": torch.arange(ROWS * LENGTH).view(ROWS, LENGTH)}),
}


@pytest.mark.parametrize("factor", [1.0, -2.5])
@pytest.mark.parametrize("case", CASES)
def test_float32(case, factor, launches):
    how, kwargs = CASES[case]
    model, (states, labels) = Model(**how), batch()
    if kwargs.get("ignore_index"):
        labels[labels == -100] = kwargs["ignore_index"]
    expected = values(upstream(model, states, labels, **kwargs), model, states, factor)
    assert error(values(fused(model, states, labels, **kwargs), model, states, factor), expected) <= 2e-6
    assert launches["liger_cross_entropy_kernel"] == 3  # pieces of 4, 4 and 2 tokens
    assert (launches["element_mul_kernel"] > 0) == (factor != 1.0 or kwargs.get("num_items_in_batch") is not None)


@pytest.mark.parametrize("case", ["mean", "scale, bias and softcap", "number of items"])
def test_bfloat16(case):
    how, kwargs = CASES[case]
    model, (states, labels) = Model(**how, dtype=torch.bfloat16), batch(torch.bfloat16)
    expected = values(upstream(model, states, labels, **kwargs), model, states)
    assert error(values(fused(model, states, labels, **kwargs), model, states), expected) <= 2e-2


def test_a_sum_of_losses():
    model = Model()
    (first, labels), (second, others) = batch(), batch(ignored=(0, 1, 4))
    leaves = [first, second, model.lm_head.weight]

    def total(loss):
        return loss(model, first, labels) * 3 + loss(model, second, others) ** 2

    expected = torch.autograd.grad(total(upstream), leaves)
    assert error(torch.autograd.grad(total(fused), leaves), expected) <= 2e-6


@pytest.mark.parametrize("trained", ["head", "states", "bias"])
def test_only_one_side_needs_a_gradient(trained):
    model, (states, labels) = Model(bias=True), batch()
    leaf = {"head": model.lm_head.weight, "bias": model.lm_head.bias, "states": states}[trained]
    for other in (states, *model.parameters()):
        other.requires_grad_(other is leaf)
    expected = torch.autograd.grad(upstream(model, states, labels), leaf)
    assert error(torch.autograd.grad(fused(model, states, labels), leaf), expected) <= 2e-6


def test_no_gradient_at_all():
    model, (states, labels) = Model(), batch()
    with torch.no_grad():
        assert error([fused(model, states, labels)], [upstream(model, states, labels)]) <= 1e-6


def test_two_backwards_through_one_graph():
    model, (states, labels) = Model(bias=True), batch()
    leaves = [states, *model.parameters()]
    expected = torch.autograd.grad(upstream(model, states, labels) * 3, leaves)
    loss = fused(model, states, labels) * 3
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert error(first, expected) <= 2e-6
    assert error(torch.autograd.grad(loss, leaves), expected) <= 2e-6


def test_no_targets():
    model, (states, labels) = Model(), batch()
    labels[:] = -100
    assert all(not value.any() for value in values(fused(model, states, labels), model, states))
    assert all(not value.any() for value in values(fused(model, states, labels, num_items_in_batch=4), model, states))


def test_packed():
    """A packed row: the loss of its sequences one at a time, and the caller's labels in either shape."""
    model, (states, labels) = Model(), batch()
    packing = Packing.of_lengths((LENGTH,) * ROWS)
    expected = values(upstream(model, states, labels), model, states)
    flat = states.view(1, -1, HIDDEN)
    assert error(values(fused(model, flat, labels.view(1, -1), packing), model, states), expected) <= 2e-6
    given = {"shift_labels": torch.cat((labels[:, 1:], torch.full((ROWS, 1), -100)), 1).view(1, -1)}
    assert error(values(fused(model, flat, labels.view(1, -1), packing, **given), model, states), expected) <= 2e-6


class TwoRanks:
    """What a rank sees of a group that shares a row: its own part plus what the other one has."""

    def __init__(self, *others):
        self.others = list(others)

    def total(self, part):
        return part + self.others.pop(0)


@pytest.mark.parametrize("items", [None, 7])
def test_a_row_that_is_shared(items, monkeypatch):
    model, (states, labels) = Model(), batch()
    targets = torch.cat((labels[:, 1:], torch.full((ROWS, 1), -100)), 1).view(-1)
    whole = values(upstream(model, states, labels, num_items_in_batch=items), model, states)
    rows, halves = states.detach().view(-1, HIDDEN), []
    monkeypatch.setattr("runtime.training.loss.shifted", lambda labels, packing, kwargs: labels)
    for own, other in ((slice(0, 5), slice(5, 10)), (slice(5, 10), slice(0, 5))):
        theirs = upstream(model, rows[None, other], None, shift_labels=targets[other], num_items_in_batch=1).detach()
        packing = SimpleNamespace(group=TwoRanks(theirs, (targets[other] != -100).sum()))
        share = rows[None, own].clone().requires_grad_()
        halves.append(values(fused(model, share, targets[own], packing, num_items_in_batch=items), model, share))
    assert error([halves[0][0], halves[1][0]], [whole[0]] * 2) <= 1e-6
    assert error([torch.cat((halves[0][1], halves[1][1])).view_as(states)], whole[1:2]) <= 2e-6
    assert error([halves[0][2] + halves[1][2]], whole[2:]) <= 2e-6


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("low", [False, True])
def test_a_head_that_is_sharded_by_itself(low, one_process):
    """Its weight is whole, and of the dtype to compute in, only inside of its own call."""
    model, (states, labels) = Model(bias=True), batch(torch.bfloat16 if low else torch.float32)
    reference = copy.deepcopy(model).to(states.dtype)
    expected = values(upstream(reference, states, labels), reference, states)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if low else None)
    fully_shard(model.lm_head, mesh=one_process, mp_policy=policy)
    loss = fused(model, states, labels)
    loss.backward()
    found = [loss.detach(), states.grad] + [p.grad.full_tensor().to(states.dtype) for p in model.parameters()]
    assert error(found, expected) <= (2e-2 if low else 2e-6)
    assert "forward" not in vars(model.lm_head)


def test_autocast():
    model, (states, labels) = Model(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        expected = values(upstream(model, states, labels), model, states)
        assert error(values(fused(model, states, labels), model, states), expected) <= 2e-2


def test_the_callers_keywords_are_left_alone():
    model, (states, labels) = Model(), batch()
    kwargs = {"shift_labels": labels, "unknown": object()}
    fused(model, states, labels, **kwargs)
    assert set(kwargs) == {"shift_labels", "unknown"}


def test_not_applicable(launches):
    model, (states, labels) = Model(), batch()

    def nothing(model=model, labels=labels, states=states):
        return fused_loss(model, model.lm_head, states, labels, None) is None

    assert nothing(labels=None)
    assert nothing(model.eval())
    assert nothing(feature(Model(), "cross_entropy"))
    assert nothing(states=states[:, :0])
    assert nothing(states=states.bfloat16())
    hooked = Model()
    hooked.lm_head.register_forward_hook(lambda *args: None)
    assert nothing(hooked)
    adapted = Model()
    adapted.lm_head = nn.Sequential(adapted.lm_head)
    assert nothing(adapted)
    replaced = Model()
    replaced.lm_head.forward = replaced.lm_head.forward
    assert nothing(replaced)
    special = Model()
    special.loss_function = lambda *args, **kwargs: None
    assert nothing(special)
    assert not launches


def test_labels_outside_of_the_vocabulary():
    model, (states, labels) = Model(), batch()
    for wrong in (VOCABULARY, -1):
        labels[1, 1] = wrong
        with pytest.raises(RuntimeError, match="outside of the vocabulary"):
            fused(model, states, labels)
    with pytest.raises(ValueError, match="targets for 10 hidden states"):
        fused(model, states, labels[:, :2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"num_items_in_batch": 7}, {"ignore_index": 3}, {"shift_labels": torch.arange(10).view(2, 5), "labels": None}],
)
def test_cross_entropy(dtype, kwargs, launches):
    _, labels = batch()
    kwargs = {"labels": labels.masked_fill(labels == -100, kwargs.get("ignore_index", -100))} | kwargs
    logits = (torch.randn(ROWS, LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(2)) * 3).to(dtype)
    before = logits.clone()
    logits.requires_grad_()
    results = []
    for loss in (ForCausalLMLoss, liger_cross_entropy):
        value = loss(logits=logits, vocab_size=VOCABULARY, **kwargs)
        results.append([value.detach(), *torch.autograd.grad(value * 3, logits)])
    assert error(*results) <= (1e-6 if dtype == torch.float32 else 1e-2)
    assert torch.equal(logits, before)
    assert launches["liger_cross_entropy_kernel"] == 1


def test_cross_entropy_twice_and_of_no_targets():
    logits = torch.randn(1, 4, VOCABULARY, requires_grad=True)
    labels = torch.randint(VOCABULARY, (1, 4))
    loss = liger_cross_entropy(logits, labels, VOCABULARY) * 2
    first = torch.autograd.grad(loss, logits, retain_graph=True)[0].clone()
    assert torch.equal(first, torch.autograd.grad(loss, logits)[0])
    assert liger_cross_entropy(logits, torch.full_like(labels, -100), VOCABULARY) == 0
    assert liger_cross_entropy(logits.double(), labels, VOCABULARY).dtype == torch.float32
