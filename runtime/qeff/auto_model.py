"""`QEFFAutoModelForCausalLM`: one object to transform, run, export and compile a Hugging Face causal LM."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from runtime.qeff.compile import CompileOptions, GraphDescription, compile_graph
from runtime.qeff.export import GraphMetadata, describe, export_graph, model_name
from runtime.qeff.facts import rope_lengths, vocab_size
from runtime.qeff.generation import Prompts, StepRunner, check_lengths, generate_greedy
from runtime.qeff.runners import BufferPlan, OrtRunner, TorchRunner
from runtime.qeff.transforms import CustomOpsTransform, KVCacheTransform

RUNTIMES = ("torch", "ort")

# In this order; undone in the opposite one.
_TRANSFORMS = (CustomOpsTransform, KVCacheTransform)
_RECORD = "_qeff_before"
_UNSET = object()


@dataclass(frozen=True)
class GenerateOutput:
    """`generated_ids` int64 `[batch, generation_len]`; `logits` float32 `[batch, generation_len, vocab]` or None.

    `logits[:, i]` are the logits that `generated_ids[:, i]` was chosen from.
    """

    generated_ids: torch.Tensor
    logits: torch.Tensor | None


@dataclass(frozen=True)
class _Before:
    """What construction changes beside classes; kept on the model, so that any wrapper of it can restore it."""

    training: tuple[torch.nn.Module, ...]
    max_seq_len_cached: Any


class QEFFAutoModelForCausalLM:
    """A causal LM with KV buffers addressed by position, for PyTorch, ONNX Runtime and Cloud AI 100.

    `model` is a loaded Hugging Face causal LM. It is transformed **in place** (classes are swapped, weights are shared,
    no copy is made) and put into eval mode; `restore()` undoes all of it and returns the upstream model, and so does
    leaving a `with` block::

        with QEFFAutoModelForCausalLM(hf_model) as qeff:
            out = qeff.generate(input_ids, generation_len=16)
        hf_model.generate(input_ids)          # upstream's again

    Wrapping a model that is transformed already changes nothing more; restoring through either wrapper restores it.

    `continuous_batching`: KV buffers have their own number of rows, `full_batch_size`, addressed by an input
    `batch_index`. `max_seq_len_cached`: rows of the precomputed rotary tables (default: the config's
    `max_position_embeddings`). `qaic_config`: only `{"ccl_enabled": bool}` is supported: an input `comp_ctx_lengths`,
    whose length is the number of cache slots that attention looks at.

    Raises TypeError for what is not a Hugging Face model, ValueError (`UnsupportedFamilyError`) for a family without
    variants, for a head that is no causal LM, for an unsupported `qaic_config`, and where the model was already
    transformed with another `max_seq_len_cached`. The model is unchanged then.
    """

    def __init__(
        self,
        model: Any,
        *,
        continuous_batching: bool = False,
        max_seq_len_cached: int | None = None,
        qaic_config: Mapping[str, Any] | None = None,
    ) -> None:
        from transformers import PreTrainedModel

        if not isinstance(model, PreTrainedModel):
            raise TypeError(
                f"expected a Hugging Face causal LM (transformers.PreTrainedModel), got {type(model).__name__}; "
                "to load one from a folder use QEFFAutoModelForCausalLM.from_pretrained(folder)"
            )
        self._ccl = _ccl_enabled(qaic_config)
        self.continuous_batching = continuous_batching
        self._model: Any = model
        self._export_dir: str | os.PathLike[str] | None = None
        self._session: Any = None
        _prepare(model, max_seq_len_cached)
        try:
            for transform in _TRANSFORMS:
                transform.apply(model)
            if type(model).__name__ not in KVCacheTransform.matched(model):
                raise ValueError(
                    f"{type(model).__name__} has no variant: only the causal LM class of a family is supported"
                )
        except BaseException:
            _restore(model)
            raise

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        continuous_batching: bool = False,
        max_seq_len_cached: int | None = None,
        qaic_config: Mapping[str, Any] | None = None,
        **hf_kwargs: Any,
    ) -> QEFFAutoModelForCausalLM:
        """Load a folder (or whatever transformers' `from_pretrained` resolves) and wrap it.

        `hf_kwargs` go to `AutoModelForCausalLM.from_pretrained`. Attention is always eager (another
        `attn_implementation` is a ValueError) and the dtype is float32 unless `dtype` (or `torch_dtype`) says
        otherwise. Raises also what the constructor and transformers raise (OSError where there is no model).
        """
        from transformers import AutoModelForCausalLM

        if hf_kwargs.pop("attn_implementation", "eager") != "eager":
            raise ValueError("QEff variants have their own eager attention; attn_implementation cannot be chosen")
        if "dtype" in hf_kwargs and "torch_dtype" in hf_kwargs:
            raise ValueError("dtype and torch_dtype are one argument; pass dtype only")
        dtype = hf_kwargs.pop("torch_dtype", hf_kwargs.pop("dtype", torch.float32))
        model = AutoModelForCausalLM.from_pretrained(
            os.fspath(pretrained_model_name_or_path), attn_implementation="eager", dtype=dtype, **hf_kwargs
        )
        return cls(
            model,
            continuous_batching=continuous_batching,
            max_seq_len_cached=max_seq_len_cached,
            qaic_config=qaic_config,
        )

    @property
    def model(self) -> Any:
        """The transformed model. Raises RuntimeError once it is restored."""
        if not _is_transformed(self._model):
            raise RuntimeError("the model was restored to upstream's classes; wrap it again to use its variants")
        return self._model

    @property
    def model_name(self) -> str:
        """Upstream's class name."""
        return model_name(self._model)

    @property
    def transforms(self) -> tuple[str, ...]:
        """Names of the transforms that swapped a module."""
        return tuple(transform.__name__ for transform in _TRANSFORMS if transform.matched(self._model))

    def restore(self) -> Any:
        """Undo the transforms and return the upstream model; doing it twice is fine."""
        self._session = None
        _restore(self._model)
        return self._model

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self._model).__name__}, transforms={list(self.transforms)})"

    def export(self, export_dir: str | os.PathLike[str] | None = None) -> Path:
        """Export to ONNX and return the file's path; see `runtime.qeff.export` for its interface.

        The folder is `<export_dir>-<hash>`, by default below `$QEFF_HOME`, `$XDG_CACHE_HOME/qeff_models` or
        `~/.cache/qeff_models`. An existing export of exactly this model (weights included) is reused.
        """
        self._export_dir = export_dir
        return export_graph(self.model, self._describe(), export_dir)

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        generation_len: int = 16,
        prefill_seq_len: int = 32,
        ctx_len: int = 128,
        runtime: str = "torch",
        return_logits: bool = True,
        comp_ctx_lengths: Sequence[int] | None = None,
    ) -> GenerateOutput:
        """Greedy continuation of a batch of prompts.

        `input_ids` integer `[batch, seq]`; `attention_mask` 0/1 of the same shape marks padding, on either side and of
        any amount per row. Each row continues from its own last token, exactly as it would alone. `generation_len`
        tokens are generated, an end-of-sequence token does not stop a row. Prompts are fed in chunks of
        `prefill_seq_len`; `ctx_len` is the number of KV slots per row. `runtime` "torch" runs the variant, "ort" runs
        its export (exporting first if needed, to the last `export()`'s folder) on as many threads as torch uses.
        `comp_ctx_lengths` (with `ccl_enabled`): compute context lengths to choose from; the smallest that covers a
        step is used, else `ctx_len`.

        Rope that depends on the sequence's length (longrope, dynamic NTK): a batch with a prompt longer than that
        length is prefilled in one chunk, whatever `prefill_seq_len` says, as its keys must all be rotated alike. If the
        model class sets `qeff_recompute_past_beyond_original_length = True`, a row that grows past that length while
        generating is computed again from its first token. Upstream's `prepare_inputs_for_generation` of those families
        drops the cache there for that reason (in 5.5.4 it then feeds the last token alone, which cannot be meant; the
        result here is that of upstream without a cache). Without the attribute old keys stay as they were rotated,
        which is what upstream's `generate` does for all other families.

        Raises TypeError for non-integer tensors and lengths, and ValueError for: input that is not 2-D, empty prompts,
        masks with holes or of another shape, ids outside the vocabulary, lengths below 1, a `ctx_len` or rotary tables
        that cannot hold prompt and continuation, and an unknown `runtime`. Raises IndexError where a model's learned
        position embeddings end too early.
        """
        if runtime not in RUNTIMES:
            raise ValueError(f"unknown runtime {runtime!r}; choose one of {', '.join(map(repr, RUNTIMES))}")
        if comp_ctx_lengths is not None and not self._ccl:
            raise ValueError('comp_ctx_lengths needs a model built with qaic_config={"ccl_enabled": True}')
        model = self.model
        prompts = Prompts.from_padded(input_ids, attention_mask, vocab_size=vocab_size(model))
        rope = rope_lengths(model)
        check_lengths(
            prompts, generation_len=generation_len, prefill_seq_len=prefill_seq_len, ctx_len=ctx_len, rope=rope
        )
        plan = BufferPlan.of(
            len(prompts.rows),
            ctx_len,
            continuous_batching=self.continuous_batching,
            compute_lengths=(comp_ctx_lengths or ()) if self._ccl else None,
        )
        runner: StepRunner = TorchRunner(model, plan) if runtime == "torch" else OrtRunner(self._ort_session(), plan)
        tokens: list[torch.Tensor] = []
        logits: list[torch.Tensor] = []
        for chosen, chosen_from in generate_greedy(
            runner, prompts, generation_len=generation_len, prefill_seq_len=prefill_seq_len, rope=rope
        ):
            tokens.append(chosen)
            if return_logits:
                logits.append(chosen_from)
        return GenerateOutput(torch.stack(tokens, dim=1), torch.stack(logits, dim=1) if return_logits else None)

    def compile(
        self,
        onnx_path: str | os.PathLike[str] | None = None,
        compile_dir: str | os.PathLike[str] | None = None,
        *,
        prefill_seq_len: int = 32,
        ctx_len: int = 128,
        comp_ctx_lengths_prefill: Sequence[int] | None = None,
        comp_ctx_lengths_decode: Sequence[int] | None = None,
        batch_size: int = 1,
        full_batch_size: int | None = None,
        kv_cache_batch_size: int | None = None,
        num_devices: int = 1,
        num_cores: int = 16,
        mxfp6_matmul: bool = False,
        mxint8_kv_cache: bool = False,
        prefill_only: bool | None = None,
        **compiler_options: str | int | float | bool,
    ) -> Path:
        """Compile for Cloud AI 100 and return the QPC folder; export first if no `onnx_path` is given.

        `compiler_options` become flags of qaic-compile (`mos=1` -> `-mos=1`, `True` -> a bare flag); `aic_hw_version`
        is "ai100" unless given. Side files, reuse and errors: `runtime.qeff.compile.compile_graph`; without the SDK
        the side files are written and `CompilerNotInstalled` states the command.
        """
        options = CompileOptions(
            prefill_seq_len=prefill_seq_len,
            ctx_len=ctx_len,
            comp_ctx_lengths_prefill=tuple(comp_ctx_lengths_prefill or ()),
            comp_ctx_lengths_decode=tuple(comp_ctx_lengths_decode or ()),
            batch_size=batch_size,
            full_batch_size=full_batch_size,
            kv_cache_batch_size=kv_cache_batch_size,
            num_devices=num_devices,
            num_cores=num_cores,
            mxfp6_matmul=mxfp6_matmul,
            mxint8_kv_cache=mxint8_kv_cache,
            prefill_only=prefill_only,
            flags=tuple(compiler_options.items()),
        )
        metadata = self._describe()
        graph = GraphDescription(
            path=Path(onnx_path) if onnx_path is not None else Path(),
            retained_names=tuple(metadata.kv_names),
            kv_dtype=metadata.layers[0].dtype,
            continuous_batching=self.continuous_batching,
            comp_ctx_lengths=self._ccl,
            rope_rows=metadata.rope.rows,
            config=self.model.config.to_dict(),
            transforms=self.transforms,
        )
        options.check(graph)  # before an export that may take long
        if onnx_path is None:
            graph = replace(graph, path=self.export(self._export_dir))
        return compile_graph(graph, options, None if compile_dir is None else Path(compile_dir))

    def _describe(self) -> GraphMetadata:
        return describe(
            self.model,
            transforms=self.transforms,
            continuous_batching=self.continuous_batching,
            comp_ctx_lengths=self._ccl,
        )

    def _ort_session(self) -> Any:
        from runtime.qeff.session import QEffOrtSession

        # The weights are hashed each time: they may have changed since the file was written.
        path = self.export(self._export_dir)
        if self._session is None or self._session.path != path:
            self._session = QEffOrtSession(path, threads=torch.get_num_threads())
        return self._session


