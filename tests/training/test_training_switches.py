"""`use_rmpad`, `use_liger_kernel` and `monkey_patch_kwargs`: which patches they apply, and what they refuse."""

from typing import Any

import pytest
from small_variants import tiny
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, TrainerControl, TrainerState, TrainingArguments

from runtime.training import PatchCallback, PatchError, UnknownPatchError, kernels, patch_for_training
from runtime.training.features import active
from runtime.training.monkey_patch import MONKEY_PATCHER, MonkeyPatcher
from runtime.training.patching import undo_everything


@pytest.fixture
def calls() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def patcher(calls: list[tuple[str, dict[str, Any]]]) -> MonkeyPatcher:
    """A registry of patches that note how they were called."""
    made = MonkeyPatcher()

    @made.register("llama", "liger")
    def liger(rope: bool = True, use_rmpad: bool = False, model: nn.Module | None = None) -> None:
        calls.append(("liger", {"rope": rope, "use_rmpad": use_rmpad, "model": model}))

    @made.register("mistral", "liger")
    def without_rmpad(rope: bool = True, model: nn.Module | None = None) -> None:
        calls.append(("liger", {"rope": rope, "model": model}))

    for model_type in ("llama", "mistral"):

        @made.register(model_type, "rmpad")
        def rmpad(model: nn.Module | None = None) -> None:
            calls.append(("rmpad", {"model": model}))

        @made.register(model_type, "video")
        def video(frames: int = 1, model: nn.Module | None = None) -> None:
            calls.append(("video", {"frames": frames, "model": model}))

    return made


@pytest.mark.parametrize(
    ("model_type", "switches", "expected"),
    [
        ("llama", {}, []),
        ("llama", {"use_rmpad": True}, [("rmpad", {})]),
        ("llama", {"use_liger_kernel": True}, [("liger", {"rope": True, "use_rmpad": False})]),
        (
            "llama",
            {"use_rmpad": True, "use_liger_kernel": True},
            [("liger", {"rope": True, "use_rmpad": True})],
        ),
        ("mistral", {"use_rmpad": True, "use_liger_kernel": True}, [("liger", {"rope": True}), ("rmpad", {})]),
        (
            "llama",
            {"use_liger_kernel": True, "monkey_patch_kwargs": {"patch_type": ["video"], "frames": 3, "rope": False}},
            [("liger", {"rope": False, "use_rmpad": False}), ("video", {"frames": 3})],
        ),
        (
            "llama",
            {"use_liger_kernel": True, "monkey_patch_kwargs": {"patch_type": "liger"}},
            [("liger", {"rope": True, "use_rmpad": False})],
        ),
        ("llama", {"monkey_patch_kwargs": {"patch_type": ["rmpad", "rmpad"]}}, [("rmpad", {})]),
        ("llama", {"use_rmpad": True, "monkey_patch_kwargs": {"patch_type": ["rmpad"]}}, [("rmpad", {})]),
        ("llama", {"monkey_patch_kwargs": {"use_rmpad": True}}, [("rmpad", {})]),
    ],
)
@pytest.mark.parametrize("as_config", [False, True])
def test_what_is_applied(
    patcher: MonkeyPatcher,
    calls: list[tuple[str, dict[str, Any]]],
    model_type: str,
    switches: dict[str, Any],
    expected: list[tuple[str, dict[str, Any]]],
    as_config: bool,
) -> None:
    target: Any = LlamaConfig() if as_config else model_type
    if as_config:
        target.model_type = model_type
    reports = patch_for_training(target, patcher=patcher, **switches)
    assert calls == [(name, {**keywords, "model": None}) for name, keywords in expected]
    assert [report.patch_type for report in reports] == [name for name, _ in expected]


def test_a_model_is_patched_in_place(patcher: MonkeyPatcher, calls: list[tuple[str, dict[str, Any]]]) -> None:
    model = tiny()
    patch_for_training(model, use_rmpad=True, use_liger_kernel=True, patcher=patcher)
    assert [keywords["model"] for _, keywords in calls] == [model]


