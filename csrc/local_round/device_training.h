// The local iterations of a round, one device after the other (METHOD 3 and 5).
//
// Each device runs all its iterations before the next device starts, so its parameters, momentum and gradient
// stay in the second-level cache.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "../encoder/copy_samples.h"
#include "../encoder/device_blocks.h"
#include "../simd/kernels.h"
#include "../simd/rows.h"
#include "../simd/scratch.h"
#include "../stable/tensor.h"
#include "gradient_modulation.h"
#include "round_arguments.h"

namespace dmmlkd {

inline void run(DeviceObjective<float>& objective) { kernels().objective_float(objective); }
inline void run(DeviceObjective<double>& objective) { kernels().objective_double(objective); }
inline void run(const SgdDevice<float>& step) { kernels().sgd_step_float(step); }
inline void run(const SgdDevice<double>& step) { kernels().sgd_step_double(step); }
inline void run(const ClassMoments<float>& moments) { kernels().class_moments_float(moments); }
inline void run(const ClassMoments<double>& moments) { kernels().class_moments_double(moments); }

// The arguments, and the results.
struct LocalRound {
  const RoundArguments& given;
  const DeviceBlocks& blocks;
  Tensor losses;   // float64 [terms, devices]
  Tensor trained;  // int64 [devices]: iterations in which a device trained
};

// The memory of one thread to train devices.
template <class T>
class DeviceTraining {
 public:
  explicit DeviceTraining(const LocalRound& round)
      : round_(round),
        given_(round.given),
        blocks_(round.blocks),
        batch_(given_.batch()),
        shared_gradient_(given_.parameters[0].size(1)),
        labels_(static_cast<size_t>(batch_)),
        present_(batch_ * modalities()),
        present_column_(batch_),
        active_(given_.modalities()),
        outputs_(given_.modalities()),
        rehearsal_labels_(static_cast<size_t>(batch_)),
        known_(batch_),
        rehearsal_known_(batch_) {
    for (size_t m = 0; m < given_.modalities(); ++m) {
      const Tensor& block = given_.parameters[m + 1];
      gradients_.push_back(std::make_unique<Scratch<T>>(block.size(1)));
      feature_gradients_.push_back(std::make_unique<Scratch<T>>(batch_ * 2 * blocks_.width));
      encoders_.push_back(std::make_unique<DeviceEncoder<T>>(blocks_.places[m], block, batch_, true));
    }
    set_objective();
    if (given_.modulation != "none") modulation_ = std::make_unique<GradientModulation<T>>(given_, blocks_);
  }

  void run_device(int64_t device) {
    begin_round(device);
    double losses[loss_terms] = {};
    int64_t trained = 0;
    for (int64_t iteration = 0; iteration < last_iteration(device); ++iteration)
      trained += run_iteration(device, iteration, losses);
    for (int64_t term = 0; term < loss_terms; ++term)
      round_.losses.mutable_data_ptr<double>()[term * given_.num_devices() + device] = losses[term];
    round_.trained.mutable_data_ptr<int64_t>()[device] = trained;
  }

 private:
  int64_t modalities() const { return static_cast<int64_t>(given_.modalities()); }
  int64_t row(int64_t device, size_t block) const { return blocks_.row(device, block); }
  int64_t start(int64_t device, size_t m) const {
    return given_.first_iterations.const_data_ptr<int64_t>()[device * modalities() + static_cast<int64_t>(m)];
  }
  int64_t iterations(int64_t device, size_t m) const {
    return given_.iterations.const_data_ptr<int64_t>()[device * modalities() + static_cast<int64_t>(m)];
  }

  // The device's parameters at the round's start, which the first iteration then reads from the cache.
  void begin_round(int64_t device) const {
    for (size_t block = 0; block < given_.blocks(); ++block)
      if (const int64_t row_index = row(device, block); row_index >= 0)
        std::copy_n(row_of<T>(given_.starts[block], row_index), given_.parameters[block].size(1),
                    written_row<T>(given_.parameters[block], row_index));
  }

  // Returns whether any modality trains; stores which ones.
  bool find_active(int64_t device, int64_t iteration) {
    bool any = false;
    for (size_t m = 0; m < given_.modalities(); ++m) {
      const int64_t begin = start(device, m), end = begin + iterations(device, m);
      active_[m] = row(device, m + 1) >= 0 && begin <= iteration && iteration < end;
      any |= active_[m];
    }
    return any;
  }
  int64_t last_iteration(int64_t device) const {
    int64_t last = 0;
    for (size_t m = 0; m < given_.modalities(); ++m)
      if (row(device, m + 1) >= 0 && iterations(device, m) > 0)
        last = std::max(last, start(device, m) + iterations(device, m));
    return last;
  }

