"""ONNX export of a transformed causal LM: one file for prefill and decode, any batch, sequence and context length.

Interface of the file::

    input_ids int64 [batch_size, seq_len]            logits float32 [batch_size, 1, vocab]
    position_ids int64 [batch_size, seq_len]         past_key.i_RetainedState, past_value.i_RetainedState
    past_key.i, past_value.i [rows, heads, ctx_len, dim]
    comp_ctx_lengths int64 [comp_ctx_lengths]        only if exported with compute context lengths
    batch_index int64 [batch_size, 1]                only under continuous batching; rows is then full_batch_size

The folder is `<model>-<hash>`. The hash covers everything that shapes the file: config, versions, transforms, the text
of the variants and of the operators, and the weights themselves. So a folder that exists can be used as it is, and a
model with other weights never picks up a stranger's file.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import shutil
import sys
import uuid
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runtime.qeff.compile import params_hash, write_json
from runtime.qeff.facts import KVLayer, kv_layers, rope_lengths, vocab_size
from runtime.qeff.generation import RopeLengths
from runtime.qeff.symbolics import registered

OPSET = 18
FORMAT = 1
"""Number of the file's conventions (names, metadata); raise it when they change."""
METADATA_KEY = "regraft"

# Modules of this package that leave no trace in the graph; the text of all others counts into the hash.
_HOST_SIDE = frozenset({"__init__", "auto_model", "compile", "generation", "runners", "session"})


@dataclass(frozen=True)
class GraphMetadata:
    """What an exported file says about itself, as JSON under the metadata key ``regraft``.

    `kv_in_place`: each updated buffer may be the very memory of the input buffer (`shares_buffers`).
    """

    format: int
    model_type: str
    architecture: str
    upstream_version: str
    transforms: tuple[str, ...]
    vocab_size: int
    layers: tuple[KVLayer, ...]
    rope: RopeLengths
    continuous_batching: bool
    comp_ctx_lengths: bool
    kv_in_place: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> GraphMetadata:
        """Raises ValueError for a file of other conventions."""
        fields = json.loads(text)
        if fields.get("format") != FORMAT:
            raise ValueError(f"the file has format {fields.get('format')}, this version reads format {FORMAT}")
        fields["transforms"] = tuple(fields["transforms"])
        fields["layers"] = tuple(KVLayer(**layer) for layer in fields["layers"])
        fields["rope"] = RopeLengths(**fields["rope"])
        return cls(**fields)

    @property
    def input_names(self) -> list[str]:
        names = ["input_ids", "position_ids", *self.kv_names]
        if self.comp_ctx_lengths:
            names.append("comp_ctx_lengths")
        if self.continuous_batching:
            names.append("batch_index")
        return names

    @property
    def kv_names(self) -> list[str]:
        return [name for layer in self.layers for name in layer.names]

    @property
    def output_names(self) -> list[str]:
        return ["logits", *(f"{name}_RetainedState" for name in self.kv_names)]

    @property
    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        rows = "full_batch_size" if self.continuous_batching else "batch_size"
        kv = {0: rows, 2: "ctx_len"}
        axes = {"input_ids": {0: "batch_size", 1: "seq_len"}, "position_ids": {0: "batch_size", 1: "seq_len"}}
        axes |= {"logits": {0: "batch_size"}}
        axes |= dict.fromkeys(self.kv_names, kv) | {f"{name}_RetainedState": kv for name in self.kv_names}
        if self.comp_ctx_lengths:
            axes["comp_ctx_lengths"] = {0: "comp_ctx_lengths"}
        if self.continuous_batching:
            axes["batch_index"] = {0: "batch_size"}
        return axes


class RetainedStateGraph(nn.Module):
    """The model as the flat function that is traced: tensors in, tensors out, in the file's order."""

    def __init__(self, model: nn.Module, metadata: GraphMetadata) -> None:
        super().__init__()
        self.model = model
        self._layers = metadata.layers
        self._extras = [name for name in metadata.input_names if name in ("comp_ctx_lengths", "batch_index")]

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, *rest: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        count = 2 * len(self._layers)
        outputs = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            past_key_values=tuple(zip(rest[:count:2], rest[1:count:2], strict=True)),
            use_cache=True,
            **dict(zip(self._extras, rest[count:], strict=True)),
        )
        retained = outputs.past_key_values
        return (outputs.logits, *(tensor for pair in retained for tensor in pair))


def describe(
    model: Any, *, transforms: Sequence[str], continuous_batching: bool, comp_ctx_lengths: bool
) -> GraphMetadata:
    """What the file of this model will say; runs one token through the model."""
    import transformers

    return GraphMetadata(
        format=FORMAT,
        model_type=model.config.model_type,
        architecture=model_name(model),
        upstream_version=transformers.__version__,
        transforms=tuple(transforms),
        vocab_size=vocab_size(model),
        layers=kv_layers(model),
        rope=rope_lengths(model),
        continuous_batching=continuous_batching,
        comp_ctx_lengths=comp_ctx_lengths,
    )


