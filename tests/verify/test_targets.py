"""Both targets are verified, told and recorded in the same way."""

from pathlib import Path

import pytest
import torch

from codegen.emit import coverage, verified
from codegen.emit.verified import ERRORS, Record
from runtime.verify.cases import Case
from runtime.verify.family import Request
from runtime.verify.report import table
from runtime.verify.results import CaseResult, Check, FamilyResult, Status
from runtime.verify.run import requests_for
from runtime.verify.targets import QEFF, RMPAD, TARGETS, target_named
from runtime.verify.training.compare import loss_error, tensors_error
from runtime.verify.training.family import verify_case, verify_family
from runtime.verify.training.variants import NoVariantError


def test_what_is_measured_is_what_is_recorded() -> None:
    for name, target in TARGETS.items():
        assert ERRORS[name].titles == {measure.name: measure.title for measure in target.measures}
        assert {measure.stage for measure in target.measures} == set(target.stages) - {"hf"}


def test_stages_belong_to_a_target() -> None:
    (request,) = requests_for(["llama"], ("hf", "packed"), target=RMPAD)
    assert request.stages == ("hf", "packed")
    assert requests_for(["llama"])[0].stages == ("hf", "kv", "ort")
    with pytest.raises(ValueError, match="unknown stage 'packed' of qeff"):
        requests_for(["llama"], ("packed",), target=QEFF)
    with pytest.raises(ValueError, match="there are qeff, rmpad"):
        target_named("vllm")


def test_kernels_need_an_environment() -> None:
    assert RMPAD.environment_for(("hf", "packed")) == {}
    assert RMPAD.environment_for(RMPAD.stages) == {"TRITON_INTERPRET": "1"}


def _result() -> FamilyResult:
    checks = (
        Check("packed", "padded right", Status.PASSED, 1e-7),
        Check("packed", "padded right", Status.PASSED, 2e-7, quantity="loss"),
        Check("packed", "router loss", Status.PASSED, 3e-7, quantity="router"),
        Check("packed", "padded right", Status.FAILED, 4e-3, message="lm_head.weight", quantity="grad"),
        Check("liger", "padded right", Status.PASSED, 5e-6, quantity="grad"),
    )
    return FamilyResult("llama", Status.FAILED, (CaseResult("default", Status.FAILED, checks),))


def test_the_worst_of_each_quantity() -> None:
    found = {measure.name: measure.of(_result()) for measure in RMPAD.measures}
    assert found == {"logits": 1e-7, "loss": 3e-7, "grad": 4e-3, "isolation": None, "trained": None, "liger": 5e-6}
    assert len(table([_result()], (), RMPAD).columns) == 5 + len(RMPAD.measures)
    assert len(table([_result()], ("packed",), RMPAD).columns) == 5 + len(RMPAD.measures) - 1


def test_records_of_both_targets_in_one_file(tmp_path: Path) -> None:
    records = {
        "qeff": {"llama": Record("0123", True, 2, {"kv": 1.2e-6, "ort": 3.4e-6})},
        "rmpad": {"llama": Record("4567", False, 1, {"logits": 5.6e-7, "grad": 4e-3}, "why", "default")},
    }
    path = tmp_path / verified.NAME
    path.write_text(verified.render(records))
    assert verified.read(path) == records
    assert 'llama = {output = "0123", passed = true, cases = 2, kv = 1.2e-06, ort = 3.4e-06' in path.read_text()
    state = coverage.State.FAILED
    page = coverage.render("5", {"rmpad": [coverage.Row("llama", state, "why", records["rmpad"]["llama"])]})
    assert "| type | state | cases | logits error | loss error | gradient error |" in page
    assert "| llama | failed | 1 | 5.6e-07 |  | 4.0e-03 |  |  |  | why |" in page


def test_the_upstream_stage_alone() -> None:
    result = verify_family(Request("llama", ("hf",), ("mlp_bias",)))
    assert [(case.case, case.status, case.message) for case in result.cases] == [
        ("default", Status.PASSED, ""),
        ("mlp_bias=True", Status.PASSED, ""),
    ]


def test_a_family_without_a_variant_is_unsupported() -> None:
    def refused(family: str) -> None:
        raise NoVariantError("a reason")

    result = verify_case("llama", Case("default"), required=refused)
    assert (result.status, result.message) == (Status.UNSUPPORTED, "a reason")


def test_what_upstream_refuses_is_recorded() -> None:
    result = verify_case("phi3", Case("linear", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}), {})
    assert result.status is Status.UPSTREAM_REFUSES


def test_cases_say_what_is_special_about_them() -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    overrides = {"rope_parameters": dynamic, "max_position_embeddings": 16}
    assert "of one length" in verify_case("llama", Case("dynamic", overrides), {}).message
    assert "changes nothing" in verify_case("llama", Case("pad", {"pad_token_id": 3}), {}).message


def test_tensors_are_compared_in_norm_with_a_floor() -> None:
    large, small = torch.full((4,), 10.0), torch.full((4,), 1e-9)
    assert tensors_error({"a": large, "b": small}, {"a": large, "b": small})[0] == 0.0
    error, name = tensors_error({"a": large * 1.01, "b": small}, {"a": large, "b": small})
    assert (round(error, 6), name) == (0.01, "a")
    error, name = tensors_error({"a": large, "b": small * 3}, {"a": large, "b": small})
    assert (round(error / 2e-7, 3), name) == (1.0, "b")  # 2 * 1e-9 against 1e-3 of 10
    assert tensors_error({"a": large * float("nan")}, {"a": large})[0] == float("inf")
    with pytest.raises(ValueError, match="not on both sides"):
        tensors_error({"a": large}, {"a": large, "b": small})


def test_losses_are_one_number() -> None:
    assert loss_error(torch.tensor(2.02), 2.0) == pytest.approx(0.01, rel=1e-4)
    assert loss_error(torch.tensor(float("nan")), 2.0) == float("inf")
    with pytest.raises(ValueError, match="shape"):
        loss_error(torch.ones(2), 2.0)
