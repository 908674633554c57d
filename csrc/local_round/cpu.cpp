// local_round_ on CPU tensors: checks, then divides the devices among threads.
#include "cpu.h"

#include "../stable/parallel.h"
#include "device_training.h"

namespace dmmlkd {
namespace {

template <class T>
void train(const LocalRound& round) {
  parallel_for(0, round.given.num_devices(), 1, [&](int64_t begin, int64_t end) {
    DeviceTraining<T> training(round);
    for (int64_t device = begin; device < end; ++device) training.run_device(device);
  });
}

}  // namespace

std::pair<Tensor, Tensor> local_round(const RoundArguments& given) {
  const char* op = "local_round";
  given.check(op);
  const DeviceBlocks blocks(op, given, given.num_devices());
  const LocalRound round{given, blocks, given.labels.new_zeros({loss_terms, given.num_devices()}, kDouble),
                         given.labels.new_zeros({given.num_devices()})};
  given.type() == kDouble ? train<double>(round) : train<float>(round);
  return {round.losses, round.trained};
}

}  // namespace dmmlkd