def model_name(model: nn.Module) -> str:
    """Class name without the variant's prefix."""
    return type(model).__name__.removeprefix("QEff")


def default_root() -> Path:
    """`$QEFF_HOME`, else `$XDG_CACHE_HOME/qeff_models`, else `~/.cache/qeff_models`."""
    if home := os.environ.get("QEFF_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qeff_models"


def export_graph(model: Any, metadata: GraphMetadata, export_dir: str | os.PathLike[str] | None = None) -> Path:
    """Export `model` and return the path of its ONNX file; an export of exactly this model is reused.

    The folder is `<export_dir>-<hash>`, or `<root>/<architecture>/<model>-<hash>` below `default_root()`. It appears
    complete or not at all. Raises OSError where it cannot be written, and whatever the exporter raises on a model that
    it cannot trace.
    """
    params = export_params(model, metadata)
    digest = params_hash(params)
    name = metadata.architecture
    folder = default_root() / name / name if export_dir is None else Path(export_dir)
    folder = folder.with_name(f"{folder.name}-{digest}").absolute()
    target = folder / f"{name}.onnx"
    if _is_export_of(folder, target, params):
        return target

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    partial.mkdir()
    try:
        _write_onnx(model, metadata, partial / target.name)
        write_json(partial / "hashed_export_params.json", params)
        _publish(partial, folder, target, params)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def export_params(model: Any, metadata: GraphMetadata) -> dict[str, Any]:
    """Everything that decides the content of the file, JSON-ready; its hash names the folder."""
    import onnx
    import onnxscript

    return {
        "format": FORMAT,
        "config": json.loads(json.dumps(model.config.to_dict(), sort_keys=True, default=str)),
        "metadata": json.loads(metadata.to_json()),
        "opset": OPSET,
        "exporter": {"torch": torch.__version__, "onnx": onnx.__version__, "onnxscript": onnxscript.__version__},
        "code": code_digest(model),
        "weights": weights_digest(model),
    }


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters and buffers (tied ones once per name)."""
    digest = hashlib.sha256()
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


def code_digest(model: nn.Module) -> str:
    """SHA-256 over the text of the variants in the model, of what they use of other variants, and of the operators.

    A file traced from an older text of these is another file, even if nothing else changed.
    """
    names = {type(module).__module__ for module in model.modules()}
    for name in [name for name in names if name.startswith("generated.")]:
        names |= {str(getattr(value, "__module__", None)) for value in vars(sys.modules[name]).values()}
    files = {name: inspect.getsourcefile(sys.modules[name]) for name in names if name.startswith("generated.")}
    here = Path(__file__).parent
    files |= {f"runtime.qeff.{file.stem}": str(file) for file in here.glob("*.py") if file.stem not in _HOST_SIDE}
    digest = hashlib.sha256()
    for name, text_file in sorted(files.items()):
        if text_file is None:
            raise FileNotFoundError(f"no source text of {name}, so an export of it cannot be told from an older one")
        digest.update(name.encode() + b"\0" + _text(text_file))
    return digest.hexdigest()


@cache
def _text(file: str) -> bytes:
    """What the file held when this process first asked: an edit does not change code that is loaded already."""
    return Path(file).read_bytes()


def _is_export_of(folder: Path, target: Path, params: Mapping[str, Any]) -> bool:
    record = folder / "hashed_export_params.json"
    if not (target.is_file() and record.is_file()):
        return False
    try:
        written = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return params_hash(written) == params_hash(params)


def _publish(partial: Path, folder: Path, target: Path, params: Mapping[str, Any]) -> None:
    """Rename the finished folder into place; another process may have been faster with the same export."""
    try:
        partial.rename(folder)
    except OSError:
        if _is_export_of(folder, target, params):
            return
        if not folder.is_dir():
            raise
        damaged = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        folder.rename(damaged)
        partial.rename(folder)
        shutil.rmtree(damaged, ignore_errors=True)


def example_inputs(metadata: GraphMetadata, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Inputs to trace with, in the file's order. All sizes differ, so a size that got baked in is seen in the graph."""
    batch, seq_len, ctx_len = 2, 3, 5
    rows = 4 if metadata.continuous_batching else batch
    positions = torch.arange(seq_len, device=device).expand(batch, seq_len).contiguous()
    tensors = [torch.zeros_like(positions), positions]
    for layer in metadata.layers:
        tensors += [torch.zeros(shape, dtype=layer.torch_dtype, device=device) for shape in layer.shapes(rows, ctx_len)]
    if metadata.comp_ctx_lengths:
        tensors.append(torch.zeros(ctx_len - 1, dtype=torch.int64, device=device))
    if metadata.continuous_batching:
        tensors.append(torch.arange(batch, device=device)[:, None])
    return tuple(tensors)


def _write_onnx(model: Any, metadata: GraphMetadata, path: Path) -> None:
    device = next(model.parameters()).device
    graph = RetainedStateGraph(model, metadata).eval()
    with torch.no_grad(), _without_harmless_warnings(), registered(OPSET):
        torch.onnx.export(
            graph,
            example_inputs(metadata, device),
            str(path),  # beyond 2 GiB the exporter writes external data next to it, but for a str only
            input_names=metadata.input_names,
            output_names=metadata.output_names,
            dynamic_axes=metadata.dynamic_axes,
            opset_version=OPSET,
            dynamo=False,
        )
    _finish(path, metadata)


def _finish(path: Path, metadata: GraphMetadata) -> None:
    """Check the interface and state the metadata. External weights stay where they are."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    found = [value.name for value in model.graph.input], [value.name for value in model.graph.output]
    expected = metadata.input_names, metadata.output_names
    if found != expected:
        raise RuntimeError(
            f"the traced graph does not have the promised interface\nexpected {expected}\nfound    {found}"
        )
    described = replace(metadata, kv_in_place=shares_buffers(model, metadata.kv_names))
    for key, value in ((METADATA_KEY, described.to_json()), ("qeff_transforms", ",".join(metadata.transforms))):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, path)


# Operators whose result is never their input's memory, whatever a runtime optimises; all others may pass it on.
_COPYING = frozenset({"Gather", "GatherND", "GatherElements", "ScatterND", "Shape"})


def shares_buffers(model: Any, kv_names: Sequence[str]) -> bool:
    """Whether each `X_RetainedState` may be written into the memory of input `X`.

    It may if it comes from one ScatterND on `X` and whatever else reads `X`, or a possible view of it, lies before that
    ScatterND because it depends on it, or looks at the shape only: nothing can then read `X` after it was overwritten.
    ONNX Runtime's ScatterND copies its input unless input and output are one buffer.
    """
    import onnx
    from onnx.inliner import inline_local_functions

    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:  # the analysis needs no weights
        tensor.ClearField("raw_data")
    nodes = list(inline_local_functions(light).graph.node)  # in topological order, so an index is also a time
    reads = [_reads(node) for node in nodes]
    producer = {name: index for index, node in enumerate(nodes) for name in node.output}
    readers: dict[str, list[int]] = defaultdict(list)
    for index, names in enumerate(reads):
        for name in names:
            readers[name].append(index)

    for state in kv_names:
        write = producer.get(f"{state}_RetainedState")
        if write is None or nodes[write].op_type != "ScatterND" or nodes[write].input[0] != state:
            return False
        earlier: set[int] = set()
        views = [state]
        while views:
            view = views.pop()
            if view in nodes[write].input[1:] or (view != state and view == nodes[write].input[0]):
                return False
            for reader in readers[view]:
                if reader == write:
                    continue
                if nodes[reader].op_type != "Shape":
                    earlier.add(reader)
                if nodes[reader].op_type not in _COPYING:
                    views.extend(nodes[reader].output)
        if not _all_feed(earlier, write, reads, producer):
            return False
    return True


def _all_feed(wanted: set[int], target: int, reads: Sequence[set[str]], producer: Mapping[str, int]) -> bool:
    """Whether node `target` depends on every node of `wanted`."""
    missing = set(wanted)
    seen: set[int] = set()
    pending = [target]
    while pending and missing:
        for name in reads[pending.pop()]:
            origin = producer.get(name)
            # What comes before the first wanted node cannot lead to one.
            if origin is not None and origin not in seen and origin >= min(wanted):
                seen.add(origin)
                missing.discard(origin)
                pending.append(origin)
    return not missing


def _reads(node: Any) -> set[str]:
    """The names that a node reads, inside its subgraphs too."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                names |= _reads(inner)
    return names


# What the TorchScript exporter says about things that are known to be right here: (message, module it is raised in).
_HARMLESS_WARNINGS = (
    ("You are using the legacy TorchScript-based ONNX export", ""),
    (
        "The feature will be removed. Please remove usage of this function",
        r"torch\.onnx\._internal\.torchscript_exporter",
    ),
    # torch.tensor() of Python numbers: the lowest score, a config's length.
    ("torch.tensor results are registered as constants", r"runtime\.qeff\.masks|transformers\.modeling_rope_utils"),
    # Padding reads the last row of the rotary tables: one index, so a Gather, which takes negative indices.
    ("Exporting aten::index operator of advanced indexing", ""),
)


@contextlib.contextmanager
def _without_harmless_warnings() -> Iterator[None]:
    """Silence `_HARMLESS_WARNINGS`; anything else the tracer says stays visible."""
    with warnings.catch_warnings():
        for message, module in _HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=message, module=module)
        yield
