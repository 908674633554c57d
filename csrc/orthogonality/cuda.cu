// Plans and starts the kernels of kernel.cuh.
#include "kernel.cuh"

namespace dmmlkd::cuda {
namespace {

constexpr int kWidest = 128;
constexpr int kMost = 1 << 30;            // samples, and pairs
constexpr int kMostSegments = 32;         // whose partial products a block adds up
constexpr int kUsualShared = 100 * 1024;  // so that two blocks share a processor of compute capability 9.0

int compute_bytes(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : 4; }

int shared_bytes(const OrthogonalityArguments& a, int chunk, bool by_samples) {
  return OrthogonalityShared::kScratchBytes +
         OrthogonalityShared(a, chunk, by_samples).end * compute_bytes(a.dtype);
}

int lanes_of(int features) {
  int lanes = 1;
  while (lanes * kTile < features) lanes *= 2;
  return lanes;
}

// Multiplications of the loss and both gradients: 2 B^2 (d + e) by samples, 3 B d e by features.
bool prefers_samples(const OrthogonalityArguments& a) {
  const int64_t b = a.samples, d = a.common_features, e = a.specific_features;
  return b < kWidest && 2 * b * (d + e) < 3 * d * e;
}

// False where a pair is too wide for the kernels, or for this device's shared memory.
bool plan_orthogonality(const OrthogonalityArguments& a, const DeviceLimits& limits,
                        OrthogonalityPlan& plan) {
  const int widest = a.common_features > a.specific_features ? a.common_features : a.specific_features;
  if (widest > kWidest || a.samples > kMost || a.problems > kMost) return false;
  for (const int chunk : {32, 16, 8}) {
    plan.chunk = min(chunk, whole_tiles(a.samples));
    plan.shared_bytes = shared_bytes(a, plan.chunk, false);
    if (plan.shared_bytes <= min(kUsualShared, limits.max_shared)) break;
  }
  if (plan.shared_bytes > limits.max_shared) return false;
  plan.common_lanes = lanes_of(a.common_features), plan.specific_lanes = lanes_of(a.specific_features);
  plan.threads = widest <= 64 ? kOrthogonalityThreads / 2 : kOrthogonalityThreads;
  plan.segments = 1, plan.segment_rows = a.samples;
  if (prefers_samples(a)) {
    const int bytes = shared_bytes(a, plan.chunk, true);
    plan.by_samples = bytes <= limits.max_shared;
    if (plan.by_samples && bytes > plan.shared_bytes) plan.shared_bytes = bytes;
  }
  // Few pairs of many rows would leave processors idle.
  if (!plan.by_samples && 2 * a.problems <= limits.processors && a.samples >= 4 * plan.chunk) {
    const int64_t wanted = min(static_cast<int64_t>(kMostSegments), 2 * limits.processors / a.problems);
    const int64_t least = (a.samples + wanted - 1) / wanted;
    plan.segment_rows = static_cast<int>((least + plan.chunk - 1) / plan.chunk * plan.chunk);
    plan.segments = (a.samples + plan.segment_rows - 1) / plan.segment_rows;
  }
  return true;
}

template <typename scalar>
const char* launch(const OrthogonalityArguments& a, const OrthogonalityPlan& plan, void* stream) {
  const auto run = [&](auto* kernel, int64_t blocks) -> const char* {
    if (allow_shared(reinterpret_cast<const void*>(kernel), plan.shared_bytes))
      DMMLKD_LAUNCH(kernel, blocks, plan.threads, plan.shared_bytes, stream, a, plan);
    return last_launch_error();
  };
  const char* error = nullptr;
  if (plan.segments == 1) {
    error = run(orthogonality<scalar>, a.problems);
  } else {
    error = run(orthogonality_products<scalar>, a.problems * plan.segments);
    if (error == nullptr) error = run(orthogonality_losses<scalar>, a.problems);
    // The gradients' kernel reduces the loss, too.
    if (error == nullptr && (a.common_gradient != nullptr || a.specific_gradient != nullptr))
      return run(orthogonality_gradients<scalar>, a.problems * plan.segments);
  }
  if (error != nullptr || a.reduction == Reduction::kNone || a.problems == 1) return error;
  DMMLKD_LAUNCH(sum_partials<scalar>, 1, kSumThreads, kSumShared, stream, a.partials, a.problems, a.scale,
                static_cast<scalar*>(a.loss));
  return last_launch_error();
}

}  // namespace
}  // namespace dmmlkd::cuda

extern "C" const char* dmmlkd_cuda_orthogonality_plan(const dmmlkd::cuda::OrthogonalityArguments* arguments,
                                                      int device, bool* fits, int64_t* products) {
  using namespace dmmlkd::cuda;
  DeviceLimits limits;
  if (const char* error = limits.read(device)) return error;
  OrthogonalityPlan plan{};
  *fits = plan_orthogonality(*arguments, limits, plan);
  const int64_t size =
      int64_t{whole_tiles(arguments->common_features)} * row_pitch(arguments->specific_features);
  *products = plan.segments > 1 ? arguments->problems * plan.segments * size : 0;
  return nullptr;
}

extern "C" const char* dmmlkd_cuda_orthogonality(const dmmlkd::cuda::OrthogonalityArguments* arguments,
                                                 int device, void* stream) {
  using namespace dmmlkd::cuda;
  DeviceLimits limits;
  if (const char* error = limits.read(device)) return error;
  OrthogonalityPlan plan{};
  if (!plan_orthogonality(*arguments, limits, plan)) return "the features are too wide for the kernels";
  return dispatch(arguments->dtype, [&](auto* type) {
    return launch<std::remove_pointer_t<decltype(type)>>(*arguments, plan, stream);
  });
}
