"""Patches the model of a ``transformers.Trainer``."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from runtime.training.diagnostics import PatchError
from runtime.training.reports import PatchReports
from runtime.training.swapping import entries
from runtime.training.switches import patch_for_training


class PatchCallback(TrainerCallback):  # type: ignore[misc]
    """Patches the model when the trainer is built: before it is wrapped, for training and for evaluation.

    The switches are those of ``patch_for_training``. The patch stays after training;
    ``MONKEY_PATCHER.generation(model)`` lifts it for ``generate``, ``reports.undo()`` takes it back.

    Attributes:
        reports: what was done; empty until the trainer exists.
    """

    def __init__(
        self,
        *,
        use_rmpad: bool = False,
        use_liger_kernel: bool = False,
        monkey_patch_kwargs: Mapping[str, Any] | None = None,
        strict: bool | None = None,
    ) -> None:
        self.reports = PatchReports()
        self._patch = partial(
            patch_for_training,
            use_rmpad=use_rmpad,
            use_liger_kernel=use_liger_kernel,
            monkey_patch_kwargs=monkey_patch_kwargs,
            strict=strict,
        )

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        """
        Raises:
            PatchError: the patch cannot be applied, or the trainer would patch the model itself.
        """
        refuse_second_patch(args)
        self.reports = self._patch(model)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        """
        Raises:
            PatchError: the trainer trains another model than it was built with.
        """
        refuse_second_patch(args)
        swapped = any(report.touched for report in self.reports if report.scope == "instance")
        if swapped and not any(entries(module) for module in model.modules()):
            raise PatchError(
                "the trainer built a new model (model_init) which is not patched; "
                "call patch_for_training in model_init and leave the callback out"
            )


def refuse_second_patch(args: TrainingArguments) -> None:
    """Whoever patches a trainer's model calls this: Liger's own patch would go over it, unseen.

    Raises:
        PatchError: ``TrainingArguments(use_liger_kernel=True)``.
    """
    if args.use_liger_kernel:
        raise PatchError(
            "TrainingArguments(use_liger_kernel=True) makes the trainer apply Liger's own patch over this one, which "
            "replaces forwards of the instance; leave it False there and set use_liger_kernel here"
        )
