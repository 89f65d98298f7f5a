"""A real `transformers.Trainer`: padding removed or not, a run is the same."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.training import MONKEY_PATCHER, PatchError
from runtime.training.features import active

pytest.importorskip("accelerate")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import small_text  # noqa: E402
import train_trainer  # noqa: E402

TOLERANCE = 1e-5  # of a loss of about 5, in float32; measured: 1e-6
STEPS = 4
MODELS = sorted(small_text.MODELS)
ON_CPU = {"use_cpu": True}


def run(folder: Path, model_type: str, patched: bool, steps: int = STEPS, **arguments: Any) -> train_trainer.Run:
    switches = {"use_rmpad": True} if patched else None
    return train_trainer.train(model_type, steps, switches=switches, folder=str(folder), **ON_CPU, **arguments)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs of the example as it is, each once."""

    @cache
    def of(model_type: str, patched: bool) -> train_trainer.Run:
        return run(tmp_path_factory.mktemp("trainer"), model_type, patched)

    return of


def assert_same(patched: train_trainer.Run, unpatched: train_trainer.Run) -> None:
    assert len(patched.losses) == len(unpatched.losses) > 1
    assert small_text.largest_difference(unpatched.losses, patched.losses) < TOLERANCE
    assert patched.evaluation == pytest.approx(unpatched.evaluation, abs=TOLERANCE)
    upstream = dict(unpatched.model.named_parameters())
    for name, parameter in patched.model.named_parameters():
        # Adam divides by a gradient's size: where it is nearly 0, rounding decides over a step of 1e-3.
        assert (parameter - upstream[name]).abs().mean() < TOLERANCE, name


@pytest.mark.parametrize("model_type", MODELS)
def test_training_and_evaluation(trained: Any, model_type: str) -> None:
    patched, unpatched = trained(model_type, True), trained(model_type, False)
    assert "(rmpad)" in patched.report and not unpatched.report
    assert active(patched.model, "rmpad") and not active(unpatched.model, "rmpad")
    assert_same(patched, unpatched)
    assert patched.losses[-1] < patched.losses[0] and 0 < patched.evaluation["accuracy"] < 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 3},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"average_tokens_across_devices": False, "label_smoothing_factor": 0.0, "max_grad_norm": 0.1},
    ],
    ids=["accumulation", "checkpointing", "reentrant", "clipped"],
)
def test_ways_to_train(tmp_path: Path, arguments: dict[str, Any]) -> None:
    patched, unpatched = (run(tmp_path, "llama", it, steps=3, **arguments) for it in (True, False))
    assert_same(patched, unpatched)


def test_checkpointing_of_experts(tmp_path: Path, trained: Any) -> None:
    assert_same(run(tmp_path, "mixtral", True, gradient_checkpointing=True), trained("mixtral", False))


def test_accumulation_is_the_large_batch(tmp_path: Path, trained: Any) -> None:
    """Every target weighs the same, in whichever part of a step it is."""
    parts = run(tmp_path, "llama", True, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert parts.losses == pytest.approx(trained("llama", True).losses, abs=TOLERANCE)


def test_it_is_saved_as_upstreams_model(tmp_path: Path, trained: Any) -> None:
    model = trained("llama", True).model
    model.save_pretrained(tmp_path)
    loaded = type(trained("llama", False).model).from_pretrained(tmp_path)
    assert loaded.config.architectures == ["LlamaForCausalLM"] and not active(loaded, "rmpad")
    saved = model.state_dict()
    assert loaded.state_dict().keys() == saved.keys()
    assert all(torch.equal(parameter, saved[name]) for name, parameter in loaded.state_dict().items())


@pytest.mark.parametrize("model_type", MODELS)
def test_it_generates_with_the_patch_lifted(trained: Any, model_type: str) -> None:
    patched = trained(model_type, True).model.eval()
    upstream = trained(model_type, False).model.eval()
    upstream.load_state_dict(patched.state_dict())
    for model in (patched, upstream):
        model.config.output_router_logits = False  # upstream's balance of a step with a cache fails
    prompt = torch.tensor([list(b"The packing"), list(b"A mask says")])
    settings = {"max_new_tokens": 12, "do_sample": False, "use_cache": True, "attention_mask": torch.ones_like(prompt)}
    with MONKEY_PATCHER.generation(patched):
        tokens = patched.generate(prompt, **settings)
    assert torch.equal(tokens, upstream.generate(prompt, **settings))
    assert active(patched, "rmpad"), "the patch is back"


def test_the_trainers_own_switch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="TrainingArguments\\(use_liger_kernel=True\\)"):
        run(tmp_path, "llama", True, use_liger_kernel=True)
