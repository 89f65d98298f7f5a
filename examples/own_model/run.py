"""A model of your own, from its folder to ONNX Runtime and to training: generate, register, use, compare.

    python examples/own_model/run.py [--steps 10] [--json]

``tarn/`` is a model as it lies in a hub repository; ``tarn_variants/`` is what regraft makes of it, committed beside
it. README.md tells the steps one by one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import runtime
from runtime.qeff import QEFFAutoModelForCausalLM
from runtime.training import patch_for_training

HERE = Path(__file__).resolve().parent
MODEL, VARIANTS = HERE / "tarn", HERE / "tarn_variants"
sys.path[:0] = [str(HERE), str(HERE.parent)]  # where tarn_variants and small_text are

from small_text import PAD, largest_difference, padded, paragraphs, side_by_side  # noqa: E402

SEED = 0
PROMPTS = ("Variants subclass upstream's class", "Nothing is written unless all of it can be")
NEW_TOKENS = 24


def checkpoint(folder: Path) -> Path:
    """A checkpoint with random weights and the model's code in it, as a hub repository has them."""
    torch.manual_seed(SEED)
    config = AutoConfig.from_pretrained(MODEL, trust_remote_code=True, pad_token_id=PAD)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    model.save_pretrained(folder)
    return folder


def load(folder: Path) -> PreTrainedModel:
    """The checkpoint's model, its code loaded from the checkpoint."""
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, attn_implementation="eager")


def generate(folder: Path) -> dict[str, Any]:
    """Greedy tokens and logits of upstream's ``generate`` and of the variant in ONNX Runtime.

    Returns:
        ``tokens_equal``, and the largest difference of a logit relative to the range of the plain model's.
    """
    plain = load(folder).eval()
    batch = padded([{"input_ids": list(text.encode())} for text in PROMPTS])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected_ids, expected_logits = [], []
    for row, length in zip(ids, mask.sum(-1).tolist(), strict=True):
        out = plain.generate(
            row[None, :length],
            attention_mask=torch.ones(1, length, dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        expected_ids.append(out.sequences[0, length:])
        expected_logits.append(torch.stack(out.logits, dim=1)[0])
    with QEFFAutoModelForCausalLM(load(folder)) as variant:
        found = variant.generate(
            ids, mask, generation_len=NEW_TOKENS, prefill_seq_len=16, ctx_len=128, runtime="ort", return_logits=True
        )
    wanted = torch.stack(expected_logits)
    error = (found.logits - wanted).abs().max() / (wanted.max() - wanted.min())
    return {
        "tokens_equal": bool(torch.equal(found.generated_ids, torch.stack(expected_ids))),
        "logits_error": float(error),
    }


def train(folder: Path, steps: int, patched: bool) -> list[float]:
    """The loss of each step of AdamW on padded batches of this repository's own text, with padding removed or not."""
    torch.manual_seed(SEED)
    model = load(folder).train()
    if patched:
        print(patch_for_training(model, use_rmpad=True, use_liger_kernel=torch.cuda.is_available()), file=sys.stderr)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    samples, losses = paragraphs(), []
    for step in range(steps):
        batch = padded([samples[(step * 8 + it) % len(samples)] for it in range(8)])
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    command = [sys.executable, "-m", "codegen", "generate", "--from", str(MODEL), "--out", str(VARIANTS), "--jobs", "1"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    runtime.register(VARIANTS.name)
    with tempfile.TemporaryDirectory() as made:
        folder = checkpoint(Path(made) / "tarn_tiny")
        inference = generate(folder)
        unpatched, patched = (train(folder, options.steps, patched) for patched in (False, True))
    if options.json:
        training = {"largest_difference": largest_difference(unpatched, patched), "losses": patched}
        print(json.dumps({"inference": inference, "training": training}))
        return
    print(f"generated tokens equal: {inference['tokens_equal']}; largest logit error: {inference['logits_error']:.1e}")
    print(side_by_side(unpatched, patched))


if __name__ == "__main__":
    main()
