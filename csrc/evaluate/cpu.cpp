// count_right on CPU tensors: every device's predictions for all samples, or its own, device by device and
// some samples at a time, so that what passes between layers stays in the cache.
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "../check.h"
#include "../encoder/copy_samples.h"
#include "../encoder/device_blocks.h"
#include "../simd/rows.h"

namespace dmmlkd {
namespace {

constexpr int64_t samples_at_once = 64;

// The data, contiguous, and what is written: [modalities + 1, devices], all modalities together last, and
// the common features of each modality [rows, samples, width], or none.
struct Evaluation {
  const DeviceBlocks& blocks;
  std::vector<at::Tensor> values, common;
  at::Tensor labels, present, right, counted;
  at::Tensor chosen;  // [devices, samples]: which of the data, or undefined for all

  int64_t devices() const { return right.size(1); }
  int64_t samples() const { return chosen.defined() ? chosen.size(1) : labels.size(0); }
  int64_t sample(int64_t device, int64_t i) const {
    return chosen.defined() ? chosen.const_data_ptr<int64_t>()[device * chosen.size(1) + i] : i;
  }
};

// What a thread needs to judge a device.
template <class T>
class DeviceEvaluation {
 public:
  explicit DeviceEvaluation(const Evaluation& evaluation)
      : e_(evaluation),
        blocks_(evaluation.blocks),
        batch_(std::min(samples_at_once, evaluation.samples())),
        classes_(blocks_.classes),
        heads_(2 * blocks_.width * classes_),
        logits_(batch_ * classes_),
        total_(batch_ * classes_),
        voices_(static_cast<size_t>(batch_)),
        scratch_(linear_scratch(batch_, 2 * blocks_.width, classes_)) {
    for (size_t m = 0; m < blocks_.modalities(); ++m)
      encoders_.push_back(
          std::make_unique<DeviceEncoder<T>>(blocks_.places[m], blocks_.parameters[m + 1], batch_));
  }

  void run_device(int64_t device) {
    const size_t last = blocks_.modalities();
    for (int64_t begin = 0; begin < e_.samples(); begin += batch_) {
      const int64_t count = std::min(batch_, e_.samples() - begin);
      std::fill_n(total_.data(), batch_ * classes_, T(0));
      std::fill(voices_.begin(), voices_.end(), 0);
      for (size_t m = 0; m < last; ++m)
        if (blocks_.row(device, m + 1) >= 0) predict(device, m, begin, count);
      for (int64_t i = 0; i < count; ++i)
        if (voices_[static_cast<size_t>(i)])
          judge(last, device, e_.sample(device, begin + i), total_.data() + i * classes_);
    }
  }

 private:
  void predict(int64_t device, size_t m, int64_t begin, int64_t count) {
    const int64_t row = blocks_.row(device, m + 1), half = blocks_.width * classes_;
    const int64_t size = c10::multiply_integers(blocks_.places[m].shape);
    const T* values = e_.values[m].const_data_ptr<T>();
    copy_samples<T>(
        0, count, size, [&](int64_t i) { return values + e_.sample(device, begin + i) * size; },
        [](int64_t) { return nullptr; }, encoders_[m]->inputs());
    encoders_[m]->forward(row);
    if (!e_.common.empty())
      for (int64_t i = 0; i < count; ++i)
        std::copy_n(encoders_[m]->features() + 2 * i * blocks_.width, blocks_.width,
                    written_row<T>(e_.common[m], row) + (begin + i) * blocks_.width);
    // Common and specific logits are one product with both heads, one above the other.
    std::copy_n(row_of<T>(blocks_.parameters[0], blocks_.row(device, 0)), half, heads_.data());
    std::copy_n(row_of<T>(blocks_.parameters[m + 1], row) + blocks_.places[m].head, half,
                heads_.data() + half);
    run(LinearLayer<T>{encoders_[m]->features(), heads_.data(), nullptr, batch_, 2 * blocks_.width, classes_,
                       false, logits_.data(), scratch_.data()});
    const auto modalities = static_cast<int64_t>(blocks_.modalities());
    const bool* present = e_.present.const_data_ptr<bool>() + static_cast<int64_t>(m);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t sample = e_.sample(device, begin + i);
      if (!present[sample * modalities]) continue;
      const T* logits = logits_.data() + i * classes_;
      judge(m, device, sample, logits);
      for (int64_t k = 0; k < classes_; ++k) total_.data()[i * classes_ + k] += logits[k];
      voices_[static_cast<size_t>(i)] = 1;
    }
  }

