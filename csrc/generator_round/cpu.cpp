// generator_round_ and generate_features on CPU tensors: checks, then divides the devices among threads.
#include "cpu.h"

#include <algorithm>
#include <cmath>

#include "../check.h"
#include "../simd/kernels.h"
#include "../simd/rows.h"
#include "../simd/scratch.h"
#include "../stable/parallel.h"

namespace dmmlkd {
namespace {

constexpr double least_noise_apart = 1e-6;  // of two samples, in the mode-seeking term

void run(const GeneratorSteps<float>& device) { kernels().generator_steps_float(device); }
void run(const GeneratorSteps<double>& device) { kernels().generator_steps_double(device); }
void run(const GeneratorFeatures<float>& device) { kernels().generator_features_float(device); }
void run(const GeneratorFeatures<double>& device) { kernels().generator_features_double(device); }

// Writes rows of inputs, `copies` samples per class: the noise, then the label's unit vector.
template <class T>
void write_inputs(const T* noise, const GeneratorShape& shape, int64_t copies, T* rows) {
  const int64_t stride = whole_vectors(shape.inputs());
  for (int64_t sample = 0; sample < shape.classes * copies; ++sample, noise += shape.noise, rows += stride) {
    std::fill(rows, rows + stride, T(0));
    std::copy(noise, noise + shape.noise, rows);
    rows[shape.noise + sample / copies] = 1;
  }
}

// Mean distances of the noise of the pairs: a sample in a class's first half and one in the second.
template <class T>
void write_noise_apart(const T* noise, const GeneratorShape& shape, int64_t copies, T* apart) {
  const int64_t half = copies / 2;
  for (int64_t label = 0; label < shape.classes; ++label)
    for (int64_t j = 0; j < half; ++j) {
      const T *one = noise + (label * copies + j) * shape.noise, *other = one + half * shape.noise;
      T sum = 0;
      for (int64_t i = 0; i < shape.noise; ++i) sum += std::abs(one[i] - other[i]);
      *apart++ = std::max(sum / static_cast<T>(shape.noise), T(least_noise_apart));
    }
}

// One argument per line.
void check(const GeneratorRound& round) {
  const char* op = "generator_round_";
  const auto type = round.parameters.scalar_type();
  CHECK_VALUE(type == kFloat || type == kDouble, op, ": parameters must be float32 or float64, got ", type);
  CHECK_VALUE(round.heads.dim() == 3, op, ": heads must have shape [at hand, width, classes], got ",
              round.heads.sizes());
  CHECK_VALUE(round.noise.dim() == 4 && round.noise.size(2) % 2 == 0, op,
              ": noise must have shape [steps, classes, n, noise width] with an even n, got ",
              round.noise.sizes());
  CHECK_VALUE(round.hidden >= 1, op, ": hidden must be at least 1, got ", round.hidden);
  CHECK_VALUE(round.decays.size() == 2, op, ": decays must be 2 numbers, got ", round.decays.size());
  CHECK_VALUE(round.parameters.dim() == 2, op, ": parameters must have shape [devices, theta], got ",
              round.parameters.sizes());
  const GeneratorShape shape = round.shape();
  const int64_t devices = round.parameters.size(0), hand = round.heads.size(0);
  const int64_t theta[] = {devices, shape.parameters()}, moments[] = {devices, shape.classes, shape.width};
  check_written(op, "parameters", round.parameters, type, theta);
  check_written(op, "first_moment", round.first_moment, type, theta);
  check_written(op, "second_moment", round.second_moment, type, theta);
  check_apart(op, 0, round.parameters, "first_moment", round.first_moment);
  check_apart(op, 0, round.parameters, "second_moment", round.second_moment);
  check_shape(op, "learners", round.learners, kLong, {round.learners.numel()});
  check_shape(op, "steps_taken", round.steps_taken, kDouble, {devices});
  check_shape(op, "noise", round.noise, type,
              {round.noise.size(0), shape.classes, round.noise.size(2), round.noise.size(3)});
  check_shape(op, "heads", round.heads, type, round.heads.sizes());
  check_shape(op, "row_pointers", round.row_pointers, kLong, {devices + 1});
  check_shape(op, "columns", round.columns, kLong, {round.columns.numel()});
  check_shape(op, "count", round.count, type, {devices, shape.classes});
  check_shape(op, "sum", round.sum, type, moments);
  check_shape(op, "product", round.product, type, moments);
  if (round.seen.defined()) check_shape(op, "seen", round.seen, type, {hand, shape.classes});
  check_compressed_rows(op, round.row_pointers.const_data_ptr<int64_t>(), devices,
                        round.columns.const_data_ptr<int64_t>(), round.columns.numel(), hand);
  rows_of(op, "learners", round.learners, devices);
}

template <class T>
class Learning {
 public:
  explicit Learning(const GeneratorRound& round)
      : round_(round),
        shape_(round.shape()),
        steps_(round.noise.size(0)),
        copies_(round.noise.size(2)),
        inputs_(steps_ * shape_.classes * copies_ * whole_vectors(shape_.inputs())),
        apart_(steps_ * shape_.classes * copies_ / 2) {
    for (int64_t step = 0; step < steps_; ++step) {
      const int64_t samples = step * shape_.classes * copies_;
      const T* noise = round.noise.const_data_ptr<T>() + samples * shape_.noise;
      write_inputs(noise, shape_, copies_, inputs_.data() + samples * whole_vectors(shape_.inputs()));
      write_noise_apart(noise, shape_, copies_, apart_.data() + samples / 2);
    }
  }

