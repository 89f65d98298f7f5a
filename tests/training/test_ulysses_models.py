"""Real models whose rows are shared between ranks, against upstream's own model in one process."""

import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from process_group import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForCausalLM

from runtime.training import MONKEY_PATCHER
from runtime.training.kernels import interpreter
from runtime.training.ulysses import sequence_parallel

TOLERANCE = 1e-5
VOCABULARY = 40

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

# Name of a case: model type and what its config says further.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 2}),
    "llama-heads": ("llama", {"num_key_value_heads": 4}),
    "llama-one": ("llama", {"num_key_value_heads": 1}),
    "qwen3": ("qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
    "gemma2": ("gemma2", {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 2.0}),
    "gpt_oss": ("gpt_oss", {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, **EXPERTS}),
    "mixtral": ("mixtral", {"num_key_value_heads": 2, **EXPERTS}),
}

# Of 21 tokens neither two nor four ranks get as many each, and no cut is where a sequence ends.
LENGTHS = (5, 9, 7)


def built(name: str) -> nn.Module:
    model_type, settings = MODELS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # no weight is zero, or as any other
    return model.train()


def patched(name: str) -> nn.Module:
    model = built(name)
    MONKEY_PATCHER.apply_monkey_patch_to_instance(model, "rmpad")
    return model


def batch(seed: int = 1, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Tensor]:
    """Padded on the right, some labels -100, the last token of each sequence a target."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths) + 1)
    ids = torch.randint(1, VOCABULARY, shape, generator=generator)
    mask = torch.stack([torch.arange(shape[1]) < length for length in lengths]).long()
    hidden = (mask == 0) | (torch.rand(shape, generator=generator) < 0.2)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(hidden, -100)}


def packed(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same batch as one row, as a collator without padding gives it."""
    kept = given["attention_mask"].bool()
    lengths = given["attention_mask"].sum(1)
    labels = given["labels"].clone()
    labels[:, 0] = -100
    return {
        "input_ids": given["input_ids"][kept].unsqueeze(0),
        "labels": labels[kept].unsqueeze(0),
        "cu_seqlens": torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int(),
    }


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradient = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        found[name.removeprefix("module.")] = gradient.detach()
    return found


Result = tuple[Tensor, dict[str, Tensor]]


def step(model: nn.Module, given: Mapping[str, Any]) -> Result:
    loss = model(**given).loss
    loss.backward()
    return loss.detach(), gradients(model)


@cache
def reference(name: str, *seeds: int, items: int | None = None, **settings: Any) -> Result:
    """Loss and gradients of upstream's model; of several batches the mean."""
    losses, sums = [], {}
    for seed in seeds or (1,):
        model = built(name)
        loss, found = step(model, batch(seed) | ({} if items is None else {"num_items_in_batch": items}) | settings)
        losses.append(loss)
        sums = {key: sums.get(key, 0) + value / (len(seeds) or 1) for key, value in found.items()}
    return torch.stack(losses).mean(), sums


def combined(results: list[Result], how: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {name: how(torch.stack([found[name] for _, found in results]), 0) for name in results[0][1]}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(value.norm()) for value in expected.values())
    for name, value in expected.items():
        error = float((found[name] - value).norm())
        assert error <= TOLERANCE * max(float(value.norm()), 1e-2 * largest), f"{name}: off by {error}"


def assert_same_loss(results: list[Result], expected: Tensor) -> None:
    for loss, _ in results:
        assert abs(float(loss - expected)) <= TOLERANCE * abs(float(expected))


# One process per rank runs all cases of its size.

WAYS: dict[str, Callable[[nn.Module], dict[str, Any]]] = {
    "padded": lambda model: batch(),
    "packed": lambda model: packed(batch()),
    "items": lambda model: batch() | {"num_items_in_batch": 30},
    "shifted": lambda model: batch() | {"shift_labels": _shifted(batch()["labels"])},
    "positions": lambda model: batch() | {"position_ids": torch.arange(10).expand(len(LENGTHS), 10)},
    "embeds": lambda model: (
        batch() | {"input_ids": None, "inputs_embeds": model.get_input_embeddings()(batch()["input_ids"])}
    ),
}


def _shifted(labels: Tensor) -> Tensor:
    return torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]


