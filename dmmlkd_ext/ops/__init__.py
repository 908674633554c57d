"""The three operators, usable by any project: they need only torch."""

from dmmlkd_ext.ops.fused_linear import fused_linear_pairwise_kl
from dmmlkd_ext.ops.gossip_group import GossipGroup, GroupVariation
from dmmlkd_ext.ops.gossip_mix import GossipMix, GossipMixing, gossip_mix, gossip_mix_reference
from dmmlkd_ext.ops.gossip_weights import GossipWeights
from dmmlkd_ext.ops.native import backend, build_info
from dmmlkd_ext.ops.orthogonality import (
    OrthogonalityDifference,
    orthogonality_difference,
    orthogonality_difference_reference,
)
from dmmlkd_ext.ops.pairwise_kl import (
    PairwiseKLSimilarity,
    pairwise_kl_similarity,
    pairwise_kl_similarity_reference,
)

__all__ = [
    "GossipGroup",
    "GossipMix",
    "GossipMixing",
    "GossipWeights",
    "GroupVariation",
    "OrthogonalityDifference",
    "PairwiseKLSimilarity",
    "backend",
    "build_info",
    "fused_linear_pairwise_kl",
    "gossip_mix",
    "gossip_mix_reference",
    "orthogonality_difference",
    "orthogonality_difference_reference",
    "pairwise_kl_similarity",
    "pairwise_kl_similarity_reference",
]
