"""Training steps on batches of different lengths: upstream padded, upstream's own packing, and padding removed by us.

    python benchmarks/training.py [--model llama|moe] [--pad-share 0.45] [--rounds 3] [--steps 20] [--json]
    python benchmarks/training.py --check      # the same numbers? logits, loss and gradients against upstream

On a CUDA device (found by itself; an idle one with 80 GB) the models have about 1.2 and 1.5 billion parameters, in
bfloat16, and what is compared is

* padded: upstream as it is, the batch padded to its longest sequence;
* packed: one row ``[1, T]``, positions that start again, no mask, no cache, and Liger's own patch: the best that can be
  had without this project (with FlashAttention if it is installed, told where the sequences lie);
* ours: the padded batch, kernels and ``use_rmpad``.

On a CPU they are small (1.1 and 1.9 million parameters), in float32, and without kernels.

A step is forward, backward and AdamW; to pack the rows for upstream is left to its collator and not counted. Every
route gets the same batches, and a step is compared with the same step of the others. On a device time is what passes,
and each route is a process of its own in each round, so that peak memory is its own and Liger's own patch, which cannot
be taken back, leaves the others alone. On a CPU it is CPU time, the routes taking turns step by step, since the machine
may be busy with something else.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from runtime.training import patch_for_training

ROUTES = ("padded", "packed", "ours")
WARM_UP = 2  # steps
Batch = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A model and its batches, ``[rows, longest]``."""

    model_type: str
    config: dict[str, Any]
    rows: int
    longest: int


_SMALL = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2048}
ON_CPU = {
    "llama": Shape("llama", {**_SMALL, "intermediate_size": 384, "num_hidden_layers": 3}, 8, 192),
    "moe": Shape(
        "mixtral",
        {
            **_SMALL,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        8,
        192,
    ),
}
ON_DEVICE = {
    "llama": Shape(
        "llama",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
        },
        8,
        1024,
    ),
    "moe": Shape(
        "qwen3_moe",
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "moe_intermediate_size": 512,
            "num_hidden_layers": 14,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "vocab_size": 65536,
            "tie_word_embeddings": True,
        },
        8,
        1024,
    ),
}

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
SHAPES = ON_DEVICE if ON_GPU else ON_CPU
FLASH = ON_GPU and find_spec("flash_attn") is not None
ATTENTION = "flash_attention_2" if FLASH else "sdpa"

# What --check allows, as distances relative to the norm of what is compared.
IN_FLOAT32 = 1e-4
BEYOND_UPSTREAMS_ROUNDING = 1.25  # our distance to float32, as a multiple of upstream's
AND = 1e-3


def model_of(shape: Shape, dtype: torch.dtype = DTYPE) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[shape.model_type](**shape.config, max_position_embeddings=shape.longest)
    with DEVICE:
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=ATTENTION if dtype is DTYPE else "sdpa"
        )
    return model.train()


def batches_of(shape: Shape, pad_share: float, count: int) -> list[Batch]:
    """Padded batches with about this share of padding, whose longest row is full."""
    generator = torch.Generator().manual_seed(1)
    # Lengths around the mean that gives the share, at most as far from it as they may be.
    mean = ((1 - pad_share) * shape.rows - 1) / (shape.rows - 1)
    reach = min(mean, 1 - mean) * 0.9
    batches = []
    for _ in range(count):
        lengths = (mean + reach * (2 * torch.rand(shape.rows, generator=generator) - 1)) * shape.longest
        lengths = lengths.long().clamp(2, shape.longest)
        lengths[0] = shape.longest
        ids = torch.randint(shape.config["vocab_size"], (shape.rows, shape.longest), generator=generator)
        mask = (torch.arange(shape.longest) < lengths[:, None]).long()
        batch = {"input_ids": ids * mask, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
        batches.append({name: tensor.to(DEVICE) for name, tensor in batch.items()} | {"use_cache": False})
    return batches


def packed(batch: Batch) -> Batch:
    """The batch as upstream's ``DataCollatorWithFlattening`` would have made it."""
    kept = batch["attention_mask"].bool()
    positions = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)[kept]
    made = {
        "input_ids": batch["input_ids"][kept][None],
        "position_ids": positions[None],
        "labels": batch["labels"][kept].masked_fill(positions == 0, -100)[None],
        "use_cache": False,
    }
    if FLASH:
        lengths = kept.sum(1)
        edges = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
        made |= {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges}
        made |= dict.fromkeys(("max_length_q", "max_length_k"), int(lengths.max()))
    return made


