// All kernels, compiled for the instruction set of the shell that includes this. The shell defines
// DMMLKD_VECTOR_BYTES, the name of its table DMMLKD_KERNELS and that of its instruction set DMMLKD_NAME.

#include "../consensus/kernel.inl"
#include "../encoder/convolution.inl"
#include "../encoder/linear.inl"
#include "../generator_round/kernel.inl"
#include "../gossip_mix/kernel.inl"
#include "../local_round/class_moments.inl"
#include "../local_round/modulation.inl"
#include "../local_round/objective.inl"
#include "../local_round/sgd_step.inl"
#include "../orthogonality/kernel.inl"
#include "../pairwise_kl/kernel.inl"

namespace dmmlkd {

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
                                sgd_step<double>,
                                column_sums<float>,
                                column_sums<double>,
                                squared_distance<float>,
                                squared_distance<double>,
                                linear_forward<float>,
                                linear_forward<double>,
                                linear_backward<float>,
                                linear_backward<double>,
                                objective<float>,
                                objective<double>,
                                generator_steps<float>,
                                generator_steps<double>,
                                generator_features<float>,
                                generator_features<double>,
                                modality_objectives<float>,
                                modality_objectives<double>,
                                ogm_ge<float>,
                                ogm_ge<double>,
                                mmpareto<float>,
                                mmpareto<double>,
                                convolution_gather<float>,
                                convolution_gather<double>,
                                convolution_outer<float>,
                                convolution_outer<double>,
                                convolution_mask<float>,
                                convolution_mask<double>,
                                class_moments<float>,
                                class_moments<double>};
}  // namespace dmmlkd