@pytest.mark.parametrize(
    ("switches", "said"),
    [
        ({"monkey_patch_kwargs": {"rope": False}}, "has rope and no patch is applied"),
        ({"use_rmpad": True, "monkey_patch_kwargs": {"use_rmpad": False}}, "says use_rmpad=False"),
        ({"monkey_patch_kwargs": {"model": None}}, "'model' is not for the patches"),
        ({"use_liger_kernel": True, "monkey_patch_kwargs": {"strict": True}}, "'strict' is not for the patches"),
        ({"monkey_patch_kwargs": {"patch_type": "vidoe"}}, "has no patch 'vidoe'; did you mean 'video'?"),
        ({"use_liger_kernel": True, "strict": True, "monkey_patch_kwargs": {"ropes": 1}}, "did you mean 'rope'?"),
    ],
)
def test_what_is_refused(patcher: MonkeyPatcher, calls: list[Any], switches: dict[str, Any], said: str) -> None:
    with pytest.raises(PatchError) as raised:
        patch_for_training("llama", patcher=patcher, **switches)
    assert said in str(raised.value) and calls == []


def test_what_is_unknown_is_an_error(patcher: MonkeyPatcher) -> None:
    with pytest.raises(UnknownPatchError, match="no patch is registered for model type 'lama'"):
        patch_for_training("lama", use_rmpad=True, patcher=patcher)
    with pytest.raises(TypeError, match="patch_type must be a name or a list of names"):
        patch_for_training("llama", monkey_patch_kwargs={"patch_type": {"liger": True}}, patcher=patcher)
    with pytest.raises(TypeError, match="a model, a config or a model type is needed, found int"):
        patch_for_training(3, use_rmpad=True, patcher=patcher)  # type: ignore[arg-type]


def test_before_the_model_is_built_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated variants, through the registry of the process."""
    monkeypatch.setattr(kernels, "available", lambda: "not here")
    upstream = tiny()
    reports = patch_for_training(upstream.config, use_rmpad=True, use_liger_kernel=True)
    try:
        built = LlamaForCausalLM(upstream.config)
    finally:
        undo_everything()
    assert type(upstream) is LlamaForCausalLM and reports[0].not_applied.keys() >= {"rope", "rms_norm", "swiglu"}
    assert not active(built, "rmpad"), "undone"

    with patch_for_training(upstream, use_rmpad=True) as applied:
        assert active(upstream, "rmpad") and applied[0].touched.keys() == {
            "LlamaForCausalLM",
            "LlamaModel",
            "LlamaAttention",
        }
    assert not active(upstream, "rmpad")
    with pytest.raises(PatchError, match=r"kernels are not applied .*: not here"):
        patch_for_training(upstream, use_liger_kernel=True, use_rmpad=True, strict=True)
    assert not active(upstream, "rmpad"), "nothing was changed"
    assert "llama" in MONKEY_PATCHER


# -- the trainer's callback, without a trainer


def test_ligers_own_patch_is_not_put_on_top(tmp_path: Any) -> None:
    model = tiny()
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    arguments.use_liger_kernel = True
    callback = PatchCallback(use_rmpad=True)
    with pytest.raises(PatchError, match="Liger's own patch over this one"):
        callback.on_init_end(arguments, TrainerState(), TrainerControl(), model=model)
    assert not active(model, "rmpad") and not callback.reports


def test_another_model_than_the_patched_one(tmp_path: Any) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    callback = PatchCallback(use_rmpad=True)
    model = tiny()
    callback.on_init_end(arguments, TrainerState(), TrainerControl(), model=model)
    assert active(model, "rmpad")
    callback.on_train_begin(arguments, TrainerState(), TrainerControl(), model=nn.Sequential(model))
    with pytest.raises(PatchError, match="a new model \\(model_init\\)"):
        callback.on_train_begin(arguments, TrainerState(), TrainerControl(), model=tiny())
