"""The comparison sees what it must: every scenario with an error of a known kind put in fails, and without it
passes.
"""

import math
from collections.abc import Callable

import pytest
import torch

from runtime.qeff import cache
from runtime.verify.cases import Case
from runtime.verify.compare import TOLERANCES, compare
from runtime.verify.reference import Method, Reference, by_recompute
from runtime.verify.results import Status
from runtime.verify.scenarios import SCENARIOS, Padding
from runtime.verify.stages import VariantEngine, check_scenario, judge, variant
from runtime.verify.subject import Subject, prepare

Answer = tuple[torch.Tensor, torch.Tensor]


def _reference() -> Reference:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 11, generator=generator)
    return Reference(logits.argmax(-1), logits, Method.GENERATE)


def test_equal_answers_have_no_error() -> None:
    expected = _reference()
    found = compare(expected, (0, 2), expected.tokens[[0, 2]], expected.logits[[0, 2]])
    assert found.error == 0.0
    assert found.within(0.0)


@pytest.mark.parametrize("stage", sorted(TOLERANCES))
def test_errors_are_relative_to_the_range_of_the_logits(stage: str) -> None:
    expected, tolerance = _reference(), TOLERANCES[stage]
    for factor, passes in ((0.9, True), (1.1, False)):
        logits = expected.logits.clone()
        logits[1, 3, int(logits[1, 3].argmin())] -= factor * tolerance * expected.span
        found = compare(expected, (0, 1, 2), expected.tokens, logits)
        assert found.error == pytest.approx(factor * tolerance, rel=1e-2)
        assert found.within(tolerance) is passes


def test_a_different_token_fails_however_near_the_tie() -> None:
    expected = _reference()
    first, second = expected.logits[1, 2].topk(2).indices.tolist()
    logits = expected.logits.clone()
    logits[1, 2, first] = logits[1, 2, second] + 1e-7
    tie = Reference(expected.tokens, logits, Method.GENERATE)
    tokens = expected.tokens.clone()
    tokens[1, 2] = second
    found = compare(tie, (0, 1, 2), tokens, logits)
    assert not found.within(1.0)
    (divergence,) = found.divergences
    assert (divergence.row, divergence.step, divergence.expected, divergence.found) == (1, 2, first, second)
    assert divergence.margin < 1e-6


def test_what_follows_a_different_token_is_not_compared() -> None:
    expected = _reference()
    tokens, logits = expected.tokens.clone(), expected.logits.clone()
    tokens[0, 1] = (int(tokens[0, 1]) + 1) % 11
    logits[0, 2:] += 100.0
    assert compare(expected, (0, 1, 2), tokens, logits).error == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_an_infinite_error(value: float) -> None:
    expected = _reference()
    logits = expected.logits.clone()
    logits[2, 0, 4] = value
    found = compare(expected, (0, 1, 2), expected.tokens, logits)
    assert found.error == math.inf
    assert not found.within(1.0)


def test_other_shapes_are_refused() -> None:
    expected = _reference()
    with pytest.raises(ValueError, match="upstream has"):
        compare(expected, (0,), expected.tokens, expected.logits)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return prepare("llama", Case("default"))


class _Upstream:
    """Upstream itself as the engine, with its answer distorted."""

    def __init__(self, subject: Subject, distort: Callable[[torch.Tensor, torch.Tensor], Answer]) -> None:
        self._model, self._prompts, self._distort = subject.model(), subject.prompts, distort

    def generate(self, ids: torch.Tensor, mask: torch.Tensor, steps: int, chunk: int, ctx_len: int) -> Answer:
        rows = tuple(tuple(row[seen.bool()].tolist()) for row, seen in zip(ids, mask, strict=True))
        assert set(rows) <= set(self._prompts.rows)
        answer = by_recompute(self._model, type(self._prompts)(rows), steps)
        return self._distort(answer.tokens, answer.logits)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_upstream_passes_and_distorted_upstream_fails(scenario: object, subject: Subject) -> None:
    assert scenario in SCENARIOS
    honest = _Upstream(subject, lambda tokens, logits: (tokens, logits))
    scaled = _Upstream(subject, lambda tokens, logits: (tokens, logits * 1.001))
    shifted = _Upstream(subject, lambda tokens, logits: (tokens.roll(1, dims=1), logits))
    chosen = SCENARIOS[SCENARIOS.index(scenario)]  # type: ignore[arg-type]
    assert check_scenario("kv", honest, subject, chosen).status is Status.PASSED
    assert check_scenario("kv", scaled, subject, chosen).status is Status.FAILED
    if chosen.steps > 1:
        assert check_scenario("kv", shifted, subject, chosen).status is Status.FAILED


