"""Packed attention against upstream's own attention functions on every segment alone: outputs and all gradients."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.masking_utils as upstream
from packed_reference import counted_transfers, drawn
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.llama import modeling_llama

from runtime.training import attention_backends as backends
from runtime.training.attention import attention_for, backend_for, segment_attention, use_backend
from runtime.training.attention_backends import AttentionCall, FlashVarlen, TorchVarlen
from runtime.training.masks import SegmentMask
from runtime.training.packing import Packing

LENGTHS = (7, 1, 5, 5, 5, 2, 1, 1, 11)
SCALING = 0.3


class Layer(nn.Module):
    """What upstream's attention functions read of an attention module."""

    is_causal = True

    def __init__(self, groups: int = 1, sinks: Tensor | None = None) -> None:
        super().__init__()
        self.num_key_value_groups = groups
        self.sinks = sinks


def states(
    total: int,
    heads: int = 4,
    shared: int = 2,
    width: int = 8,
    value_width: int = 8,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """Queries, keys and values, laid out as a projection leaves them."""
    shapes = ((heads, width), (shared, width), (shared, value_width))
    return [
        drawn(1, total, count, size, seed=seed, dtype=dtype).transpose(1, 2).requires_grad_()
        for seed, (count, size) in enumerate(shapes)
    ]


def upstream_mask(length: int, dtype: torch.dtype, window: int | None, chunk: int | None) -> Tensor:
    config = LlamaConfig(hidden_size=16, num_attention_heads=2)
    config._attn_implementation = "eager"
    config.sliding_window, config.attention_chunk_size = window, chunk
    kind = "chunked_causal" if chunk else "sliding_window_causal" if window else "causal"
    mask: Tensor = getattr(upstream, f"create_{kind}_mask")(
        config=config, inputs_embeds=torch.zeros(1, length, 1, dtype=dtype), attention_mask=None, past_key_values=None
    )
    return mask


def alone(
    function: Callable[..., Any], layer: nn.Module, given: list[Tensor], mask: SegmentMask, **more: Any
) -> Tensor:
    """Upstream's function on every segment by itself, one after the other."""
    outputs, start = [], 0
    for length in mask.packing.lengths:
        query, key, value = (part[:, :, start : start + length] for part in given)
        hidden = upstream_mask(length, query.dtype, mask.window, mask.chunk)
        outputs.append(function(layer, query, key, value, hidden, scaling=SCALING, **more)[0])
        start += length
    return torch.cat(outputs, 1)


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    weights = drawn(*output.shape, seed=9, dtype=output.dtype)
    return torch.autograd.grad((output * weights).sum(), inputs, retain_graph=True)


def assert_same(found: Tensor, expected: Tensor, inputs: list[Tensor], rtol: float = 1e-5, atol: float = 2e-6) -> None:
    """Output and gradients. The tolerance is for upstream's eager softmax, in float32 whatever the dtype."""
    tolerance = {"rtol": rtol, "atol": atol}
    torch.testing.assert_close(found, expected, **tolerance)
    names = ("query", "key", "value", "sinks")
    for name, ours, theirs in zip(names, gradients(found, inputs), gradients(expected, inputs), strict=False):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"gradient of {name}: {text}", **tolerance)


# Against upstream, segment by segment


