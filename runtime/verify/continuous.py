"""Continuous batching: prompts enter a larger cache one by one, in rows of their own, and decode together.

Compute context lengths are used along with it: each step looks only at as many slots as it needs.
"""

from typing import Any, Protocol

import torch

from runtime.qeff.cache import QEffDynamicCache
from runtime.qeff.session import QEffOrtSession
from runtime.verify.prompts import DECODE_STEPS
from runtime.verify.results import Check, Status
from runtime.verify.stages import describe, judge, variant
from runtime.verify.subject import Subject

NAME = "continuous batching with compute context lengths"

_ROWS = 4
_SLOTS = (2, 0, 3)
"""Cache row of each prompt: neither in order nor all of them."""
_CHUNK = 4
_STEP = 8


class Stepper(Protocol):
    """One step on some rows of a larger cache."""

    def step(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """input_ids, position_ids int64 [b, s], batch_index int64 [b, 1], comp_ctx_lengths int64 [L] -> logits [b,
        vocab].
        """
        ...


class _Torch:
    def __init__(self, model: Any, ctx_len: int) -> None:
        self._model, self._past = model, QEffDynamicCache(ctx_len=ctx_len, cache_batch_size=_ROWS)

    @torch.no_grad()
    def step(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        out = self._model(**inputs, past_key_values=self._past, use_cache=True)
        self._past = out.past_key_values
        logits: torch.Tensor = out.logits[:, 0].float()
        return logits


class _Ort:
    def __init__(self, session: QEffOrtSession, ctx_len: int) -> None:
        self._session = session
        session.start(_ROWS, ctx_len)

    def step(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.from_numpy(self._session.run(inputs))


def check_continuous(subject: Subject, stages: tuple[str, ...]) -> list[Check]:
    """The check in each of the stages given ("kv", "ort"); raises what `stages.check_stages` raises."""
    checks = []
    ctx_len = subject.prompts.longest + DECODE_STEPS - 1
    with variant(subject, continuous_batching=True, qaic_config={"ccl_enabled": True}) as (wrapper, folder):
        for stage in stages:
            try:
                stepper: Stepper
                if stage == "kv":
                    stepper = _Torch(wrapper.model, ctx_len)
                else:
                    stepper = _Ort(QEffOrtSession(wrapper.export(folder), threads=1), ctx_len)
                tokens, logits = _run(stepper, subject, ctx_len)
            except Exception as failure:
                checks.append(Check(stage, NAME, Status.FAILED, message=describe(failure)))
                continue
            checks.append(judge(stage, NAME, subject, tuple(range(len(_SLOTS))), tokens, logits))
    return checks


def _run(stepper: Stepper, subject: Subject, ctx_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = subject.prompts.rows
    latest = torch.stack([_prefill(stepper, row, slot, ctx_len) for row, slot in zip(rows, _SLOTS, strict=True)])
    positions = torch.tensor([[len(row)] for row in rows])
    slots = torch.tensor(_SLOTS)[:, None]
    tokens, logits = [latest.argmax(-1)], [latest]
    for _ in range(DECODE_STEPS - 1):
        latest = stepper.step(_inputs(tokens[-1][:, None], positions, slots, ctx_len))
        tokens.append(latest.argmax(-1))
        logits.append(latest)
        positions = positions + 1
    return torch.stack(tokens, dim=1), torch.stack(logits, dim=1)


def _prefill(stepper: Stepper, row: tuple[int, ...], slot: int, ctx_len: int) -> torch.Tensor:
    """Logits [vocab] after the prompt, fed in chunks; the last chunk is padded."""
    latest = torch.empty(0)
    for start in range(0, len(row), _CHUNK):
        real = row[start : start + _CHUNK]
        pads = _CHUNK - len(real)
        ids = torch.tensor([[*real, *[1] * pads]])
        positions = torch.tensor([[*range(start, start + len(real)), *[-1] * pads]])
        latest = stepper.step(_inputs(ids, positions, torch.tensor([[slot]]), ctx_len))[0]
    return latest


def _inputs(ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, ctx_len: int) -> dict[str, torch.Tensor]:
    needed = int(positions.max()) + 1
    length = min(-(-needed // _STEP) * _STEP, ctx_len)
    return {
        "input_ids": ids,
        "position_ids": positions,
        "batch_index": slots,
        "comp_ctx_lengths": torch.zeros(length, dtype=torch.int64),
    }
