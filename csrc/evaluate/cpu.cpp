// count_right on CPU tensors: every device's predictions for all or for its chosen samples, device by device
// and a few samples at a time, so that activations stay in the cache.
#include "cpu.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "../check.h"
#include "../encoder/copy_samples.h"
#include "../encoder/device_blocks.h"
#include "../simd/rows.h"
#include "../stable/parallel.h"

namespace dmmlkd {
namespace {

constexpr int64_t samples_at_once = 64;

// The arguments, and the results.
struct Evaluation {
  const EvaluationArguments& given;
  const DeviceBlocks& blocks;
  Tensor right, counted;  // int64 [modalities + 1, devices], all modalities together last
};

// The memory of one thread to judge devices.
template <class T>
class DeviceEvaluation {
 public:
  explicit DeviceEvaluation(const Evaluation& evaluation)
      : evaluation_(evaluation),
        given_(evaluation.given),
        blocks_(evaluation.blocks),
        batch_(std::min(samples_at_once, given_.judged())),
        classes_(blocks_.classes),
        heads_(2 * blocks_.width * classes_),
        logits_(batch_ * classes_),
        total_(batch_ * classes_),
        voices_(static_cast<size_t>(batch_)),
        scratch_(linear_scratch(batch_, 2 * blocks_.width, classes_)) {
    for (size_t m = 0; m < blocks_.modalities(); ++m)
      encoders_.push_back(
          std::make_unique<DeviceEncoder<T>>(blocks_.places[m], given_.parameters[m + 1], batch_, false));
  }

  void run_device(int64_t device) {
    const size_t last = blocks_.modalities();
    for (int64_t begin = 0; begin < given_.judged(); begin += batch_) {
      const int64_t count = std::min(batch_, given_.judged() - begin);
      std::fill_n(total_.data(), batch_ * classes_, T(0));
      std::fill(voices_.begin(), voices_.end(), 0);
      for (size_t m = 0; m < last; ++m)
        if (blocks_.row(device, m + 1) >= 0) predict(device, m, begin, count);
      for (int64_t i = 0; i < count; ++i)
        if (voices_[static_cast<size_t>(i)])
          judge(last, device, given_.sample(device, begin + i), total_.data() + i * classes_);
    }
  }

 private:
  void predict(int64_t device, size_t m, int64_t begin, int64_t count) {
    const int64_t row = blocks_.row(device, m + 1), half = blocks_.width * classes_;
    const int64_t size = numel(blocks_.places[m].shape);
    const T* values = given_.values[m].const_data_ptr<T>();
    copy_samples<T>(
        0, count, size, [&](int64_t i) { return values + given_.sample(device, begin + i) * size; },
        [](int64_t) { return nullptr; }, encoders_[m]->inputs());
    encoders_[m]->forward(row);
    if (!given_.common.empty())
      for (int64_t i = 0; i < count; ++i)
        std::copy_n(encoders_[m]->features() + 2 * i * blocks_.width, blocks_.width,
                    written_row<T>(given_.common[m], row) + (begin + i) * blocks_.width);
    // Common and specific logits are one product with both heads, one above the other.
    std::copy_n(row_of<T>(given_.parameters[0], blocks_.row(device, 0)), half, heads_.data());
    std::copy_n(row_of<T>(given_.parameters[m + 1], row) + blocks_.places[m].head, half,
                heads_.data() + half);
    run(LinearLayer<T>{encoders_[m]->features(), heads_.data(), nullptr, batch_, 2 * blocks_.width, classes_,
                       false, logits_.data(), scratch_.data()});
    const auto modalities = static_cast<int64_t>(blocks_.modalities());
    const bool* present = given_.present.const_data_ptr<bool>() + static_cast<int64_t>(m);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t sample = given_.sample(device, begin + i);
      if (!present[sample * modalities]) continue;
      const T* logits = logits_.data() + i * classes_;
      judge(m, device, sample, logits);
      for (int64_t k = 0; k < classes_; ++k) total_.data()[i * classes_ + k] += logits[k];
      voices_[static_cast<size_t>(i)] = 1;
    }
  }

  // The first of the largest, as torch.argmax: NaN is larger than any number.
  int64_t largest(const T* logits) const {
    int64_t best = 0;
    for (int64_t k = 0; k < classes_; ++k) {
      if (logits[k] != logits[k]) return k;
      if (logits[k] > logits[best]) best = k;
    }
    return best;
  }

  void judge(size_t line, int64_t device, int64_t sample, const T* logits) {
    const int64_t at = static_cast<int64_t>(line) * given_.num_devices + device;
    const bool right = largest(logits) == given_.labels.const_data_ptr<int64_t>()[sample];
    evaluation_.right.mutable_data_ptr<int64_t>()[at] += right;
    evaluation_.counted.mutable_data_ptr<int64_t>()[at] += 1;
  }

  const Evaluation& evaluation_;
  const EvaluationArguments& given_;
  const DeviceBlocks& blocks_;
  const int64_t batch_, classes_;
  std::vector<std::unique_ptr<DeviceEncoder<T>>> encoders_;
  Scratch<T> heads_, logits_, total_;
  std::vector<char> voices_;  // whether a sample has any modality
  Scratch<T> scratch_;
};

template <class T>
void judge_all(const Evaluation& evaluation) {
  parallel_for(0, evaluation.given.num_devices, 1, [&](int64_t begin, int64_t end) {
    DeviceEvaluation<T> device_evaluation(evaluation);
    for (int64_t device = begin; device < end; ++device) device_evaluation.run_device(device);
  });
}

}  // namespace

void EvaluationArguments::check(const char* op) const {
  CHECK_VALUE(num_devices >= 0, op, ": num_devices must be at least 0, got ", num_devices);
  DeviceArguments::check(op);
  if (chosen.defined()) {
    check_dimensions(op, "samples", chosen, kLong, {"devices", "n"});
    check_shape(op, "samples", chosen, kLong, {num_devices, chosen.size(1)});
    check_range(op, "samples", chosen, samples());
  }
  if (!common.empty()) check_count(op, "common", common.size(), "modality", modalities());
  for (size_t m = 0; m < common.size(); ++m)
    check_written(op, "common", common[m], type(), {parameters[m + 1].size(0), judged(), feature_width()});
}

std::pair<Tensor, Tensor> count_right(const EvaluationArguments& given) {
  const char* op = "count_right";
  given.check(op);
  const DeviceBlocks blocks(op, given, given.num_devices);
  const int64_t shape[] = {static_cast<int64_t>(given.modalities()) + 1, given.num_devices};
  const Tensor& labels = given.labels;  // int64, as the counts are
  const Evaluation evaluation{given, blocks, labels.new_zeros(shape), labels.new_zeros(shape)};
  if (given.judged() > 0)
    given.type() == kDouble ? judge_all<double>(evaluation) : judge_all<float>(evaluation);
  return {evaluation.right, evaluation.counted};
}

}  // namespace dmmlkd