def _ccl_enabled(qaic_config: Mapping[str, Any] | None) -> bool:
    options = dict(qaic_config or {})
    enabled = options.pop("ccl_enabled", False)
    if options:
        raise ValueError(f"qaic_config supports ccl_enabled only, got also {', '.join(sorted(options))}")
    if not isinstance(enabled, bool):
        raise TypeError(f"qaic_config['ccl_enabled'] must be a bool, got {enabled!r}")
    return enabled


def _is_transformed(model: Any) -> bool:
    return _RECORD in vars(model)


def _prepare(model: Any, max_seq_len_cached: int | None) -> None:
    """Eval mode and the rotary tables' size, which is read when they are built; what was there before is recorded."""
    config = model.config.get_text_config(decoder=True)
    current = getattr(config, "max_seq_len_cached", None)
    if max_seq_len_cached is not None:
        if isinstance(max_seq_len_cached, bool) or not isinstance(max_seq_len_cached, int) or max_seq_len_cached < 1:
            raise ValueError(f"max_seq_len_cached must be a positive int, got {max_seq_len_cached!r}")
        if KVCacheTransform.matched(model) and max_seq_len_cached != current:
            raise ValueError(
                f"the model is already transformed with max_seq_len_cached={current}; restore() it before building "
                f"tables of {max_seq_len_cached} rows"
            )
    if _is_transformed(model):
        return
    vars(model)[_RECORD] = _Before(
        training=tuple(module for module in model.modules() if module.training),
        max_seq_len_cached=vars(config).get("max_seq_len_cached", _UNSET),
    )
    if max_seq_len_cached is not None:
        config.max_seq_len_cached = max_seq_len_cached
    model.eval()


def _restore(model: Any) -> None:
    if not _is_transformed(model):
        return
    for transform in reversed(_TRANSFORMS):
        transform.undo(model)
    before: _Before = vars(model).pop(_RECORD)
    config = model.config.get_text_config(decoder=True)
    if before.max_seq_len_cached is not _UNSET:
        config.max_seq_len_cached = before.max_seq_len_cached
    elif "max_seq_len_cached" in vars(config):
        del config.max_seq_len_cached
    for module in before.training:
        module.training = True
