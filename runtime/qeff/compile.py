"""Cloud AI 100 compilation: the side files and the command line of ``qaic-compile``.

Everything but the last step works without the SDK: the side files are written first, and where the compiler is not
installed `CompilerNotInstalled` carries the command to run on a machine that has it. Layout of `compile_dir`::

    qpc-<hash>/specializations.json  custom_io.yaml  mdp_ts_<N>.json  hashed_compile_params.json  qconfig.json
    qpc-<hash>/qpc/programqpc.bin
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

SDK_ROOT = Path("/opt/qti-aic")

Specialization = dict[str, str]

# Keyword arguments that mean something to QEfficient's compile() but are no flags of the compiler: passing them on
# would be an obscure error of qaic-compile, dropping them a silent one.
_UNSUPPORTED = frozenset(
    {
        "num_speculative_tokens",
        "use_onnx_subfunctions",
        "offload_pt_weights",
        "enable_chunking",
        "moe_prefill_packed_chunk_size",
        "retain_full_kv",
        "layerwise",
        "layerwise_window_size",
        "kv_cache_prefix",
        "enable_qnn",
        "qnn_config",
        "mdp_num_partitions",
        "mdp_strategy",
        "specializations",
        "qaic_config",
    }
)


class CompilerNotInstalled(RuntimeError):
    """`qaic-compile` is not on this machine. The side files are in `directory`, `command` is what to run."""

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        self.command = list(command)
        self.directory = directory
        super().__init__(
            f"the Cloud AI 100 compiler {command[0]} is not installed. The files it needs are written to "
            f"{directory}; install the Cloud AI SDK, or run there: {' '.join(command)}"
        )


@dataclass(frozen=True)
class GraphDescription:
    """What compilation needs to know of an exported file.

    `retained_names`: the KV inputs in graph order; `kv_dtype`: "float32", "float16" or "bfloat16"; `rope_rows`:
    positions that the rotary tables hold, None without tables.
    """

    path: Path
    retained_names: tuple[str, ...]
    kv_dtype: str
    continuous_batching: bool
    comp_ctx_lengths: bool
    rope_rows: int | None
    config: Mapping[str, Any]
    transforms: tuple[str, ...]


@dataclass(frozen=True)
class CompileOptions:
    """Arguments of `QEFFAutoModelForCausalLM.compile`, checked.

    `flags` are further compiler flags in the order given: underscores become dashes, True is a bare flag, False drops
    it, anything else is `-name=value`. `prefill_only`: None compiles prefill and decode, True the first, False the
    second alone.
    """

    prefill_seq_len: int = 32
    ctx_len: int = 128
    comp_ctx_lengths_prefill: tuple[int, ...] = ()
    comp_ctx_lengths_decode: tuple[int, ...] = ()
    batch_size: int = 1
    full_batch_size: int | None = None
    kv_cache_batch_size: int | None = None
    num_devices: int = 1
    num_cores: int = 16
    mxfp6_matmul: bool = False
    mxint8_kv_cache: bool = False
    prefill_only: bool | None = None
    flags: tuple[tuple[str, str | int | float | bool], ...] = ()

    def check(self, graph: GraphDescription) -> None:
        """Refuse what this graph cannot be compiled to (TypeError, ValueError)."""
        for name in ("prefill_seq_len", "ctx_len", "batch_size", "num_devices", "num_cores"):
            _positive_int(name, getattr(self, name))
        for name in ("full_batch_size", "kv_cache_batch_size"):
            if getattr(self, name) is not None:
                _positive_int(name, getattr(self, name))
        if self.prefill_only is not None and not isinstance(self.prefill_only, bool):
            raise TypeError(f"prefill_only must be True, False or None, got {self.prefill_only!r}")
        if unsupported := sorted(_UNSUPPORTED.intersection(name for name, _ in self.flags)):
            raise ValueError(f"compile() does not support {', '.join(unsupported)}")
        for name, value in self.flags:
            if not isinstance(value, str | int | float):
                raise TypeError(f"compiler option {name}={value!r} must be a string, a number or a bool")
        if self.prefill_seq_len > self.ctx_len:
            raise ValueError(f"prefill_seq_len={self.prefill_seq_len} exceeds ctx_len={self.ctx_len}")
        if graph.rope_rows is not None and self.ctx_len > graph.rope_rows:
            raise ValueError(f"ctx_len={self.ctx_len} exceeds the {graph.rope_rows} positions of the rotary tables")
        if graph.continuous_batching and self.full_batch_size is None:
            raise TypeError("a model exported with continuous_batching=True needs full_batch_size")
        if not graph.continuous_batching and self.full_batch_size is not None:
            raise ValueError(
                "full_batch_size needs a model built with continuous_batching=True; without it, use batch_size"
            )
        if graph.continuous_batching and self.batch_size != 1:
            raise ValueError("under continuous batching the batch is full_batch_size; leave batch_size at 1")
        if self.cache_rows < self.decode_batch:
            raise ValueError(
                f"kv_cache_batch_size={self.kv_cache_batch_size} is less than the {self.decode_batch} rows decoded"
            )
        if not graph.continuous_batching and self.cache_rows != self.batch_size:
            raise ValueError("kv_cache_batch_size may differ from batch_size only under continuous batching")
        ccl = self.comp_ctx_lengths_prefill + self.comp_ctx_lengths_decode
        if ccl and not graph.comp_ctx_lengths:
            raise ValueError('comp_ctx_lengths_* need a model built with qaic_config={"ccl_enabled": True}')
        if graph.comp_ctx_lengths and not (self.comp_ctx_lengths_prefill and self.comp_ctx_lengths_decode):
            raise ValueError(
                "this model takes comp_ctx_lengths: give comp_ctx_lengths_prefill and comp_ctx_lengths_decode"
            )
        for length in ccl:
            _positive_int("a comp_ctx_length", length)
            if length > self.ctx_len:
                raise ValueError(f"compute context length {length} exceeds ctx_len={self.ctx_len}")

    @property
    def decode_batch(self) -> int:
        return self.full_batch_size or self.batch_size

    @property
    def cache_rows(self) -> int:
        return self.kv_cache_batch_size or self.decode_batch


def compile_graph(graph: GraphDescription, options: CompileOptions, compile_dir: Path | None = None) -> Path:
    """Write the side files below `compile_dir`, run the compiler, return the QPC folder.

    `compile_dir` is the ONNX file's folder if not given.

    A folder that already holds `programqpc.bin` for the same arguments is reused. Raises TypeError / ValueError for
    arguments that do not fit the graph, `CompilerNotInstalled` without an SDK (after writing the side files), and
    RuntimeError with command, exit code and output when the compiler fails.
    """
    options.check(graph)
    if not graph.path.is_file():
        raise FileNotFoundError(f"no exported model at {graph.path}")
    specializations = build_specializations(graph, options)
    precision = _io_precision(graph, options)
    command = _base_command(graph, options)
    mdp = _tensor_slicing(options) if options.num_devices > 1 else None
    params = {
        "command": command,
        "specializations": specializations,
        "custom_io": dict.fromkeys(_custom_io_names(graph), precision),
        "mdp_ts_num_devices": options.num_devices,
        "mdp_ts_json": mdp,
        "prefill_only": options.prefill_only,
    }
    directory = (compile_dir or graph.path.parent) / f"qpc-{params_hash(params)}"
    qpc = directory / "qpc"
    if (qpc / "programqpc.bin").is_file():
        return qpc

    directory.mkdir(parents=True, exist_ok=True)
    if mdp is not None:
        command.append(f"-mdp-load-partition-config={directory / f'mdp_ts_{options.num_devices}.json'}")
        write_json(directory / f"mdp_ts_{options.num_devices}.json", mdp)
    write_json(
        directory / "specializations.json",
        {"specializations": [{"name": name, "symbols": symbols} for name, symbols in _named(specializations)]},
    )
    command.append(f"-network-specialization-config={directory / 'specializations.json'}")
    if precision != "bfloat16":
        lines = [f" - IOName: {name}\n   Precision: {precision}\n\n" for name in _custom_io_names(graph)]
        _write_text(directory / "custom_io.yaml", "".join(lines))
        command.append(f"-custom-IO-list-file={directory / 'custom_io.yaml'}")
    command.append(f"-aic-binary-dir={qpc}")

    if not Path(command[0]).is_file():
        raise CompilerNotInstalled(command, directory)
    if qpc.exists():  # an earlier run that did not finish; the compiler refuses an existing folder
        shutil.rmtree(qpc)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (qpc / "programqpc.bin").is_file():
        reason = "failed" if done.returncode else "wrote no programqpc.bin"
        raise RuntimeError(
            f"qaic-compile {reason} (exit code {done.returncode})\ncommand: {' '.join(command)}\n"
            f"stdout: {done.stdout}\nstderr: {done.stderr}"
        )
    write_json(directory / "hashed_compile_params.json", params)
    write_json(directory / "qconfig.json", _qconfig(graph, options, qpc, directory))
    return qpc


def build_specializations(graph: GraphDescription, options: CompileOptions) -> list[tuple[str, Specialization]]:
    """("Prefill" | "Decode", symbols) pairs, prefill first; every value is a string, as the compiler wants it.

    With `prefill_seq_len` 1 a decode entry would repeat the prefill one and is left out. Under continuous batching a
    prompt is prefilled alone (batch 1) and all rows are decoded together. With compute context lengths there is one
    entry per length.
    """
    cb = graph.continuous_batching
    entries: list[tuple[str, Specialization]] = []

    def add(name: str, batch: int, seq_len: int, lengths: Sequence[int]) -> None:
        for length in lengths or (None,):
            symbols = {"batch_size": batch, "seq_len": seq_len, "ctx_len": options.ctx_len}
            if length is not None:
                symbols["comp_ctx_lengths"] = length
            if cb:
                symbols["full_batch_size"] = options.cache_rows
            if options.full_batch_size is not None:
                symbols["full_batch_exec_size"] = options.full_batch_size
            entries.append((name, {key: str(value) for key, value in symbols.items()}))

    prefill_lengths, decode_lengths = options.comp_ctx_lengths_prefill, options.comp_ctx_lengths_decode
    if options.prefill_seq_len == 1 and options.prefill_only is None:
        add("Prefill", options.decode_batch, 1, sorted({*prefill_lengths, *decode_lengths}))
        return entries
    if options.prefill_only is not False:
        add("Prefill", 1 if cb else options.batch_size, options.prefill_seq_len, prefill_lengths)
    if options.prefill_only is not True:
        add("Decode", options.decode_batch, 1, decode_lengths)
    return entries


def _named(entries: Sequence[tuple[str, Specialization]]) -> list[tuple[str, Specialization]]:
    """Repeated names get `_0`, `_1`, ..."""
    names = [name for name, _ in entries]
    seen: dict[str, int] = {}
    named = []
    for name, symbols in entries:
        number = seen.get(name, 0)
        seen[name] = number + 1
        named.append((f"{name}_{number}" if names.count(name) > 1 else name, symbols))
    return named


def _base_command(graph: GraphDescription, options: CompileOptions) -> list[str]:
    """The arguments that decide what is compiled; those that say where follow after hashing."""
    flags = dict(options.flags)
    hardware = flags.pop("aic_hw_version", "ai100")
    partition = flags.pop("mdp_load_partition_config", None)
    if partition is not None and options.num_devices > 1:
        raise ValueError("mdp_load_partition_config and num_devices > 1 exclude each other")
    command = [str(SDK_ROOT / "exec" / "qaic-compile"), "-aic-hw", f"-aic-hw-version={hardware}", f"-m={graph.path}"]
    if partition is not None:
        command.append(f"-mdp-load-partition-config={partition}")
    ordered: dict[str, str | int | float | bool] = {
        "retained_state": True,
        "convert_to_fp16": graph.kv_dtype != "bfloat16",
        "mxfp6_matmul": options.mxfp6_matmul,
        "aic_num_cores": options.num_cores,
    }
    for name, value in {**ordered, **flags}.items():
        flag = f"-{name.replace('_', '-')}"
        if value is True:
            command.append(flag)
        elif value is not False:
            command.append(f"{flag}={value}")
    return command


def _io_precision(graph: GraphDescription, options: CompileOptions) -> str:
    if options.mxint8_kv_cache:
        return "mxint8"
    return "bfloat16" if graph.kv_dtype == "bfloat16" else "float16"


def _custom_io_names(graph: GraphDescription) -> list[str]:
    return [name for kv in graph.retained_names for name in (kv, f"{kv}_RetainedState")]


def _tensor_slicing(options: CompileOptions) -> dict[str, Any]:
    """One partition over all devices, connected peer to peer."""
    devices = list(range(options.num_devices))
    partition = {"name": "Partition0", "devices": [{"deviceId": d, "numCores": options.num_cores} for d in devices]}
    return {"connections": [{"devices": devices, "type": "p2p"}], "partitions": [partition]}


def _qconfig(graph: GraphDescription, options: CompileOptions, qpc: Path, directory: Path) -> dict[str, Any]:
    compiler = {name: value for name, value in vars(options).items() if name != "flags"} | dict(options.flags)
    compiler["specializations_json"] = str(directory / "specializations.json")
    compiler["qpc_path"] = str(qpc)
    return {
        "huggingface_config": dict(graph.config),
        "qpc_config": {
            "QEff_config": {
                "pytorch_transforms": list(graph.transforms),
                "onnx_transforms": [],
                "onnx_path": str(graph.path),
            },
            "compiler_config": compiler,
            "aic_sdk_config": {
                "qaic_apps_version": _sdk_version("apps.xml"),
                "qaic_platform_version": _sdk_version("platform.xml"),
            },
        },
    }


def _sdk_version(file: str) -> str | None:
    """`<base_version>.<build_id>` as the SDK states it, None where it states nothing."""
    path = SDK_ROOT / "versions" / file
    if not path.is_file():
        return None
    root = ElementTree.parse(path).getroot()
    parts = [
        found.text.strip()
        for tag in ("base_version", "build_id")
        if (found := root.find(f".//{tag}")) is not None and found.text
    ]
    return ".".join(parts) or None


def get_available_device_id() -> list[int] | None:
    """`[id]` of the first Cloud AI device that is ready and runs no network; None where there is none.

    None as well where `qaic-util` is not installed. RuntimeError if the utility is there and cannot be run.
    """
    utility = SDK_ROOT / "tools" / "qaic-util"
    if not utility.is_file():
        return None
    device = 0
    while True:
        try:
            answer = subprocess.run(
                [str(utility), "-q", "-d", str(device)], capture_output=True, text=True, check=False, timeout=60
            ).stdout
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(f"{utility} did not answer: {error}") from error
        if "Status:" not in answer:  # there are no more devices
            return None
        active = re.search(r"Networks Active:\s*(\d+)", answer)
        if "Status:Ready" in answer and (active is None or active.group(1) == "0"):
            return [device]
        device += 1


def params_hash(params: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of compact JSON with sorted keys (the layout contract's hash)."""
    text = json.dumps(params, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, content: Any) -> None:
    """Write `content` as readable JSON, atomically."""
    _write_text(path, json.dumps(content, indent=4, default=str) + "\n")


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _positive_int(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
