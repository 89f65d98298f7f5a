"""What the kernels' modules decide without running one: machines, devices, functions."""

import importlib.util
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from parity import feature
from torch import nn
from transformers.models.bamba.modeling_bamba import apply_rotary_pos_emb as bamba
from transformers.models.blt.modeling_blt import apply_rotary_pos_emb as blt
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as cohere
from transformers.models.ernie4_5.modeling_ernie4_5 import apply_rotary_pos_emb as ernie4_5
from transformers.models.gemma4.modeling_gemma4 import apply_rotary_pos_emb as gemma4
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as glm
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as gpt_neox
from transformers.models.gpt_oss.modeling_gpt_oss import apply_rotary_pos_emb as gpt_oss
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as llama
from transformers.models.nanochat.modeling_nanochat import apply_rotary_pos_emb as nanochat
from transformers.models.olmo.modeling_olmo import apply_rotary_pos_emb as olmo
from transformers.models.qwen3_next.modeling_qwen3_next import apply_rotary_pos_emb as qwen3_next

from runtime.training import kernels
from runtime.training.kernels import interpreter
from runtime.training.kernels.activation import gated
from runtime.training.kernels.experts import experts
from runtime.training.kernels.loss import fused_loss, liger_cross_entropy, mismatch
from runtime.training.kernels.norm import LigerNormCastThenWeight
from runtime.training.kernels.rotary import rotary, rotated_width

FLOAT, BRAIN = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("function", "dtype", "row", "width", "expected"),
    [
        (llama, FLOAT, FLOAT, 8, 8),
        (llama, BRAIN, BRAIN, 8, 8),
        (llama, BRAIN, FLOAT, 8, None),  # upstream's result is float32
        (llama, FLOAT, BRAIN, 8, None),  # upstream computes in float32
        (llama, FLOAT, FLOAT, 4, None),  # upstream's function takes whole heads only
        (olmo, BRAIN, FLOAT, 8, 8),
        (gpt_neox, BRAIN, BRAIN, 4, 4),
        (bamba, BRAIN, BRAIN, 6, 6),
        (qwen3_next, BRAIN, BRAIN, 4, 4),
        (gpt_oss, BRAIN, BRAIN, 4, 8),
        (blt, FLOAT, FLOAT, 8, None),
        (cohere, FLOAT, FLOAT, 8, None),
        (ernie4_5, FLOAT, FLOAT, 8, None),
        (gemma4, FLOAT, FLOAT, 8, None),
        (glm, FLOAT, FLOAT, 8, None),
        (glm, FLOAT, FLOAT, 4, None),
        (nanochat, FLOAT, FLOAT, 8, None),
    ],
)
def test_which_rotations_the_kernel_is(function, dtype, row, width, expected):
    assert rotated_width(function, dtype, row, 8, width) == expected


def test_available(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in kernels.available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert kernels.available() is None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "interpreter.install()" in kernels.available()
    monkeypatch.setattr(interpreter, "_installed", True)
    assert kernels.available() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "liger_kernel" else name)
    assert kernels.available() == "liger_kernel is not installed"


def test_cpu_tensors_and_compiled_kernels():
    """An error that says what is wrong, never numbers from wherever a CPU address points to on a device."""
    norm = feature(LlamaRMSNorm(4), "rms_norm")
    norm.__class__ = LigerNormCastThenWeight
    module = feature(nn.Module(), "rope", "swiglu", "fused_linear_cross_entropy")
    x, rows = torch.ones(1, 2, 3, 4), torch.ones(1, 3, 4)
    labels = torch.zeros(1, 3, dtype=torch.int64)
    for call in (
        lambda: norm(x),
        lambda: gated(module, nn.SiLU(), x, x),
        lambda: rotary(module, llama)(x, x, rows, rows),
        lambda: fused_loss(module, nn.Linear(4, 5), rows, labels, None),
        lambda: liger_cross_entropy(rows, labels, 4),
    ):
        with pytest.raises(RuntimeError, match="switched on, but got a tensor on cpu"):
            call()


