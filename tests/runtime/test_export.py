"""The exported file: interface, metadata, identity and how it is put on disk."""

import copy
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from upstream_reference import build

from runtime.qeff import QEFFAutoModelForCausalLM, export
from runtime.qeff.export import METADATA_KEY, GraphMetadata, default_root, shares_buffers


def shapes(values: Any) -> dict[str, list[str | int]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[QEFFAutoModelForCausalLM, Path]:
    qeff = QEFFAutoModelForCausalLM(build("llama"))
    return qeff, qeff.export(tmp_path_factory.mktemp("export") / "m")


def test_interface_and_metadata(tmp_path: Path) -> None:
    qeff = QEFFAutoModelForCausalLM(build("gemma2"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an export of a supported model has nothing to warn of
        path = qeff.export(tmp_path / "here")
    assert path.parent.parent == tmp_path and path.parent.name.startswith("here-")
    assert path.name == "Gemma2ForCausalLM.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model)
    kv: list[str | int] = ["batch_size", 2, "ctx_len", 16]
    states = [f"past_{kind}.{layer}" for layer in range(3) for kind in ("key", "value")]
    inputs = shapes(model.graph.input)
    assert list(inputs) == ["input_ids", "position_ids", *states]
    assert inputs["input_ids"] == inputs["position_ids"] == ["batch_size", "seq_len"]
    assert all(inputs[name] == kv for name in states)
    outputs = shapes(model.graph.output)
    assert list(outputs) == ["logits", *(f"{name}_RetainedState" for name in states)]
    assert {value.type.tensor_type.elem_type for value in model.graph.input[:2]} == {onnx.TensorProto.INT64}
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT

    functions = {(function.domain, function.name) for function in model.functions}
    assert functions >= {("com.qualcomm.cloud", "CtxScatter"), ("com.qualcomm.cloud", "CtxGather")}
    assert ("com.qti.aisw.onnx", "CustomRMSNorm") in functions
    scatters = [node.output[0] for node in model.graph.node if node.op_type == "CtxScatter"]
    assert sorted(scatters) == sorted(f"{name}_RetainedState" for name in states)

    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["qeff_transforms"] == "CustomOpsTransform,KVCacheTransform"
    metadata = GraphMetadata.from_json(said[METADATA_KEY])
    assert metadata.model_type == "gemma2" and metadata.vocab_size == 97 and metadata.rope.rows == 64
    assert metadata.kv_names == states and metadata.kv_in_place
    assert [(layer.key_heads, layer.key_dim, layer.dtype) for layer in metadata.layers] == [(2, 16, "float32")] * 3
    with pytest.raises(ValueError, match="format"):
        GraphMetadata.from_json(json.dumps({"format": 0}))


def test_continuous_batching_and_compute_context_inputs(tmp_path: Path) -> None:
    qeff = QEFFAutoModelForCausalLM(build("llama"), continuous_batching=True, qaic_config={"ccl_enabled": True})
    model = onnx.load(qeff.export(tmp_path / "cb"))
    inputs = shapes(model.graph.input)
    assert list(inputs)[-2:] == ["comp_ctx_lengths", "batch_index"]
    assert inputs["comp_ctx_lengths"] == ["comp_ctx_lengths"] and inputs["batch_index"] == ["batch_size", 1]
    assert inputs["past_key.0"] == ["full_batch_size", 2, "ctx_len", 8]
    assert {"CtxScatterCB", "CtxGatherCB"} <= {function.name for function in model.functions}


def test_longrope_metadata(tmp_path: Path) -> None:
    model = build("phi3-longrope")
    model.qeff_recompute_past_beyond_original_length = True
    metadata = GraphMetadata.from_json(
        {e.key: e.value for e in onnx.load(QEFFAutoModelForCausalLM(model).export(tmp_path / "p")).metadata_props}[
            METADATA_KEY
        ]
    )
    assert (metadata.rope.rows, metadata.rope.changes_above, metadata.rope.recompute) == (64, 16, True)


def test_an_export_is_reused_by_equal_models_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_write_onnx", lambda _model, _metadata, path: path.write_bytes(b"a graph"))
    first = QEFFAutoModelForCausalLM(build("llama")).export(tmp_path / "m")
    stamp = first.stat().st_mtime_ns
    assert QEFFAutoModelForCausalLM(build("llama")).export(tmp_path / "m") == first
    assert first.stat().st_mtime_ns == stamp

    assert QEFFAutoModelForCausalLM(build("llama", seed=1)).export(tmp_path / "m") != first
    assert QEFFAutoModelForCausalLM(build("llama"), continuous_batching=True).export(tmp_path / "m") != first
    assert QEFFAutoModelForCausalLM(build("llama"), max_seq_len_cached=32).export(tmp_path / "m") != first
    one_weight = build("llama")
    with torch.no_grad():
        one_weight.lm_head.weight[3, 3] += 1e-3
    assert QEFFAutoModelForCausalLM(one_weight).export(tmp_path / "m") != first
    other_config = build("llama")
    other_config.config.rms_norm_eps *= 2
    assert QEFFAutoModelForCausalLM(other_config).export(tmp_path / "m") != first
    record = json.loads((first.parent / "hashed_export_params.json").read_text())
    assert set(record) == {"format", "config", "metadata", "opset", "exporter", "code", "weights"}


def test_the_text_of_the_variants_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    qeff = QEFFAutoModelForCausalLM(build("llama"))
    digest = export.code_digest(qeff.model)
    edited = tmp_path / "edited.py"
    edited.write_text("# another text\n")
    real = export.inspect.getsourcefile
    monkeypatch.setattr(
        export.inspect,
        "getsourcefile",
        lambda thing: str(edited) if thing.__name__ == "generated.qeff.modeling_llama" else real(thing),
    )
    assert export.code_digest(qeff.model) != digest


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qeff = QEFFAutoModelForCausalLM(build("llama"))

    def full_disk(_graph: Any, _inputs: Any, file: Any, **_: Any) -> None:
        assert type(file) is str, "beyond 2 GiB the exporter writes external data only if the file is a str"
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch.onnx, "export", full_disk)
    with pytest.raises(OSError, match="No space left"):
        qeff.export(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["no record", "wrong record", "no file", "unreadable record"])
def test_a_damaged_folder_is_replaced(
    llama: tuple[QEFFAutoModelForCausalLM, Path], tmp_path: Path, damage: str
) -> None:
    qeff, path = llama
    path = shutil.copytree(path.parent, tmp_path / path.parent.name) / path.name
    content = path.read_bytes()
    record = path.parent / "hashed_export_params.json"
    match damage:
        case "no record":
            record.unlink()
        case "wrong record":
            record.write_text(json.dumps({**json.loads(record.read_text()), "weights": "0"}))
        case "no file":
            path.unlink()
        case "unreadable record":
            record.write_text("{")
    assert qeff.export(tmp_path / "m") == path
    assert path.read_bytes() == content, "an export is deterministic"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.parent.name]
    assert json.loads(record.read_text())["weights"] == export.weights_digest(qeff.model)


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QEFF_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "qeff_models"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root() == tmp_path / "xdg" / "qeff_models"
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "home"))
    assert default_root() == tmp_path / "home"
    path = QEFFAutoModelForCausalLM(build("llama")).export()
    assert path.parent.parent == tmp_path / "home" / "LlamaForCausalLM"
    assert path.parent.name.startswith("LlamaForCausalLM-")


