"""A case made concrete: a tiny upstream model, prompts, and what upstream answers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runtime.verify import factory
from runtime.verify.cases import Case
from runtime.verify.prompts import DECODE_STEPS, Prompts, random_prompts
from runtime.verify.reference import Method, Reference, UpstreamFailsError, by_generate, by_recompute, reference

_ATTEMPTS = 5
_SAFE_MARGIN = 2e-4
"""Twice the tolerance of the torch stage: below it, equal tokens and logits within the tolerance do not imply each
other.
"""
_ENOUGH_VARIETY = 8

_BY_LENGTH = ("longrope", "dynamic")


@dataclass(frozen=True)
class Subject:
    """What is verified. `alternatives` are upstream's answers by other ways, where they may differ: see `prepare`."""

    family: str
    case: Case
    seed: int
    prompts: Prompts
    expected: Reference
    alternatives: tuple[Reference, ...] = ()

    def model(self, attention: str | None = "eager") -> nn.Module:
        """A new, unmodified upstream model with the weights that the reference was made with; see `factory.build`."""
        return factory.build(self.family, self.case.overrides, self.seed, attention)[1]


def prepare(family: str, case: Case, seed: int = 0) -> Subject:
    """Asks unmodified upstream, with the first of a few seeds whose answer has neither a near tie nor too few
    different tokens.

    Upstream has another answer without its cache for rope whose frequencies depend on the sequence's length (cached
    keys keep old frequencies), and with a cache that keeps everything for a window that a configuration sets and the
    model's masks do not know (its own cache forgets what they show). All are upstream's, and a family's own `generate`
    may mean any, so all are kept.

    Raises `factory.CannotBuildError` and `reference.UpstreamFailsError`: upstream refuses the case.
    """
    best: tuple[tuple[bool, int], Subject] | None = None
    for attempt in range(_ATTEMPTS):
        current = seed + attempt
        config, model = factory.build(family, case.overrides, current)
        prompts = random_prompts(seed=current)
        expected = reference(model, prompts)
        subject = Subject(family, case, current, prompts, expected, _alternatives(config, model, prompts))
        safe = float(expected.margins().min()) >= _SAFE_MARGIN
        if safe and expected.variety >= _ENOUGH_VARIETY:
            return subject
        if best is None or (safe, expected.variety) > best[0]:
            best = ((safe, expected.variety), subject)
    if best is None:
        raise AssertionError("no attempt was made")
    return best[1]


def _alternatives(config: Any, model: nn.Module, prompts: Prompts) -> tuple[Reference, ...]:
    found = []
    if depends_on_length(config) or _forgets(config):
        found.append(by_recompute(model, prompts, DECODE_STEPS))
    if _forgets(config):
        found.append(by_generate(model, prompts, DECODE_STEPS, Method.WHOLE_CACHE))
    return tuple(found)


def _forgets(config: Any) -> bool:
    """Whether upstream's cache drops keys by a window that is not told per layer: masks may or may not do the same."""
    text = config.get_text_config(decoder=True)
    return bool(getattr(text, "sliding_window", None)) and getattr(text, "layer_types", None) is None


def depends_on_length(config: Any) -> bool:
    """Whether some rope type of the text configuration changes its frequencies with the sequence's length."""
    parameters = getattr(config.get_text_config(decoder=True), "rope_parameters", None)
    if not isinstance(parameters, dict):
        return False
    sets = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    return any(one.get("rope_type") in _BY_LENGTH for one in sets)


@torch.no_grad()
def has_effect(subject: Subject) -> bool | None:
    """Whether the case changes upstream's logits against the family's default with the same weights; None if those do
    not fit.

    A case without an effect is no evidence that the variant honours its field.
    """
    if "tie_word_embeddings" in subject.case.overrides:
        return None  # the same weights cannot be tied and not
    _, default = factory.build(subject.family, {}, subject.seed)
    model = subject.model()
    weights, others = model.state_dict(), default.state_dict()
    if {n: w.shape for n, w in weights.items()} != {n: w.shape for n, w in others.items()}:
        return None
    default.load_state_dict(weights)
    row = [*subject.prompts.rows[0], *subject.expected.tokens[0].tolist()]
    try:
        found, usual = (one(input_ids=torch.tensor([row])).logits for one in (model, default))
    except Exception as failure:
        raise UpstreamFailsError(f"forward: {type(failure).__name__}: {failure}") from failure
    return not torch.allclose(found, usual, rtol=0.0, atol=1e-5 * subject.expected.span)
