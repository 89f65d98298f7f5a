"""Ways to compute attention inside the segments of a packed row.

Each back end says what it can compute; :mod:`runtime.training.attention` takes the first that can. None of them reads
anything back from the device: lengths are Python integers of the mask.

``T`` packed tokens, ``Hq`` query heads, ``Hkv`` key and value heads, ``D`` head dimension of queries and keys, ``Dv``
of values.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from runtime.training.masks import SegmentMask

# Windows narrower than this are computed by blocks of this many queries: smaller blocks cost more calls than they save.
SMALLEST_BLOCK = 128
LARGEST_FLASH_HEAD_DIM = 256
FLASH_DTYPES = (torch.float16, torch.bfloat16)
FLASH_CAPABILITY = (8, 0)


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One attention over a packed row.

    Attributes:
        query: ``[1, Hq, T, D]``.
        key: ``[1, Hkv, T, D]``; ``Hq`` is a multiple of ``Hkv``.
        value: ``[1, Hkv, T, Dv]``.
        mask: which keys a query attends to.
        scaling: factor of the scores.
        dropout: probability with which a weight is dropped.
        softcap: scores become ``softcap * tanh(scores / softcap)``; None for no cap.
        sinks: ``[Hq]``, a score per head that takes part in the softmax and has no value; None for none.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: SegmentMask
    scaling: float
    dropout: float = 0.0
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def window(self) -> int | None:
        """The mask's window, None where it is not narrower than the longest stretch."""
        window = self.mask.window
        return None if window is None or window >= self.mask.max_seqlen else window

    @property
    def kernel_dtype(self) -> torch.dtype:
        """The dtype that a kernel gets: autocast's where it is on, as for torch's own attention."""
        device = self.query.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.query.dtype


class Backend(Protocol):
    """A way to compute attention.

    Attributes:
        name: how :func:`runtime.training.attention.use_backend` calls it.
    """

    @property
    def name(self) -> str: ...

    def supports(self, call: AttentionCall) -> str | None:
        """None where the back end can compute the call exactly, else the reason why not."""

    def __call__(self, call: AttentionCall) -> Tensor:
        """The attention's output, ``[1, T, Hq, Dv]``."""


@dataclass(frozen=True)
class Plain:
    """Scores, softmax and weighted sum per stretch, as upstream's eager attention; softmax in float32."""

    name: str = "plain"

    def supports(self, call: AttentionCall) -> str | None:
        return None

    def __call__(self, call: AttentionCall) -> Tensor:
        key, value = _repeated(call.key, call), _repeated(call.value, call)
        outputs = []
        for query_run, key_run, value_run, length, count in _runs(call.query, key, value, call.mask):
            scores = torch.matmul(query_run, key_run.transpose(2, 3)) * call.scaling
            if call.softcap is not None:
                scores = torch.tanh(scores / call.softcap) * call.softcap
            hidden = ~call.mask.band(length, 0, scores.device)
            scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
            if call.sinks is not None:
                sinks = call.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(count, -1, length, 1)
                scores = torch.cat([scores, sinks], dim=-1)
            weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query_run.dtype)
            weights = functional.dropout(weights[..., :length], p=call.dropout)
            outputs.append(_as_row(torch.matmul(weights, value_run)))
        return _joined(outputs)


@dataclass(frozen=True)
class SegmentSdpa:
    """``scaled_dot_product_attention`` per stretch, stretches of one length that are neighbours together.

    No mask where the stretch is not longer than the window; else queries go by blocks, each with the keys that its
    window can reach, so that the cost grows with the window and not with the square of the length.
    """

    name: str = "sdpa"

    def supports(self, call: AttentionCall) -> str | None:
        if call.softcap is not None:
            return "scaled_dot_product_attention has no soft-cap"
        if call.sinks is not None:
            return "scaled_dot_product_attention has no sinks"
        return None

    def __call__(self, call: AttentionCall) -> Tensor:
        query, key, value = call.query, call.key, call.value
        width = value.shape[-1]
        if width < query.shape[-1]:
            # The fused kernels want one head dimension; without them the weights of a whole stretch are kept.
            value = functional.pad(value, (0, query.shape[-1] - width))
        outputs = [
            self._run(call, query_run, key_run, value_run, length)
            for query_run, key_run, value_run, length, _ in _runs(query, key, value, call.mask)
        ]
        return _joined(outputs)[..., :width]

    def _run(self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor, length: int) -> Tensor:
        window = call.mask.window
        if window is None or length <= window:
            return _as_row(self._attend(call, query, key, value, None))
        block = max(window, SMALLEST_BLOCK)
        outputs = []
        for start in range(0, length, block):
            stop = min(start + block, length)
            first_key = max(0, start - window + 1)
            mask = call.mask.band(stop - start, start - first_key, query.device)
            outputs.append(
                self._attend(
                    call, query[:, :, start:stop], key[:, :, first_key:stop], value[:, :, first_key:stop], mask
                )
            )
        return _as_row(torch.cat(outputs, dim=2))

    @staticmethod
    def _attend(call: AttentionCall, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        if grouped and not _fused_kernels_share_heads(call, mask):
            key, value, grouped = _repeated(key, call), _repeated(value, call), False
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=call.dropout,
            is_causal=mask is None,
            scale=call.scaling,
            enable_gqa=grouped,
        )


