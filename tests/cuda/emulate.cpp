// Runs the emulated kernels on arrays of exactly the size they may touch, to be built with AddressSanitizer
// and UndefinedBehaviorSanitizer, and proves that the emulation notices what it is there to notice. Prints
// what failed and exits with 1, or prints how many checks passed.
#include "emulate.h"

namespace {

// Loss and gradient of one sample by the definition.
double pairs(const std::vector<std::vector<double>>& z, const std::vector<bool>& present,
             std::vector<std::vector<double>>& gradient) {
  const size_t modalities = z.size(), classes = z[0].size();
  std::vector<std::vector<double>> p(z), log_p(z);
  for (size_t m = 0; m < modalities; ++m) {
    const double maximum = *std::max_element(z[m].begin(), z[m].end());
    double sum = 0;
    for (const double x : z[m]) sum += std::exp(x - maximum);
    for (size_t c = 0; c < classes; ++c) {
      log_p[m][c] = z[m][c] - maximum - std::log(sum);
      p[m][c] = std::exp(log_p[m][c]);
    }
  }
  gradient.assign(modalities, std::vector<double>(classes, 0.0));
  const double count = static_cast<double>(std::count(present.begin(), present.end(), true));
  if (count < 2) return 0;
  const double weight = 1 / (count * (count - 1));
  double loss = 0;
  for (size_t m = 0; m < modalities; ++m) {
    for (size_t o = 0; o < modalities; ++o) {
      if (m == o || !present[m] || !present[o]) continue;
      double divergence = 0;
      for (size_t c = 0; c < classes; ++c) divergence += p[m][c] * (log_p[m][c] - log_p[o][c]);
      loss += weight * divergence;
      for (size_t c = 0; c < classes; ++c) {
        gradient[m][c] += weight * p[m][c] * (log_p[m][c] - log_p[o][c] - divergence);
        gradient[o][c] += weight * (p[o][c] - p[m][c]);
      }
    }
  }
  return loss;
}

template <typename scalar>
void check_pairwise_kl(int64_t outer, int64_t inner, int64_t modalities, int64_t classes, bool modality_major,
                       bool masked, Reduction reduction, int64_t offset, bool with_gradient = true) {
  const int64_t samples = outer * inner, size = samples * modalities * classes;
  Array<scalar> logits(size, offset), gradient(size, offset),
      loss(reduction == Reduction::kNone ? samples : 1);
  Array<double> partials(std::min(samples, kMaxPartials));
  Array<compute_t<scalar>> upstream(reduction == Reduction::kNone ? samples : 1);
  const std::unique_ptr<bool[]> mask(new bool[samples * modalities]);
  for (int64_t i = 0; i < samples * modalities; ++i) mask[i] = chance(0.6);

  PairwiseKlArguments a{};
  a.logits = logits.data(), a.gradient = with_gradient ? gradient.data() : nullptr, a.loss = loss.data();
  a.partials = reduction == Reduction::kNone ? nullptr : partials.data();
  a.mask = masked ? mask.get() : nullptr;
  a.dtype = dtype_of<scalar>(), a.reduction = reduction;
  a.samples = samples, a.modalities = modalities, a.classes = classes;
  // Two leading dimensions, the outer one running fastest in memory, or one.
  if (outer > 1) {
    a.batch_dims = 2, a.batch_sizes[0] = outer, a.batch_sizes[1] = inner;
    a.logits_strides = {{modalities * classes, outer * modalities * classes}, classes, 1};
  } else if (modality_major) {
    a.batch_dims = 1, a.batch_sizes[0] = inner;
    a.logits_strides = {{classes}, inner * classes, 1};
  } else {
    a.batch_dims = 1, a.batch_sizes[0] = inner;
    a.logits_strides = {{modalities * classes}, classes, 1};
  }
  a.gradient_strides = a.logits_strides;
  a.mask_strides = a.logits_strides;
  for (int d = 0; d < a.batch_dims; ++d) a.mask_strides.batch[d] /= classes;
  a.mask_strides.modality /= classes;
  require_success(dmmlkd_cuda_pairwise_kl(&a, 0, nullptr));
  if (with_gradient) {  // again as the backward pass does, which wants no loss
    a.upstream = upstream.data(), a.loss = a.partials = nullptr;
    require_success(dmmlkd_cuda_pairwise_kl(&a, 0, nullptr));
  }

  const double weight = reduction == Reduction::kMean ? 1.0 / static_cast<double>(samples) : 1.0;
  double total = 0;
  for (int64_t s = 0; s < samples; ++s) {
    const auto offset_of = [&](const Strides& strides) {
      return a.batch_dims == 1 ? s * strides.batch[0]
                               : s / inner * strides.batch[0] + s % inner * strides.batch[1];
    };
    const int64_t at = offset_of(a.logits_strides), mask_at = offset_of(a.mask_strides);
    std::vector<std::vector<double>> z(modalities, std::vector<double>(classes)), expected;
    std::vector<bool> present(modalities);
    for (int64_t m = 0; m < modalities; ++m) {
      present[m] = !masked || mask[mask_at + m * a.mask_strides.modality];
      for (int64_t c = 0; c < classes; ++c) z[m][c] = logits.at(at + m * a.logits_strides.modality + c);
    }
    const double one = pairs(z, present, expected);
    total += one;
    if (reduction == Reduction::kNone)
      require(close(loss.at(s), one, tolerance<scalar>()), "loss of a sample");
    for (int64_t m = 0; with_gradient && m < modalities; ++m) {
      for (int64_t c = 0; c < classes; ++c) {
        const double value = gradient.at(at + m * a.gradient_strides.modality + c);
        const double slope = upstream.at(reduction == Reduction::kNone ? s : 0) * weight * expected[m][c];
        require(close(value, slope, tolerance<scalar>()), "gradient");
      }
    }
  }
  if (reduction != Reduction::kNone)
    require(close(loss.at(0), weight * total, tolerance<scalar>()), "reduced loss");
}

template <typename scalar>
void check_gossip_mix(int64_t rows_out, int64_t rows_in, int64_t columns, int64_t begin, int64_t end,
                      int64_t padding, bool in_place, bool measure) {
  using compute = compute_t<scalar>;
  const int64_t stride = columns + padding;
  Array<scalar> local(rows_in * stride - padding), out(rows_out * stride - padding);
  std::vector<double> before, start;
  for (int64_t i = 0; i < rows_in * stride - padding; ++i) before.push_back(local.at(i));
  for (int64_t i = 0; i < rows_out * stride - padding; ++i) start.push_back(in_place ? before[i] : out.at(i));
  std::vector<int64_t> pointers = {0}, sources;
  for (int64_t i = 0; i < rows_out; ++i) {
    for (int64_t j = 0; j < rows_in; ++j) {
      if (chance(i == 1 ? 0.0 : 0.3)) sources.push_back(j);
    }
    pointers.push_back(static_cast<int64_t>(sources.size()));
  }
  Array<compute> values(static_cast<int64_t>(sources.size()));

  GossipMixArguments a{};
  a.local = local.data(), a.out = in_place ? local.data() : out.data();
  a.row_pointers = pointers.data(), a.columns = sources.data(), a.values = values.data();
  a.dtype = dtype_of<scalar>();
  a.rows_in = rows_in, a.rows_out = rows_out, a.nonzeros = static_cast<int64_t>(sources.size());
  a.local_stride = a.out_stride = stride;
  a.column_begin = begin, a.column_end = end;
  int64_t count = 0;
  bool staged = false;
  require_success(dmmlkd_cuda_gossip_mix_partials(&a, 0, &count, &staged));
  Array<double> partials(count), norms(2 * rows_out);
  if (measure) a.partials = partials.data(), a.norms = norms.data();
  const char* error = dmmlkd_cuda_gossip_mix(&a, 0, nullptr);
  if (in_place && !staged) {
    require(error != nullptr, "rows that do not fit are refused in place");
    return;
  }
  require_success(error);

  Array<scalar>& result = in_place ? local : out;
  for (int64_t i = 0; i < rows_out; ++i) {
    double variation = 0, magnitude = 0;
    for (int64_t c = 0; c < (i + 1 < rows_out ? stride : columns); ++c) {
      const double value = result.at(i * stride + c);
      if (c < begin || c >= end) {
        require(value == start[i * stride + c], "elements outside the range stay");
        continue;
      }
      double expected = 0, scale = 0;
      for (int64_t e = pointers[i]; e < pointers[i + 1]; ++e) {
        const double term = values.at(e) * before[sources[e] * stride + c];
        expected += term;
        scale += std::abs(term);
      }
      const double smallest = std::is_same_v<scalar, __half> ? 6e-8 : 0.0;
      require(std::abs(value - expected) <= tolerance<scalar>() * scale + smallest, "mixed element");
      if (measure) {
        const double change = before[i * stride + c] - start[i * stride + c];
        variation += change * change;
        magnitude += start[i * stride + c] * start[i * stride + c];
      }
    }
    const double relative = std::is_same_v<scalar, double> ? 1e-12 : 1e-6;
    if (measure) require(close(norms.at(i), variation, relative), "variation");
    if (measure) require(close(norms.at(rows_out + i), magnitude, relative), "magnitude");
  }
}

// The partial norms of many rows must not outweigh the matrix: written and read, they are its bytes / 8 at
// most, where they were half of it.
void check_partial_norms() {
  GossipMixArguments a{};
  a.dtype = Dtype::kFloat32;
  a.rows_in = a.rows_out = 1000, a.nonzeros = 3000;
  a.local_stride = a.out_stride = a.column_end = 100000;
  int64_t count = 0;
  bool staged = false;
  require_success(dmmlkd_cuda_gossip_mix_partials(&a, 0, &count, &staged));
  require(staged, "1000 rows fit into shared memory");
  const int64_t matrix_bytes = a.rows_in * a.column_end * static_cast<int64_t>(sizeof(float));
  require(8 * 2 * count * static_cast<int64_t>(sizeof(double)) <= matrix_bytes, "few partial norms");
}

// One block's batch that needs just more than 64 KB, the shared memory of compute capability 7.5: in smaller
// blocks it is in registers still, and leaves a partial sum a block.
void check_a_batch_of_just_one_block() {
  const int64_t samples = 512, modalities = 4, classes = 8;
  Array<float> logits(samples * modalities * classes), loss(1);
  Array<double> partials(samples);
  for (int64_t i = 0; i < samples; ++i) partials.data()[i] = -1;
  PairwiseKlArguments a{};
  a.logits = logits.data(), a.loss = loss.data(), a.partials = partials.data();
  a.dtype = Dtype::kFloat32, a.reduction = Reduction::kSum;
  a.samples = samples, a.modalities = modalities, a.classes = classes;
  a.batch_dims = 1, a.batch_sizes[0] = samples;
  a.logits_strides = a.gradient_strides = {{modalities * classes}, classes, 1};
  require_success(dmmlkd_cuda_pairwise_kl(&a, 0, nullptr));
  const double* end = partials.data() + samples;
  const int64_t blocks =
      std::count_if(partials.data(), const_cast<double*>(end), [](double x) { return x != -1; });
  require(blocks >= 2 && blocks <= 4, "a batch of just more than a block's shared memory takes a few blocks");
}

template <typename scalar>
void check_dtype() {
  check_orthogonality<scalar>();
  const auto reductions = {Reduction::kNone, Reduction::kMean, Reduction::kSum};
  int64_t turn = 0;
  for (const int64_t modalities : {2, 3, 4, 5, 8, 9}) {
    for (const int64_t classes : {1, 3, 10, 16, 33}) {
      for (const auto reduction : reductions) {
        ++turn;
        check_pairwise_kl<scalar>(1, between(1, 60), modalities, classes, turn % 2 == 0, turn % 3 == 0,
                                  reduction, turn % 5);
        if (turn % 4 == 0)
          check_pairwise_kl<scalar>(3, 5, modalities, classes, false, true, reduction, turn % 2);
      }
    }
  }
  check_pairwise_kl<scalar>(1, 300, 2, 10, false, false, Reduction::kMean, 1);
  check_pairwise_kl<scalar>(1, 5, 3, 401, false, true, Reduction::kMean, 3);
  check_pairwise_kl<scalar>(1, 2, 8, 1000, false, true, Reduction::kNone, 0);
  check_pairwise_kl<scalar>(1, 2, 9, 1100, false, true, Reduction::kNone, 0);
  // Several tiles a block, on a device of one processor.
  if (std::is_same_v<scalar, float>) {
    for (const bool with_gradient : {false, true}) {
      check_pairwise_kl<scalar>(1, 8500, 2, 3, false, true, Reduction::kSum, 1, with_gradient);
      check_pairwise_kl<scalar>(1, 70, 2, 1100, false, true, Reduction::kSum, 0, with_gradient);
      check_pairwise_kl<scalar>(1, 70, 9, 4, false, true, Reduction::kSum, 0, with_gradient);
    }
    check_gossip_mix<scalar>(6, 6, 5000, 3, 4999, 0, false, true);
  }
  for (const int64_t rows : {1, 5, 40}) {
    for (const int64_t padding : {0, 3, 16}) {
      for (const bool in_place : {false, true}) {
        const int64_t columns = between(1, 400), begin = between(0, columns - 1),
                      end = between(begin + 1, columns);
        check_gossip_mix<scalar>(rows, rows, columns, begin, end, padding, in_place, !in_place);
        check_gossip_mix<scalar>(rows, rows + (in_place ? 0 : 7), 208, 3, 207, padding, in_place, false);
      }
    }
  }
}

// A kernel that a barrier is missing from: thread t reads what thread t + 1 or t - 1 wrote.
void racy(int* result, int neighbour) {
  DMMLKD_DYNAMIC_SHARED(shared);
  int* values = reinterpret_cast<int*>(shared);
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  const unsigned other = (threadIdx.x + static_cast<unsigned>(neighbour)) % blockDim.x;
  result[threadIdx.x] = values[other] == static_cast<int>(other);
}

void barrier_in_a_branch(int*, int) {
  if (threadIdx.x < 32) __syncthreads();
}

void shuffle_in_a_branch(int* result, int) {
  if (threadIdx.x % 2 == 0) result[0] = __shfl_xor_sync(kFullWarp, result[0], 1);
}

void check_emulation() {
  auto& device = dmmlkd::emulation::device();
  const auto wrong = [&](dmmlkd::emulation::Order order, int neighbour) {
    device.order = order;
    std::vector<int> result(64);
    DMMLKD_LAUNCH(racy, 1, 64, 64 * sizeof(int), nullptr, result.data(), neighbour);
    require_success(last_launch_error());
    return std::count(result.begin(), result.end(), 0);
  };
  using dmmlkd::emulation::Order;
  require(wrong(Order::kAscending, 1) > 1 || wrong(Order::kDescending, 1) > 1,
          "a missing barrier shows in an order");
  require(wrong(Order::kAscending, 63) > 1 || wrong(Order::kDescending, 63) > 1,
          "a missing barrier shows in an order");
  require(wrong(Order::kShuffled, 1) > 1, "a missing barrier shows in a shuffled order");
  int value = 0;
  const auto report = [&] {
    const char* error = last_launch_error();
    return std::string(error == nullptr ? "" : error);
  };
  DMMLKD_LAUNCH(barrier_in_a_branch, 1, 64, 0, nullptr, &value, 0);
  require(report().find("never arrive") != std::string::npos, "a barrier that not all reach is reported");
  DMMLKD_LAUNCH(shuffle_in_a_branch, 1, 64, 0, nullptr, &value, 0);
  require(report().find("never arrive") != std::string::npos, "a shuffle that not all reach is reported");
  DMMLKD_LAUNCH(racy, 1, 64, 64 * 1024, nullptr, &value, 0);
  require(report().find("not allowed") != std::string::npos,
          "shared memory that was not asked for is refused");
  DMMLKD_LAUNCH(racy, 1, 63, 0, nullptr, &value, 0);
  require(report().find("invalid launch") != std::string::npos, "a launch of part of a warp is refused");
}

}  // namespace

int main() {
  using dmmlkd::emulation::Order;
  check_emulation();
  auto& device = dmmlkd::emulation::device();
  // Sizes that reach the kernels for many and for few processors, for much and for little shared memory.
  const auto resize = [&](Order order, int processors, int max_shared) {
    device.order = order, device.processors = processors, device.max_shared = max_shared;
  };
  resize(Order::kAscending, 1, 227 * 1024);
  check_dtype<float>();
  check_dtype<double>();
  resize(Order::kDescending, 132, 227 * 1024);
  check_dtype<float>();
  check_dtype<__half>();
  check_partial_norms();
  resize(Order::kDescending, 40, 64 * 1024);
  check_a_batch_of_just_one_block();
  resize(Order::kShuffled, 1, 20 * 1024);
  check_dtype<float>();
  check_dtype<__nv_bfloat16>();
  std::printf("%d checks passed\n", checks);
  return 0;
}