def test_meta_tensors_go_upstreams_way():
    norm = feature(LlamaRMSNorm(4).to("meta"), "rms_norm")
    norm.__class__ = LigerNormCastThenWeight
    x = torch.ones(1, 2, 3, 4, device="meta")
    assert norm(x).shape == x.shape
    assert gated(feature(nn.Module(), "swiglu"), nn.SiLU(), x, x).shape == x.shape


def test_switched_off():
    module = feature(nn.Module())

    def function(*args):
        return args

    assert rotary(module, function) is function
    assert experts(module, function) is function
    assert fused_loss(module, nn.Linear(4, 5), torch.ones(1, 3, 4), torch.zeros(1, 3, dtype=torch.int64), None) is None


def test_what_is_never_used_is_reported_once(caplog):
    kernels.not_used.cache_clear()
    model = feature(nn.Module(), "swiglu", "rope", "experts", "fused_linear_cross_entropy")
    x, rows = torch.ones(1, 2, 3, 4), torch.ones(1, 3, 4)
    labels = torch.zeros(1, 3, dtype=torch.int64)
    for _ in range(2):
        gated(model, nn.GELU(), x, x)
        rotary(model, nanochat)(x, x, rows, rows)
        experts(model, lambda *args: None)
        assert fused_loss(model, nn.Identity(), rows, labels, None) is None
    assert [record.getMessage() for record in caplog.records] == [
        "swiglu is switched on but not used for Module: GELU has no kernel",
        "rope is switched on but not used for Module: "
        "transformers.models.nanochat.modeling_nanochat.apply_rotary_pos_emb does not rotate "
        "torch.float32 heads of 4 and torch.float32 rows of 4 as the kernel does",
        "experts is switched on but not used for Module: no stacked gate_up_proj and down_proj",
        "fused_linear_cross_entropy is switched on but not used for Module: the head is a Identity, not a Linear",
    ]


def test_why_a_head_does_not_fit():
    model = SimpleNamespace()
    assert mismatch(model, nn.Linear(2, 3)) is None
    assert mismatch(model, nn.Embedding(2, 3)) == "the head is a Embedding, not a Linear"
    assert mismatch(SimpleNamespace(loss_function=print), nn.Linear(2, 3)) == "the model has a loss function of its own"
    hooked = nn.Linear(2, 3)
    hooked.register_forward_pre_hook(lambda *args: None)
    assert mismatch(model, hooked) == "the head has hooks, which would not be called"


def test_rounding_to_bfloat16():
    """The interpreter's roundings are torch's, ties, infinities and subnormal numbers included."""
    bits = np.random.default_rng(0).integers(0, 2**32, 20000, dtype=np.uint32)
    bits[:4] = (0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x00008000)
    values = bits.view(np.float32)
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values.copy()).bfloat16()
    found = interpreter.to_bfloat16(values)
    assert np.array_equal(found, expected.view(torch.uint16).numpy())
    assert np.array_equal(interpreter.to_float32(found), expected.float().numpy())
    assert np.isnan(interpreter.to_float32(interpreter.to_bfloat16(np.array([np.nan], np.float32)))).all()


def test_install_refuses(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="needs TRITON_INTERPRET=1 in the environment"):
        interpreter.install()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", SimpleNamespace())
    with pytest.raises(RuntimeError, match=r"liger_kernel.ops was imported before install\(\)"):
        interpreter.install()
    monkeypatch.delitem(sys.modules, "liger_kernel.ops")
    with pytest.raises(RuntimeError, match="triton was imported before TRITON_INTERPRET=1"):
        interpreter.install()
    monkeypatch.setattr(interpreter, "_BUILDER", (*interpreter._BUILDER, "create_more"))
    with pytest.raises(RuntimeError, match="has no create_more in InterpreterBuilder"):
        interpreter.install()
    assert not interpreter.installed()


def test_no_interpreter_here():
    assert os.environ.get("TRITON_INTERPRET") != "1", "these tests are about processes without it"
