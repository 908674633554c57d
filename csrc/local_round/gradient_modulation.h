// Changes a device's gradients before its step (METHOD 7), by OGM-GE (Peng et al. 2022) or MMPareto (Wei and
// Hu 2024), on the encoders with their projections. A device with a single modality in a batch keeps its
// gradients.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "../encoder/device_blocks.h"
#include "../simd/kernels.h"
#include "../simd/scratch.h"
#include "round_arguments.h"

namespace dmmlkd {

inline void run_modalities(DeviceObjective<float>& objective, float* scores, bool with_gradients) {
  kernels().modality_objectives_float(objective, scores, with_gradients);
}
inline void run_modalities(DeviceObjective<double>& objective, double* scores, bool with_gradients) {
  kernels().modality_objectives_double(objective, scores, with_gradients);
}
inline void run_ogm_ge(const ModulatedRow<float>& row) { kernels().ogm_ge_float(row); }
inline void run_ogm_ge(const ModulatedRow<double>& row) { kernels().ogm_ge_double(row); }
inline void run_mmpareto(const ModulatedRow<float>& row) { kernels().mmpareto_float(row); }
inline void run_mmpareto(const ModulatedRow<double>& row) { kernels().mmpareto_double(row); }

template <class T>
class GradientModulation {
 public:
  using Rows = std::vector<std::unique_ptr<Scratch<T>>>;
  using Encoders = std::vector<std::unique_ptr<DeviceEncoder<T>>>;

  GradientModulation(const RoundArguments& given, const DeviceBlocks& blocks)
      : given_(given),
        blocks_(blocks),
        merges_(given.modulation == "mmpareto"),
        scores_(blocks.modalities()),
        outputs_(blocks.modalities()),
        shared_gradient_(given.parameters[0].size(1)) {
    for (size_t m = 0; m < blocks.modalities(); ++m) {
      ends_.push_back(blocks.places[m].encoder_ends());
      alone_.push_back(std::make_unique<Scratch<T>>(merges_ ? given.parameters[m + 1].size(1) : 1));
    }
  }

  // `objective` has been computed, and taken back to the modalities' `gradients`, which are changed; those of
  // the features are overwritten.
  void run(int64_t device, int64_t iteration, const DeviceObjective<T>& objective, const Encoders& encoders,
           const Rows& gradients) {
    const int64_t held = present_modalities(objective);
    if (held < 2) return;
    judge_modalities(objective);
    for (size_t m = 0; m < outputs_.size(); ++m)
      if (outputs_[m].features && merges_)
        merge(device, m, *encoders[m], gradients[m]->data());
      else if (outputs_[m].features)
        run_ogm_ge({gradients[m]->data(), noise(device, iteration, m), ends_[m].data(), tensors(m),
                    given_.parameters[m + 1].size(1), coefficient(m, held)});
    for (int64_t i = 0; merges_ && i < given_.parameters[0].size(1); ++i)
      objective.shared_head_gradient[i] += shared_gradient_.data()[i];
  }

 private:
  int64_t tensors(size_t m) const { return static_cast<int64_t>(ends_[m].size()); }

  // Number of modalities that train and are present in a sample of the batch.
  static int64_t present_modalities(const DeviceObjective<T>& o) {
    int64_t held = 0;
    for (int64_t m = 0; m < o.num_modalities; ++m) {
      bool any = false;
      for (int64_t sample = 0; sample < o.samples; ++sample) any |= o.present[sample * o.num_modalities + m];
      held += any;
    }
    return held;
  }

  // Scores, and the gradients of the unimodal losses. One sum serves for all the losses: no modality's
  // block sees another's.
  void judge_modalities(const DeviceObjective<T>& joint) {
    DeviceObjective<T> alone = joint;
    alone.target = alone.rehearsal = nullptr, alone.difference = 0;
    for (size_t m = 0; m < outputs_.size(); ++m) {
      outputs_[m] = joint.modalities[m];
      outputs_[m].head_gradient = merges_ ? alone_[m]->data() + blocks_.places[m].head : nullptr;
    }
    alone.modalities = outputs_.data(), alone.shared_head_gradient = shared_gradient_.data();
    run_modalities(alone, scores_.data(), merges_);
  }

  void merge(int64_t device, size_t m, DeviceEncoder<T>& encoder, T* gradient) const {
    encoder.backward(blocks_.row(device, m + 1), outputs_[m].feature_gradient, alone_[m]->data());
    run_mmpareto({gradient, alone_[m]->data(), ends_[m].data(), tensors(m), given_.parameters[m + 1].size(1),
                  static_cast<T>(given_.modulation_strength)});
  }

  // OGM-GE slows a modality whose logits give the true class more probability than other modalities' do.
  T coefficient(size_t m, int64_t held) const {
    T total = 0;
    for (const T score : scores_) total += score;
    const T others = (total - scores_[m]) / static_cast<T>(held - 1);
    const T ratio = scores_[m] / std::max(others, static_cast<T>(1e-8));
    return ratio > 1 ? 1 - std::tanh(static_cast<T>(given_.modulation_strength) * ratio) : T(1);
  }

  const T* noise(int64_t device, int64_t iteration, size_t m) const {
    const Tensor& table = given_.gradient_noise[m];
    const int64_t places = table.size(0) - given_.parameters[m + 1].size(1) + 1;
    const int64_t line = iteration * static_cast<int64_t>(blocks_.modalities()) + static_cast<int64_t>(m);
    const int64_t* offsets = given_.gradient_offsets.const_data_ptr<int64_t>();
    return table.const_data_ptr<T>() + offsets[line * given_.num_devices() + device] % places;
  }

  const RoundArguments& given_;
  const DeviceBlocks& blocks_;
  const bool merges_;  // MMPareto
  std::vector<std::vector<int64_t>> ends_;
  Rows alone_;  // gradients of the unimodal losses
  std::vector<T> scores_;
  std::vector<ModalityOutputs<T>> outputs_;
  Scratch<T> shared_gradient_;
};

}  // namespace dmmlkd
