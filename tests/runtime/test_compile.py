"""Cloud AI 100 side files and command line, with a stand-in for the SDK."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from upstream_reference import build

from runtime.qeff import QEFFAutoModelForCausalLM, compile
from runtime.qeff.compile import (
    CompileOptions,
    CompilerNotInstalled,
    GraphDescription,
    build_specializations,
    compile_graph,
    get_available_device_id,
)

FAKE_COMPILER = """#!/bin/sh
echo "$@" >> "{log}"
for argument in "$@"; do
  case "$argument" in -aic-binary-dir=*) binary="${{argument#-aic-binary-dir=}}" ;; esac
done
test -e "$binary" && {{ echo "binary dir exists" >&2; exit 3; }}
{behaviour}
"""
SUCCEED = 'mkdir "$binary" && echo qpc > "$binary/programqpc.bin"'


@pytest.fixture
def sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "qti-aic"
    for folder in ("exec", "tools", "versions"):
        (root / folder).mkdir(parents=True)
    monkeypatch.setattr(compile, "SDK_ROOT", root)
    install(root / "exec" / "qaic-compile", FAKE_COMPILER.format(log=root / "calls", behaviour=SUCCEED))
    (root / "versions" / "apps.xml").write_text(
        "<versions><ci_build><base_version>1.20</base_version><build_id>100</build_id></ci_build></versions>"
    )
    return root


def install(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def graph(tmp_path: Path) -> GraphDescription:
    path = tmp_path / "model" / "LlamaForCausalLM.onnx"
    path.parent.mkdir()
    path.touch()
    return description(path)


def description(path: Path, **changed: Any) -> GraphDescription:
    fields: dict[str, Any] = {
        "path": path,
        "retained_names": ("past_key.0", "past_value.0"),
        "kv_dtype": "float32",
        "continuous_batching": False,
        "comp_ctx_lengths": False,
        "rope_rows": 4096,
        "config": {"model_type": "llama"},
        "transforms": ("KVCacheTransform",),
    }
    return GraphDescription(**{**fields, **changed})


def symbols(batch: int, seq: int, ctx: int = 128, **more: int) -> dict[str, str]:
    values = {"batch_size": batch, "seq_len": seq, "ctx_len": ctx, **more}
    return {name: str(value) for name, value in values.items()}


def test_command_and_side_files(sdk: Path, graph: GraphDescription) -> None:
    options = CompileOptions(
        num_devices=2, mxfp6_matmul=True, flags=(("mos", 1), ("aic_enable_depth_first", True), ("dropped", False))
    )
    qpc = compile_graph(graph, options)
    folder = qpc.parent
    assert folder.parent == graph.path.parent and folder.name.startswith("qpc-") and len(folder.name) == 4 + 16
    assert (qpc / "programqpc.bin").is_file()
    assert (sdk / "calls").read_text().split() == [
        "-aic-hw",
        "-aic-hw-version=ai100",
        f"-m={graph.path}",
        "-retained-state",
        "-convert-to-fp16",
        "-mxfp6-matmul",
        "-aic-num-cores=16",
        "-mos=1",
        "-aic-enable-depth-first",
        f"-mdp-load-partition-config={folder}/mdp_ts_2.json",
        f"-network-specialization-config={folder}/specializations.json",
        f"-custom-IO-list-file={folder}/custom_io.yaml",
        f"-aic-binary-dir={qpc}",
    ]
    assert json.loads((folder / "specializations.json").read_text()) == {
        "specializations": [
            {"name": "Prefill", "symbols": symbols(1, 32)},
            {"name": "Decode", "symbols": symbols(1, 1)},
        ]
    }
    assert (folder / "custom_io.yaml").read_text() == (
        " - IOName: past_key.0\n   Precision: float16\n\n"
        " - IOName: past_key.0_RetainedState\n   Precision: float16\n\n"
        " - IOName: past_value.0\n   Precision: float16\n\n"
        " - IOName: past_value.0_RetainedState\n   Precision: float16\n\n"
    )
    assert json.loads((folder / "mdp_ts_2.json").read_text()) == {
        "connections": [{"devices": [0, 1], "type": "p2p"}],
        "partitions": [
            {
                "name": "Partition0",
                "devices": [{"deviceId": 0, "numCores": 16}, {"deviceId": 1, "numCores": 16}],
            }
        ],
    }
    config = json.loads((folder / "qconfig.json").read_text())
    assert config["huggingface_config"] == {"model_type": "llama"}
    assert config["qpc_config"]["QEff_config"]["pytorch_transforms"] == ["KVCacheTransform"]
    assert config["qpc_config"]["compiler_config"]["num_devices"] == 2
    assert config["qpc_config"]["aic_sdk_config"] == {"qaic_apps_version": "1.20.100", "qaic_platform_version": None}
    assert "command" in json.loads((folder / "hashed_compile_params.json").read_text())


def test_a_qpc_is_reused_and_an_unfinished_one_replaced(sdk: Path, graph: GraphDescription, tmp_path: Path) -> None:
    qpc = compile_graph(graph, CompileOptions(), tmp_path / "elsewhere")
    assert qpc.parent.parent == tmp_path / "elsewhere"
    assert compile_graph(graph, CompileOptions(), tmp_path / "elsewhere") == qpc
    assert len((sdk / "calls").read_text().splitlines()) == 1
    assert compile_graph(graph, CompileOptions(ctx_len=256), tmp_path / "elsewhere") != qpc
    assert len((sdk / "calls").read_text().splitlines()) == 2
    (qpc / "programqpc.bin").unlink()
    (qpc / "leftover").touch()
    assert compile_graph(graph, CompileOptions(), tmp_path / "elsewhere") == qpc
    assert (qpc / "programqpc.bin").is_file() and not (qpc / "leftover").exists()


def test_kv_precision(sdk: Path, graph: GraphDescription) -> None:
    mx = compile_graph(graph, CompileOptions(mxint8_kv_cache=True)).parent
    assert "Precision: mxint8" in (mx / "custom_io.yaml").read_text()
    bf16 = compile_graph(description(graph.path, kv_dtype="bfloat16"), CompileOptions()).parent
    assert not (bf16 / "custom_io.yaml").exists()
    calls = (sdk / "calls").read_text().splitlines()
    assert "-convert-to-fp16" in calls[0] and "-custom-IO-list-file" in calls[0]
    assert "-convert-to-fp16" not in calls[1] and "-custom-IO-list-file" not in calls[1]


@pytest.mark.parametrize(
    ("graph_fields", "options", "expected"),
    [
        ({}, {"batch_size": 3}, [("Prefill", symbols(3, 32)), ("Decode", symbols(3, 1))]),
        ({}, {"prefill_seq_len": 1}, [("Prefill", symbols(1, 1))]),
        ({}, {"prefill_only": True}, [("Prefill", symbols(1, 32))]),
        ({}, {"prefill_only": False}, [("Decode", symbols(1, 1))]),
        (
            {"continuous_batching": True},
            {"full_batch_size": 4},
            [
                ("Prefill", symbols(1, 32, full_batch_size=4, full_batch_exec_size=4)),
                ("Decode", symbols(4, 1, full_batch_size=4, full_batch_exec_size=4)),
            ],
        ),
        (
            {"continuous_batching": True},
            {"full_batch_size": 4, "kv_cache_batch_size": 6, "prefill_seq_len": 1},
            [("Prefill", symbols(4, 1, full_batch_size=6, full_batch_exec_size=4))],
        ),
        (
            {"comp_ctx_lengths": True},
            {"comp_ctx_lengths_prefill": (64,), "comp_ctx_lengths_decode": (96, 128)},
            [
                ("Prefill", symbols(1, 32, comp_ctx_lengths=64)),
                ("Decode", symbols(1, 1, comp_ctx_lengths=96)),
                ("Decode", symbols(1, 1, comp_ctx_lengths=128)),
            ],
        ),
    ],
)
def test_specializations(
    graph: GraphDescription, graph_fields: dict[str, Any], options: dict[str, Any], expected: list[Any]
) -> None:
    chosen, described = CompileOptions(**options), description(graph.path, **graph_fields)
    chosen.check(described)
    assert build_specializations(described, chosen) == expected


def test_repeated_names_are_numbered(sdk: Path, graph: GraphDescription) -> None:
    qpc = compile_graph(
        description(graph.path, comp_ctx_lengths=True),
        CompileOptions(comp_ctx_lengths_prefill=(64,), comp_ctx_lengths_decode=(96, 128)),
    )
    entries = json.loads((qpc.parent / "specializations.json").read_text())["specializations"]
    assert [entry["name"] for entry in entries] == ["Prefill", "Decode_0", "Decode_1"]


@pytest.mark.parametrize(
    ("graph_fields", "options", "error", "text"),
    [
        ({}, {"ctx_len": 0}, ValueError, "ctx_len"),
        ({}, {"batch_size": 1.0}, TypeError, "batch_size"),
        ({}, {"prefill_only": 1}, TypeError, "prefill_only"),
        ({}, {"prefill_seq_len": 129}, ValueError, "exceeds ctx_len"),
        ({}, {"ctx_len": 5000}, ValueError, "4096 positions"),
        ({}, {"full_batch_size": 4}, ValueError, "continuous_batching=True"),
        ({}, {"kv_cache_batch_size": 2}, ValueError, "continuous batching"),
        ({"continuous_batching": True}, {}, TypeError, "full_batch_size"),
        ({"continuous_batching": True}, {"full_batch_size": 4, "kv_cache_batch_size": 2}, ValueError, "4 rows"),
        ({"continuous_batching": True}, {"full_batch_size": 4, "batch_size": 2}, ValueError, "batch_size at 1"),
        ({}, {"comp_ctx_lengths_decode": (64,)}, ValueError, "ccl_enabled"),
        ({"comp_ctx_lengths": True}, {}, ValueError, "comp_ctx_lengths_prefill"),
        (
            {"comp_ctx_lengths": True},
            {"comp_ctx_lengths_prefill": (64,), "comp_ctx_lengths_decode": (256,)},
            ValueError,
            "256 exceeds",
        ),
        ({}, {"flags": (("num_speculative_tokens", 3),)}, ValueError, "num_speculative_tokens"),
        ({}, {"flags": (("mos", [1]),)}, TypeError, "mos"),
        (
            {},
            {"num_devices": 2, "flags": (("mdp_load_partition_config", "x.json"),)},
            ValueError,
            "exclude each other",
        ),
    ],
)
def test_wrong_options(
    sdk: Path,
    graph: GraphDescription,
    graph_fields: dict[str, Any],
    options: dict[str, Any],
    error: type[Exception],
    text: str,
) -> None:
    with pytest.raises(error, match=text):
        compile_graph(description(graph.path, **graph_fields), CompileOptions(**options))
    assert [entry.name for entry in graph.path.parent.iterdir()] == [graph.path.name]


def test_without_the_sdk_the_side_files_are_there(
    graph: GraphDescription, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compile, "SDK_ROOT", tmp_path / "nowhere")
    with pytest.raises(CompilerNotInstalled, match="qaic-compile is not installed") as caught:
        compile_graph(graph, CompileOptions())
    folder = caught.value.directory
    assert caught.value.command[0] == str(tmp_path / "nowhere" / "exec" / "qaic-compile")
    assert caught.value.command[-1] == f"-aic-binary-dir={folder / 'qpc'}"
    assert sorted(entry.name for entry in folder.iterdir()) == ["custom_io.yaml", "specializations.json"]
    assert get_available_device_id() is None


@pytest.mark.parametrize(
    ("behaviour", "text"), [("echo no memory >&2; exit 7", "exit code 7.*no memory"), ("exit 0", "no programqpc.bin")]
)
def test_a_failing_compiler(sdk: Path, graph: GraphDescription, behaviour: str, text: str) -> None:
    install(sdk / "exec" / "qaic-compile", FAKE_COMPILER.format(log=sdk / "calls", behaviour=behaviour))
    with pytest.raises(RuntimeError, match=f"(?s){text}") as caught:
        compile_graph(graph, CompileOptions())
    assert "-aic-binary-dir=" in str(caught.value)
    assert not list(graph.path.parent.glob("qpc-*/qconfig.json"))


def test_missing_onnx_file(sdk: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no exported model"):
        compile_graph(description(tmp_path / "missing.onnx"), CompileOptions())


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["Status:Ready\nNetworks Active:0"], [0]),
        (["Status:Error", "Status:Ready\nNetworks Active:2", "Status:Ready\nNetworks Active:0"], [2]),
        (["Status:Ready\nNetworks Active:1"], None),
        ([], None),
    ],
)
def test_available_device(sdk: Path, answers: list[str], expected: list[int] | None) -> None:
    for device, answer in enumerate(answers):
        (sdk / "tools" / f"answer{device}").write_text(answer)
    install(
        sdk / "tools" / "qaic-util",
        f'#!/bin/sh\ntest "$1 $2" = "-q -d" || exit 9\ncat "{sdk}/tools/answer$3" 2>/dev/null || echo no such device\n',
    )
    assert get_available_device_id() == expected


def test_a_device_utility_that_cannot_run(sdk: Path) -> None:
    (sdk / "tools" / "qaic-util").write_text("not executable")
    with pytest.raises(RuntimeError, match="did not answer"):
        get_available_device_id()


def test_compile_of_the_auto_model(sdk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "home"))
    qeff = QEFFAutoModelForCausalLM(build("gemma2"), continuous_batching=True)
    with pytest.raises(TypeError, match="full_batch_size"):
        qeff.compile(ctx_len=64)
    assert not (tmp_path / "home").exists(), "wrong options are refused before the export"
    qpc = qeff.compile(ctx_len=64, full_batch_size=3, aic_hw_version="ai200", mos=1)
    onnx_path = qeff.export()
    assert qpc.parent.parent == onnx_path.parent
    call = (sdk / "calls").read_text().split()
    assert call[:3] == ["-aic-hw", "-aic-hw-version=ai200", f"-m={onnx_path}"] and "-mos=1" in call
    names = [line.split()[-1] for line in (qpc.parent / "custom_io.yaml").read_text().splitlines() if "IOName" in line]
    assert names == [
        f"past_{kind}.{layer}{suffix}"
        for layer in range(3)
        for kind in ("key", "value")
        for suffix in ("", "_RetainedState")
    ]
    config = json.loads((qpc.parent / "qconfig.json").read_text())
    assert config["huggingface_config"]["model_type"] == "gemma2"
    assert config["qpc_config"]["compiler_config"]["full_batch_size"] == 3
    again = QEFFAutoModelForCausalLM(build("gemma2").to(torch.float32), continuous_batching=True)
    assert (
        again.compile(onnx_path, tmp_path / "other", ctx_len=64, full_batch_size=3).parent.parent == tmp_path / "other"
    )
