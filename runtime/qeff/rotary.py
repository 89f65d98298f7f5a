"""Rotary embeddings read from tables.

The tables are what the upstream class itself computes for positions 0, 1, 2, ...; so the interleaved, partial and
scaled kinds are right without being known here. What a table cannot hold is a frequency that depends on the length of
the sequence:

* longrope has one set of factors up to ``original_max_position_embeddings`` and another above: two tables;
* dynamic NTK computes its frequencies from the length above ``max_position_embeddings``: computed in the graph.

Upstream decides by the longest row of a batch and keeps the outcome in the module (``dynamic_rope_update`` in
``transformers.modeling_rope_utils``); here each row decides for itself, so a row does not depend on its neighbours.

``B`` rows, ``S`` tokens in this call, ``R`` rotary dims.
"""

import copy
import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from runtime.qeff.tracing import constants_are_meant, values_are_known

logger = logging.getLogger(__name__)

CosSin = tuple[Tensor, Tensor]

_LARGE_TABLE_BYTES = 1 << 30


class _Length(enum.Enum):
    """How the frequencies depend on the length of the sequence."""

    INDEPENDENT = enum.auto()
    TWO_TABLES = enum.auto()
    COMPUTED = enum.auto()


@dataclass(frozen=True)
class _Plan:
    """How one layer type's cos and sin are obtained.

    Attributes:
        length: dependence on the length.
        limit: longest row with the frequencies of the (short) table; None where the length does not matter.
        rows: positions that can be asked for; None where there is no limit.
        rope_type: upstream's word for the frequencies.
        scale: factor of cos and sin that are computed in the graph.
    """

    length: _Length
    limit: int | None
    rows: int | None
    rope_type: str
    scale: float = 1.0