  void run_all() const {
    const int64_t* learners = round_.learners.const_data_ptr<int64_t>();
    const int64_t count = round_.learners.numel();
    int64_t most_heads = 0;
    for (int64_t i = 0; i < count; ++i) most_heads = std::max(most_heads, num_heads(learners[i]));
    const int64_t values = generator_steps_scratch(shape_, copies_, most_heads);
    parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      const Scratch<T> scratch(values);
      for (int64_t i = begin; i < end; ++i) run(steps_of(learners[i], scratch.data()));
    });
  }

 private:
  const int64_t* pointers() const { return round_.row_pointers.const_data_ptr<int64_t>(); }
  int64_t num_heads(int64_t device) const { return pointers()[device + 1] - pointers()[device]; }

  GeneratorSteps<T> steps_of(int64_t device, T* scratch) const {
    return {
        .shape = shape_,
        .settings = {round_.learning_rate, round_.decays[0], round_.decays[1], round_.epsilon,
                     round_.moment_weight, round_.mode_seeking},
        .copies = copies_,
        .steps = steps_,
        .taken = round_.steps_taken.const_data_ptr<double>()[device],
        .inputs = inputs_.data(),
        .noise_apart = apart_.data(),
        .heads = round_.heads.const_data_ptr<T>(),
        .head_stride = round_.heads.stride(0),
        .received = round_.columns.const_data_ptr<int64_t>() + pointers()[device],
        .num_heads = num_heads(device),
        .seen = row_of<T>(round_.seen, 0),
        .count = row_of<T>(round_.count, device),
        .sum = row_of<T>(round_.sum, device),
        .product = row_of<T>(round_.product, device),
        .parameters = written_row<T>(round_.parameters, device),
        .first_moment = written_row<T>(round_.first_moment, device),
        .second_moment = written_row<T>(round_.second_moment, device),
        .scratch = scratch,
    };
  }

  const GeneratorRound& round_;
  const GeneratorShape shape_;
  const int64_t steps_, copies_;
  const Scratch<T> inputs_, apart_;
};

template <class T>
void generate(const GeneratorShape& shape, const Tensor& parameters, const Tensor& noise,
              const Tensor& features) {
  const int64_t samples = noise.size(0) * noise.size(1);
  const Scratch<T> inputs(samples * whole_vectors(shape.inputs()));
  write_inputs(noise.const_data_ptr<T>(), shape, noise.size(1), inputs.data());
  parallel_for(0, parameters.size(0), 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(generator_features_scratch(shape));
    for (int64_t device = begin; device < end; ++device)
      run(GeneratorFeatures<T>{shape, samples, inputs.data(), row_of<T>(parameters, device),
                               written_row<T>(features, device), scratch.data()});
  });
}

}  // namespace

void generator_round(const GeneratorRound& round) {
  check(round);
  if (round.parameters.scalar_type() == kDouble)
    Learning<double>(round).run_all();
  else
    Learning<float>(round).run_all();
}

Tensor generate_features(const Tensor& parameters, const Tensor& given, int64_t hidden, int64_t width) {
  const char* op = "generate_features";
  const auto type = parameters.scalar_type();
  CHECK_VALUE(type == kFloat || type == kDouble, op, ": parameters must be float32 or float64, got ", type);
  CHECK_VALUE(given.dim() == 3, op, ": noise must have shape [classes, n, noise width], got ", given.sizes());
  CHECK_VALUE(parameters.dim() == 2 && hidden >= 1 && width >= 1, op,
              ": parameters must have shape [devices, theta], hidden and width must be at least 1, got ",
              parameters.sizes(), ", ", hidden, " and ", width);
  const GeneratorShape shape{given.size(2), given.size(0), hidden, width};
  check_shape(op, "parameters", parameters, type, {parameters.size(0), shape.parameters()});
  check_shape(op, "noise", given, type, given.sizes());
  const Tensor noise = given.contiguous();
  const Tensor theta = with_contiguous_rows(parameters);
  const Tensor features = parameters.new_empty({theta.size(0), shape.classes, noise.size(1), width});
  if (type == kDouble)
    generate<double>(shape, theta, noise, features);
  else
    generate<float>(shape, theta, noise, features);
  return features;
}

}  // namespace dmmlkd
