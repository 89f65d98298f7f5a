"""A case made concrete: a tiny upstream model without chance in it, sequences, and upstream's numbers for them."""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runtime.verify import factory
from runtime.verify.cases import Case
from runtime.verify.reference import UpstreamFailsError
from runtime.verify.sizes import FIRST_FREE_TOKEN
from runtime.verify.subject import depends_on_length
from runtime.verify.training.sequences import EQUAL_LENGTHS, IGNORED, LENGTHS, Sample, random_samples
from runtime.verify.training.settings import settle, without_dropout


@dataclass(frozen=True)
class Reference:
    """Upstream's numbers, each sequence run alone.

    logits: float32 [length, vocab] per sequence; loss: mean over the targets of all sequences; gradients: of that loss
    by parameter, zeros where upstream has none.
    """

    logits: tuple[torch.Tensor, ...]
    loss: float
    gradients: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """What is verified.

    training: whether the models are in training mode; by_length: whether the rope's frequencies depend on the
    length of the sequences, which are of one length then.
    """

    family: str
    case: Case
    seed: int
    samples: tuple[Sample, ...]
    original: nn.Module
    expected: Reference
    training: bool
    by_length: bool

    def draw(self, lengths: Sequence[int], seed: int) -> tuple[Sample, ...]:
        """Other samples for this subject."""
        return random_samples(lengths, seed, self.samples[0].first)

    def upstream(self) -> Any:
        """A new, unmodified upstream model with the same weights."""
        return copy.deepcopy(self.original)


def prepare(family: str, case: Case, seed: int = 0) -> Subject:
    """Builds the model and asks unmodified upstream.

    Where upstream draws random numbers in training mode even though every rate of a random effect is zero, the models
    are compared in evaluation mode. Raises `factory.CannotBuildError` and `UpstreamFailsError`: upstream refuses the
    case, or its numbers are none.
    """
    config = factory.tiny_config(family, case.overrides)
    settle(config)
    config, model = factory.model_of(family, config, seed)
    without_dropout(model)
    by_length = depends_on_length(config)
    lengths = EQUAL_LENGTHS if by_length else LENGTHS
    training = is_deterministic(model.train(), random_samples(lengths, seed)[0])
    model.train(training)
    samples = random_samples(lengths, seed, first_target(model))
    return Subject(family, case, seed, samples, model, reference(model, samples), training, by_length)


@torch.no_grad()
def first_target(model: nn.Module) -> int:
    """The first label that upstream's loss counts: 1, or 0 where labels are not shifted, or 2 where they are twice."""
    tokens = tuple(range(FIRST_FREE_TOKEN, FIRST_FREE_TOKEN + 4))
    for first in range(len(tokens)):
        labels = tuple(token if index == first else IGNORED for index, token in enumerate(tokens))
        loss = alone(copy.deepcopy(model), Sample(tokens, labels)).loss
        if bool(torch.isfinite(loss)) and float(loss) > 0.0:
            return first
    raise UpstreamFailsError("no label has an effect on upstream's loss")


def is_deterministic(model: nn.Module, sample: Sample) -> bool:
    """Whether upstream gives the same logits twice. Raises UpstreamFailsError if it gives none."""
    first, second = (alone(copy.deepcopy(model), sample).logits for _ in range(2))
    return bool(torch.equal(first, second))


Extra = Callable[[Sample], Mapping[str, torch.Tensor]]
"""What upstream is given with a sequence besides its tokens and labels, by keyword."""


def nothing(sample: Sample) -> Mapping[str, torch.Tensor]:
    return {}


def counted(sample: Sample) -> Mapping[str, torch.Tensor]:
    """Positions that count from 0. Where upstream's own begin elsewhere, these give other numbers."""
    return {"position_ids": torch.arange(len(sample.tokens))[None]}


def alone(model: nn.Module, sample: Sample, extra: Extra = nothing) -> Any:
    """Upstream's output for one sequence as a batch of its own; raises UpstreamFailsError."""
    ids, labels = torch.tensor([sample.tokens]), torch.tensor([sample.labels])
    try:
        return model(input_ids=ids, labels=labels, use_cache=False, **whole_mask(model, ids), **extra(sample))
    except Exception as failure:
        message = " ".join(str(failure).split())[:300]
        raise UpstreamFailsError(f"forward: {type(failure).__name__}: {message}") from failure


def whole_mask(model: nn.Module, ids: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """A mask without padding, for types that take one: without a mask some are not causal."""
    takes_it = "attention_mask" in inspect.signature(model.forward).parameters
    return {"attention_mask": torch.ones_like(ids)} if takes_it else {}


def reference(model: nn.Module, samples: Sequence[Sample], extra: Extra = nothing) -> Reference:
    """Upstream's numbers for the samples; the model is not changed. Raises UpstreamFailsError."""
    fresh = copy.deepcopy(model)
    logits, loss = [], 0.0
    for output, share in each_alone(fresh, samples, extra):
        logits.append(output.logits.detach()[0].float())
        if share > 0.0:
            (output.loss * share).backward()
            loss += float(output.loss.detach()) * share
    found = Reference(tuple(logits), loss, gradients(fresh))
    finite = [*found.logits, *found.gradients.values(), torch.tensor(loss)]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in finite):
        raise UpstreamFailsError("upstream's logits, loss or gradients are not all finite")
    return found


def each_alone(model: nn.Module, samples: Iterable[Sample], extra: Extra = nothing) -> Iterator[tuple[Any, float]]:
    """Upstream's output for each sample, and the share of the sample's targets in those of all samples."""
    samples = tuple(samples)
    targets = sum(sample.targets for sample in samples)
    for sample in samples:
        # Frequencies of some ropes remember the longest sequence; samples of different lengths are never used then.
        yield alone(model, sample, extra), sample.targets / targets


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients by parameter, as copies; zeros where there is none."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
        for name, parameter in model.named_parameters()
    }


@torch.no_grad()
def has_effect(subject: Subject) -> bool | None:
    """Whether the case changes upstream's logits against the family's default with the same weights; None where those
    do not fit.
    """
    if "tie_word_embeddings" in subject.case.overrides:
        return None  # the same weights cannot be tied and not
    config = factory.tiny_config(subject.family)
    settle(config)
    default = factory.model_of(subject.family, config, subject.seed)[1]
    without_dropout(default)
    default.train(subject.training)
    weights, others = subject.original.state_dict(), default.state_dict()
    if {n: w.shape for n, w in weights.items()} != {n: w.shape for n, w in others.items()}:
        return None
    default.load_state_dict(weights)
    index = max(range(len(subject.samples)), key=lambda i: len(subject.samples[i].tokens))
    usual = alone(default, subject.samples[index]).logits[0].float()
    mine = subject.expected.logits[index]
    return not torch.allclose(usual, mine, rtol=0.0, atol=1e-5 * float(mine.max() - mine.min()))
