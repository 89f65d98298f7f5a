"""QEFFAutoModelForCausalLM against unmodified upstream, row by row without padding."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from upstream_reference import NEW_TOKENS, PROMPT_LENGTHS, VOCAB, Reference, build, padded, prompts, upstream

from runtime.qeff import QEFFAutoModelForCausalLM

CTX_LEN = max(PROMPT_LENGTHS) + NEW_TOKENS - 1
TOLERANCE = {"torch": 1e-5, "ort": 1e-5}


@pytest.fixture(autouse=True, scope="module")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEFF_HOME", str(tmp_path_factory.mktemp("qeff_home")))
        yield


@dataclass(frozen=True)
class Case:
    qeff: QEFFAutoModelForCausalLM
    rows: list[torch.Tensor]
    reference: Reference


# phi3: upstream drops the cache where a row outgrows the original length, but then (5.5.4) feeds the last token alone.
# What it means to compute is what it computes without a cache.
@pytest.fixture(
    scope="module",
    params=["llama", "gemma2", "mixtral", "phi3-longrope", "llama-longrope", "llama-dynamic-rope", "gpt2"],
)
def case(request: pytest.FixtureRequest) -> Case:
    model = build(request.param)
    rows = prompts()
    recompute = request.param == "phi3-longrope"
    reference = upstream(model, rows, use_cache=not recompute)
    assert len({*reference.tokens.flatten().tolist()}) > 8, "the model's tokens must vary to tell anything"
    if recompute:
        model.qeff_recompute_past_beyond_original_length = True
    return Case(QEFFAutoModelForCausalLM(model), rows, reference)


@pytest.mark.parametrize("runtime", ["torch", "ort"])
@pytest.mark.parametrize(("side", "prefill_seq_len"), [("left", 8), ("right", 8), ("left", 32), ("right", 1)])
def test_generate_is_upstreams_for_every_row(case: Case, runtime: str, side: str, prefill_seq_len: int) -> None:
    input_ids, attention_mask = padded(case.rows, side)
    out = case.qeff.generate(
        input_ids,
        attention_mask,
        generation_len=NEW_TOKENS,
        prefill_seq_len=prefill_seq_len,
        ctx_len=CTX_LEN,  # not a slot more than needed: the last one is live
        runtime=runtime,
    )
    assert out.generated_ids.dtype == torch.int64
    assert out.logits is not None and out.logits.dtype == torch.float32
    assert out.generated_ids.shape == (3, NEW_TOKENS) and out.logits.shape == (3, NEW_TOKENS, VOCAB)
    case.reference.assert_agrees(out.generated_ids, out.logits, TOLERANCE[runtime])


@pytest.mark.parametrize("runtime", ["torch", "ort"])
def test_one_file_serves_any_batch_and_context(case: Case, runtime: str) -> None:
    for index, row in enumerate(case.rows):
        out = case.qeff.generate(row[None], generation_len=4, prefill_seq_len=6, ctx_len=50 + index, runtime=runtime)
        one = Reference(case.reference.tokens[index : index + 1, :4], case.reference.logits[index : index + 1, :4])
        assert out.logits is not None
        one.assert_agrees(out.generated_ids, out.logits, TOLERANCE[runtime])


@pytest.mark.parametrize("runtime", ["torch", "ort"])
def test_continuous_batching_and_compute_context_lengths(runtime: str) -> None:
    model = build("gemma2")
    rows = prompts()
    reference = upstream(model, rows)
    qeff = QEFFAutoModelForCausalLM(model, continuous_batching=True, qaic_config={"ccl_enabled": True})
    out = qeff.generate(*padded(rows, "left"), NEW_TOKENS, 8, 64, runtime=runtime, comp_ctx_lengths=[12, 24, 36])
    assert out.logits is not None
    reference.assert_agrees(out.generated_ids, out.logits, TOLERANCE[runtime])


def test_ort_follows_the_weights() -> None:
    """A change of weights must not be answered from the file that was exported before it."""
    model = build("llama")
    rows = prompts((6,))
    qeff = QEFFAutoModelForCausalLM(model)
    first = qeff.generate(rows[0][None], runtime="ort", generation_len=4)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] += 1.0
    second = qeff.generate(rows[0][None], runtime="ort", generation_len=4)
    eager = qeff.generate(rows[0][None], runtime="torch", generation_len=4)
    assert first.logits is not None and second.logits is not None and eager.logits is not None
    assert (first.logits - second.logits).abs().max() > 1e-3
    torch.testing.assert_close(second.logits, eager.logits, rtol=0, atol=1e-4)


def state(model: torch.nn.Module) -> dict[str, Any]:
    return {
        "classes": [(name, type(module)) for name, module in model.named_modules()],
        "training": [module.training for module in model.modules()],
        "tensors": {name: tensor.data_ptr() for name, tensor in model.named_parameters()},
        "buffers": {name: tensor.clone() for name, tensor in model.named_buffers()},
        "config": model.config.to_dict(),  # type: ignore[union-attr, operator]
    }


def assert_same_state(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for part in ("classes", "training", "tensors", "config"):
        assert found[part] == expected[part]
    torch.testing.assert_close(found["buffers"], expected["buffers"], rtol=0, atol=0)


def test_restore_gives_upstream_back() -> None:
    model = build("gemma2").train()
    model.model.layers[0].eval()
    before = state(model)
    rows = prompts((7,))
    reference = upstream(copy.deepcopy(model).eval(), rows)
    with QEFFAutoModelForCausalLM(model, max_seq_len_cached=48) as qeff:
        assert type(qeff.model).__name__ == "QEffGemma2ForCausalLM" and not model.training
        assert qeff.model_name == "Gemma2ForCausalLM"
        assert qeff.transforms == ("CustomOpsTransform", "KVCacheTransform")
        assert model.config.max_seq_len_cached == 48
    assert_same_state(state(model), before)
    assert qeff.restore() is model
    with pytest.raises(RuntimeError, match="restored"):
        qeff.generate(rows[0][None])
    again = upstream(model.eval(), rows)
    reference.assert_agrees(again.tokens, again.logits, 0.0)


def test_wrapping_twice_changes_nothing_more() -> None:
    model = build("llama")
    before = state(model)
    first = QEFFAutoModelForCausalLM(model)
    wrapped = state(model)
    second = QEFFAutoModelForCausalLM(model)
    assert_same_state(state(model), wrapped)
    row = prompts((5,))[0][None]
    assert torch.equal(first.generate(row).generated_ids, second.generate(row).generated_ids)
    with pytest.raises(ValueError, match="already transformed"):
        QEFFAutoModelForCausalLM(model, max_seq_len_cached=16)
    assert_same_state(state(model), wrapped)
    second.restore()
    assert_same_state(state(model), before)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"model": torch.nn.Linear(2, 2)}, TypeError, "Hugging Face"),
        ({"max_seq_len_cached": 0}, ValueError, "max_seq_len_cached"),
        ({"qaic_config": {"include_sampler": True}}, ValueError, "include_sampler"),
        ({"qaic_config": {"ccl_enabled": 1}}, TypeError, "ccl_enabled"),
    ],
)
def test_wrong_construction_leaves_the_model_alone(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    model = build("llama")
    before = state(model)
    with pytest.raises(error, match=text):
        QEFFAutoModelForCausalLM(**{"model": model, **arguments})
    assert_same_state(state(model), before)


def test_only_the_causal_lm_head_has_a_variant() -> None:
    config = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    model = LlamaForSequenceClassification(config)
    before = state(model)
    with pytest.raises(ValueError, match="LlamaForSequenceClassification has no variant"):
        QEFFAutoModelForCausalLM(model)
    assert_same_state(state(model), before)


def test_from_pretrained_loads_a_folder(tmp_path: Path) -> None:
    build("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    rows = prompts((9,))
    reference = upstream(LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), rows)
    qeff = QEFFAutoModelForCausalLM.from_pretrained(tmp_path, max_seq_len_cached=40)
    assert isinstance(qeff.model, LlamaForCausalLM) and qeff.model.dtype == torch.float32
    assert qeff.model.config._attn_implementation == "eager"
    out = qeff.generate(rows[0][None], generation_len=NEW_TOKENS, ctx_len=40)
    assert out.logits is not None
    reference.assert_agrees(out.generated_ids, out.logits, 1e-5)
    with pytest.raises(ValueError, match="end after 40 positions"):
        qeff.generate(rows[0][None], ctx_len=64, generation_len=33)
    with pytest.raises(ValueError, match="attn_implementation"):
        QEFFAutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    with pytest.raises(OSError):
        QEFFAutoModelForCausalLM.from_pretrained(tmp_path / "missing")


def test_rope_tables_may_be_longer_than_the_config_says() -> None:
    """Default rope goes on past max_position_embeddings upstream; max_seq_len_cached makes room for it here."""
    model = build("llama")
    rows = prompts((60,))
    reference = upstream(model, rows)
    qeff = QEFFAutoModelForCausalLM(model, max_seq_len_cached=80)
    for runtime in ("torch", "ort"):
        out = qeff.generate(rows[0][None], generation_len=NEW_TOKENS, ctx_len=80, runtime=runtime)
        assert out.logits is not None
        reference.assert_agrees(out.generated_ids, out.logits, TOLERANCE[runtime])


def test_learned_positions_end_with_an_error() -> None:
    qeff = QEFFAutoModelForCausalLM(build("gpt2"))
    row = prompts((34,))[0][None]
    for runtime in ("torch", "ort"):
        assert qeff.generate(row, generation_len=3, runtime=runtime).generated_ids.shape == (1, 3)
        with pytest.raises(IndexError, match="no embedding for some position up to 36"):
            qeff.generate(row, generation_len=4, runtime=runtime)


def test_bfloat16_runs_in_torch_and_is_refused_by_onnx_runtime() -> None:
    qeff = QEFFAutoModelForCausalLM(build("llama").to(torch.bfloat16))
    row = prompts((5,))[0][None]
    out = qeff.generate(row, generation_len=2)
    assert out.logits is not None and out.logits.dtype == torch.float32 and out.logits.isfinite().all()
    with pytest.raises(ValueError, match=r"dtype=torch.float32"):
        qeff.generate(row, generation_len=2, runtime="ort")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"runtime": "tensorrt"}, ValueError, "unknown runtime 'tensorrt'.*'torch', 'ort'"),
        ({"input_ids": torch.tensor([[0.5]])}, TypeError, "integers"),
        ({"input_ids": torch.tensor([1, 2])}, ValueError, "input_ids must be"),
        ({"input_ids": torch.tensor([[VOCAB]])}, ValueError, "outside the vocabulary"),
        ({"attention_mask": torch.tensor([[0, 0, 0]])}, ValueError, "empty prompt"),
        ({"attention_mask": torch.tensor([[1, 0, 1]])}, ValueError, "hole"),
        ({"attention_mask": torch.tensor([[1, 1]])}, ValueError, "shape"),
        ({"generation_len": 0}, ValueError, "generation_len"),
        ({"prefill_seq_len": 0}, ValueError, "prefill_seq_len"),
        ({"ctx_len": 17}, ValueError, "18 KV slots are needed"),
        ({"ctx_len": 80, "generation_len": 63}, ValueError, "end after 64 positions"),
        ({"comp_ctx_lengths": [16]}, ValueError, "ccl_enabled"),
    ],
)
def test_wrong_generate_input(
    llama: QEFFAutoModelForCausalLM, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    good: dict[str, Any] = {"input_ids": torch.tensor([[1, 2, 3]]), "ctx_len": 18}
    assert llama.generate(**good, return_logits=False).logits is None
    with pytest.raises(error, match=text):
        llama.generate(**{**good, **arguments})


@pytest.fixture(scope="module")
def llama() -> QEFFAutoModelForCausalLM:
    return QEFFAutoModelForCausalLM(build("llama"))
