// The functions that compute the operators on a CPU, under the names and in the order of arguments that
// dmmlkd_ext/ops/schemas.py declares.
#include <torch/csrc/stable/library.h>

#include "check.h"
#include "consensus/cpu.h"
#include "evaluate/cpu.h"
#include "generator_round/cpu.h"
#include "gossip_mix/cpu.h"
#include "local_round/cpu.h"
#include "orthogonality/cpu.h"
#include "pairwise_kl/cpu.h"
#include "stable/boxed.h"

namespace dmmlkd {
namespace {

using Tensors = std::vector<Tensor>;
using Integers = std::vector<int64_t>;
using Reals = std::vector<double>;

// In braces, arguments are taken in the order in which they are written, here that of the schema.
GeneratorRound read_generator_round(Arguments& given) {
  return {
      .parameters = given.take<Tensor>(),
      .first_moment = given.take<Tensor>(),
      .second_moment = given.take<Tensor>(),
      .learners = given.contiguous(),
      .steps_taken = given.contiguous(),
      .noise = given.contiguous(),
      .heads = with_contiguous_rows(given.take<Tensor>()),
      .row_pointers = given.contiguous(),
      .columns = given.contiguous(),
      .seen = given.contiguous_or_none(),
      .count = given.contiguous(),
      .sum = given.contiguous(),
      .product = given.contiguous(),
      .hidden = given.take<int64_t>(),
      .learning_rate = given.take<double>(),
      .decays = given.take<Reals>(),
      .epsilon = given.take<double>(),
      .moment_weight = given.take<double>(),
      .mode_seeking = given.take<double>(),
  };
}

void read_samples_and_encoders(DeviceArguments& a, Arguments& given) {
  a.values = given.contiguous_list();
  a.labels = given.contiguous();
  a.present = given.contiguous();
  a.kernels = given.take<Integers>();
  a.strides = given.take<Integers>();
  a.layers = given.take<Integers>();
  a.widths = given.take<Integers>();
  a.classes = given.take<int64_t>();
}

RoundArguments read_local_round(Arguments& given) {
  RoundArguments a;
  a.starts = given.take<Tensors>();
  a.parameters = given.take<Tensors>();
  a.momenta = given.take<Tensors>();
  a.devices = given.contiguous_list();
  read_samples_and_encoders(a, given);
  a.indices = given.contiguous();
  a.noise = given.contiguous_or_none();
  a.offsets = given.contiguous_or_none();
  a.first_iterations = given.contiguous();
  a.iterations = given.contiguous();
  a.pool = given.contiguous_or_none();
  a.known = given.contiguous_or_none();
  a.draws = given.contiguous_or_none();
  a.count = given.tensor_or_none();
  a.sum = given.tensor_or_none();
  a.product = given.tensor_or_none();
  a.weights = given.take<Reals>();
  a.strength = given.take<double>();
  a.by_distance = given.take<bool>();
  a.modulation = given.take<std::string>();
  a.modulation_strength = given.take<double>();
  a.gradient_noise = given.contiguous_list();
  a.gradient_offsets = given.contiguous_or_none();
  a.clip_norm = given.take<double>();
  a.learning_rate = given.take<double>();
  a.momentum_factor = given.take<double>();
  a.weight_decay = given.take<double>();
  a.proximal = given.take<double>();
  return a;
}

EvaluationArguments read_count_right(Arguments& given) {
  EvaluationArguments a;
  a.parameters = given.take<Tensors>();
  a.devices = given.contiguous_list();
  a.num_devices = given.take<int64_t>();
  read_samples_and_encoders(a, given);
  a.chosen = given.contiguous_or_none();
  a.common = given.take<Tensors>();
  return a;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) {
  m.impl("pairwise_kl_forward", Boxed<pairwise_kl_cpu>::run);
  m.impl("orthogonality_forward", Boxed<orthogonality_cpu>::run);
  m.impl("gossip_mix", Boxed<gossip_mix_cpu>::run);
  m.impl("gossip_mix_", Boxed<gossip_mix_into_cpu>::run);
  m.impl("gossip_mix_inplace_", Boxed<gossip_mix_inplace_cpu>::run);
  m.impl("column_sums", Boxed<column_sums>::run);
  m.impl("squared_distances", Boxed<squared_distances>::run);
  m.impl("generator_round_", run_boxed<read_generator_round, generator_round>);
  m.impl("generate_features", Boxed<generate_features>::run);
  m.impl("local_round_", run_boxed<read_local_round, local_round>);
  m.impl("count_right", run_boxed<read_count_right, count_right>);
}

}  // namespace dmmlkd
