"""Training variants made by hand: one that is right, and many that are wrong in one way each."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Segment = tuple[Tensor, Tensor | None]
"""Inputs [1, length] (tokens or embeddings) and labels [1, length]."""


@dataclass(frozen=True)
class Call:
    """The arguments of one forward call; places: of each segment's tokens in the flat input."""

    inputs: Tensor
    labels: Tensor | None
    places: tuple[Tensor, ...]
    mask: Tensor | None
    items: Tensor | None
    layout: str
    router: bool

    def flat(self, tensor: Tensor) -> Tensor:
        return tensor.flatten(0, 1)


def places_of(
    shape: Sequence[int], mask: Tensor | None, position_ids: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, ...]:
    """The flat indices of each segment's tokens."""
    rows, columns = shape
    if cu_seqlens is not None:
        return tuple(torch.arange(a, b) for a, b in pairwise(cu_seqlens.tolist()))
    if mask is not None:
        numbers = mask + (torch.arange(rows) * 1000)[:, None] * (mask > 0)
        return tuple((numbers.flatten() == number).nonzero()[:, 0] for number in numbers.unique() if number > 0)
    if position_ids is not None and rows == 1:
        starts = [*(position_ids[0] == 0).nonzero()[:, 0].tolist(), columns]
        return tuple(torch.arange(a, b) for a, b in pairwise(starts))
    return tuple(torch.arange(row * columns, (row + 1) * columns) for row in range(rows))


def run(model: Any, inputs: Tensor, **keywords: Any) -> Any:
    """Upstream's own forward."""
    name = "inputs_embeds" if inputs.is_floating_point() else "input_ids"
    return type(model).forward(model, **{name: inputs}, use_cache=False, **keywords)


def segment_logits(model: Any, call: Call) -> tuple[list[Tensor], Any]:
    """Each segment by upstream alone; the outputs' router logits joined by layer."""
    flat = call.flat(call.inputs)
    keywords = {"output_router_logits": True} if call.router else {}
    outputs = [run(model, flat[place][None], **keywords) for place in call.places]
    layers = zip(*(output.router_logits for output in outputs), strict=True) if call.router else ()
    routers = tuple(torch.cat(layer) for layer in layers)
    return [output.logits[0] for output in outputs], routers


def joined_logits(model: Any, call: Call) -> tuple[list[Tensor], Any]:
    """All segments as one sequence: they see each other."""
    whole = call.flat(call.inputs)[torch.cat(call.places)][None]
    output = run(model, whole, **({"output_router_logits": True} if call.router else {}))
    return list(output.logits[0].split([len(place) for place in call.places])), getattr(output, "router_logits", None)


def padded_logits(model: Any, call: Call) -> tuple[list[Tensor], Any]:
    """Rows with their padding and without a mask: what stands left of a token is seen."""
    if call.mask is None:
        return segment_logits(model, call)
    logits = call.flat(run(model, call.inputs).logits)
    return [logits[place] for place in call.places], None


def segment_loss(model: Any, call: Call, logits: list[Tensor]) -> Tensor:
    """The mean over all targets, none of them across a boundary."""
    assert call.labels is not None
    labels = [call.flat(call.labels)[place] for place in call.places]
    total = sum(F.cross_entropy(x[:-1], y[1:], reduction="sum") for x, y in zip(logits, labels, strict=True))
    targets = sum((y[1:] != -100).sum() for y in labels)
    return total / (targets if call.items is None else call.items)  # type: ignore[no-any-return]


def loss_across_boundaries(model: Any, call: Call, logits: list[Tensor]) -> Tensor:
    assert call.labels is not None
    labels = call.flat(call.labels)[torch.cat(call.places)]
    return F.cross_entropy(torch.cat(logits)[:-1], labels[1:])


def loss_with_padding(model: Any, call: Call, logits: list[Tensor]) -> Tensor:
    """Each token's target is what stands right of it in the padded input."""
    assert call.labels is not None
    following = call.flat(F.pad(call.labels, (0, 1), value=-100)[:, 1:])
    targets = torch.cat([following[place] for place in call.places])
    return F.cross_entropy(torch.cat(logits), targets)


def loss_unshifted(model: Any, call: Call, logits: list[Tensor]) -> Tensor:
    assert call.labels is not None
    return F.cross_entropy(torch.cat(logits), call.flat(call.labels)[torch.cat(call.places)])


