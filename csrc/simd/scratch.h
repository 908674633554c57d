// Memory of one thread's call, aligned for the widest vector.
#pragma once

#include <cstddef>
#include <cstdint>

#include "recycle.h"

namespace dmmlkd {

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t values)
      : data_(static_cast<T*>(take_block(static_cast<size_t>(values) * sizeof(T)))) {}
  ~Scratch() { give_block(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() const { return data_; }

 private:
  T* data_;
};

}  // namespace dmmlkd
