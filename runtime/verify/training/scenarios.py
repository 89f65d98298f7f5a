"""Every check of a training variant: how the same sequences are handed over, and what else must not change numbers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from runtime.training.features import KERNELS as KERNEL_FEATURES
from runtime.training.features import active
from runtime.training.kernels import available
from runtime.verify.reference import UpstreamFailsError
from runtime.verify.training import sequences
from runtime.verify.training.compare import logits_error
from runtime.verify.training.hidden_states import hidden_states
from runtime.verify.training.isolation import changing
from runtime.verify.training.requests import both_sides, hidden_states_of_layers, tuples
from runtime.verify.training.router import has_router_loss, router_loss, router_loss_unpadded
from runtime.verify.training.sequences import Batch, Sample, padded_left, padded_right
from runtime.verify.training.steps import accumulation, training
from runtime.verify.training.subject import Subject, alone, counted, reference, whole_mask
from runtime.verify.training.trial import Measured, NothingToCompareError, Scenario, Trial, numbers

_EQUAL = (13, 13, 13)


def _as(form: Callable[[Sequence[Sample]], Batch]) -> Callable[[Trial], Iterable[Measured]]:
    """The check that hands the samples over in a form."""
    return lambda trial: numbers(trial, form(trial.subject.samples))


def _with_positions(form: Callable[[Sequence[Sample]], Batch]) -> Callable[[Trial], Iterator[Measured]]:
    """The check that hands the samples over in a form with positions, against upstream with the same positions."""

    def measure(trial: Trial) -> Iterator[Measured]:
        samples = trial.subject.samples
        try:
            expected = reference(trial.subject.original, samples, counted)
        except UpstreamFailsError as failure:
            raise NothingToCompareError(f"upstream takes no positions: {failure}") from failure
        yield from numbers(trial, form(samples), expected=expected)

    return measure


def _left_with_positions(samples: Sequence[Sample]) -> Batch:
    return sequences.with_position_ids(padded_left(samples))


def _without_mask(trial: Trial) -> Iterator[Measured]:
    """Rows of one length and no mask: each is a segment of its own."""
    samples = trial.subject.draw(_EQUAL, trial.subject.seed)
    expected = reference(trial.subject.original, samples)
    yield from numbers(trial, sequences.unpadded(samples), expected=expected)


def _checkpointing(trial: Trial) -> Iterator[Measured]:
    """Activations computed twice: the same numbers."""
    model = trial.variant()
    if not model.supports_gradient_checkpointing or not trial.subject.training:
        raise NothingToCompareError("upstream has no gradient checkpointing here")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    yield from numbers(trial, padded_right(trial.subject.samples), model)


def _sdpa(trial: Trial) -> Iterator[Measured]:
    """Another attention implementation: what upstream computes eagerly."""
    model = trial.variant()
    if not model._supports_sdpa:
        raise NothingToCompareError("upstream has no sdpa attention here")
    model.set_attn_implementation("sdpa")
    yield from numbers(trial, padded_left(trial.subject.samples), model)


@torch.no_grad()
def _evaluation(trial: Trial) -> Iterator[Measured]:
    """Logits of padded input in evaluation mode: shaped like the input, zero at padding."""
    model, upstream = trial.variant().eval(), trial.subject.upstream().eval()
    batch = padded_left(trial.subject.samples)
    found = batch.padded_logits(model(**batch.inputs).logits)
    yield Measured("logits", logits_error(found, _alone(upstream, trial.subject.samples)))


@torch.no_grad()
def _layouts(trial: Trial) -> Iterator[Measured]:
    """Either layout of the logits on request, whatever the mode."""
    model, batch = trial.variant(), padded_right(trial.subject.samples)
    padded = batch.padded_logits(model(**batch.inputs, logits_layout="padded").logits)
    yield Measured("logits", logits_error(padded, trial.subject.expected.logits))
    packed = batch.packed_logits(model(**batch.inputs, logits_layout="packed").logits)
    yield Measured("logits", logits_error(packed, trial.subject.expected.logits))


@torch.no_grad()
def _embeddings(trial: Trial) -> Iterator[Measured]:
    """Embeddings instead of tokens, where upstream takes them."""
    samples = trial.subject.samples
    upstream = trial.subject.upstream()
    try:
        expected = [_from_embeddings(upstream, sample) for sample in samples]
    except Exception as failure:
        raise NothingToCompareError(f"upstream takes no embeddings: {type(failure).__name__}") from failure
    model, batch = trial.variant(), padded_right(samples)
    inputs = dict(batch.inputs)
    found = model(inputs_embeds=_embed(model, inputs.pop("input_ids")), **inputs)
    yield Measured("logits", logits_error(trial.logits(batch, found), expected))


def _from_embeddings(model: Any, sample: Sample) -> torch.Tensor:
    ids = torch.tensor([sample.tokens])
    logits = model(inputs_embeds=_embed(model, ids), use_cache=False, **whole_mask(model, ids)).logits
    return torch.as_tensor(logits)[0].float()


def _embed(model: Any, ids: torch.Tensor | int) -> torch.Tensor:
    embedded: torch.Tensor = model.get_input_embeddings()(ids)
    return embedded


@torch.no_grad()
def _undo(trial: Trial) -> Iterator[Measured]:
    """A model that was patched and restored is upstream's again, and other models never changed."""
    samples = trial.subject.samples[:1]
    expected = trial.subject.expected.logits[:1]
    patched = trial.subject.upstream()
    undo = trial.patch(trial.subject.family, patched)
    yield Measured("logits", logits_error(_alone(trial.subject.upstream(), samples), expected), 0.0, "another model")
    undo()
    kinds = [type(module) for module in trial.subject.original.modules()]
    if [type(module) for module in patched.modules()] != kinds:
        raise AssertionError("modules have other classes than before")
    yield Measured("logits", logits_error(_alone(patched, samples), expected), 0.0, "restored")