def all_steps(names: list[str]) -> dict[str, Result | str]:
    results: dict[str, Result | str] = {}

    def take(case: str, name: str, way: str, change: Callable[[nn.Module], Any] = lambda model: None) -> None:
        try:
            model = patched(name)
            change(model)
            results[case] = step(model, WAYS[way](model))
        except Exception:  # the other cases go on; every rank fails alike
            results[case] = traceback.format_exc()

    with sequence_parallel(dist.group.WORLD):
        for name in names:
            take(name, name, "padded")
        for way in WAYS:
            take(way, "llama", way)
        take("checkpointed", "llama", "padded", lambda model: model.gradient_checkpointing_enable())
    with sequence_parallel(dist.group.WORLD, "sum"):
        take("sum", "llama", "padded")
    return results


@cache
def steps(size: int) -> list[dict[str, Result | str]]:
    return run_ranks(size, all_steps, list(MODELS))


def results_of(case: str, size: int) -> list[Result]:
    results = [result[case] for result in steps(size)]
    for result in results:
        assert not isinstance(result, str), result
    return results


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_mean_of_gradients_are_those_of_one_process(name: str, size: int) -> None:
    results = results_of(name, size)
    loss, expected = reference(name)
    assert_same_loss(results, loss)
    assert_same(combined(results, torch.mean), expected)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("way", [*WAYS, "checkpointed", "sum"])
def test_every_way_to_call(way: str, size: int) -> None:
    results = results_of(way, size)
    loss, expected = reference("llama", items=30 if way == "items" else None)
    assert_same_loss(results, loss)
    assert_same(combined(results, torch.sum if way == "sum" else torch.mean), expected)


def test_a_rank_alone_has_other_gradients() -> None:
    """Else the tests above would hold without any exchange."""
    _, alone = results_of("llama", 2)[0]
    _, expected = reference("llama")
    with pytest.raises(AssertionError, match="off by"):
        assert_same(alone, expected)


# Wrappers that average gradients


