// The local iterations of a round, one device after the other (METHOD 3 and 5).
//
// A device goes through all its iterations before the next one begins, so that its parameters, its momentum
// and the gradient stay in the second-level cache.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "../encoder/copy_samples.h"
#include "../encoder/device_blocks.h"
#include "../simd/kernels.h"
#include "../simd/rows.h"
#include "../simd/scratch.h"

namespace dmmlkd {

inline void run(DeviceObjective<float>& objective) { kernels().objective_float(objective); }
inline void run(DeviceObjective<double>& objective) { kernels().objective_double(objective); }
inline void run(const SgdDevice<float>& step) { kernels().sgd_step_float(step); }
inline void run(const SgdDevice<double>& step) { kernels().sgd_step_double(step); }
inline void run(const ClassMoments<float>& moments) { kernels().class_moments_float(moments); }
inline void run(const ClassMoments<double>& moments) { kernels().class_moments_double(moments); }

constexpr int64_t loss_terms = 6;

struct StepSettings {
  double clip_norm, learning_rate, momentum_factor, weight_decay, proximal;
};

// What the operator was given; all tensors are contiguous but for parameters and momenta, whose rows are.
struct LocalRound {
  DeviceBlocks blocks;
  std::vector<at::Tensor> momenta;  // of each block
  std::vector<at::Tensor> starts;   // likewise; empty: no proximal term
  std::vector<at::Tensor> values;   // of all samples, of each modality
  at::Tensor labels, present;       // of all samples
  at::Tensor indices, noise, offsets;
  at::Tensor start, iterations;
  at::Tensor pool, known, draws;   // undefined: nothing guides
  at::Tensor count, sum, product;  // undefined: nobody asks for moments
  std::vector<double> weights;
  double strength;
  bool by_distance;
  StepSettings step;
  at::Tensor losses, trained;  // written: [terms, devices] and [devices]

  size_t modalities() const { return blocks.modalities(); }
  int64_t devices() const { return indices.size(1); }
  int64_t batch() const { return indices.size(2); }
};

// What a thread needs to train a device.
template <class T>
class DeviceTraining {
 public:
  explicit DeviceTraining(const LocalRound& round)
      : round_(round),
        batch_(round.batch()),
        shared_gradient_(round.blocks.parameters[0].size(1)),
        labels_(static_cast<size_t>(batch_)),
        present_(batch_ * modalities()),
        present_column_(batch_),
        active_(round.modalities()),
        outputs_(round.modalities()),
        rehearsal_labels_(static_cast<size_t>(batch_)),
        known_(batch_),
        rehearsal_known_(batch_) {
    for (size_t m = 0; m < round.modalities(); ++m) {
      const at::Tensor& block = round.blocks.parameters[m + 1];
      gradients_.push_back(std::make_unique<Scratch<T>>(block.size(1)));
      feature_gradients_.push_back(std::make_unique<Scratch<T>>(batch_ * 2 * round.blocks.width));
      encoders_.push_back(std::make_unique<DeviceEncoder<T>>(round.blocks.places[m], block, batch_));
      encoders_[m]->set_gradient(gradients_[m]->data());
    }
    set_objective();
  }

  void run_device(int64_t device) {
    double losses[loss_terms] = {};
    int64_t trained = 0;
    for (int64_t iteration = 0; iteration < last_iteration(device); ++iteration)
      trained += run_iteration(device, iteration, losses);
    for (int64_t term = 0; term < loss_terms; ++term)
      round_.losses.mutable_data_ptr<double>()[term * round_.devices() + device] = losses[term];
    round_.trained.mutable_data_ptr<int64_t>()[device] = trained;
  }

 private:
  int64_t modalities() const { return static_cast<int64_t>(round_.modalities()); }
  int64_t row(int64_t device, size_t block) const { return round_.blocks.row(device, block); }
  int64_t start(int64_t device, size_t m) const {
    return round_.start.const_data_ptr<int64_t>()[device * modalities() + static_cast<int64_t>(m)];
  }
  int64_t iterations(int64_t device, size_t m) const {
    return round_.iterations.const_data_ptr<int64_t>()[device * modalities() + static_cast<int64_t>(m)];
  }
  // Whether any modality trains; which ones do is kept.
  bool find_active(int64_t device, int64_t iteration) {
    bool any = false;
    for (size_t m = 0; m < round_.modalities(); ++m) {
      const int64_t begin = start(device, m), end = begin + iterations(device, m);
      active_[m] = row(device, m + 1) >= 0 && begin <= iteration && iteration < end;
      any |= active_[m];
    }
    return any;
  }
  int64_t last_iteration(int64_t device) const {
    int64_t last = 0;
    for (size_t m = 0; m < round_.modalities(); ++m)
      if (row(device, m + 1) >= 0 && iterations(device, m) > 0)
        last = std::max(last, start(device, m) + iterations(device, m));
    return last;
  }

