// Torch's own threads.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <exception>
#include <mutex>

#include "tensor.h"

namespace dmmlkd {

inline int64_t num_threads() {
  uint32_t threads = 1;
  check_torch(torch_get_num_threads(&threads), "get_num_threads");
  return threads;
}

// Calls body(begin, end) for parts of [begin, end) of at least `grain`, each by one thread. What a body
// raises is raised here: it must not cross the C interface.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  struct Task {
    const Body& body;
    std::mutex mutex{};
    std::exception_ptr error{};
  } task{body};
  const auto run = [](int64_t first, int64_t last, void* context) {
    auto& shared = *static_cast<Task*>(context);
    try {
      shared.body(first, last);
    } catch (...) {
      const std::lock_guard<std::mutex> guard(shared.mutex);
      shared.error = std::current_exception();
    }
  };
  check_torch(torch_parallel_for(begin, end, grain, run, &task), "parallel_for");
  if (task.error) std::rethrow_exception(task.error);
}

}  // namespace dmmlkd