def prepared(route: str, model: PreTrainedModel) -> Callable[[Batch], Batch]:
    """Patches the model as the route wants it, and says what it is given."""
    if route == "ours":
        patch_for_training(model, use_rmpad=True, use_liger_kernel=ON_GPU)
    if route == "packed":
        if ON_GPU:
            from liger_kernel.transformers import _apply_liger_kernel_to_instance

            _apply_liger_kernel_to_instance(model=model)
        return packed
    return lambda batch: batch


# ------------------------------------------------------------------------------------------------------------- timing


@dataclass
class Cost:
    """Of one route: seconds of each step, and the peak of the device's memory."""

    seconds: list[float]
    peak_gib: float | None = None


def measure(name: str, routes: Sequence[str], pad_share: float, steps: int) -> dict[str, Cost]:
    """The routes' steps in turns, in this process."""
    shape = SHAPES[name]
    models = {route: model_of(shape) for route in routes}
    given = {route: prepared(route, model) for route, model in models.items()}
    optimizers = {route: torch.optim.AdamW(model.parameters(), lr=1e-5) for route, model in models.items()}
    clock = time.perf_counter if ON_GPU else time.process_time
    costs = {route: Cost([]) for route in routes}
    for number, batch in enumerate(batches_of(shape, pad_share, WARM_UP + steps)):
        if ON_GPU and number == WARM_UP:
            torch.cuda.reset_peak_memory_stats()
        for route in routes:
            inputs = given[route](batch)
            _wait()
            started = clock()
            models[route](**inputs).loss.backward()
            optimizers[route].step()
            optimizers[route].zero_grad()
            _wait()
            if number >= WARM_UP:
                costs[route].seconds.append(clock() - started)
    if ON_GPU:
        for cost in costs.values():
            cost.peak_gib = torch.cuda.max_memory_allocated() / 2**30
    return costs


