"""The checks of training variants see what they must: a right variant passes all of them, and each known error fails
those that are there for it.
"""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from training_variants import (
    HandMade,
    always_packed,
    joined_logits,
    loss_across_boundaries,
    loss_unshifted,
    loss_with_dead_gradient,
    loss_with_padding,
    loss_without_items,
    mean_of_means,
    padded_logits,
    padded_router_loss,
    without_undo,
)

from runtime.verify.cases import Case
from runtime.verify.results import Check, Status
from runtime.verify.training.scenarios import ROUTER, SCENARIOS, scenarios_for
from runtime.verify.training.subject import Subject, prepare
from runtime.verify.training.trial import Patch, Trial

DENSE, MOE = "llama", "mixtral"


@pytest.fixture(scope="module")
def dense() -> Subject:
    return prepare(DENSE, Case("default"))


@pytest.fixture(scope="module")
def moe() -> Subject:
    return prepare(MOE, Case("default"))


def _failed(subject: Subject, patch: Patch) -> dict[str, set[str]]:
    """The quantities that failed by scenario; an exception is one named ``error``."""
    found: dict[str, set[str]] = {}
    for scenario in scenarios_for(subject, SCENARIOS):
        for check in scenario.run(Trial(subject, "packed", patch)):
            if check.status is Status.FAILED:
                found.setdefault(scenario.name, set()).add(check.quantity if check.error is not None else "error")
    return found


def _explained(checks: list[Check]) -> list[str]:
    return [f"{c.scenario}: {c.quantity} {c.error} {c.message}" for c in checks if c.status is not Status.PASSED]


@pytest.mark.parametrize("name", [DENSE, MOE])
def test_a_right_variant_passes_everything(name: str, request: pytest.FixtureRequest) -> None:
    subject: Subject = request.getfixturevalue("dense" if name == DENSE else "moe")
    assert subject.training
    checks = [c for s in scenarios_for(subject, SCENARIOS) for c in s.run(Trial(subject, "packed", HandMade()))]
    assert not _explained(checks)
    assert {check.scenario for check in checks} >= {scenario.name for scenario in SCENARIOS}
    assert ({s.name for s in ROUTER} <= {check.scenario for check in checks}) is (name == MOE)


@pytest.mark.parametrize("subject", ["dense", "moe"])
def test_sequences_that_see_each_other_fail(subject: str, request: pytest.FixtureRequest) -> None:
    found = _failed(request.getfixturevalue(subject), HandMade(logits=joined_logits))
    assert {"logits", "loss", "grad"} <= found["padded right"]
    assert "isolation" in found["first sequence changed"]
    assert {"padded left", "packed by cu_seqlens", "packed by positions", "two sequences per row"} <= found.keys()
    assert {"evaluation mode", "layouts of logits", "gradient checkpointing", "two epochs of AdamW"} <= found.keys()


def test_padding_that_is_seen_fails_on_the_left(dense: Subject) -> None:
    found = _failed(dense, HandMade(logits=padded_logits))
    assert {"padded left", "two sequences per row", "evaluation mode"} <= found.keys()


@pytest.mark.parametrize(
    "loss",
    [loss_across_boundaries, loss_unshifted, loss_with_padding, mean_of_means],
    ids=lambda loss: loss.__name__,
)
def test_wrong_losses_fail(loss: Callable[..., torch.Tensor], dense: Subject) -> None:
    found = _failed(dense, HandMade(loss=loss))
    assert {"loss", "grad"} <= found["padded right"]
    assert "logits" not in found["padded right"]
    assert {"trained loss", "parameters"} <= found["two epochs of AdamW"]


def test_a_loss_that_ignores_the_number_of_items_fails_in_accumulation_alone(dense: Subject) -> None:
    assert _failed(dense, HandMade(loss=loss_without_items)) == {"accumulated gradients": {"loss", "grad"}}


def test_a_right_loss_with_a_wrong_gradient_fails(dense: Subject) -> None:
    found = _failed(dense, HandMade(loss=loss_with_dead_gradient))
    assert found["padded right"] == {"grad"}
    assert found["gradient checkpointing"] == {"grad"}


def test_an_auxiliary_loss_that_is_missing_or_counts_padding_fails(moe: Subject) -> None:
    missing = _failed(moe, HandMade(router=None))
    assert missing.keys() == {"router loss", "router loss without padding"}
    padded = _failed(moe, HandMade(router=padded_router_loss))
    assert padded.keys() == {"router loss"}
    assert {"router", "loss"} <= padded["router loss"]


def test_logits_in_the_wrong_layout_fail(dense: Subject) -> None:
    assert _failed(dense, HandMade(shown=always_packed)).keys() == {"evaluation mode", "layouts of logits"}


def test_what_is_not_undone_fails(dense: Subject) -> None:
    assert _failed(dense, without_undo).keys() == {"undone"}


def test_a_patch_that_reaches_other_models_fails(dense: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(dense.original)
    monkeypatch.setattr(kind, "forward", kind.forward)  # put back after the test

    def everywhere(family: str, model: nn.Module) -> Callable[[], None]:
        before = kind.forward

        def forward(self: nn.Module, *arguments: object, **keywords: object) -> object:
            output = before(self, *arguments, **keywords)
            output.logits = output.logits * 1.001
            return output

        kind.forward = forward  # type: ignore[method-assign]
        return lambda: None

    assert "logits" in _failed(dense, everywhere)["undone"]


def test_a_parameter_without_gradient_is_seen_by_its_name(dense: Subject) -> None:
    def frozen(family: str, model: nn.Module) -> Callable[[], None]:
        undo = HandMade()(family, model)
        model.model.layers[1].self_attn.k_proj.weight.requires_grad_(False)  # type: ignore[union-attr, index]
        return undo

    checks = SCENARIOS[0].run(Trial(dense, "packed", frozen))
    (bad,) = [check for check in checks if check.status is Status.FAILED]
    assert (bad.quantity, bad.message) == ("grad", "model.layers.1.self_attn.k_proj.weight")
    assert bad.error == pytest.approx(1.0)
