// CHECK_VALUE(condition, parts of a message...): raises ValueError in Python unless the condition holds.
#pragma once

#include <sstream>
#include <stdexcept>

#include "stable/tensor.h"

namespace dmmlkd {

template <class T>
void write(std::ostream& text, const T& part) {
  text << part;
}
inline void write(std::ostream& text, const Sizes& sizes) {
  text << '[';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << ']';
}
inline void write(std::ostream& text, const Device& device) {
  const bool cpu = device.type == aoti_torch_device_type_cpu();
  const bool cuda = device.type == aoti_torch_device_type_cuda();
  text << (cpu ? "cpu" : cuda ? "cuda" : "another device");
  if (!cpu && device.index >= 0) text << ':' << device.index;
}

// Python knows a std::invalid_argument as a ValueError.
template <class... Parts>
[[noreturn]] __attribute__((cold, noinline)) void refuse(const Parts&... parts) {
  std::ostringstream text;
  (write(text, parts), ...);
  throw std::invalid_argument(text.str());
}

}  // namespace dmmlkd

#define CHECK_VALUE(condition, ...)  \
  do {                               \
    if (!(condition)) [[unlikely]]   \
      ::dmmlkd::refuse(__VA_ARGS__); \
  } while (false)