@dataclass(frozen=True)
class TorchVarlen:
    """``torch.nn.attention.varlen.varlen_attn``: torch's own flash attention over segments; CUDA."""

    name: str = "varlen"

    def supports(self, call: AttentionCall) -> str | None:
        if self._kernel is None:
            return "torch.nn.attention.varlen is not in this torch"
        if call.dropout:
            return "varlen_attn has no dropout"
        if call.softcap is not None:
            return "varlen_attn has no soft-cap"
        if call.sinks is not None:
            return "varlen_attn has no sinks"
        return _flash_limits(call)

    @cached_property
    def _kernel(self) -> Callable[..., Any] | None:
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError:
            return None
        return varlen_attn

    def __call__(self, call: AttentionCall) -> Tensor:
        assert self._kernel is not None
        query, key, value = _flash_layout(call)
        cu_seqlens = call.mask.cu_seqlens.to(query.device)
        output: Tensor = self._kernel(
            query,
            key,
            value,
            cu_seqlens,
            cu_seqlens,
            call.mask.max_seqlen,
            call.mask.max_seqlen,
            scale=call.scaling,
            window_size=_flash_window(call),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output[None, ..., : call.value.shape[-1]]


@dataclass(frozen=True)
class FlashVarlen:
    """``flash_attn_varlen_func`` of an installed flash-attn package; CUDA.

    Attributes:
        module: the package to import it from.
    """

    name: str
    module: str

    def supports(self, call: AttentionCall) -> str | None:
        if isinstance(self._kernel, str):
            return self._kernel
        if call.sinks is not None:
            return f"{self.module} has no gradient for sinks"
        for keyword, wanted in (("dropout_p", bool(call.dropout)), ("softcap", call.softcap is not None)):
            if wanted and keyword not in self._parameters:
                return f"{self.module}.flash_attn_varlen_func has no {keyword}"
        if call.dropout and call.softcap is not None:
            return f"{self.module}.flash_attn_varlen_func cannot combine soft-cap and dropout"
        return _flash_limits(call)

    @cached_property
    def _kernel(self) -> Callable[..., Any] | str:
        try:
            package = __import__(self.module, fromlist=["flash_attn_varlen_func"])
        except ImportError as error:
            return f"{self.module} cannot be imported: {error}"
        kernel: Callable[..., Any] | None = getattr(package, "flash_attn_varlen_func", None)
        return f"{self.module} has no flash_attn_varlen_func" if kernel is None else kernel

    @cached_property
    def _parameters(self) -> frozenset[str]:
        assert callable(self._kernel)
        return frozenset(inspect.signature(self._kernel).parameters)

    def __call__(self, call: AttentionCall) -> Tensor:
        assert callable(self._kernel)
        query, key, value = _flash_layout(call)
        cu_seqlens = call.mask.cu_seqlens.to(query.device)
        options: dict[str, Any] = {}
        if call.dropout:
            options["dropout_p"] = call.dropout
        if call.softcap is not None:
            options["softcap"] = call.softcap
        if call.window is not None:
            options["window_size"] = _flash_window(call)
        output = self._kernel(
            query,
            key,
            value,
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_k=cu_seqlens,
            max_seqlen_q=call.mask.max_seqlen,
            max_seqlen_k=call.mask.max_seqlen,
            softmax_scale=call.scaling,
            causal=True,
            **options,
        )
        states: Tensor = output[0] if isinstance(output, tuple) else output  # some versions return the normalizers too
        return states[None, ..., : call.value.shape[-1]]


def _fused_kernels_share_heads(call: AttentionCall, mask: Tensor | None) -> bool:
    """Whether a kernel that never forms all scores takes fewer key and value heads than query heads."""
    if call.query.device.type == "cpu":
        return True
    return mask is None and call.kernel_dtype in FLASH_DTYPES


def _flash_limits(call: AttentionCall) -> str | None:
    """Why a flash attention kernel cannot take the call, None where it can."""
    if call.query.device.type != "cuda":
        return f"the tensors are on {call.query.device.type}, the kernel runs on CUDA"
    if call.kernel_dtype not in FLASH_DTYPES:
        return f"the kernel computes float16 and bfloat16, not {str(call.kernel_dtype).removeprefix('torch.')}"
    if _flash_head_dim(call) > LARGEST_FLASH_HEAD_DIM:
        return f"head dimension {_flash_head_dim(call)} is above {LARGEST_FLASH_HEAD_DIM}"
    if torch.cuda.get_device_capability(call.query.device) < FLASH_CAPABILITY:
        return "the kernel needs a GPU of compute capability 8.0"
    return None


def _flash_head_dim(call: AttentionCall) -> int:
    """The head dimension that the kernel gets: one for queries, keys and values, a multiple of 8."""
    largest = max(call.query.shape[-1], call.value.shape[-1])
    return -(-largest // 8) * 8


def _flash_layout(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    """``[T, heads, D]`` in the kernel's dtype, padded with zeros, which change no score and no value."""
    width = _flash_head_dim(call)
    query, key, value = (
        functional.pad(states.squeeze(0).transpose(0, 1).to(call.kernel_dtype), (0, width - states.shape[-1]))
        if width != states.shape[-1]
        else states.squeeze(0).transpose(0, 1).to(call.kernel_dtype)
        for states in (call.query, call.key, call.value)
    )
    return query, key, value


def _flash_window(call: AttentionCall) -> tuple[int, int]:
    """Keys to the left and to the right of a query, itself not counted: a window of w keys is w - 1 to the left."""
    return (-1, 0) if call.window is None else (call.window - 1, 0)


def _repeated(states: Tensor, call: AttentionCall) -> Tensor:
    groups = call.query.shape[1] // states.shape[1]
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def _runs(
    query: Tensor, key: Tensor, value: Tensor, mask: SegmentMask
) -> Iterator[tuple[Tensor, Tensor, Tensor, int, int]]:
    """Queries, keys and values ``[count, H, length, D]`` of each run of equal stretches, its length and count.

    Split once: the backward of a split is one concatenation, that of slices is one tensor of zeros per slice.
    """
    sizes = [length * count for length, count in mask.runs]
    parts = zip(*(torch.split(states, sizes, dim=2) for states in (query, key, value)), strict=True)
    for (length, count), (query_run, key_run, value_run) in zip(mask.runs, parts, strict=True):
        yield (
            _as_batch(query_run, length, count),
            _as_batch(key_run, length, count),
            _as_batch(value_run, length, count),
            length,
            count,
        )


def _as_batch(states: Tensor, length: int, count: int) -> Tensor:
    """``[1, H, count * length, D]`` to ``[count, H, length, D]``."""
    if count == 1:
        return states
    heads, width = states.shape[1], states.shape[3]
    return states.reshape(heads, count, length, width).transpose(0, 1)


def _as_row(states: Tensor) -> Tensor:
    """``[count, H, length, D]`` to ``[1, count * length, H, D]``."""
    return states.transpose(1, 2).flatten(0, 1).unsqueeze(0)


def _joined(rows: list[Tensor]) -> Tensor:
    return rows[0].contiguous() if len(rows) == 1 else torch.cat(rows, dim=1)


PLAIN = Plain()
SDPA = SegmentSdpa()
VARLEN = TorchVarlen()
FLASH_2 = FlashVarlen("flash_attention_2", "flash_attn")
FLASH_3 = FlashVarlen("flash_attention_3", "flash_attn_interface")
BACKENDS: tuple[Backend, ...] = (VARLEN, FLASH_2, FLASH_3, SDPA, PLAIN)


def preferred_first(names: tuple[str, ...]) -> tuple[Backend, ...]:
    """All back ends, those of these names first."""
    chosen = [backend for name in names for backend in BACKENDS if backend.name == name]
    return tuple(itertools.chain(chosen, (backend for backend in BACKENDS if backend not in chosen)))