  // Sets what is the same for all devices and iterations.
  void set_objective() {
    DeviceObjective<T>& o = objective_;
    o.num_modalities = modalities(), o.samples = batch_, o.width = blocks_.width;
    o.classes = blocks_.classes, o.by_distance = given_.by_distance;
    o.by_samples = objective_by_samples(batch_, o.width);
    const auto weight = [&](size_t i) { return static_cast<T>(given_.weights[i]); };
    o.classification = weight(0), o.similarity = weight(1), o.difference = weight(2);
    o.generator = weight(3), o.rehearsing = weight(4), o.strength = static_cast<T>(given_.strength);
    o.modalities = outputs_.data(), o.shared_head_gradient = shared_gradient_.data();
    o.labels = labels_.data(), o.present = present_.data();
    if (given_.pool.defined()) {
      target_ = std::make_unique<Scratch<T>>(batch_ * o.width);
      o.target = target_->data(), o.known = known_.data();
      if (!o.by_distance) {
        rehearsal_ = std::make_unique<Scratch<T>>(batch_ * o.width);
        o.rehearsal = rehearsal_->data(), o.rehearsed = batch_;
        o.rehearsal_labels = rehearsal_labels_.data();
        o.rehearsal_known = rehearsal_known_.data();
      }
    }
    scratch_ = std::make_unique<Scratch<T>>(
        objective_scratch(batch_, o.rehearsed, modalities(), o.width, o.classes, o.by_samples));
    o.scratch = scratch_->data();
  }

  // Returns whether any modality trains.
  bool run_iteration(int64_t device, int64_t iteration, double* losses) {
    if (!find_active(device, iteration)) return false;
    load_batch(device, iteration);
    for (size_t m = 0; m < given_.modalities(); ++m) forward(device, iteration, m);
    if (given_.pool.defined()) load_guidance(device, iteration);
    objective_.shared_head = row_of<T>(given_.parameters[0], row(device, 0));
    run(objective_);
    for (int64_t term = 0; term < loss_terms; ++term) losses[term] += objective_.losses[term];
    for (size_t m = 0; m < given_.modalities(); ++m)
      if (outputs_[m].features) {
        if (given_.count.defined()) observe(device, m);
        encoders_[m]->backward(row(device, m + 1), outputs_[m].feature_gradient, gradients_[m]->data());
      }
    if (modulation_) modulation_->run(device, iteration, objective_, encoders_, gradients_);
    step(device);
    return true;
  }

  const int64_t* batch_indices(int64_t device, int64_t iteration) const {
    return given_.indices.const_data_ptr<int64_t>() + (iteration * given_.num_devices() + device) * batch_;
  }

  void load_batch(int64_t device, int64_t iteration) {
    const int64_t *index = batch_indices(device, iteration),
                  *labels = given_.labels.const_data_ptr<int64_t>();
    const bool* present = given_.present.const_data_ptr<bool>();
    for (int64_t sample = 0; sample < batch_; ++sample) {
      const bool* source = present + index[sample] * modalities();
      bool* target = present_.data() + sample * modalities();
      labels_[static_cast<size_t>(sample)] = labels[index[sample]];
      for (int64_t m = 0; m < modalities(); ++m) target[m] = source[m] && active_[static_cast<size_t>(m)];
    }
  }

  void forward(int64_t device, int64_t iteration, size_t m) {
    outputs_[m] = {};
    if (!active_[m]) return;
    DeviceEncoder<T>& encoder = *encoders_[m];
    const BlockPlaces& places = blocks_.places[m];
    const int64_t* index = batch_indices(device, iteration);
    const int64_t size = numel(places.shape);
    const T* source = given_.values[m].const_data_ptr<T>();
    const T* noise = noise_of(device, iteration, m, size);
    copy_samples(
        0, batch_, size, [&](int64_t i) { return source + index[i] * size; },
        [&](int64_t i) { return noise ? noise + i * size : nullptr; }, encoder.inputs());
    const int64_t row_index = row(device, m + 1);
    encoder.forward(row_index);
    outputs_[m] = {encoder.features(), row_of<T>(given_.parameters[m + 1], row_index) + places.head,
                   feature_gradients_[m]->data(), gradients_[m]->data() + places.head};
  }