def _kernels(trial: Trial) -> Iterator[Measured]:
    """Which kernels are switched on, and for how many modules; a process that can run none is an error."""
    modules = list(trial.variant().modules())
    if (reason := available()) is not None:
        raise AssertionError(reason)
    counts = {name: sum(active(module, name) for module in modules) for name in sorted(KERNEL_FEATURES)}
    if not any(counts.values()):
        raise NothingToCompareError("no kernel fits this family")
    yield Measured("kernels", 0.0, note=", ".join(f"{name} x{count}" for name, count in counts.items() if count))


def _alone(model: Any, samples: Iterable[Sample]) -> list[torch.Tensor]:
    return [alone(model, sample).logits[0].detach().float() for sample in samples]


RIGHT = Scenario("padded right", _as(lambda samples: sequences.labelled_padding(padded_right(samples))))
FIRST_CHANGED = Scenario("first sequence changed", changing(0))
LAST_CHANGED = Scenario("last sequence changed", changing(-1))

ESSENTIAL = (RIGHT, FIRST_CHANGED, LAST_CHANGED)
"""For all cases but a family's default: what the others add does not depend on the configuration."""

KERNELS = (Scenario("kernels", _kernels), RIGHT)
"""With kernels in an interpreter, which takes seconds per pass. For a family's default case."""

SCENARIOS = (
    *ESSENTIAL,
    Scenario("padded left", _as(padded_left)),
    Scenario(
        "padded left, with positions",
        _with_positions(lambda samples: sequences.with_position_ids(padded_left(samples))),
    ),
    Scenario("a masked row", _as(sequences.with_masked_row)),
    Scenario("two sequences per row", _as(sequences.with_segment_mask)),
    Scenario("packed by cu_seqlens", _as(sequences.with_cu_seqlens)),
    Scenario("packed by positions", _with_positions(sequences.with_restarting_positions)),
    Scenario("packed by a flattening collator", _with_positions(sequences.with_flash_keywords)),
    Scenario("rows without a mask", _without_mask),
    Scenario("gradient checkpointing", _checkpointing),
    Scenario("sdpa", _sdpa),
    Scenario("embeddings", _embeddings),
    Scenario("evaluation mode", _evaluation),
    Scenario("layouts of logits", _layouts),
    Scenario("accumulated gradients", accumulation),
    Scenario("two epochs of AdamW", training),
    Scenario("undone", _undo),
)

PACKED = (
    *SCENARIOS,
    Scenario("hidden states", hidden_states),
    Scenario("hidden states of layers", hidden_states_of_layers),
    Scenario("tuples", tuples),
    Scenario("attention to both sides", both_sides),
)
"""For variants that pack below the head."""

ROUTER = (Scenario("router loss", router_loss), Scenario("router loss without padding", router_loss_unpadded))


def scenarios_for(subject: Subject, default: tuple[Scenario, ...]) -> tuple[Scenario, ...]:
    """The scenarios given, and those of the routers where there are any."""
    return (*default, *ROUTER) if has_router_loss(subject) else default