def wrapped_steps() -> dict[str, Result]:
    """Two replicas of two ranks each; a replica has a batch of its own."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "sp"))
    replica = mesh.get_local_rank("dp")
    results = {}
    with sequence_parallel(mesh["sp"].get_group()):
        model = patched("llama")
        results["ddp"] = step(DistributedDataParallel(model), batch(1 + replica))
        model = patched("llama")
        whole = init_device_mesh("cpu", (4,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=whole)
        fully_shard(model, mesh=whole)
        results["fsdp2"] = step(model, batch(1 + replica))
    return results


@cache
def wrapped() -> list[dict[str, Result]]:
    return run_ranks(4, wrapped_steps)


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_wrappers_that_average_give_the_gradients_of_one_process(wrapper: str) -> None:
    results = [result[wrapper] for result in wrapped()]
    for rank, (loss, _) in enumerate(results):
        alone, _ = reference("llama", 1 + rank // 2)
        assert abs(float(loss - alone)) <= TOLERANCE * float(alone)
    _, expected = reference("llama", 1, 2)
    for _, found in results:
        assert_same(found, expected)


# Losses by kernel

KERNELS = ("rope", "rms_norm", "swiglu", "experts", "cross_entropy", "fused_linear_cross_entropy")


def kernel_steps() -> dict[str, Result]:
    interpreter.install()
    results = {}
    for loss in ("fused_linear_cross_entropy", "cross_entropy"):
        model = built("llama")
        switches = dict.fromkeys(KERNELS, False) | {loss: True}
        report = MONKEY_PATCHER.apply_monkey_patch_to_instance(model, "liger", use_rmpad=True, **switches)
        assert loss not in report.not_applied
        for way in ("padded", "items"):
            model.zero_grad()
            with sequence_parallel(dist.group.WORLD):
                output = model(**WAYS[way](model))
            assert (output.logits is None) == (loss == "fused_linear_cross_entropy")
            output.loss.backward()
            results[f"{loss} {way}"] = output.loss.detach(), gradients(model)
    return results


def test_losses_by_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    ranks = run_ranks(2, kernel_steps, context=multiprocessing.get_context("spawn"))
    assert len(ranks[0]) == 4
    for case in ranks[0]:
        results = [result[case] for result in ranks]
        loss, expected = reference("llama", items=30 if case.endswith("items") else None)
        assert_same_loss(results, loss)
        assert_same(combined(results, torch.mean), expected)


# Outputs


def all_outputs() -> dict[str, Any]:
    model = patched("llama")
    given = batch()
    results: dict[str, Any] = {}
    with sequence_parallel(dist.group.WORLD):
        results["training"] = model(**given).logits.detach()
        results["asked"] = model(**given, logits_layout="packed").logits.detach()
        inside = model.model(given["input_ids"], given["attention_mask"])
        results["hidden"] = (inside.last_hidden_state.detach(), inside.seq_lens, inside.word_idx)
        model.eval()
        with torch.no_grad():
            results["padded"] = model(**given).logits
            results["packed"] = model(**packed(given), logits_layout="packed").logits
            results["one"] = model(**batch(5, (1,))).logits
            results["ones"] = model(**batch(6, (1, 1, 3))).logits
    return results


@cache
def outputs(size: int) -> list[dict[str, Any]]:
    return run_ranks(size, all_outputs)


@pytest.mark.parametrize("size", [2, 4])
def test_evaluation_gives_every_rank_all_logits(size: int) -> None:
    model = built("llama").eval()
    for given, key in ((batch(), "padded"), (batch(5, (1,)), "one"), (batch(6, (1, 1, 3)), "ones")):
        kept = given["attention_mask"].bool()
        with torch.no_grad():
            expected = model(**given).logits
        for result in outputs(size):
            torch.testing.assert_close(result[key][kept], expected[kept], rtol=TOLERANCE, atol=TOLERANCE)
            assert not result[key][~kept].any()
            if key == "padded":
                torch.testing.assert_close(result["packed"], expected[kept][None], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("size", [2, 4])
def test_training_leaves_every_rank_its_own_unless_asked(size: int) -> None:
    total = sum(LENGTHS)
    joined = torch.cat([result["training"] for result in outputs(size)], 1)[:, :total]
    hidden = torch.cat([result["hidden"][0] for result in outputs(size)], 1)[:, :total]
    assert outputs(size)[0]["training"].shape == (1, -(-total // size), VOCABULARY)
    for result in outputs(size):
        torch.testing.assert_close(result["asked"], joined)
        _, seq_lens, word_idx = result["hidden"]
        assert seq_lens.tolist() == [0, 5, 14, 21] and len(word_idx) == total
    with torch.no_grad():
        kept = batch()["attention_mask"].bool()
        expected = built("llama").model(batch()["input_ids"], batch()["attention_mask"]).last_hidden_state[kept]
    torch.testing.assert_close(hidden[0], expected, rtol=TOLERANCE, atol=TOLERANCE)


# What is refused


def refusals() -> list[tuple[str, bool]]:
    """The messages, and whether the first layer had begun."""
    found = []

    def attempt(model: nn.Module, given: Mapping[str, Any]) -> None:
        begun: list[bool] = []
        model.get_input_embeddings().register_forward_hook(lambda *_: begun.append(True))
        with pytest.raises((ValueError, NotImplementedError)) as error:
            model(**given)
        found.append((str(error.value), bool(begun)))

    with sequence_parallel(dist.group.WORLD):
        torch.manual_seed(0)
        for heads, key_value_heads in ((6, 6), (12, 6)):
            settings = {**SIZES, "hidden_size": 48, "num_attention_heads": heads}
            config = AutoConfig.for_model("llama", **settings, num_key_value_heads=key_value_heads)
            model = AutoModelForCausalLM.from_config(config)
            MONKEY_PATCHER.apply_monkey_patch_to_instance(model, "rmpad")
            attempt(model, batch())
        attempt(patched("llama"), batch(seed=dist.get_rank()))
        model = patched("llama")
        model.loss_function = lambda logits, labels, **_: logits.sum()
        attempt(model, batch())
    return found


def test_what_cannot_be_shared_is_refused_before_the_first_layer() -> None:
    for (heads, a), (key_value_heads, b), (different, c), (loss, _) in run_ranks(4, refusals):
        assert "over 4 ranks: 6 attention heads" in heads and not a
        assert "over 4 ranks: 6 key-value heads" in key_value_heads and not b
        assert "got different batches (input_ids differ)" in different and not c
        assert "loss function" in loss


@pytest.fixture(autouse=True)
def _nothing_is_left_patched() -> Iterator[None]:
    yield
    MONKEY_PATCHER.undo_all()