@pytest.mark.parametrize("backend", ["sdpa", "plain"])
@pytest.mark.parametrize("shared", [4, 2, 1], ids="kv-heads-{}".format)
@pytest.mark.parametrize(
    ("window", "chunk"),
    [(window, None) for window in (None, 1, 2, 3, 5, 7, 10, 11, 90)] + [(None, chunk) for chunk in (1, 4, 5, 50)],
)
def test_a_segment_is_as_if_alone(backend: str, shared: int, window: int | None, chunk: int | None) -> None:
    given = states(sum(LENGTHS), shared=shared)
    layer, mask = Layer(4 // shared), Packing.of_lengths(LENGTHS).mask(window, chunk)
    with use_backend(backend):
        found, weights = attention_for(mask, "sdpa", None)(layer, *given, mask, scaling=SCALING, sliding_window=window)
    assert weights is None and found.shape == (1, sum(LENGTHS), 4, 8) and found.is_contiguous()
    assert_same(found, alone(modeling_llama.eager_attention_forward, layer, given, mask), given)
    assert_same(found, alone(sdpa_attention_forward, layer, given, mask), given)


@pytest.mark.parametrize("window", [1, 3, 100, 127, 128, 129, 300, 301, None], ids=str)
def test_long_segments_are_computed_by_blocks(window: int | None) -> None:
    lengths = (301, 128, 129, 129, 1, 256)
    given = states(sum(lengths), heads=2, shared=1)
    layer, mask = Layer(2), Packing.of_lengths(lengths).mask(window)
    with use_backend("sdpa"):
        found, _ = segment_attention(layer, *given, mask, scaling=SCALING)
    assert_same(found, alone(modeling_llama.eager_attention_forward, layer, given, mask), given)


@pytest.mark.parametrize("backend", ["sdpa", "plain"])
@pytest.mark.parametrize(("width", "value_width"), [(12, 8), (8, 12)])
@pytest.mark.parametrize("window", [None, 3])
def test_values_of_another_width(backend: str, width: int, value_width: int, window: int | None) -> None:
    """Multi-head latent attention."""
    given = states(sum(LENGTHS), shared=4, width=width, value_width=value_width)
    layer, mask = Layer(), Packing.of_lengths(LENGTHS).mask(window)
    with use_backend(backend):
        found, _ = segment_attention(layer, *given, mask, scaling=SCALING)
    assert found.shape == (1, sum(LENGTHS), 4, value_width)
    assert_same(found, alone(modeling_llama.eager_attention_forward, layer, given, mask), given)


@pytest.mark.parametrize("window", [None, 3])
def test_soft_cap(window: int | None) -> None:
    given = states(sum(LENGTHS))
    layer, mask = Layer(2), Packing.of_lengths(LENGTHS).mask(window)
    found, _ = segment_attention(layer, *given, mask, scaling=SCALING, softcap=0.5)
    assert_same(found, alone(modeling_gemma2.eager_attention_forward, layer, given, mask, softcap=0.5), given)
    uncapped, _ = segment_attention(layer, *given, mask, scaling=SCALING)
    assert (found - uncapped).abs().max() > 1e-2


@pytest.mark.parametrize("window", [None, 3])
def test_sinks(window: int | None) -> None:
    given, sinks = states(sum(LENGTHS)), drawn(4, seed=5).requires_grad_()
    layer, mask = Layer(2, sinks), Packing.of_lengths(LENGTHS).mask(window)
    found, _ = segment_attention(layer, *given, mask, scaling=SCALING, s_aux=sinks)
    expected = alone(modeling_gpt_oss.eager_attention_forward, layer, given, mask)
    assert_same(found, expected, [*given, sinks])


@pytest.mark.parametrize("backend", ["sdpa", "plain"])
def test_the_default_scaling_is_upstreams(backend: str) -> None:
    given, mask = states(5, shared=4), Packing.of_lengths([2, 3]).mask()
    with use_backend(backend):
        found, _ = segment_attention(Layer(), *given, mask)
        expected, _ = segment_attention(Layer(), *given, mask, scaling=8**-0.5)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("backend", ["sdpa", "plain"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    given = states(sum(LENGTHS), dtype=dtype)
    layer, mask = Layer(2), Packing.of_lengths(LENGTHS).mask(3)
    with use_backend(backend):
        found, _ = segment_attention(layer, *given, mask, scaling=SCALING)
    assert found.dtype == dtype
    tolerance = {"rtol": 0.0, "atol": 1e-5 if dtype is torch.float32 else 0.05}
    assert_same(found, alone(modeling_llama.eager_attention_forward, layer, given, mask), given, **tolerance)


def test_many_segments() -> None:
    lengths = tuple(1 + place % 4 for place in range(200))
    given = states(sum(lengths), heads=2, shared=1)
    layer, mask = Layer(2), Packing.of_lengths(lengths).mask()
    found, _ = segment_attention(layer, *given, mask, scaling=SCALING)
    assert_same(found, alone(modeling_llama.eager_attention_forward, layer, given, mask), given)


# Neighbours


@pytest.mark.parametrize("backend", ["sdpa", "plain"])
@pytest.mark.parametrize(("window", "chunk"), [(None, None), (3, None), (None, 3)])
def test_a_segment_does_not_depend_on_its_neighbours(backend: str, window: int | None, chunk: int | None) -> None:
    """Both directions, values and gradients, bit for bit."""
    lengths = (4, 6, 5)
    mask = Packing.of_lengths(lengths).mask(window, chunk)
    edges = [0, *itertools.accumulate(lengths)]

    def run(changed: int | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        given = states(sum(lengths))
        if changed is not None:
            with torch.no_grad():
                for part in given:
                    part[:, :, edges[changed] : edges[changed + 1]] *= -3
        with use_backend(backend):
            output, _ = segment_attention(Layer(2), *given, mask, scaling=SCALING)
        return output, gradients(output, given)

    output, grads = run(None)
    for changed in range(3):
        other, other_grads = run(changed)
        for segment in range(3):
            here = slice(edges[segment], edges[segment + 1])
            same = [torch.equal(output[:, here], other[:, here])]
            same += [torch.equal(one[:, :, here], two[:, :, here]) for one, two in zip(grads, other_grads, strict=True)]
            assert all(same) if segment != changed else not any(same)


# Dropout


@pytest.mark.parametrize("backend", ["sdpa", "plain"])
def test_dropout_keeps_the_mean_in_training_and_does_nothing_else(backend: str) -> None:
    given = [part.detach() for part in states(6, heads=2, shared=2)]
    mask, layer = Packing.of_lengths([4, 2]).mask(), Layer()

    def run(seed: int = 0, dropout: float = 0.4) -> Tensor:
        torch.manual_seed(seed)
        output: Tensor = segment_attention(layer, *given, mask, scaling=SCALING, dropout=dropout)[0]
        return output

    with use_backend(backend):
        plain = run(dropout=0.0)
        assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))
        mean = torch.stack([run(seed) for seed in range(1500)]).mean(0)
        torch.testing.assert_close(mean, plain, rtol=0.0, atol=0.15)
        # A segment's first token has one weight, of 1: it is kept and scaled, or dropped.
        first = torch.stack([run(seed)[0, 0] / plain[0, 0] for seed in range(200)])
        assert set(first.mul(1e6).round().div(1e6).unique().tolist()) == {0.0, round(1 / 0.6, 6)}
        layer.eval()
        assert torch.equal(run(0), plain)


# Waiting for the device


@pytest.mark.parametrize("backend", ["sdpa", "plain"])
@pytest.mark.parametrize(("window", "chunk"), [(None, None), (3, None), (None, 4)])
def test_attention_reads_nothing_back(backend: str, window: int | None, chunk: int | None) -> None:
    given = states(sum(LENGTHS))
    mask = Packing.of_lengths(LENGTHS).mask(window, chunk)
    with counted_transfers() as made, use_backend(backend):
        output, _ = segment_attention(Layer(2), *given, mask, scaling=SCALING, dropout=0.1)
        output.sum().backward()
    assert made == []


# Which back end


def call_of(mask: SegmentMask | None = None, dtype: torch.dtype = torch.float32, **more: Any) -> AttentionCall:
    mask = mask or Packing.of_lengths(LENGTHS).mask()
    query, key, value = states(mask.packing.total, dtype=dtype)
    return AttentionCall(query, key, value, mask, SCALING, **more)


@pytest.mark.parametrize(
    ("implementation", "more", "name"),
    [
        ("sdpa", {}, "sdpa"),
        ("flash_attention_2", {}, "sdpa"),
        ("flex_attention", {}, "sdpa"),
        (None, {}, "sdpa"),
        ("eager", {}, "plain"),
        ("sdpa", {"softcap": 2.0}, "plain"),
        ("sdpa", {"sinks": torch.zeros(4)}, "plain"),
    ],
)
def test_the_first_back_end_that_can_is_taken(implementation: str | None, more: dict[str, Any], name: str) -> None:
    assert backend_for(call_of(**more), implementation).name == name


def test_a_chosen_back_end_that_cannot_is_an_error() -> None:
    for name, reason in (("varlen", "on cpu"), ("flash_attention_2", "flash_attn cannot be imported")):
        with use_backend(name), pytest.raises(NotImplementedError, match=f"{name}: .*{reason}"):
            backend_for(call_of())
    with use_backend("sdpa"), pytest.raises(NotImplementedError, match="no soft-cap"):
        backend_for(call_of(softcap=2.0))
    with use_backend("sdpa"), use_backend("plain"):
        assert backend_for(call_of()).name == "plain"
    assert backend_for(call_of()).name == "sdpa"
    with pytest.raises(ValueError, match="'fast' is not one of varlen, flash_attention_2"), use_backend("fast"):
        pass


def test_flash_attention_is_preferred_where_it_was_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (TorchVarlen, FlashVarlen):
        monkeypatch.setattr(backend, "supports", lambda self, call: None)
    found = {
        implementation: backend_for(call_of(), implementation).name
        for implementation in ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4")
    }
    assert found == {
        "sdpa": "varlen",
        "eager": "plain",
        "flash_attention_2": "flash_attention_2",
        "flash_attention_3": "flash_attention_3",
        "flash_attention_4": "flash_attention_3",
    }


def test_other_masks_get_upstreams_function() -> None:
    eager = modeling_llama.eager_attention_forward
    assert attention_for(None, "sdpa", eager) is sdpa_attention_forward
    assert attention_for(torch.zeros(1, 1, 2, 2), "eager", eager) is eager


@pytest.mark.parametrize(
    ("window", "more", "error", "message"),
    [
        (None, {"sliding_window": 4}, ValueError, "sliding_window is 4, its mask's window None"),
        (4, {"sliding_window": 5}, ValueError, "sliding_window is 5, its mask's window 4"),
        (None, {"is_causal": False}, ValueError, "is_causal=False"),
        (None, {"output_attentions": True}, ValueError, "output_attentions"),
        (None, {"position_bias": torch.zeros(1)}, NotImplementedError, "position_bias"),
        (None, {"head_mask": torch.zeros(1)}, NotImplementedError, "head_mask"),
    ],
)
def test_what_contradicts_the_mask_is_an_error(
    window: int | None, more: dict[str, Any], error: type[Exception], message: str
) -> None:
    mask = Packing.of_lengths(LENGTHS).mask(window)
    with pytest.raises(error, match=message):
        segment_attention(Layer(2), *states(sum(LENGTHS)), mask, scaling=SCALING, **more)


def test_tensors_of_another_row_are_an_error() -> None:
    mask = Packing.of_lengths([3, 4]).mask()
    with pytest.raises(ValueError, match=r"must be \[1, heads, 7, head_dim\]"):
        segment_attention(Layer(2), *states(8), mask)
    with pytest.raises(ValueError, match=r"must be \[1, heads, 7, head_dim\]"):
        segment_attention(Layer(2), *(part.expand(2, -1, -1, -1) for part in states(7)), mask)
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key"):
        segment_attention(Layer(2), *states(7, shared=3), mask)


# Kernels that run on CUDA only: what they would be given


class Recorded:
    """A kernel that computes by plain mathematics from what it is given, and remembers it."""

    def __init__(self) -> None:
        self.arguments: dict[str, Any] = {}

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seqlens: Tensor,
        longest: int,
        scale: float,
        window: tuple[int, int],
        cap: float = 0.0,
    ) -> Tensor:
        assert query.dim() == key.dim() == value.dim() == 3 and query.shape[0] == key.shape[0] == value.shape[0]
        assert query.shape[2] == key.shape[2] == value.shape[2] and query.shape[2] % 8 == 0
        assert cu_seqlens.dtype == torch.int32 and type(longest) is int
        assert longest == int(cu_seqlens.diff().max())
        places = torch.arange(query.shape[0])
        segment = torch.bucketize(places, cu_seqlens.long()[1:-1], right=True)
        behind = places[:, None] - places
        seen = (segment[:, None] == segment) & (behind >= -window[1] if window[1] >= 0 else behind == behind)
        if window[0] >= 0:
            seen &= behind <= window[0]
        groups = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) * scale
        if cap:
            scores = cap * torch.tanh(scores / cap)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, value)

    def varlen_attn(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> Tensor:
        assert cu_seq_q is cu_seq_k and max_q == max_k and scale is not None
        assert enable_gqa is (query.shape[1] != key.shape[1])
        self.arguments = {"window_size": window_size, "width": query.shape[2]}
        return self.attend(query, key, value, cu_seq_q, max_q, scale, window_size)

    def flash_attn_varlen_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
    ) -> tuple[Tensor, None]:
        assert cu_seqlens_q is cu_seqlens_k and max_seqlen_q == max_seqlen_k and softmax_scale is not None
        assert causal
        self.arguments = {"window_size": window_size, "dropout_p": dropout_p, "softcap": softcap}
        # As flash-attn: causal cuts off what is to the right, whatever the window says.
        window = (window_size[0], 0)
        return self.attend(q, k, v, cu_seqlens_q, max_seqlen_q, softmax_scale, window, softcap), None


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """The CUDA kernels replaced, the limits of the device lifted."""
    import torch.nn.attention.varlen as varlen

    kernel = Recorded()
    monkeypatch.setattr(varlen, "varlen_attn", kernel.varlen_attn)
    package = SimpleNamespace(flash_attn_varlen_func=kernel.flash_attn_varlen_func)
    monkeypatch.setitem(__import__("sys").modules, "flash_attn", package)
    monkeypatch.setattr(backends, "_flash_limits", lambda call: None)
    return kernel


