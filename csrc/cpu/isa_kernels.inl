// All kernels, compiled for the instruction set of the shell that includes this. The shell defines
// DMMLKD_VECTOR_BYTES, the name of its table DMMLKD_KERNELS and that of its instruction set DMMLKD_NAME.

namespace dmmlkd {
namespace {
#include "simd.h"

#include "gossip_mix.inl"
#include "orthogonality.inl"
#include "pairwise_kl.inl"
#include "sgd_step.inl"
}  // namespace

const Kernels DMMLKD_KERNELS = {DMMLKD_NAME,
                                pairwise_kl<float>,
                                pairwise_kl<double>,
                                orthogonality<float>,
                                orthogonality<double>,
                                gossip_mix<float, float>,
                                gossip_mix<double, double>,
                                gossip_mix<bfloat16_bits, float>,
                                gossip_mix<float16_bits, float>,
                                sgd_step<float>,
                                sgd_step<double>};
}  // namespace dmmlkd