SCATTER = """<ir_version: 10, opset_import: ["" : 18]>
graph (float[4, 2] past, int64[1, 1] slot, float[1, 2] row) => (float[4, 2] past_RetainedState, float[4, 2] seen) {
"""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(
            """past_RetainedState = ScatterND(past, slot, row)
            seen = Neg(past_RetainedState)""",
            True,
            id="only written",
        ),
        pytest.param(
            """view = Identity(past)
            zero = Constant<value_ints: ints = [0]>()
            old = Gather<axis = 0>(view, zero)
            more = Add(old, row)
            past_RetainedState = ScatterND(past, slot, more)
            seen = Neg(past_RetainedState)""",
            True,
            id="read before, by what is written",
        ),
        pytest.param(
            """seen = Neg(past)
            past_RetainedState = ScatterND(past, slot, row)""",
            False,
            id="read in no order",
        ),
        pytest.param(
            """view = Identity(past)
            zero = Constant<value_ints: ints = [0]>()
            old = Gather<axis = 0>(view, zero)
            more = Add(old, row)
            past_RetainedState = ScatterND(past, slot, more)
            seen = Neg(view)""",
            False,
            id="a view is read after",
        ),
        pytest.param(
            """past_RetainedState = Add(past, row)
            seen = Neg(past_RetainedState)""",
            False,
            id="not scattered",
        ),
    ],
)
def test_buffers_are_shared_only_where_nothing_reads_them_later(body: str, expected: bool) -> None:
    model = onnx.parser.parse_model(SCATTER + body + "\n}")
    onnx.checker.check_model(model)
    assert shares_buffers(model, ["past"]) is expected


def test_the_model_is_not_changed_by_exporting(tmp_path: Path) -> None:
    qeff = QEFFAutoModelForCausalLM(build("mixtral"))
    before = {name: tensor.clone() for name, tensor in qeff.model.named_parameters()}
    config = copy.deepcopy(qeff.model.config.to_dict())
    qeff.export(tmp_path / "m")
    assert qeff.model.config.to_dict() == config
    for name, tensor in qeff.model.named_parameters():
        assert torch.equal(tensor, before[name])
