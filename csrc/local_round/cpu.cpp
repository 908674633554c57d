// local_round_ on CPU tensors: checks, then shares out devices.
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <limits>

#include "../check.h"
#include "device_training.h"

namespace dmmlkd {
namespace {

template <class T>
void train(const LocalRound& round) {
  at::parallel_for(0, round.devices(), 1, [&](int64_t begin, int64_t end) {
    DeviceTraining<T> training(round);
    for (int64_t device = begin; device < end; ++device) training.run_device(device);
  });
}

at::Tensor contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->contiguous() : at::Tensor();
}

// What indexes memory: no number may point outside.
void check_contents(const LocalRound& round) {
  const char* op = "local_round";
  check_range(op, "labels", round.labels, round.blocks.classes);
  check_range(op, "indices", round.indices, round.labels.size(0));
  if (round.offsets.defined()) check_range(op, "offsets", round.offsets, std::numeric_limits<int64_t>::max());
  if (round.pool.defined()) {
    check_range(op, "draws[0]", round.draws.select(0, 0), round.pool.size(2));
    check_range(op, "draws[1]", round.draws.select(0, 1), round.blocks.classes);
    check_range(op, "draws[2]", round.draws.select(0, 2), round.pool.size(2));
  }
  const int64_t *start = round.start.const_data_ptr<int64_t>(),
                *iterations = round.iterations.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < round.start.numel(); ++i)
    TORCH_CHECK_VALUE(
        iterations[i] <= 0 || (start[i] >= 0 && start[i] <= round.indices.size(0) - iterations[i]), op,
        ": start and start + iterations must be in [0, ", round.indices.size(0),
        "], the iterations that indices hold, got ", start[i], " + ", iterations[i]);
  const int64_t modalities = round.start.size(1);
  for (int64_t i = 0; i < round.start.numel(); ++i) {
    const int64_t device = i / modalities;
    const auto m = static_cast<size_t>(i % modalities);
    TORCH_CHECK_VALUE(
        iterations[i] <= 0 || round.blocks.row(device, m + 1) < 0 || round.blocks.row(device, 0) >= 0, op,
        ": parameters[0], the shared block, must have a row for device ", device, ", which trains");
  }
}

std::tuple<at::Tensor, at::Tensor> local_round(
    at::TensorList parameters, at::TensorList momenta, at::TensorList starts, at::TensorList devices,
    at::TensorList values, const at::Tensor& labels, const at::Tensor& present, const at::Tensor& indices,
    const std::optional<at::Tensor>& noise, const std::optional<at::Tensor>& offsets, const at::Tensor& start,
    const at::Tensor& iterations, at::ArrayRef<int64_t> kernels, at::ArrayRef<int64_t> strides,
    at::ArrayRef<int64_t> layers, at::ArrayRef<int64_t> widths, int64_t classes,
    const std::optional<at::Tensor>& pool, const std::optional<at::Tensor>& known,
    const std::optional<at::Tensor>& draws, const std::optional<at::Tensor>& count,
    const std::optional<at::Tensor>& sum, const std::optional<at::Tensor>& product,
    at::ArrayRef<double> weights, double strength, bool by_distance, double clip_norm, double learning_rate,
    double momentum_factor, double weight_decay, double proximal) {
  const char* op = "local_round";
  TORCH_CHECK_VALUE(indices.dim() == 3 && indices.scalar_type() == at::kLong, op,
                    ": indices must be int64 of shape [iterations, devices, batch], got ",
                    indices.scalar_type(), " of shape ", indices.sizes());
  LocalRound round{
      .blocks = {
          op, parameters, devices, values, {kernels, strides, layers, widths}, classes, indices.size(1)}};
  const at::ScalarType type = round.blocks.type();
  check_samples(op, type, values, labels, present);
  check_local_round(parameters, momenta, starts, proximal, values, indices, noise, offsets, start, iterations,
                    weights);
  check_local_round_guidance(type, indices, classes, round.blocks.width, pool, known, draws, count, sum,
                             product);
  round.momenta = momenta.vec(), round.starts = starts.vec();
  for (size_t block = 0; block < parameters.size(); ++block) {
    check_apart(op, block, parameters[block], "momenta", momenta[block]);
    if (proximal != 0) check_apart(op, block, parameters[block], "starts", starts[block]);
  }
  for (const at::Tensor& own : values) round.values.push_back(own.contiguous());
  round.labels = labels.contiguous(), round.present = present.contiguous();
  round.indices = indices.contiguous(), round.noise = contiguous(noise), round.offsets = contiguous(offsets);
  round.start = start.contiguous(), round.iterations = iterations.contiguous();
  round.pool = contiguous(pool), round.known = contiguous(known), round.draws = contiguous(draws);
  if (count) round.count = *count, round.sum = *sum, round.product = *product;
  round.weights = weights.vec();
  round.strength = strength, round.by_distance = by_distance;
  round.step = {clip_norm, learning_rate, momentum_factor, weight_decay, proximal};
  check_contents(round);
  round.losses = at::zeros({loss_terms, indices.size(1)}, at::TensorOptions(at::kDouble));
  round.trained = at::zeros({indices.size(1)}, at::TensorOptions(at::kLong));
  if (indices.size(2) > 0 && type == at::kDouble) train<double>(round);
  if (indices.size(2) > 0 && type == at::kFloat) train<float>(round);
  return {round.losses, round.trained};
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) { m.impl("local_round_", local_round); }

}  // namespace dmmlkd
