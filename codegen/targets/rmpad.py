"""The training target's pipeline, in order."""

from __future__ import annotations

from codegen.ir import NormScale, Role
from codegen.recognize.packable import unpackable
from codegen.rules.rmpad.attention_dispatch import AttentionDispatch
from codegen.rules.rmpad.auxiliary_loss import AuxiliaryLoss
from codegen.rules.rmpad.counted_positions import CountedPositions
from codegen.rules.rmpad.flat_mask import FlatMask
from codegen.rules.rmpad.fused_loss import FusedLoss
from codegen.rules.rmpad.gated_activation import GatedActivation
from codegen.rules.rmpad.loss import Loss
from codegen.rules.rmpad.mask_builder import MaskBuilder
from codegen.rules.rmpad.packed_input import PackedInput
from codegen.rules.rmpad.packed_output import PackedOutput
from codegen.rules.rmpad.rotary_kernel import RotaryKernel
from codegen.rules.rmpad.unpacked_logits import UnpackedLogits
from codegen.targets.base import DOCUMENTATION, HUB_KERNEL, Expect, Step, Target

PACKING, ROPE, SWIGLU, FUSED = "rmpad", "rope", "swiglu", "fused_linear_cross_entropy"
RMS_NORM, CROSS_ENTROPY = "rms_norm", "cross_entropy"
NORMS = "runtime.training.kernels.norm"

RMPAD = Target(
    name="rmpad",
    prefix="Rmpad",
    title="Training variants without padding, with kernels that are switched on one by one",
    steps=(
        # what comes in
        Step(PackedInput(), Expect.ONCE_PER_CLASS, Role.HEAD, feature=PACKING),
        # between ids and layers
        Step(CountedPositions(), feature=PACKING),
        Step(FlatMask(), feature=PACKING),
        Step(MaskBuilder(), Expect.SOMEWHERE, feature=PACKING),
        Step(PackedOutput(), Expect.SOMEWHERE, feature=PACKING),
        # attention
        Step(RotaryKernel(), feature=ROPE),
        Step(AttentionDispatch(), feature=PACKING),
        # MLP and experts
        Step(GatedActivation(), feature=SWIGLU),
        # head
        Step(AuxiliaryLoss(), feature=PACKING),
        Step(Loss(), Expect.ONCE_PER_CLASS, Role.HEAD, feature=PACKING),
        Step(FusedLoss(), feature=FUSED),
        Step(UnpackedLogits(), Expect.ONCE_PER_CLASS, Role.HEAD, feature=PACKING),
    ),
    rotary_mixins={},
    norms={
        NormScale.CAST_THEN_WEIGHT: "LigerNormCastThenWeight",
        NormScale.ONE_PLUS_WEIGHT: "LigerNormOnePlusWeight",
        NormScale.WEIGHT_THEN_CAST: "LigerNormWeightThenCast",
        NormScale.NO_WEIGHT: "LigerNormNoWeight",
    },
    names={
        "LigerNormCastThenWeight": NORMS,
        "LigerNormOnePlusWeight": NORMS,
        "LigerNormWeightThenCast": NORMS,
        "LigerNormNoWeight": NORMS,
        "KernelExperts": "runtime.training.kernels.experts",
        "MONKEY_PATCHER": "runtime.training.monkey_patch",
        "PatchReport": "runtime.training.patching",
        "Variant": "runtime.training.patching",
        "apply_variants": "runtime.training.patching",
        "variants": "runtime.training.patching",
    },
    gone={},
    checks=(unpackable,),
    models=Role.WRAPPER,
    experts_mixin="KernelExperts",
    titles={
        Role.HEAD: "packs what comes in, takes the loss inside each sequence",
        Role.WRAPPER: "packs what comes in",
        Role.BACKBONE: "runs on one row of valid tokens",
        Role.LAYER: "runs on one row of valid tokens",
        Role.ATTENTION: "attends inside each sequence of a packed row",
        Role.EXPERTS: "the same values, by kernels where they fit",
        Role.PART: "the same values, by kernels where they fit",
    },
    kept_decorators=frozenset(
        {"merge_with_config_defaults", "capture_outputs", "check_model_inputs", "can_return_tuple"}
    ),
    dropped_decorators=DOCUMENTATION | {"use_kernel_func_from_hub": HUB_KERNEL},
)
