"""FSDP2 (``fully_shard``) in a plain loop, with padding removed and without: loss curves side by side.

    torchrun --standalone --nproc-per-node 2 examples/train_fsdp2.py [--model-type llama] [--steps 10] [--json]

Without a GPU the ranks talk by gloo. Each rank has its own batches; a step's loss is the mean over the targets of all
ranks, whatever their number on each.
"""

import argparse
import gc
import json
from typing import Any

import torch
import torch.distributed as dist
from small_text import MODELS, largest_difference, padded, paragraphs, side_by_side, small_model
from torch.distributed.fsdp import fully_shard

from runtime.training import patch_for_training

BATCH = 6
SEED = 0


def train(model_type: str, steps: int, switches: dict[str, Any], device: torch.device) -> list[float]:
    """Trains a new model.

    Args:
        model_type: one of ``small_text.MODELS``.
        steps: of the optimizer.
        switches: of ``patch_for_training``; none: upstream's model as it is.
        device: of this rank.
    Returns:
        the loss of each step, the same on every rank.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = small_model(model_type, SEED).to(device).train()
    patch_for_training(model, **switches)  # before it is sharded
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    samples = paragraphs()
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(SEED)).tolist()
    losses = []
    for step in range(steps):
        start = (step * ranks + rank) * BATCH
        batch = padded([samples[order[it % len(order)]] for it in range(start, start + BATCH)])
        batch = {name: tensor.to(device) for name, tensor in batch.items()}

        targets = (batch["labels"][:, 1:] != -100).sum()
        dist.all_reduce(targets)
        # FSDP takes the mean of the ranks' gradients, so each divides by the mean number of targets.
        loss = model(**batch, use_cache=False, num_items_in_batch=targets / ranks).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

        total = loss.detach()
        dist.all_reduce(total)
        losses.append(float(total / ranks))
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-type", choices=sorted(MODELS), default="llama")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    device = torch.device("cpu")
    if on_gpu:
        device = torch.device("cuda", dist.get_rank() % torch.cuda.device_count())
        torch.cuda.set_device(device)
    unpatched = train(options.model_type, options.steps, {}, device)
    patched = train(options.model_type, options.steps, {"use_rmpad": True, "use_liger_kernel": on_gpu}, device)
    if dist.get_rank() == 0:
        if options.json:
            difference = largest_difference(unpatched, patched)
            print(json.dumps({"unpatched": unpatched, "patched": patched, "largest_difference": difference}))
        else:
            print(side_by_side(unpatched, patched))
    # Sharded modules refer to each other and to the group; one that outlives it can abort the process at its end.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    gc.collect()


if __name__ == "__main__":
    main()