def kernels() -> list[Any]:
    """Fresh ones: a back end imports its kernel once."""
    return [TorchVarlen(), FlashVarlen("flash_attention_2", "flash_attn")]


@pytest.mark.parametrize("which", [0, 1], ids=["varlen", "flash"])
@pytest.mark.parametrize(
    ("window", "chunk", "given_window"),
    [
        (None, None, None),
        (1, None, 0),
        (3, None, 2),
        (10, None, 9),
        (11, None, None),
        (90, None, None),
        (None, 4, None),
    ],
)
@pytest.mark.parametrize(("shared", "width", "value_width"), [(4, 8, 8), (2, 8, 8), (2, 12, 6), (4, 8, 12)])
def test_kernels_are_given_what_they_need(
    recorded: Recorded,
    which: int,
    window: int | None,
    chunk: int | None,
    given_window: int | None,
    shared: int,
    width: int,
    value_width: int,
) -> None:
    given = states(sum(LENGTHS), shared=shared, width=width, value_width=value_width)
    mask, layer = Packing.of_lengths(LENGTHS).mask(window, chunk), Layer(4 // shared)
    call = AttentionCall(*given, mask, SCALING)
    backend = kernels()[which]
    assert backend.supports(call) is None
    found = backend(call)
    assert found.shape == (1, sum(LENGTHS), 4, value_width)
    assert_same(found, alone(modeling_llama.eager_attention_forward, layer, given, mask), given)
    unlimited = (-1, 0) if which == 0 else (-1, -1)
    assert recorded.arguments["window_size"] == (unlimited if given_window is None else (given_window, 0))


def test_flash_gets_soft_cap_and_dropout(recorded: Recorded) -> None:
    backend = kernels()[1]
    call = call_of(dtype=torch.float64)
    backend(call)
    assert recorded.arguments == {"window_size": (-1, -1), "dropout_p": 0.0, "softcap": 0.0}
    backend(replace(call, dropout=0.25))
    assert recorded.arguments["dropout_p"] == 0.25
    capped = replace(call, softcap=0.5)
    given = [call.query, call.key, call.value]
    expected = alone(modeling_gemma2.eager_attention_forward, Layer(2), given, call.mask, softcap=0.5)
    assert_same(backend(capped), expected, given)
    assert "cannot combine" in str(backend.supports(replace(capped, dropout=0.1)))
    assert "sinks" in str(backend.supports(replace(call, sinks=torch.zeros(4))))


def test_a_kernel_without_a_keyword_says_so(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    def third(q: Any, k: Any, v: Any, cu_seqlens_q: Any, softmax_scale: Any = None, causal: bool = False) -> None: ...

    modules = __import__("sys").modules
    monkeypatch.setitem(modules, "flash_attn_interface", SimpleNamespace(flash_attn_varlen_func=third))
    backend = FlashVarlen("flash_attention_3", "flash_attn_interface")
    assert backend.supports(call_of()) is None
    assert "has no dropout_p" in str(backend.supports(call_of(dropout=0.1)))
    assert "has no softcap" in str(backend.supports(call_of(softcap=1.0)))
    monkeypatch.setitem(modules, "flash_attn_interface", SimpleNamespace())
    assert "has no flash_attn_varlen_func" in str(FlashVarlen("x", "flash_attn_interface").supports(call_of()))


def test_varlen_says_what_it_cannot_express(recorded: Recorded) -> None:
    backend = kernels()[0]
    assert backend.supports(call_of()) is None
    for more, word in (
        ({"dropout": 0.1}, "dropout"),
        ({"softcap": 1.0}, "soft-cap"),
        ({"sinks": torch.zeros(4)}, "sinks"),
    ):
        assert word in str(backend.supports(call_of(**more)))


def test_the_limits_of_flash_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(device: str, dtype: torch.dtype = torch.bfloat16, width: int = 64, value_width: int = 64) -> AttentionCall:
        parts = [
            SimpleNamespace(shape=(1, 2, 4, size), device=torch.device(device), dtype=dtype)
            for size in (width, width, value_width)
        ]
        return AttentionCall(*parts, Packing.of_lengths([4]).mask(), SCALING)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    limits = backends._flash_limits
    assert limits(on("cuda")) is None and limits(on("cuda", torch.float16, 250, 256)) is None
    assert "on cpu" in str(limits(on("cpu")))
    assert "not float32" in str(limits(on("cuda", torch.float32)))
    assert "head dimension 264" in str(limits(on("cuda", width=257)))
    assert "head dimension 320" in str(limits(on("cuda", value_width=320)))
    with monkeypatch.context() as autocast:
        autocast.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
        autocast.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
        assert limits(on("cuda", torch.float32)) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 8.0" in str(limits(on("cuda")))


def test_heads_are_repeated_where_no_fused_kernel_shares_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def shares(device: str, dtype: torch.dtype, mask: Tensor | None) -> bool:
        query: Any = SimpleNamespace(device=torch.device(device), dtype=dtype)
        call = AttentionCall(query, query, query, Packing.of_lengths([4]).mask(), SCALING)
        return backends._fused_kernels_share_heads(call, mask)

    mask = torch.ones(4, 4, dtype=torch.bool)
    assert shares("cpu", torch.float32, mask) and shares("cpu", torch.float32, None)
    assert shares("cuda", torch.bfloat16, None)
    assert not shares("cuda", torch.bfloat16, mask) and not shares("cuda", torch.float32, None)

    # The repeated heads compute the same.
    given, layer = states(sum(LENGTHS)), Layer(2)
    for window in (None, 3):
        packed = Packing.of_lengths(LENGTHS).mask(window)
        with use_backend("sdpa"):
            shared, _ = segment_attention(layer, *given, packed, scaling=SCALING)
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr(backends, "_fused_kernels_share_heads", lambda call, mask: False)
                repeated, _ = segment_attention(layer, *given, packed, scaling=SCALING)
        assert_same(shared, repeated, given)


def test_torchs_own_kernel_has_the_signature_that_is_called() -> None:
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    inspect.signature(varlen_attn).bind(*range(7), scale=1.0, window_size=(-1, 0), enable_gqa=True)