def _wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def measured_alone(name: str, route: str, pad_share: float, steps: int) -> Cost:
    """One route in a process of its own."""
    command = [sys.executable, __file__, "--route", route, "--model", name]
    command += ["--pad-share", str(pad_share), "--steps", str(steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def compare(name: str, pad_share: float, rounds: int, steps: int) -> dict[str, Any]:
    """Costs of all routes and their ratios."""
    total = {route: Cost([], 0.0 if ON_GPU else None) for route in ROUTES}
    for _ in range(rounds):
        if ON_GPU:
            found = {route: measured_alone(name, route, pad_share, steps) for route in ROUTES}
        else:
            found = measure(name, ROUTES, pad_share, steps)
        for route, cost in found.items():
            total[route].seconds += cost.seconds
            if cost.peak_gib is not None:
                total[route].peak_gib = max(total[route].peak_gib or 0.0, cost.peak_gib)
    shape = SHAPES[name]
    masks = [batch["attention_mask"] for batch in batches_of(shape, pad_share, WARM_UP + steps)[WARM_UP:]]
    result: dict[str, Any] = {
        "parameters": sum(it.numel() for it in model_of(shape).parameters()),
        "batch": [shape.rows, shape.longest],
        "pad share": round(1 - sum(float(mask.float().mean()) for mask in masks) / len(masks), 3),
    }
    for route, cost in total.items():
        ratios = [a / b for a, b in zip(total["padded"].seconds, cost.seconds, strict=True)]
        result[route] = {
            "seconds": round(statistics.median(cost.seconds), 4),
            "times as fast as padded": round(statistics.median(ratios), 2),
        }
        if cost.peak_gib is not None:
            result[route]["peak_gib"] = round(cost.peak_gib, 2)
    return result


# ------------------------------------------------------------------------------------------------------------- parity


def outcome(model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """Logits of all tokens in evaluation mode ``[T, V]``, and loss and gradients of a training step, in float32."""
    with torch.no_grad():
        logits = model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    model.train().zero_grad()
    loss = model(**batch).loss
    loss.backward()
    gradients = [it.grad.float().flatten() for it in model.parameters() if it.grad is not None]
    found = {"logits": logits[batch["attention_mask"].bool()], "loss": loss, "gradients": torch.cat(gradients)}
    model.zero_grad()
    return {name: tensor.detach().float().cpu() for name, tensor in found.items()}


def check(name: str, pad_share: float) -> tuple[dict[str, Any], bool]:
    """Upstream padded against ours, one after the other on the same weights; in bfloat16 both against float32 too."""
    shape = SHAPES[name]
    batch = batches_of(shape, pad_share, 1)[0]
    exact = None
    model = model_of(shape)
    if ON_GPU:
        reference = model_of(shape, torch.float32)
        reference.load_state_dict(model.state_dict())
        exact = outcome(reference, batch)
        del reference
    upstream = outcome(model, batch)
    patch_for_training(model, use_rmpad=True, use_liger_kernel=ON_GPU)
    ours = outcome(model, batch)
    found: dict[str, Any] = {}
    right = True
    for what, value in ours.items():
        found[what] = {"ours to upstream": _distance(value, upstream[what])}
        if exact is None:
            allowed = IN_FLOAT32
            right &= found[what]["ours to upstream"] <= allowed
        else:
            found[what]["upstream to float32"] = _distance(upstream[what], exact[what])
            found[what]["ours to float32"] = _distance(value, exact[what])
            allowed = BEYOND_UPSTREAMS_ROUNDING * found[what]["upstream to float32"] + AND
            right &= found[what]["ours to float32"] <= allowed
        found[what]["allowed"] = allowed
    return found, right


def _distance(found: Tensor, expected: Tensor) -> float:
    distance = float((found - expected).norm() / expected.norm())
    return distance if math.isfinite(distance) else math.inf


# ------------------------------------------------------------------------------------------------------------ command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SHAPES), action="append", help="both if left out")
    parser.add_argument("--pad-share", type=float, default=0.45)
    parser.add_argument("--rounds", type=int, default=3 if ON_GPU else 1)
    parser.add_argument("--steps", type=int, default=20 if ON_GPU else 15, help="that are measured, of each route")
    parser.add_argument("--check", action="store_true", help="compare numbers instead of time")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--route", choices=ROUTES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not 0.05 <= options.pad_share <= 0.8:
        parser.error("--pad-share must be from 0.05 to 0.8")
    names = options.model or list(SHAPES)

    if options.route:
        print(json.dumps(asdict(measure(names[0], [options.route], options.pad_share, options.steps)[options.route])))
        return 0
    where = f"{torch.cuda.get_device_name() if ON_GPU else 'CPU'}, {DTYPE}, attention of upstream: {ATTENTION}"
    if options.check:
        checked = {name: check(name, options.pad_share) for name in names}
        if options.json:
            print(json.dumps({"where": where, "right": all(it[1] for it in checked.values())} | _first(checked)))
        else:
            print(where)
            for name, (found, right) in checked.items():
                print(f"{name}: {'as upstream' if right else 'NOT AS UPSTREAM'}")
                for what, distances in found.items():
                    print(f"  {what:<9}  " + "  ".join(f"{key} {value:.1e}" for key, value in distances.items()))
        return 0 if all(right for _, right in checked.values()) else 1

    compared = {name: compare(name, options.pad_share, options.rounds, options.steps) for name in names}
    if options.json:
        print(json.dumps({"where": where} | compared, indent=2))
        return 0
    print(where)
    for name, found in compared.items():
        print(f"{name}: {found['parameters']:,} parameters, batch {found['batch']}, pad share {found['pad share']:.0%}")
        for route in ROUTES:
            row = found[route]
            memory = f"  {row['peak_gib']:>6} GiB" if "peak_gib" in row else ""
            print(f"  {route:<7} {row['seconds']:>8} s  {row['times as fast as padded']:>5}x{memory}")
    return 0


def _first(checked: dict[str, tuple[dict[str, Any], bool]]) -> dict[str, Any]:
    return {name: found for name, (found, _) in checked.items()}


if __name__ == "__main__":
    sys.exit(main())
