// objective_ on CPU tensors: checks, then shares out devices.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../check.h"
#include "../orthogonality/form.h"
#include "../simd/kernels.h"
#include "../simd/rows.h"
#include "../simd/scratch.h"

namespace dmmlkd {
namespace {

constexpr int64_t terms = 6;

void run(DeviceObjective<float>& device) { kernels().objective_float(device); }
void run(DeviceObjective<double>& device) { kernels().objective_double(device); }

// The arguments of the operator, contiguous but for the heads, whose devices may lie at any distance.
struct Arguments {
  std::vector<at::Tensor> features, feature_gradients;
  std::vector<std::vector<int64_t>> rows;  // of a device in the features of each modality, or -1
  at::Tensor labels, present, waiting_logits, waiting_count, target, known, rehearsal, rehearsal_labels;
  at::Tensor rehearsal_known;
};

at::Tensor contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->contiguous() : at::Tensor();
}

template <class T>
at::Tensor all_devices(const Arguments& a, at::TensorList heads, const at::Tensor& shared_head,
                       at::ArrayRef<double> weights, double strength, bool by_distance,
                       at::TensorList head_gradients, const at::Tensor& shared_head_gradient) {
  const int64_t devices = a.labels.size(0), modalities = static_cast<int64_t>(a.features.size());
  const at::Tensor losses = at::empty({terms, devices}, shared_head.options());
  DeviceObjective<T> whole{};
  whole.num_modalities = modalities, whole.samples = a.labels.size(1);
  whole.width = shared_head.size(1), whole.classes = shared_head.size(2);
  whole.rehearsal_labels = a.rehearsal.defined() ? a.rehearsal_labels.const_data_ptr<int64_t>() : nullptr;
  whole.rehearsed = a.rehearsal.defined() ? a.rehearsal.size(1) : 0;
  whole.by_distance = by_distance;
  whole.by_samples = objective_by_samples(whole.samples, whole.width);
  whole.classification = static_cast<T>(weights[0]), whole.similarity = static_cast<T>(weights[1]);
  whole.difference = static_cast<T>(weights[2]), whole.generator = static_cast<T>(weights[3]);
  whole.rehearsing = static_cast<T>(weights[4]), whole.strength = static_cast<T>(strength);
  const int64_t room = objective_scratch(whole.samples, whole.rehearsed, modalities, whole.width,
                                         whole.classes, whole.by_samples);
  at::parallel_for(0, devices, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(room);
    std::vector<ModalityOutputs<T>> own(static_cast<size_t>(modalities));
    for (int64_t device = begin; device < end; ++device) {
      for (size_t m = 0; m < own.size(); ++m) {
        const int64_t row = a.rows[m][static_cast<size_t>(device)];
        if (row < 0) {
          own[m] = {};
          continue;
        }
        own[m] = {row_of<T>(a.features[m], row), row_of<T>(heads[m], row),
                  written_row<T>(a.feature_gradients[m], row), written_row<T>(head_gradients[m], row)};
      }
      DeviceObjective<T> o = whole;
      o.modalities = own.data(), o.scratch = scratch.data();
      o.shared_head = row_of<T>(shared_head, device);
      o.shared_head_gradient = written_row<T>(shared_head_gradient, device);
      o.labels = row_of<int64_t>(a.labels, device), o.present = row_of<bool>(a.present, device);
      o.waiting_logits = row_of<T>(a.waiting_logits, device);
      o.waiting_count = row_of<int64_t>(a.waiting_count, device);
      o.target = row_of<T>(a.target, device), o.known = row_of<bool>(a.known, device);
      o.rehearsal = row_of<T>(a.rehearsal, device);
      o.rehearsal_known = row_of<bool>(a.rehearsal_known, device);
      run(o);
      for (int64_t term = 0; term < terms; ++term)
        losses.mutable_data_ptr<T>()[term * devices + device] = o.losses[term];
    }
  });
  return losses;
}

std::tuple<at::Tensor, std::vector<at::Tensor>> objective(
    at::TensorList features, at::TensorList heads, at::TensorList positions, const at::Tensor& shared_head,
    const at::Tensor& labels, const at::Tensor& present, const std::optional<at::Tensor>& waiting_logits,
    const std::optional<at::Tensor>& waiting_count, const std::optional<at::Tensor>& target,
    const std::optional<at::Tensor>& known, const std::optional<at::Tensor>& rehearsal,
    const std::optional<at::Tensor>& rehearsal_labels, const std::optional<at::Tensor>& rehearsal_known,
    at::ArrayRef<double> weights, double strength, bool by_distance, at::TensorList head_gradients,
    at::Tensor& shared_head_gradient) {
  check_objective(features, heads, positions, shared_head, labels, present, weights, head_gradients,
                  shared_head_gradient);
  check_objective_guidance(shared_head, labels, waiting_logits, waiting_count, target, known, rehearsal,
                           rehearsal_labels, rehearsal_known);
  Arguments a;
  for (size_t m = 0; m < features.size(); ++m) {
    a.features.push_back(features[m].contiguous());
    a.feature_gradients.push_back(at::empty(features[m].sizes(), features[m].options()));
    auto& rows = a.rows.emplace_back(static_cast<size_t>(labels.size(0)), -1);
    const at::Tensor places = positions[m].contiguous();
    const int64_t* place = places.const_data_ptr<int64_t>();
    for (int64_t row = 0; row < places.numel(); ++row) {
      TORCH_CHECK_VALUE(place[row] >= 0 && place[row] < labels.size(0),
                        "objective: positions must be in [0, ", labels.size(0), "), got ", place[row]);
      rows[static_cast<size_t>(place[row])] = row;
    }
  }
  a.labels = labels.contiguous(), a.present = present.contiguous();
  a.waiting_logits = contiguous(waiting_logits), a.waiting_count = contiguous(waiting_count);
  a.target = contiguous(target), a.known = contiguous(known);
  a.rehearsal = contiguous(rehearsal), a.rehearsal_labels = contiguous(rehearsal_labels);
  a.rehearsal_known = contiguous(rehearsal_known);
  check_range("objective", "labels", a.labels, shared_head.size(2));
  if (a.rehearsal.defined())
    check_range("objective", "rehearsal_labels", a.rehearsal_labels, shared_head.size(2));
  const at::Tensor losses = shared_head.scalar_type() == at::kDouble
                                ? all_devices<double>(a, heads, shared_head, weights, strength, by_distance,
                                                      head_gradients, shared_head_gradient)
                                : all_devices<float>(a, heads, shared_head, weights, strength, by_distance,
                                                     head_gradients, shared_head_gradient);
  return {losses, std::move(a.feature_gradients)};
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) { m.impl("objective_", objective); }

}  // namespace dmmlkd