  // The first of the largest, as torch.argmax gives it: no number is larger than NaN.
  int64_t largest(const T* logits) const {
    int64_t best = 0;
    for (int64_t k = 0; k < classes_; ++k) {
      if (logits[k] != logits[k]) return k;
      if (logits[k] > logits[best]) best = k;
    }
    return best;
  }

  void judge(size_t line, int64_t device, int64_t sample, const T* logits) {
    const int64_t at = static_cast<int64_t>(line) * e_.devices() + device;
    const bool right = largest(logits) == e_.labels.const_data_ptr<int64_t>()[sample];
    e_.right.mutable_data_ptr<int64_t>()[at] += right;
    e_.counted.mutable_data_ptr<int64_t>()[at] += 1;
  }

  const Evaluation& e_;
  const DeviceBlocks& blocks_;
  const int64_t batch_, classes_;
  std::vector<std::unique_ptr<DeviceEncoder<T>>> encoders_;
  Scratch<T> heads_, logits_, total_;
  std::vector<char> voices_;  // whether any modality speaks for a sample
  Scratch<T> scratch_;
};

template <class T>
void judge_all(const Evaluation& evaluation) {
  at::parallel_for(0, evaluation.devices(), 1, [&](int64_t begin, int64_t end) {
    DeviceEvaluation<T> device_evaluation(evaluation);
    for (int64_t device = begin; device < end; ++device) device_evaluation.run_device(device);
  });
}

std::tuple<at::Tensor, at::Tensor> count_right(at::TensorList parameters, at::TensorList devices,
                                               int64_t num_devices, at::TensorList values,
                                               const at::Tensor& labels, const at::Tensor& present,
                                               at::ArrayRef<int64_t> kernels, at::ArrayRef<int64_t> strides,
                                               at::ArrayRef<int64_t> layers, at::ArrayRef<int64_t> widths,
                                               int64_t classes, const std::optional<at::Tensor>& samples,
                                               at::TensorList common) {
  const char* op = "count_right";
  TORCH_CHECK_VALUE(num_devices >= 0, op, ": num_devices must be at least 0, got ", num_devices);
  const DeviceBlocks blocks(op, parameters, devices, values, {kernels, strides, layers, widths}, classes,
                            num_devices);
  check_samples(op, blocks.type(), values, labels, present);
  check_chosen_samples(op, samples, num_devices, labels.size(0));
  check_common_features(op, common, parameters, samples ? samples->size(1) : labels.size(0), blocks.width);
  const auto lines = static_cast<int64_t>(values.size()) + 1;
  for (int64_t device = 0; device < num_devices; ++device)
    for (size_t m = 0; m < values.size(); ++m)
      TORCH_CHECK_VALUE(blocks.row(device, m + 1) < 0 || blocks.row(device, 0) >= 0, op,
                        ": parameters[0], the shared block, must have a row for device ", device);
  const auto options = at::TensorOptions(at::kLong);
  Evaluation evaluation{blocks,
                        {},
                        common.vec(),
                        labels.contiguous(),
                        present.contiguous(),
                        at::zeros({lines, num_devices}, options),
                        at::zeros({lines, num_devices}, options),
                        samples ? samples->contiguous() : at::Tensor()};
  for (const at::Tensor& own : values) evaluation.values.push_back(own.contiguous());
  if (evaluation.samples() > 0 && blocks.type() == at::kDouble) judge_all<double>(evaluation);
  if (evaluation.samples() > 0 && blocks.type() == at::kFloat) judge_all<float>(evaluation);
  return {evaluation.right, evaluation.counted};
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) { m.impl("count_right", count_right); }

}  // namespace dmmlkd
