"""Running many families: what one does never reaches another, and what went wrong is in its result."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.verify import __main__ as command
from runtime.verify.family import Request, verify_family
from runtime.verify.pool import Event, Finished, Started, run_all
from runtime.verify.report import summary
from runtime.verify.results import CaseResult, Check, FamilyResult, Status, status_of, to_json
from runtime.verify.run import requests_for, write_results


def fake(request: Request, progress: Callable[[str], None]) -> FamilyResult:
    progress("default")
    match request.family:
        case "crashes":
            os._exit(3)
        case "hangs":
            time.sleep(600)
        case "raises":
            raise RuntimeError("unforeseen")
    return FamilyResult(request.family, Status.PASSED)


def test_one_family_takes_no_other_with_it() -> None:
    events: list[Event] = []
    families = ("first", "crashes", "hangs", "raises", "last")
    results = run_all([Request(family) for family in families], 2, 5.0, events.append, fake)
    assert [result.family for result in results] == list(families)
    assert [result.status for result in results] == [
        Status.PASSED,
        Status.CRASHED,
        Status.TIMED_OUT,
        Status.CRASHED,
        Status.PASSED,
    ]
    assert "exit code 3" in results[1].message and "in case default" in results[1].message
    assert "unforeseen" in results[3].message
    assert {event.family for event in events if isinstance(event, Started)} == set(families)
    assert sum(isinstance(event, Finished) for event in events) == len(families)


def test_jobs_must_be_positive() -> None:
    with pytest.raises(ValueError, match="jobs"):
        run_all([], 0, 1.0, lambda event: None)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="did you mean gemma2"):
        requests_for(["gema2"])
    with pytest.raises(ValueError, match="unknown stage 'onnx'"):
        requests_for(["llama"], stages=("hf", "onnx"))


def test_an_unknown_case_is_told_with_those_there_are() -> None:
    result = verify_family(Request("llama", ("hf",), ("mlp_bias",), only=("no_such_case",)))
    assert result.status is Status.FAILED
    assert "no_such_case" in result.message and "mlp_bias=True" in result.message


def test_the_upstream_stage_alone() -> None:
    result = verify_family(Request("llama", ("hf",), ("mlp_bias",)))
    assert result.status is Status.PASSED
    assert [(case.case, case.status, case.method) for case in result.cases] == [
        ("default", Status.PASSED, "generate"),
        ("mlp_bias=True", Status.PASSED, "generate"),
    ]


def test_what_upstream_refuses_is_recorded() -> None:
    result = verify_family(Request("phi3", ("hf",), ("rope_parameters",)))
    refused = {case.case: case.message for case in result.cases if case.status is Status.UPSTREAM_REFUSES}
    assert "must be one of ['longrope']" in refused["rope_parameters=linear"]
    assert result.status is Status.PASSED


def test_switches_reach_the_requests() -> None:
    (request,) = requests_for(["llama", "llama"], switches={"llama": ["mlp_bias"]})
    assert request.switches == ("mlp_bias",)


def test_wrong_arguments_are_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["no_such_family"]) == command.USAGE
    assert command.main([]) == command.USAGE
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


def test_status_of_a_whole() -> None:
    assert status_of([Status.PASSED, Status.UPSTREAM_REFUSES]) is Status.PASSED
    assert status_of([Status.UPSTREAM_REFUSES]) is Status.UPSTREAM_REFUSES
    assert status_of([Status.PASSED, Status.FAILED, Status.CRASHED]) is Status.CRASHED


def _result() -> FamilyResult:
    checks = (
        Check("kv", "one", Status.PASSED, 1.23456e-6),
        Check("ort", "one", Status.FAILED, float("inf"), message="no number"),
    )
    return FamilyResult("llama", Status.FAILED, (CaseResult("default", Status.FAILED, checks),))


def test_results_are_json(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results([_result()], path)
    (family,) = json.loads(path.read_text())
    kv, ort = family["cases"][0]["checks"]
    assert (family["status"], kv["error"], ort["error"]) == ("failed", 1.235e-06, "inf")
    assert to_json([_result()]) == path.read_text()
    assert list(tmp_path.iterdir()) == [path]


def test_errors_and_ends_by_stage() -> None:
    result = _result()
    assert (result.worst("kv"), result.worst("ort"), result.worst("hf")) == (1.23456e-6, float("inf"), None)
    assert (result.stage_status("kv"), result.stage_status("ort")) == (Status.PASSED, Status.FAILED)
    assert summary([result]) == "1 families: 1 failed"