def test_an_exception_is_a_failed_check(subject: Subject) -> None:
    def broken(tokens: torch.Tensor, logits: torch.Tensor) -> Answer:
        raise RuntimeError("no luck")

    check = check_scenario("ort", _Upstream(subject, broken), subject, SCENARIOS[0])
    assert check.status is Status.FAILED
    assert "no luck" in check.message


def test_a_row_may_follow_any_of_upstreams_answers_but_only_whole(subject: Subject) -> None:
    other = Reference(subject.expected.tokens, subject.expected.logits + 1.0, Method.RECOMPUTE)
    both = Subject(subject.family, subject.case, subject.seed, subject.prompts, subject.expected, (other,))
    tokens = subject.expected.tokens
    mixed = subject.expected.logits.clone()
    mixed[1] += 1.0
    rows = (0, 1, 2)
    assert judge("kv", "mixed rows", both, rows, tokens, mixed).status is Status.PASSED
    assert judge("kv", "one answer only", subject, rows, tokens, mixed).status is Status.FAILED
    mixed[0, 5:] += 1.0
    assert judge("kv", "a row of both", both, rows, tokens, mixed).status is Status.FAILED


def test_scenarios_cover_what_they_must() -> None:
    longest = 13
    assert {len(scenario.rows) for scenario in SCENARIOS} == {1, 3}
    assert {scenario.padding for scenario in SCENARIOS if len(scenario.rows) > 1} == set(Padding)
    assert any(scenario.chunk < longest and longest % scenario.chunk for scenario in SCENARIOS)
    assert any(scenario.chunk > longest for scenario in SCENARIOS)
    assert any(scenario.spare == 0 for scenario in SCENARIOS) and any(scenario.spare for scenario in SCENARIOS)
    assert all(any(scenario.steps > 16 for scenario in SCENARIOS if len(scenario.rows) == batch) for batch in (1, 3))


def test_padding_over_a_live_slot_is_caught(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pads written to the last slot, as negative indices do: only a context that a padded chunk fills shows it."""

    def scatter(data: torch.Tensor, position_ids: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        data = data.clone()
        rows = torch.arange(len(data))[:, None]
        data.transpose(1, 2)[rows, position_ids] = updates.transpose(1, 2)
        return data

    fills = next(scenario for scenario in SCENARIOS if scenario.steps == 1)
    with variant(subject) as (wrapper, _):
        engine = VariantEngine(wrapper, "torch")
        assert check_scenario("kv", engine, subject, fills).status is Status.PASSED
        monkeypatch.setattr(cache, "ctx_scatter", scatter)
        assert check_scenario("kv", engine, subject, fills).status is Status.FAILED


def test_variants_leave_upstream_as_it_was(subject: Subject) -> None:
    """References of later cases are made in a process that has run variants: upstream's classes must not remember
    them.
    """
    with variant(subject) as (wrapper, _):
        assert check_scenario("kv", VariantEngine(wrapper, "torch"), subject, SCENARIOS[0]).status is Status.PASSED
        again = prepare(subject.family, subject.case)
    assert torch.equal(again.expected.logits, subject.expected.logits)
    assert torch.equal(again.expected.tokens, subject.expected.tokens)
