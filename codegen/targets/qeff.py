"""The inference target's pipeline, in order."""

from __future__ import annotations

from codegen.ir import NormScale, Role, RotaryStyle
from codegen.rules.qeff.additive_mask import AdditiveMask
from codegen.rules.qeff.attention_dispatch import AttentionDispatch
from codegen.rules.qeff.biased_mask import BiasedMask
from codegen.rules.qeff.cache_address import CacheAddress
from codegen.rules.qeff.cache_update import CacheUpdate
from codegen.rules.qeff.causal_table import CausalTable
from codegen.rules.qeff.complex_rotation import ComplexRotation
from codegen.rules.qeff.counted_positions import CountedPositions
from codegen.rules.qeff.counts_to_list import CountsToList
from codegen.rules.qeff.default_mask import DefaultMask
from codegen.rules.qeff.dynamic_cache import DynamicCache
from codegen.rules.qeff.eager_choice import EagerChoice
from codegen.rules.qeff.encoder_mask import EncoderMask
from codegen.rules.qeff.expert_counts import ExpertCounts
from codegen.rules.qeff.expert_loop import ExpertLoop
from codegen.rules.qeff.expert_weights import ExpertWeights
from codegen.rules.qeff.given_positions import GivenPositions
from codegen.rules.qeff.grouped_experts import GroupedExperts
from codegen.rules.qeff.grown_table import GrownTable
from codegen.rules.qeff.helper_address import HelperAddress
from codegen.rules.qeff.index_add import IndexAdd
from codegen.rules.qeff.key_bias import KeyBias
from codegen.rules.qeff.logits_slice import LogitsSlice, WholeLogits
from codegen.rules.qeff.loss import Loss
from codegen.rules.qeff.mask_builder import MaskBuilder
from codegen.rules.qeff.optional_mask import OptionalMask
from codegen.rules.qeff.padding_positions import PaddingPositions
from codegen.rules.qeff.position_default import PositionDefault
from codegen.rules.qeff.position_embedding import PositionEmbedding
from codegen.rules.qeff.position_name import PositionName
from codegen.rules.qeff.returned_cache import ReturnedCache
from codegen.rules.qeff.rounded_product import RoundedProduct
from codegen.targets.base import DOCUMENTATION, HUB_KERNEL, Expect, Step, Target

QEFF = Target(
    name="qeff",
    prefix="QEff",
    title="Inference variants with fixed, position-addressed key/value buffers",
    steps=(
        # head
        Step(Loss(), Expect.ONCE_PER_CLASS, Role.HEAD),
        Step(LogitsSlice()),
        Step(WholeLogits()),
        # backbone
        Step(DynamicCache(), Expect.SOMEWHERE),
        Step(EncoderMask()),
        Step(DefaultMask()),
        Step(PositionName()),
        Step(KeyBias()),
        Step(CountedPositions()),
        Step(PositionDefault()),
        Step(GrownTable()),
        Step(PaddingPositions()),
        Step(GivenPositions()),
        Step(OptionalMask()),
        Step(MaskBuilder(), Expect.SOMEWHERE),
        Step(BiasedMask()),
        Step(PositionEmbedding()),
        Step(ReturnedCache(), Expect.ONCE_PER_CLASS, Role.BACKBONE),
        # attention
        Step(CacheUpdate(), Expect.ONCE_PER_CLASS, Role.ATTENTION),
        Step(EagerChoice()),
        Step(AttentionDispatch()),
        Step(CausalTable()),
        Step(AdditiveMask(), Expect.SOMEWHERE),
        Step(ComplexRotation()),
        Step(RoundedProduct()),
        # experts
        Step(ExpertLoop()),
        Step(ExpertWeights()),
        Step(GroupedExperts()),
        Step(CountsToList()),
        Step(ExpertCounts()),
        Step(IndexAdd()),
        # everything on the cache's path
        Step(HelperAddress()),
        Step(CacheAddress(), Expect.ONCE_PER_CLASS, Role.ATTENTION),
    ),
    rotary_mixins={
        RotaryStyle.COS_SIN: "PrecomputedRotary",
        RotaryStyle.COMPLEX: "PrecomputedComplexRotary",
    },
    norms={
        NormScale.CAST_THEN_WEIGHT: "CustomRMSNormAIC",
        NormScale.ONE_PLUS_WEIGHT: "GemmaCustomRMSNormAIC",
        NormScale.WEIGHT_THEN_CAST: "CastLastRMSNormAIC",
        NormScale.NO_WEIGHT: "UnitRMSNormAIC",
    },
    names={
        "PrecomputedRotary": "runtime.qeff.rotary",
        "PrecomputedComplexRotary": "runtime.qeff.rotary",
        "CustomRMSNormAIC": "runtime.qeff.norm",
        "GemmaCustomRMSNormAIC": "runtime.qeff.norm",
        "CastLastRMSNormAIC": "runtime.qeff.norm",
        "UnitRMSNormAIC": "runtime.qeff.norm",
    },
    gone={
        "labels": "a loss needs the logits of all positions; a variant has those of one",
        "logits_to_keep": "the position of each row's last token follows from position_ids",
        "get_seq_length": "the length of a fixed buffer says nothing of the tokens seen",
        "ALL_ATTENTION_FUNCTIONS": "only the eager function takes a boolean mask over a fixed buffer",
    },
    titles={
        Role.HEAD: "float32 logits of each row's last real token, and the updated buffers",
        Role.WRAPPER: "hands the cache's address on",
        Role.BACKBONE: "runs on the engine's key/value buffers, masks built from positions",
        Role.LAYER: "hands the cache's address to its attention",
        Role.ATTENTION: "writes and reads a fixed buffer addressed by position_ids",
        Role.ROTARY: "cos and sin looked up in tables that upstream's own forward filled once",
        Role.PART: "the same values in a form that exports",
    },
    dropped_decorators=DOCUMENTATION
    | {
        "merge_with_config_defaults": "a variant always uses its buffers and returns what the engine takes",
        "capture_outputs": "an engine's graph returns logits and buffers alone",
        "check_model_inputs": "a variant always uses its buffers, and a graph returns logits and buffers alone",
        "can_return_tuple": "a variant returns upstream's output class",
        "torch.no_grad": "a variant runs without gradients anyway",
        "use_kernel_func_from_hub": HUB_KERNEL,
    },
)
