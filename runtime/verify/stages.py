"""The variant in torch and its exported file in ONNX Runtime, asked the same as upstream."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from runtime.qeff.auto_model import QEFFAutoModelForCausalLM
from runtime.verify.compare import TOLERANCES, Difference, Divergence, compare
from runtime.verify.reference import Reference
from runtime.verify.results import Check, Status
from runtime.verify.scenarios import SCENARIOS, Scenario
from runtime.verify.sizes import POSITIONS
from runtime.verify.subject import Subject

RUNTIMES = {"kv": "torch", "ort": "ort"}
"""What the stages beside `hf` (upstream itself) are called by `generate`."""


class Engine(Protocol):
    """Something that continues prompts greedily."""

    def generate(
        self, ids: torch.Tensor, mask: torch.Tensor, steps: int, chunk: int, ctx_len: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ids, mask: int64 [batch, longest] -> tokens int64 [batch, steps], logits float32 [batch, steps, vocab]."""
        ...


class VariantEngine:
    """The transformed model, run by torch or by ONNX Runtime."""

    def __init__(self, wrapper: Any, runtime: str) -> None:
        self._wrapper, self._runtime = wrapper, runtime

    def generate(
        self, ids: torch.Tensor, mask: torch.Tensor, steps: int, chunk: int, ctx_len: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out = self._wrapper.generate(
            ids,
            attention_mask=mask,
            generation_len=steps,
            prefill_seq_len=chunk,
            ctx_len=ctx_len,
            runtime=self._runtime,
            return_logits=True,
        )
        return out.generated_ids, out.logits


@contextmanager
def variant(subject: Subject, attention: str | None = "eager", **options: Any) -> Iterator[tuple[Any, Path]]:
    """The wrapper of a fresh transformed model, and a folder that its exports go to and that is removed afterwards.

    `attention`: how the model was loaded (`factory.build`), which a variant must not depend on.
    """
    with tempfile.TemporaryDirectory(prefix="regraft-verify-") as folder:
        # Upstream's rotary embeddings know no end; a configuration with few positions must not end the tables early.
        wrapper = QEFFAutoModelForCausalLM(subject.model(attention), max_seq_len_cached=POSITIONS, **options)
        yield wrapper, Path(folder) / "export"


def check_stages(subject: Subject, stages: tuple[str, ...], scenarios: tuple[Scenario, ...] = SCENARIOS) -> list[Check]:
    """The scenarios in the stages given ("kv", "ort"). One exported file serves all scenarios of the second.

    Raises `runtime.qeff.UnsupportedFamilyError` where there is no variant; everything else that goes wrong is a
    failed check.
    """
    checks: list[Check] = []
    with variant(subject) as (wrapper, folder):
        for stage in stages:
            if stage == "ort" and (failed := _export_check(wrapper, folder)) is not None:
                checks.append(failed)
                continue
            engine = VariantEngine(wrapper, RUNTIMES[stage])
            checks += [check_scenario(stage, engine, subject, scenario) for scenario in scenarios]
            if stage == "ort" and len(files := list(folder.parent.rglob("*.onnx"))) != 1:
                message = f"{len(files)} files were exported for one model"
                checks.append(Check(stage, "one file for every batch and length", Status.FAILED, message=message))
    return checks


def _export_check(wrapper: Any, folder: Path) -> Check | None:
    try:
        wrapper.export(folder)
    except Exception as failure:
        return Check("ort", "export", Status.FAILED, message=describe(failure))
    return None


def check_scenario(stage: str, engine: Engine, subject: Subject, scenario: Scenario) -> Check:
    """Runs one scenario and compares it with upstream's answer."""
    ids, mask = scenario.batch(subject.prompts)
    try:
        tokens, logits = engine.generate(ids, mask, scenario.steps, scenario.chunk, scenario.ctx_len(subject.prompts))
    except Exception as failure:
        return Check(stage, scenario.name, Status.FAILED, message=describe(failure))
    return judge(stage, scenario.name, subject, scenario.rows, tokens, logits)


def judge(
    stage: str, name: str, subject: Subject, rows: tuple[int, ...], tokens: torch.Tensor, logits: torch.Tensor
) -> Check:
    """The check that tokens [n, steps] and logits [n, steps, vocab] of the given rows amount to.

    Where upstream has several answers (`subject.prepare`) each row may follow any of them, whole.
    """
    tolerance = TOLERANCES[stage]
    message = ""
    worst = 0.0
    divergences: list[Divergence] = []
    for index, row in enumerate(rows):
        found = _one(subject.expected, row, index, tokens, logits)
        for alternative in () if found.within(tolerance) else subject.alternatives:
            other = _one(alternative, row, index, tokens, logits)
            if other.within(tolerance):
                found, message = other, f"follows upstream by {alternative.method.value}"
                break
        worst = max(worst, found.error)
        divergences += found.divergences
    whole = Difference(worst, tuple(divergences))
    status = Status.PASSED if whole.within(tolerance) else Status.FAILED
    return Check(stage, name, status, whole.error, whole.divergences, message)


def _one(expected: Reference, row: int, index: int, tokens: torch.Tensor, logits: torch.Tensor) -> Difference:
    return compare(expected, (row,), tokens[index : index + 1], logits[index : index + 1])


def describe(failure: BaseException) -> str:
    """An exception as one line."""
    return f"{type(failure).__name__}: {' '.join(str(failure).split())[:400]}"
