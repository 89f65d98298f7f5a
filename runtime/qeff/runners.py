"""The two engines behind `generate`: the variant in PyTorch, and its exported file in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from runtime.qeff.cache import QEffDynamicCache

if TYPE_CHECKING:
    from runtime.qeff.session import QEffOrtSession

# Learned position embeddings and tables of the family's own end somewhere; only the look-up knows where.
_POSITIONS_TOO_LARGE = "the model has no embedding for some position up to {}; shorten the prompt or generation_len"


@dataclass(frozen=True)
class BufferPlan:
    """How the KV buffers are laid out and addressed in one `generate` call.

    `compute_lengths`: ascending compute context lengths to choose from, the last being `ctx_len`; None for a model
    without that input.
    """

    rows: int
    ctx_len: int
    continuous_batching: bool
    compute_lengths: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls, rows: int, ctx_len: int, *, continuous_batching: bool, compute_lengths: Sequence[int] | None
    ) -> BufferPlan:
        """Raises ValueError for compute context lengths outside `[1, ctx_len]`."""
        if compute_lengths is not None and not all(1 <= length <= ctx_len for length in compute_lengths):
            raise ValueError(f"comp_ctx_lengths must lie in [1, ctx_len={ctx_len}], got {list(compute_lengths)}")
        lengths = None if compute_lengths is None else tuple(sorted({*compute_lengths, ctx_len}))
        return cls(rows, ctx_len, continuous_batching, lengths)

    def extras(self, position_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """`batch_index` and `comp_ctx_lengths` for one step, where the model takes them."""
        inputs: dict[str, torch.Tensor] = {}
        if self.compute_lengths is not None:
            needed = int(position_ids.max()) + 1
            length = next(length for length in self.compute_lengths if length >= needed)
            inputs["comp_ctx_lengths"] = torch.zeros(length, dtype=torch.int64)
        if self.continuous_batching:
            inputs["batch_index"] = torch.arange(self.rows)[:, None]
        return inputs


class TorchRunner:
    """Steps of the transformed model itself, on the device that it is on."""

    def __init__(self, model: Any, plan: BufferPlan) -> None:
        self._model = model
        self._plan = plan
        self._device = next(model.parameters()).device
        self._past: Any = QEffDynamicCache(
            ctx_len=plan.ctx_len, cache_batch_size=plan.rows if plan.continuous_batching else None
        )

    def step(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """See `runtime.qeff.generation.StepRunner`. Raises IndexError beyond a model's learned positions."""
        inputs = {"input_ids": input_ids, "position_ids": position_ids, **self._plan.extras(position_ids)}
        try:
            with torch.no_grad():
                outputs = self._model(
                    **{name: tensor.to(self._device) for name, tensor in inputs.items()},
                    past_key_values=self._past,
                    use_cache=True,
                )
        except IndexError as error:
            raise IndexError(f"{_POSITIONS_TOO_LARGE.format(int(position_ids.max()))}: {error}") from error
        self._past = outputs.past_key_values
        logits: torch.Tensor = outputs.logits[:, 0]
        return logits.float().cpu()


class OrtRunner:
    """Steps of an exported file."""

    def __init__(self, session: QEffOrtSession, plan: BufferPlan) -> None:
        self._session = session
        self._plan = plan
        session.start(plan.rows, plan.ctx_len)

    def step(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """See `runtime.qeff.generation.StepRunner`. Raises IndexError beyond a model's learned positions."""
        inputs = {"input_ids": input_ids, "position_ids": position_ids, **self._plan.extras(position_ids)}
        try:
            return torch.from_numpy(self._session.run(inputs))
        except RuntimeError as error:
            if "out of data bounds" not in str(error):  # what ONNX Runtime's Gather says
                raise
            raise IndexError(f"{_POSITIONS_TOO_LARGE.format(int(position_ids.max()))}: {error}") from error
