#include "round_arguments.h"

#include <algorithm>
#include <limits>

#include "../check.h"

namespace dmmlkd {
namespace {

constexpr int64_t any_place = std::numeric_limits<int64_t>::max();

}  // namespace

void RoundArguments::check(const char* op) const {
  check_dimensions(op, "indices", indices, kLong, {"iterations", "devices", "batch"});
  DeviceArguments::check(op);
  check_parameters(op);
  check_batches(op);
  check_iterations(op);
  check_guidance(op);
  check_modulation(op);
  CHECK_VALUE(weights.size() == loss_terms - 1, op, ": weights must be ", loss_terms - 1, " numbers, got ",
              weights.size());
}

void RoundArguments::check_parameters(const char* op) const {
  check_count(op, "starts", starts.size(), "block", blocks());
  check_count(op, "momenta", momenta.size(), "block", blocks());
  for (size_t block = 0; block < blocks(); ++block) {
    const Tensor& written = parameters[block];
    check_written(op, "starts", starts[block], type(), written.sizes());
    check_written(op, "momenta", momenta[block], type(), written.sizes());
    check_apart(op, block, written, "starts", starts[block]);
    check_apart(op, block, written, "momenta", momenta[block]);
  }
}

void RoundArguments::check_batches(const char* op) const {
  CHECK_VALUE(batch() >= 1, op, ": indices must hold at least one sample per batch, got shape ",
              indices.sizes());
  check_range(op, "indices", indices, samples());
  check_together(op, {{"noise", &noise}, {"offsets", &offsets}});
  if (!noise.defined()) return;
  int64_t read = 0;
  for (const Tensor& given : values) read = std::max(read, batch() * numel(given.sizes().slice(1)));
  check_table(op, "noise", noise, type(), read);
  check_shape(op, "offsets", offsets, kLong,
              {num_iterations(), static_cast<int64_t>(modalities()), num_devices()});
  check_range(op, "offsets", offsets, any_place);
}

void RoundArguments::check_iterations(const char* op) const {
  const int64_t shape[] = {num_devices(), static_cast<int64_t>(modalities())};
  check_shape(op, "first_iterations", first_iterations, kLong, shape);
  check_shape(op, "iterations", iterations, kLong, shape);
  const int64_t *first = first_iterations.const_data_ptr<int64_t>(),
                *number = iterations.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < iterations.numel(); ++i)
    CHECK_VALUE(number[i] <= 0 || (first[i] >= 0 && first[i] <= num_iterations() - number[i]), op,
                ": first_iterations and their sum with iterations must be in [0, ", num_iterations(),
                "], the iterations that indices hold, got ", first[i], " + ", number[i]);
}

void RoundArguments::check_guidance(const char* op) const {
  check_together(op, {{"pool", &pool}, {"known", &known}, {"draws", &draws}});
  check_together(op, {{"count", &count}, {"sum", &sum}, {"product", &product}});
  const int64_t shape[] = {num_devices(), classes, feature_width(), feature_width()};
  if (count.defined()) {
    check_written(op, "count", count, type(), {shape, 2});
    check_written(op, "sum", sum, type(), {shape, 3});
    check_written(op, "product", product, type(), {shape, product.dim() == 4 ? size_t(4) : size_t(3)});
  }
  if (!pool.defined()) return;
  check_dimensions(op, "pool", pool, type(), {"devices", "classes", "n", "width"});
  check_shape(op, "pool", pool, type(), {num_devices(), classes, pool.size(2), feature_width()});
  check_shape(op, "known", known, kBool, {num_devices(), classes});
  check_shape(op, "draws", draws, kLong, {3, num_iterations(), batch()});
  check_range(op, "draws[0]", draws.select_first(0), pool.size(2));
  check_range(op, "draws[1]", draws.select_first(1), classes);
  check_range(op, "draws[2]", draws.select_first(2), pool.size(2));
}

void RoundArguments::check_modulation(const char* op) const {
  const bool noisy = modulation == "ogm-ge";
  CHECK_VALUE(noisy || modulation == "none" || modulation == "mmpareto", op,
              ": modulation must be none, ogm-ge or mmpareto, got ", modulation);
  check_count(op, "gradient_noise", gradient_noise.size(), "modality for ogm-ge, else none,",
              noisy ? modalities() : 0);
  CHECK_VALUE(gradient_offsets.defined() == noisy, op,
              ": gradient_offsets must be given for ogm-ge, and for it alone");
  if (!noisy) return;
  for (size_t m = 0; m < modalities(); ++m)
    check_table(op, "gradient_noise", gradient_noise[m], type(), parameters[m + 1].size(1));
  check_shape(op, "gradient_offsets", gradient_offsets, kLong,
              {num_iterations(), static_cast<int64_t>(modalities()), num_devices()});
  check_range(op, "gradient_offsets", gradient_offsets, any_place);
}

}  // namespace dmmlkd