class PrecomputedRotary(nn.Module):
    """Mixin before an upstream rotary class: ``class Variant(PrecomputedRotary, LlamaRotaryEmbedding)``.

    :meth:`__qeff_init__` builds the tables; ``config.max_seq_len_cached`` rows if that is set, else
    ``config.max_position_embeddings``. They are float32 buffers ``cos_cached`` and ``sin_cached`` ``[rows, R]`` (with
    two tables also ``long_cos_cached`` and ``long_sin_cached``); a class with frequencies per layer type has them per
    layer type (``full_attention_cos_cached``). They are no part of the state dict, but initialisers of an exported
    graph.

    Attributes:
        length_dependent_from: the length above which the frequencies of a row change, None if they never do. Keys in
            the cache keep the frequencies that they were written with.
    """

    length_dependent_from: int | None
    _qeff_plans: dict[str | None, _Plan]
    _qeff_casts_to_input: bool
    config: Any
    rope_type: Any

    def __qeff_init__(self) -> None:
        """Builds the tables from the swapped-in upstream module.

        Raises:
            TypeError: the upstream class does not return a (cos, sin) pair that is indexed by position.
            ValueError: its frequencies depend on the length in a way that is not known here, or it is on the meta
                device.
        """
        config = getattr(self, "config", None)
        if config is None or not hasattr(self, "rope_type"):
            raise TypeError(f"{self._upstream_name()}: no config and rope_type, so its tables cannot be built")
        layer_types: list[str | None] = [*self._layer_types()] or [None]
        cos, _ = self._evaluate(layer_types[0], torch.tensor([0, 1]), torch.float16)
        self._qeff_casts_to_input = cos.dtype == torch.float16
        self._qeff_plans = {layer_type: self._build(layer_type) for layer_type in layer_types}
        limits = [plan.limit for plan in self._qeff_plans.values() if plan.limit is not None]
        self.length_dependent_from = min(limits) if limits else None

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> CosSin:
        """Looks the positions up.

        Args:
            x: any tensor; its dtype is the result's where upstream casts to it.
            position_ids: ``[B, S]`` integers; the result for a pad (-1) is finite and otherwise meaningless.
            layer_type: the layer type, if the class has frequencies per layer type.
        Returns:
            cos and sin, each ``[B, S, R]``.
        Raises:
            IndexError: a position has no row in the table (outside an export).
            ValueError: the positions are not 2-D, or the layer type is unknown.
        """
        if layer_type not in self._qeff_plans:
            raise ValueError(f"{self._upstream_name()}: no layer type {layer_type!r}, only {list(self._qeff_plans)}")
        if position_ids.dim() != 2:
            raise ValueError(
                f"{self._upstream_name()}: position_ids must be [batch, seq_len], found {position_ids.dim()} dimensions"
            )
        plan = self._qeff_plans[layer_type]
        if plan.rows is not None and values_are_known():
            last = int(position_ids.max())
            if last >= plan.rows:
                raise IndexError(
                    f"{self._upstream_name()}: position {last} is outside the table of {plan.rows} rows; raise "
                    "config.max_seq_len_cached before the model is transformed"
                )
        cos, sin = self._look_up(plan, layer_type, position_ids)
        if self._qeff_casts_to_input:
            return cos.to(x.dtype), sin.to(x.dtype)
        return cos, sin

    def _look_up(self, plan: _Plan, layer_type: str | None, position_ids: Tensor) -> CosSin:
        cos_table, sin_table = self._table(layer_type, "")
        if plan.length is _Length.INDEPENDENT:
            return cos_table[position_ids], sin_table[position_ids]
        assert plan.limit is not None
        # A long row is read from the other source; its positions only have to stay inside this table.
        near = position_ids.clamp(max=cos_table.shape[0] - 1)
        is_long = (position_ids.amax(dim=1, keepdim=True) >= plan.limit).unsqueeze(-1)
        if plan.length is _Length.TWO_TABLES:
            long_cos_table, long_sin_table = self._table(layer_type, "long_")
            long_cos, long_sin = long_cos_table[position_ids], long_sin_table[position_ids]
        else:
            long_cos, long_sin = self._compute(plan, layer_type, position_ids)
        return torch.where(is_long, long_cos, cos_table[near]), torch.where(is_long, long_sin, sin_table[near])

    def _compute(self, plan: _Plan, layer_type: str | None, position_ids: Tensor) -> CosSin:
        """cos and sin ``[B, S, R]`` with the frequencies that upstream's own formula gives for each row's length."""
        length = position_ids.amax(dim=1, keepdim=True) + 1
        keywords = {} if layer_type is None else {"layer_type": layer_type}
        with constants_are_meant():  # upstream makes tensors of the config's numbers
            inv_freq, _ = ROPE_INIT_FUNCTIONS[plan.rope_type](
                self.config, position_ids.device, seq_len=length, **keywords
            )
        angles = position_ids[:, :, None].float() * inv_freq[:, None, :]
        columns: Tensor = getattr(self, _buffer_name(layer_type, "frequency_of_column"))
        return angles.cos()[..., columns] * plan.scale, angles.sin()[..., columns] * plan.scale

    def _layer_types(self) -> list[str]:
        """The layer types with their own frequencies; empty if the class makes no difference."""
        return sorted(self.rope_type) if isinstance(self.rope_type, dict) else []

    def _upstream_name(self) -> str:
        return next(
            (base.__name__ for base in type(self).__mro__ if not issubclass(base, PrecomputedRotary)),
            type(self).__name__,
        )

    def _table(self, layer_type: str | None, which: str) -> CosSin:
        return (
            getattr(self, _buffer_name(layer_type, f"{which}cos_cached")),
            getattr(self, _buffer_name(layer_type, f"{which}sin_cached")),
        )

    def _build(self, layer_type: str | None) -> _Plan:
        config = self.config
        rope_type: str = self.rope_type if layer_type is None else self.rope_type[layer_type]
        wanted: int | None = getattr(config, "max_seq_len_cached", None)
        rows: int = config.max_position_embeddings if wanted is None else wanted

        if rope_type == "longrope":
            parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
            limit: int = parameters["original_max_position_embeddings"]
            if rows > limit:
                self._tabulate(layer_type, "", limit, limit)
                self._tabulate(layer_type, "long_", rows, rows)
                return _Plan(_Length.TWO_TABLES, limit, rows, rope_type)
        elif "dynamic" in rope_type:
            limit = self._initial_limit(layer_type)
            if wanted is None or wanted > limit:
                self._tabulate(layer_type, "", limit, limit)
                return self._plan_computed(layer_type, rope_type, limit, wanted)
        self._tabulate(layer_type, "", rows, 2)
        return _Plan(_Length.INDEPENDENT, None, rows, rope_type)

    def _initial_limit(self, layer_type: str | None) -> int:
        """The length up to which upstream's dynamic frequencies are the initial ones."""
        limit: Any = getattr(self, f"{layer_type}_max_seq_len_cached", None)
        return int(self.config.max_position_embeddings if limit is None else limit)

    def _tabulate(self, layer_type: str | None, which: str, rows: int, length: int) -> None:
        """Registers the table of ``rows`` positions, which must also hold for a row of ``length`` tokens."""
        cos, sin = self._evaluate(layer_type, torch.arange(rows), torch.float32)
        probe = torch.tensor([min(1, rows - 1), min(length, rows) - 1])
        for name, table, again in zip(
            ("cos", "sin"), (cos, sin), self._evaluate(layer_type, probe, torch.float32), strict=True
        ):
            if not torch.allclose(table[probe], again, rtol=0.0, atol=1e-5):
                raise ValueError(
                    f"{self._upstream_name()}: with {rows} positions {name} is not what it is with {length}; rope_type "
                    f"{self.rope_type!r} depends on the length in a way that is not supported"
                )
            self.register_buffer(_buffer_name(layer_type, f"{which}{name}_cached"), table, persistent=False)
        size = cos.numel() * cos.element_size() * 2
        if size >= _LARGE_TABLE_BYTES:
            logger.warning(
                "%s: tables of %d rows take %.1f GiB; set config.max_seq_len_cached to the context length you need",
                self._upstream_name(),
                rows,
                size / (1 << 30),
            )

    def _plan_computed(self, layer_type: str | None, rope_type: str, limit: int, rows: int | None) -> _Plan:
        """Finds out which frequency each column of cos and sin belongs to, and checks the outcome against upstream."""
        name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
        inv_freq: Tensor = getattr(self, name)
        # At position 1 the angle is the frequency. Distinct ones below pi make each column name its own.
        count = inv_freq.shape[0]
        marks = torch.arange(1, count + 1, dtype=torch.float32, device=inv_freq.device) * (3.0 / (count + 1))
        probe = self._probe()
        probe._buffers[name] = marks
        setattr(probe, "original_inv_freq" if layer_type is None else f"{layer_type}_original_inv_freq", marks)
        cos, sin = (part[-1] for part in self._call(probe, layer_type, torch.tensor([0, 1]), torch.float32))
        columns = torch.atan2(sin, cos).sub(marks[:, None]).abs().argmin(dim=0)
        scale = float(torch.hypot(cos, sin).mean())
        self.register_buffer(_buffer_name(layer_type, "frequency_of_column"), columns, persistent=False)
        plan = _Plan(_Length.COMPUTED, limit, rows, rope_type, scale)

        positions = torch.tensor([0, 1, limit // 2, 2 * limit])
        expected = self._evaluate(layer_type, positions, torch.float32)
        found = self._compute(plan, layer_type, positions[None].to(inv_freq.device))
        # Angles grow with the position, and so does what one rounding of a frequency makes of them.
        tolerance = max(1e-5, 2 * limit * 2.5e-7)
        if not all(torch.allclose(a[0], b, rtol=0.0, atol=tolerance) for a, b in zip(found, expected, strict=True)):
            raise ValueError(
                f"{self._upstream_name()}: rope_type {rope_type!r} does not grow as modeling_rope_utils says"
            )
        return plan

    def _probe(self) -> "PrecomputedRotary":
        """A copy for upstream's forward to change: it may register other frequencies on the module."""
        probe = copy.copy(self)
        for name in ("_buffers", "_parameters", "_modules"):
            probe.__dict__[name] = dict(self.__dict__[name])
        probe.__dict__["_non_persistent_buffers_set"] = set(self._non_persistent_buffers_set)
        return probe

    def _evaluate(self, layer_type: str | None, positions: Tensor, dtype: torch.dtype) -> CosSin:
        """Upstream's cos and sin ``[N, R]`` for one row of positions ``[N]``, from an untouched copy."""
        return self._call(self._probe(), layer_type, positions, dtype)

    def _call(
        self, probe: "PrecomputedRotary", layer_type: str | None, positions: Tensor, dtype: torch.dtype
    ) -> CosSin:
        device = next((buffer.device for buffer in self.buffers()), torch.device("cpu"))
        if device.type == "meta":
            raise ValueError(f"{self._upstream_name()}: is on the meta device; load the model before transforming it")
        keywords = {} if layer_type is None else {"layer_type": layer_type}
        with torch.no_grad():
            result: Any = super(PrecomputedRotary, probe).forward(
                torch.zeros((1, 1), dtype=dtype, device=device), positions[None].to(device), **keywords
            )
        result = self._as_pair(result)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise TypeError(f"{self._upstream_name()}: forward returns {_describe(result)}, not a (cos, sin) pair")
        for part in result:
            if not isinstance(part, Tensor) or not part.is_floating_point() or part.dim() != 3:
                raise TypeError(
                    f"{self._upstream_name()}: forward returns {_describe(result)}, not real cos and sin [B, S, R]"
                )
            if part.shape[:2] != (1, len(positions)):
                raise TypeError(
                    f"{self._upstream_name()}: for positions [1, {len(positions)}] cos and sin are {tuple(part.shape)}"
                )
        cos, sin = result
        return cos[0], sin[0]

    def _as_pair(self, result: Any) -> Any:
        """What upstream's forward returned, as (cos, sin)."""
        return result

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if torch.onnx.is_in_onnx_export():
            # The exporter makes initialisers of what the state dict names, and inline constants of everything else.
            for name, buffer in self._buffers.items():
                if buffer is not None and _is_table(name):
                    destination[prefix + name] = buffer if keep_vars else buffer.detach()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PrecomputedRotary":
        """Moves the module as any other, but keeps the tables in float32: an angle's rounding is felt far away."""
        tables = {name: buffer for name, buffer in self._buffers.items() if buffer is not None and _is_table(name)}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, table in tables.items():
            moved = self._buffers[name]
            assert moved is not None
            self._buffers[name] = table.to(moved.device) if moved.dtype != table.dtype else moved
        return self


class PrecomputedComplexRotary(PrecomputedRotary):
    """The same for an upstream class that returns one complex row ``cos + i sin``: ONNX has no complex numbers, so the
    row keeps its parts in a last dimension of 2, as ``torch.view_as_real`` has them.
    """

    def forward(  # type: ignore[override]
        self, x: Tensor, position_ids: Tensor, layer_type: str | None = None
    ) -> Tensor:
        """Looks the positions up; arguments and errors are those of `PrecomputedRotary.forward`.

        Returns:
            ``[B, S, R, 2]``, cos and sin of each of ``R`` frequencies.
        """
        return torch.stack(super().forward(x, position_ids, layer_type), dim=-1)

    def _as_pair(self, result: Any) -> Any:
        if not isinstance(result, Tensor) or not result.is_complex():
            raise TypeError(f"{self._upstream_name()}: forward returns {_describe(result)}, not a complex row")
        return result.real, result.imag


def complex_product(left: Tensor, right: Tensor) -> Tensor:
    """``left * right`` of complex numbers whose parts are in the last dimension.

    Args:
        left: ``[..., 2]``.
        right: ``[..., 2]``, broadcastable to ``left``.
    Returns:
        ``[..., 2]``.
    """
    left_real, left_imaginary = left.unbind(dim=-1)
    right_real, right_imaginary = right.unbind(dim=-1)
    real = left_real * right_real - left_imaginary * right_imaginary
    imaginary = left_real * right_imaginary + left_imaginary * right_real
    return torch.stack((real, imaginary), dim=-1)


def _is_table(buffer_name: str) -> bool:
    return buffer_name.endswith(("cos_cached", "sin_cached"))


def _buffer_name(layer_type: str | None, name: str) -> str:
    return name if layer_type is None else f"{layer_type}_{name}"


def _describe(result: Any) -> str:
    if isinstance(result, Tensor):
        return f"a {result.dtype} tensor {tuple(result.shape)}"
    if isinstance(result, (tuple, list)):
        return "(" + ", ".join(_describe(part) for part in result) + ")"
    return type(result).__name__
