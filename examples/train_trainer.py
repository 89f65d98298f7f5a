"""``transformers.Trainer`` with padding removed and without: the same model, data and seed, loss curves side by side.

    python examples/train_trainer.py [--model-type llama|mixtral|gemma2] [--steps 20] [--json]

Batches are padded; the patched model removes the padding itself. Kernels are switched on where there is a GPU.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass, field
from typing import Any

import torch
from small_text import MODELS, largest_difference, padded, paragraphs, side_by_side, small_model
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed

from runtime.training import PatchCallback

SEED = 0


@dataclass
class Run:
    """What one training run gave.

    Attributes:
        losses: of each optimizer step.
        evaluation: ``eval_loss`` and the metrics.
        report: what was patched; empty for an unpatched run.
        model: after training; a patched one still is.
    """

    losses: list[float]
    evaluation: dict[str, float]
    report: str
    model: PreTrainedModel = field(repr=False)


def metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Share of next tokens guessed right: logits ``[B, S, V]`` and labels ``[B, S]`` are padded, patched or not."""
    guessed = prediction.predictions.argmax(-1)[:, :-1]
    wanted = prediction.label_ids[:, 1:]
    counted = wanted != -100
    return {"accuracy": float((guessed == wanted)[counted].mean())}


def train(model_type: str, steps: int, *, switches: dict[str, Any] | None, folder: str, **arguments: Any) -> Run:
    """Trains a new model.

    Args:
        model_type: one of ``small_text.MODELS``.
        steps: of the optimizer.
        switches: of ``PatchCallback``; None trains upstream's model as it is.
        folder: where the trainer may write.
        arguments: further ``TrainingArguments``.
    """
    set_seed(SEED)
    samples = paragraphs()
    patch = None if switches is None else PatchCallback(**switches)
    callbacks: list[TrainerCallback] = [] if patch is None else [patch]
    trainer = Trainer(
        model=small_model(model_type, SEED),
        args=TrainingArguments(
            **{
                "output_dir": folder,
                "max_steps": steps,
                "per_device_train_batch_size": 8,
                "per_device_eval_batch_size": 8,
                "learning_rate": 1e-3,
                "logging_steps": 1,
                "logging_nan_inf_filter": False,  # as they are
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "dataloader_pin_memory": torch.cuda.is_available(),
                "seed": SEED,
                **arguments,
            }
        ),
        data_collator=padded,
        train_dataset=samples[:-16],
        eval_dataset=samples[-16:],
        compute_metrics=metrics,
        callbacks=callbacks,
    )
    trainer.train()
    # Experts' own outputs are no predictions.
    evaluation = trainer.evaluate(ignore_keys=["past_key_values", "aux_loss", "router_logits"])
    return Run(
        losses=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        evaluation={name: evaluation[f"eval_{name}"] for name in ("loss", "accuracy")},
        report="" if patch is None else str(patch.reports),
        model=trainer.model,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-type", choices=sorted(MODELS), default="llama")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    switches = {"use_rmpad": True, "use_liger_kernel": torch.cuda.is_available()}
    with tempfile.TemporaryDirectory() as folder:
        unpatched = train(options.model_type, options.steps, switches=None, folder=folder)
        patched = train(options.model_type, options.steps, switches=switches, folder=folder)
    if options.json:
        print(
            json.dumps(
                {
                    "unpatched": unpatched.losses,
                    "patched": patched.losses,
                    "largest_difference": largest_difference(unpatched.losses, patched.losses),
                    "evaluation": {"unpatched": unpatched.evaluation, "patched": patched.evaluation},
                }
            )
        )
        return
    print(patched.report)
    print(side_by_side(unpatched.losses, patched.losses))
    for name, run in (("unpatched", unpatched), ("patched", patched)):
        print(f"evaluation, {name}: loss {run.evaluation['loss']:.6f}, accuracy {run.evaluation['accuracy']:.4f}")


if __name__ == "__main__":
    main()
