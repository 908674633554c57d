"""Decentralized multi-modal learning with knowledge distillation and training balance.

The operators need torch alone and can be used by any project; the simulation needs the extra `simulation`.
"""

import dmmlkd_ext._interrupts  # noqa: F401 - first, as the next import takes seconds
from dmmlkd_ext._version import __version__
from dmmlkd_ext.ops import (
    GossipGroup,
    GossipMix,
    GossipMixing,
    GossipWeights,
    OrthogonalityDifference,
    PairwiseKLSimilarity,
    build_info,
    fused_linear_pairwise_kl,
    gossip_mix,
    orthogonality_difference,
    pairwise_kl_similarity,
)

__all__ = [
    "GossipGroup",
    "GossipMix",
    "GossipMixing",
    "GossipWeights",
    "OrthogonalityDifference",
    "PairwiseKLSimilarity",
    "__version__",
    "build_info",
    "fused_linear_pairwise_kl",
    "gossip_mix",
    "orthogonality_difference",
    "pairwise_kl_similarity",
]
