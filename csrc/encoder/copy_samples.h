// Gathers samples from the data into contiguous memory.
//
// The latency of memory is the limit: the next samples are prefetched while one is copied.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace dmmlkd {

constexpr int64_t asked_bytes = 2048;  // prefetched: about what a core can have in flight

// out[i] = sample(i) + noise(i) for i in [begin, end), each of `size` values; noise(i) is null for none.
template <class T, class Sample, class Noise>
void copy_samples(int64_t begin, int64_t end, int64_t size, const Sample& sample, const Noise& noise,
                  T* __restrict out) {
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t ahead = 1 + asked_bytes / std::max<int64_t>(64, size * static_cast<int64_t>(sizeof(T)));
  for (int64_t i = begin; i < end; ++i) {
    if (i + ahead < end)
      for (int64_t value = 0; value < size; value += line) __builtin_prefetch(sample(i + ahead) + value);
    const T* __restrict values = sample(i), * __restrict added = noise(i);
    T* target = out + i * size;
    if (added)
      for (int64_t value = 0; value < size; ++value) target[value] = values[value] + added[value];
    else
      std::memcpy(target, values, static_cast<size_t>(size) * sizeof(T));
  }
}

}  // namespace dmmlkd