  // What is the same for all devices and iterations.
  void set_objective() {
    DeviceObjective<T>& o = objective_;
    o.num_modalities = modalities(), o.samples = batch_, o.width = round_.blocks.width;
    o.classes = round_.blocks.classes, o.by_distance = round_.by_distance;
    o.by_samples = objective_by_samples(batch_, o.width);
    const auto weight = [&](size_t i) { return static_cast<T>(round_.weights[i]); };
    o.classification = weight(0), o.similarity = weight(1), o.difference = weight(2);
    o.generator = weight(3), o.rehearsing = weight(4), o.strength = static_cast<T>(round_.strength);
    o.modalities = outputs_.data(), o.shared_head_gradient = shared_gradient_.data();
    o.labels = labels_.data(), o.present = present_.data();
    if (round_.pool.defined()) {
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
    for (size_t m = 0; m < round_.modalities(); ++m) forward(device, iteration, m);
    if (round_.pool.defined()) load_guidance(device, iteration);
    objective_.shared_head = row_of<T>(round_.blocks.parameters[0], row(device, 0));
    run(objective_);
    for (int64_t term = 0; term < loss_terms; ++term) losses[term] += objective_.losses[term];
    for (size_t m = 0; m < round_.modalities(); ++m)
      if (outputs_[m].features) {
        if (round_.count.defined()) observe(device, m);
        encoders_[m]->backward(row(device, m + 1), outputs_[m].feature_gradient);
      }
    step(device);
    return true;
  }

  const int64_t* batch_indices(int64_t device, int64_t iteration) const {
    return round_.indices.const_data_ptr<int64_t>() + (iteration * round_.devices() + device) * batch_;
  }

  void load_batch(int64_t device, int64_t iteration) {
    const int64_t *index = batch_indices(device, iteration),
                  *labels = round_.labels.const_data_ptr<int64_t>();
    const bool* present = round_.present.const_data_ptr<bool>();
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
    const BlockPlaces& places = round_.blocks.places[m];
    const int64_t* index = batch_indices(device, iteration);
    const int64_t size = c10::multiply_integers(places.shape);
    const T* source = round_.values[m].const_data_ptr<T>();
    const T* noise = noise_of(device, iteration, m, size);
    copy_samples(
        0, batch_, size, [&](int64_t i) { return source + index[i] * size; },
        [&](int64_t i) { return noise ? noise + i * size : nullptr; }, encoder.inputs());
    const int64_t own = row(device, m + 1);
    encoder.forward(own);
    outputs_[m] = {encoder.features(), row_of<T>(round_.blocks.parameters[m + 1], own) + places.head,
                   feature_gradients_[m]->data(), gradients_[m]->data() + places.head};
  }

  const T* noise_of(int64_t device, int64_t iteration, size_t m, int64_t size) const {
    if (!round_.noise.defined()) return nullptr;
    const int64_t places = round_.noise.size(0) - batch_ * size + 1;
    const int64_t at = (iteration * modalities() + static_cast<int64_t>(m)) * round_.devices() + device;
    return round_.noise.const_data_ptr<T>() + round_.offsets.const_data_ptr<int64_t>()[at] % places;
  }

  // The features of the device's own generator that guide this batch, and those that its head rehearses.
  void load_guidance(int64_t device, int64_t iteration) {
    const int64_t batches = round_.draws.size(1), all = batches * batch_;
    const int64_t* copies = round_.draws.const_data_ptr<int64_t>() + iteration * batch_;
    const bool* known = round_.known.const_data_ptr<bool>() + device * round_.blocks.classes;
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
    const at::Tensor& pool = round_.pool;
    const int64_t width = pool.size(3);
    const T* feature =
        pool.const_data_ptr<T>() + ((device * round_.blocks.classes + label) * pool.size(2) + copy) * width;
    std::copy_n(feature, width, target);
  }

  void observe(int64_t device, size_t m) {
    for (int64_t sample = 0; sample < batch_; ++sample)
      present_column_.data()[sample] = present_.data()[sample * modalities() + static_cast<int64_t>(m)];
    ClassMoments<T> moments{};
    moments.features = outputs_[m].features, moments.feature_stride = 2 * objective_.width;
    moments.labels = labels_.data();
    moments.present = present_column_.data();
    moments.samples = batch_, moments.width = objective_.width, moments.full = round_.product.dim() == 4;
    moments.count = written_row<T>(round_.count, device), moments.sum = written_row<T>(round_.sum, device);
    moments.product = written_row<T>(round_.product, device);
    run(moments);
  }

  void step(int64_t device) {
    own_.clear();
    for (size_t block = 0; block < round_.blocks.parameters.size(); ++block) {
      if (block && !outputs_[block - 1].features) continue;
      const at::Tensor& parameters = round_.blocks.parameters[block];
      const int64_t own = row(device, block);
      own_.push_back({written_row<T>(parameters, own), written_row<T>(round_.momenta[block], own),
                      block ? gradients_[block - 1]->data() : shared_gradient_.data(), parameters.size(1),
                      round_.starts.empty() ? nullptr : row_of<T>(round_.starts[block], own)});
    }
    const StepSettings& s = round_.step;
    run(SgdDevice<T>{own_.data(), static_cast<int64_t>(own_.size()), s.clip_norm,
                     static_cast<T>(s.learning_rate), static_cast<T>(s.momentum_factor),
                     static_cast<T>(s.weight_decay), static_cast<T>(s.proximal)});
  }

  const LocalRound& round_;
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
  std::vector<SgdRow<T>> own_;
  DeviceObjective<T> objective_{};
};

}  // namespace dmmlkd
