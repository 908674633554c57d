// Plans and starts the kernels of kernel.cuh.
#include "kernel.cuh"

namespace dmmlkd::cuda {
namespace {

constexpr int64_t kTargetThreads = 128;
// Fewer threads than this on a processor leave it idle; then more threads share a sample.
constexpr int64_t kThreadsPerProcessor = 512;
// Blocks walk over tiles once there are this many on a processor: enough to even out, few partial sums.
constexpr int64_t kBlocksPerProcessor = 64;

int64_t grid_size(int64_t tiles, const DeviceLimits& limits) {
  return min(tiles, min(kBlocksPerProcessor * limits.processors, kMaxPartials));
}

template <typename scalar>
TransferPlan plan_transfer(const void* data, const PairwiseKlArguments& a, const Strides& strides) {
  constexpr int kWidth = Pack<scalar>::kWidth;
  TransferPlan plan{};
  const int64_t sample_size = a.modalities * a.classes;
  if (a.batch_dims == 1 && (strides.classes == 1 || a.classes == 1) &&
      (strides.modality == a.classes || a.modalities == 1) &&
      (strides.batch[0] == sample_size || a.samples == 1)) {
    plan.kind = Transfer::kFlat;
  } else {
    bool aligned = reinterpret_cast<uintptr_t>(data) % kPackBytes == 0 && strides.classes == 1 &&
                   a.classes % kWidth == 0 && strides.modality % kWidth == 0;
    for (int d = 0; d < a.batch_dims; ++d) aligned = aligned && strides.batch[d] % kWidth == 0;
    plan.kind = aligned ? Transfer::kPacks : Transfer::kScalars;
  }
  plan.runs =
      FastDivisor(static_cast<unsigned>(plan.kind == Transfer::kPacks ? a.classes / kWidth : a.classes));
  return plan;
}

// A block's layout for so many samples, or a few more, so that its warps are full.
template <typename scalar, int kModalities>
void plan_block(const PairwiseKlArguments& a, const DeviceLimits& limits, int64_t samples, int64_t lanes,
                ResidentPlan& plan) {
  const int64_t threads = (samples * lanes + kWarpSize - 1) / kWarpSize * kWarpSize;
  samples = threads / lanes;

  // Within a warp the groups' rows start an odd multiple of `lanes` apart, so that their lanes meet all
  // banks.
  const int64_t sample_size = a.modalities * a.classes;
  const bool staged = lanes < kWarpSize;
  int64_t pitch = (sample_size + lanes - 1) / lanes * lanes;
  if (pitch / lanes % 2 == 0) pitch += lanes;

  plan.lanes = static_cast<int>(lanes);
  plan.threads = static_cast<int>(threads);
  plan.samples = static_cast<int>(samples);
  plan.pitch = static_cast<int>(pitch);
  plan.tiles = (a.samples + samples - 1) / samples;
  plan.grid = static_cast<int>(grid_size(plan.tiles, limits));
  plan.sample_size = FastDivisor(static_cast<unsigned>(sample_size));
  plan.modality_major = a.logits_strides.modality > a.logits_strides.batch[a.batch_dims - 1];
  bool described = false;
  if (staged) {
    plan.load = plan_transfer<scalar>(a.logits, a, a.logits_strides);
    plan.store = plan_transfer<scalar>(a.gradient, a, a.gradient_strides);
    described = plan.load.kind != Transfer::kFlat || plan.store.kind != Transfer::kFlat;
  }
  plan.shared_bytes = ResidentShared(staged ? plan.samples * plan.pitch : 0,
                                     described ? static_cast<int>(samples * a.modalities) : 0, plan.lanes,
                                     plan.threads, kModalities, static_cast<int>(sizeof(compute_t<scalar>)))
                          .end;
}

// False if a sample does not fit into the registers of a block, or a warp's samples into shared memory.
template <typename scalar, int kModalities>
bool plan_resident(const PairwiseKlArguments& a, const DeviceLimits& limits, ResidentPlan& plan) {
  int64_t lanes = 1;
  while (lanes * kClassesPerThread<scalar, kModalities> < a.classes) lanes *= 2;
  // Offsets in a row are counted in 32 bits, in bytes.
  const int64_t widest = a.logits_strides.classes > a.gradient_strides.classes ? a.logits_strides.classes
                                                                               : a.gradient_strides.classes;
  if (lanes > kMaxResidentThreads<scalar> ||
      widest > 0x7fffffff / (a.classes * static_cast<int64_t>(sizeof(scalar)))) {
    return false;
  }
  // A batch that one block can take is taken by one, which needs no second launch to sum the loss.
  const int64_t wanted = a.samples * lanes <= kMaxResidentThreads<scalar>
                             ? kMaxResidentThreads<scalar>
                             : kThreadsPerProcessor * limits.processors;
  while (2 * a.samples * lanes <= wanted && 2 * lanes <= kMaxResidentThreads<scalar> && lanes < a.classes)
    lanes *= 2;

  int64_t samples = lanes < kTargetThreads ? kTargetThreads / lanes : 1;
  if (a.samples * lanes <= kMaxResidentThreads<scalar>) samples = a.samples;
  plan_block<scalar, kModalities>(a, limits, samples, lanes, plan);
  // The largest batch of one block may need just more than the 64 KB of compute capability 7.5.
  while (plan.shared_bytes > limits.max_shared && samples * lanes > kWarpSize) {
    samples = (samples + 1) / 2;
    plan_block<scalar, kModalities>(a, limits, samples, lanes, plan);
  }
  return plan.shared_bytes <= limits.max_shared;
}

template <typename scalar>
const char* sum_losses(const PairwiseKlArguments& a, int64_t partials, void* stream) {
  const double scale = a.reduction == Reduction::kMean ? 1.0 / static_cast<double>(a.samples) : 1.0;
  DMMLKD_LAUNCH(sum_partials<scalar>, 1, kSumThreads, kSumShared, stream, a.partials, partials, scale,
                static_cast<scalar*>(a.loss));
  return last_launch_error();
}

template <typename scalar>
const char* launch_streamed(const PairwiseKlArguments& a, const DeviceLimits& limits, void* stream) {
  const auto kernel = pairwise_kl_streamed<scalar>;
  const auto bytes = [&](int64_t staged_elements) {
    return StreamedShared(a.modalities, staged_elements, sizeof(compute_t<scalar>)).end;
  };
  const bool staged = bytes(a.modalities * a.classes) <= limits.max_shared;
  const int64_t shared_bytes = bytes(staged ? a.modalities * a.classes : 0);
  if (shared_bytes > limits.max_shared) return "too many modalities for the shared memory of this device";
  if (!allow_shared(reinterpret_cast<const void*>(kernel), static_cast<int>(shared_bytes)))
    return last_launch_error();
  const int64_t grid = grid_size(a.samples, limits);
  DMMLKD_LAUNCH(kernel, grid, kStreamedThreads, static_cast<int>(shared_bytes), stream, a, staged);
  const char* error = last_launch_error();
  if (error != nullptr || a.partials == nullptr) return error;
  return sum_losses<scalar>(a, grid, stream);
}

template <typename scalar, int kModalities>
const char* launch_unrolled(const PairwiseKlArguments& a, const DeviceLimits& limits, void* stream) {
  ResidentPlan plan{};
  if (!plan_resident<scalar, kModalities>(a, limits, plan)) return launch_streamed<scalar>(a, limits, stream);
  const auto kernel = pairwise_kl_resident<scalar, kModalities>;
  if (!allow_shared(reinterpret_cast<const void*>(kernel), plan.shared_bytes)) return last_launch_error();
  DMMLKD_LAUNCH(kernel, plan.grid, plan.threads, plan.shared_bytes, stream, a, plan);
  const char* error = last_launch_error();
  if (error != nullptr || a.partials == nullptr || plan.grid == 1) return error;
  return sum_losses<scalar>(a, plan.grid, stream);
}

template <typename scalar>
const char* launch(const PairwiseKlArguments& a, const DeviceLimits& limits, void* stream) {
  if (a.modalities == 1) return launch_streamed<scalar>(a, limits, stream);
  // 5 and 7 modalities run as 6 and 8 with one absent.
  if (a.modalities <= 2) return launch_unrolled<scalar, 2>(a, limits, stream);
  if (a.modalities <= 3) return launch_unrolled<scalar, 3>(a, limits, stream);
  if (a.modalities <= 4) return launch_unrolled<scalar, 4>(a, limits, stream);
  if (a.modalities <= 6) return launch_unrolled<scalar, 6>(a, limits, stream);
  if (a.modalities <= kMaxUnrolledModalities) return launch_unrolled<scalar, 8>(a, limits, stream);
  return launch_streamed<scalar>(a, limits, stream);
}

}  // namespace
}  // namespace dmmlkd::cuda

extern "C" const char* dmmlkd_cuda_pairwise_kl(const dmmlkd::cuda::PairwiseKlArguments* arguments, int device,
                                               void* stream) {
  using namespace dmmlkd::cuda;
  if (arguments->samples < 1 || arguments->modalities < 1 || arguments->classes < 1) return "nothing to do";
  DeviceLimits limits;
  if (const char* error = limits.read(device)) return error;
  return dispatch(arguments->dtype, [&](auto* type) {
    using scalar = std::remove_pointer_t<decltype(type)>;
    return launch<scalar>(*arguments, limits, stream);
  });
}