def mean_of_means(model: Any, call: Call, logits: list[Tensor]) -> Tensor:
    assert call.labels is not None
    labels = [call.flat(call.labels)[place] for place in call.places]
    means = [F.cross_entropy(x[:-1], y[1:]) for x, y in zip(logits, labels, strict=True) if (y[1:] != -100).any()]
    return torch.stack(means).mean()


def loss_without_items(model: Any, call: Call, logits: list[Tensor]) -> Tensor:
    return segment_loss(model, replace(call, items=None), logits)


def loss_with_dead_gradient(model: Any, call: Call, logits: list[Tensor]) -> Tensor:
    """The right number, of which half comes without gradient."""
    loss = segment_loss(model, call, logits)
    return loss / 2 + loss.detach() / 2


def router_loss(model: Any, call: Call, routers: Any) -> Tensor:
    config, module = model.config, sys.modules[type(model).__module__]
    found: Tensor = module.load_balancing_loss_func(routers, config.num_local_experts, config.num_experts_per_tok)
    return found


def padded_router_loss(model: Any, call: Call, routers: Any) -> Tensor:
    """Routers run on padding too, and nothing masks it."""
    padded: Tensor = run(model, call.inputs, output_router_logits=True).aux_loss
    return padded


def by_mode(model: Any, call: Call, logits: list[Tensor]) -> Tensor:
    """Packed in training, shaped like the input in evaluation, as asked otherwise."""
    packed = torch.cat(logits)
    if call.layout == "packed" or (not call.layout and (model.training or call.mask is None)):
        return packed[None]
    padded = packed.new_zeros(call.inputs.shape[:2].numel(), packed.shape[-1])
    return padded.index_copy(0, torch.cat(call.places), packed).unflatten(0, call.inputs.shape[:2])


def always_packed(model: Any, call: Call, logits: list[Tensor]) -> Tensor:
    return torch.cat(logits)[None]


@dataclass(frozen=True)
class HandMade:
    """A variant from its parts, each of which is right unless said otherwise."""

    logits: Callable[[Any, Call], tuple[list[Tensor], Any]] = segment_logits
    loss: Callable[[Any, Call, list[Tensor]], Tensor] = segment_loss
    router: Callable[[Any, Call, Any], Tensor] | None = router_loss
    shown: Callable[[Any, Call, list[Tensor]], Tensor] = by_mode

    def __call__(self, family: str, model: nn.Module) -> Callable[[], None]:
        made = self

        def forward(
            self: Any,
            input_ids: Tensor | None = None,
            attention_mask: Tensor | None = None,
            position_ids: Tensor | None = None,
            inputs_embeds: Tensor | None = None,
            labels: Tensor | None = None,
            cu_seqlens: Tensor | None = None,
            cu_seq_lens_q: Tensor | None = None,
            num_items_in_batch: Tensor | None = None,
            logits_layout: str = "",
            output_router_logits: bool = False,
            **others: Any,
        ) -> Any:
            inputs = inputs_embeds if input_ids is None else input_ids
            assert inputs is not None
            ends = cu_seq_lens_q if cu_seqlens is None else cu_seqlens
            places = places_of(inputs.shape[:2], attention_mask, position_ids, ends)
            call = Call(inputs, labels, places, attention_mask, num_items_in_batch, logits_layout, output_router_logits)
            return made.output(self, call)

        model.forward = MethodType(forward, model)
        return lambda: delattr(model, "forward")

    def output(self, model: Any, call: Call) -> Any:
        logits, routers = self.logits(model, call)
        loss = None if call.labels is None else self.loss(model, call, logits)
        auxiliary = None
        if call.router and self.router is not None:
            auxiliary = self.router(model, call, routers)
            if loss is not None:
                loss = loss + model.config.router_aux_loss_coef * auxiliary
        return Output(loss, self.shown(model, call, logits), auxiliary)


@dataclass(frozen=True)
class Output:
    loss: Tensor | None
    logits: Tensor
    aux_loss: Tensor | None


def without_undo(family: str, model: nn.Module) -> Callable[[], None]:
    """Right, but never undone."""
    kind = type(model)
    model.__class__ = type(kind.__name__, (kind,), {})
    HandMade()(family, model)
    return lambda: None