  const T* noise_of(int64_t device, int64_t iteration, size_t m, int64_t size) const {
    if (!given_.noise.defined()) return nullptr;
    const int64_t places = given_.noise.size(0) - batch_ * size + 1;
    const int64_t at = (iteration * modalities() + static_cast<int64_t>(m)) * given_.num_devices() + device;
    return given_.noise.const_data_ptr<T>() + given_.offsets.const_data_ptr<int64_t>()[at] % places;
  }

  // The features of the device's generator that guide this batch, and those that its head rehearses.
  void load_guidance(int64_t device, int64_t iteration) {
    const int64_t batches = given_.draws.size(1), all = batches * batch_;
    const int64_t* copies = given_.draws.const_data_ptr<int64_t>() + iteration * batch_;
    const bool* known = given_.known.const_data_ptr<bool>() + device * blocks_.classes;
    for (int64_t i = 0; i < batch_; ++i) {
      const auto sample = static_cast<size_t>(i);
      take_feature(device, labels_[sample], copies[i], target_->data() + i * objective_.width);
      known_.data()[i] = known[labels_[sample]];
      if (!rehearsal_) continue;
      const int64_t label = rehearsal_labels_[sample] = copies[all + i];
      take_feature(device, label, copies[2 * all + i], rehearsal_->data() + i * objective_.width);
      rehearsal_known_.data()[i] = known[label];
    }
  }

  void take_feature(int64_t device, int64_t label, int64_t copy, T* target) const {
    const Tensor& pool = given_.pool;
    const int64_t width = pool.size(3);
    const T* feature =
        pool.const_data_ptr<T>() + ((device * blocks_.classes + label) * pool.size(2) + copy) * width;
    std::copy_n(feature, width, target);
  }

  void observe(int64_t device, size_t m) {
    for (int64_t sample = 0; sample < batch_; ++sample)
      present_column_.data()[sample] = present_.data()[sample * modalities() + static_cast<int64_t>(m)];
    ClassMoments<T> moments{};
    moments.features = outputs_[m].features, moments.feature_stride = 2 * objective_.width;
    moments.labels = labels_.data();
    moments.present = present_column_.data();
    moments.samples = batch_, moments.width = objective_.width, moments.full = given_.product.dim() == 4;
    moments.count = written_row<T>(given_.count, device), moments.sum = written_row<T>(given_.sum, device);
    moments.product = written_row<T>(given_.product, device);
    run(moments);
  }

  void step(int64_t device) {
    trained_.clear();
    for (size_t block = 0; block < given_.parameters.size(); ++block) {
      if (block && !outputs_[block - 1].features) continue;
      const Tensor& parameters = given_.parameters[block];
      const int64_t row_index = row(device, block);
      trained_.push_back({written_row<T>(parameters, row_index),
                          written_row<T>(given_.momenta[block], row_index),
                          block ? gradients_[block - 1]->data() : shared_gradient_.data(), parameters.size(1),
                          row_of<T>(given_.starts[block], row_index)});
    }
    run(SgdDevice<T>{trained_.data(), static_cast<int64_t>(trained_.size()), given_.clip_norm,
                     static_cast<T>(given_.learning_rate), static_cast<T>(given_.momentum_factor),
                     static_cast<T>(given_.weight_decay), static_cast<T>(given_.proximal)});
  }

  const LocalRound& round_;
  const RoundArguments& given_;
  const DeviceBlocks& blocks_;
  const int64_t batch_;
  Scratch<T> shared_gradient_;
  std::vector<std::unique_ptr<Scratch<T>>> gradients_, feature_gradients_;
  std::vector<std::unique_ptr<DeviceEncoder<T>>> encoders_;
  std::vector<int64_t> labels_;
  Scratch<bool> present_, present_column_;  // [batch, modalities] and [batch]
  std::vector<char> active_;                // modalities in the iteration that runs
  std::vector<ModalityOutputs<T>> outputs_;
  std::vector<int64_t> rehearsal_labels_;
  Scratch<bool> known_, rehearsal_known_;
  std::unique_ptr<Scratch<T>> target_, rehearsal_, scratch_;
  std::unique_ptr<GradientModulation<T>> modulation_;
  std::vector<SgdRow<T>> trained_;
  DeviceObjective<T> objective_{};
};

}  // namespace dmmlkd
