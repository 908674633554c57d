// Runs CUDA kernels on the CPU, for tests: the .cu files compile unmodified against this header with an
// ordinary C++17 compiler. Every CUDA thread of a block is a fiber; a fiber runs until it needs the others (a
// barrier, a shuffle), then the next one runs. So barriers and shuffles mean what they mean on a GPU, a
// thread that never arrives is reported, and the order in which the threads run can be turned round: a kernel
// that lacks a barrier is right in one order and wrong in another. Shared memory is filled with NaN patterns
// before each block and allocated to the byte, for AddressSanitizer.
//
// It is no model of memory coherence, of timing or of registers, and blocks run one after another.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <algorithm>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <dlfcn.h>
#include <sanitizer/common_interface_defs.h>
#define DMMLKD_FIBER_SANITIZER 1
#endif

#define DMMLKD_EMULATION 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace dmmlkd::emulation {

struct Index {
  unsigned x = 0;
};

enum class Order { kAscending, kDescending, kShuffled };

constexpr int kWarp = 32;
constexpr std::size_t kDefaultShared = 48 * 1024;

// The emulated device; tests change it to reach the code for other sizes.
struct Device {
  int processors = 4;
  int max_shared = 227 * 1024;
  Order order = Order::kAscending;
};

inline Device& device() {
  static Device instance;
  return instance;
}

class Machine {
 public:
  static Machine& instance() {
    static Machine machine;
    return machine;
  }

  void launch(int64_t grid, int block, std::size_t shared_bytes, const std::function<void()>& body) {
    const std::lock_guard<std::mutex> guard(launching_);
    if (grid < 1 || grid > 0x7fffffff || block < 1 || block > 1024 || block % kWarp != 0) {
      throw std::runtime_error("emulation: invalid launch of " + std::to_string(grid) + " blocks of " +
                               std::to_string(block) + " threads");
    }
    body_ = &body;
    grid_dim.x = static_cast<unsigned>(grid);
    block_dim.x = static_cast<unsigned>(block);
    while (fibers_.size() < static_cast<std::size_t>(block)) fibers_.push_back(std::make_unique<Fiber>());
    for (int64_t i = 0; i < grid; ++i) {
      block_index.x = static_cast<unsigned>(i);
      // 0xff bytes read as NaN in every floating dtype, and as an index far out of range.
      void* bytes = nullptr;
      if (posix_memalign(&bytes, 16, shared_bytes) != 0) throw std::bad_alloc();
      shared_.reset(static_cast<unsigned char*>(bytes));
      std::memset(bytes, 0xff, shared_bytes);
      run_block(block);
    }
  }

  void barrier() {
    Fiber& self = *fibers_[current_];
    const uint64_t awaited = ++self.barriers;
    if (++arrived_ == static_cast<int>(block_dim.x)) {
      arrived_ = 0;
      ++passed_;
    }
    if (passed_ < awaited) wait(self, [this, awaited] { return passed_ >= awaited; });
  }

  template <typename value>
  value shuffle_xor(unsigned mask, value mine, int lane_mask) {
    static_assert(sizeof(value) <= 8, "a shuffle moves at most 8 bytes");
    Warp& warp = warps_[current_ / kWarp];
    Fiber& self = *fibers_[current_];
    if (mask != 0xffffffffu) throw std::runtime_error("emulation: only shuffles of full warps are known");
    const uint64_t awaited = ++self.shuffles;
    // Two slots by turns: a lane can be one shuffle ahead of the slowest, never two.
    std::memcpy(warp.slots[awaited % 2][current_ % kWarp], &mine, sizeof(value));
    if (++warp.arrived == kWarp) {
      warp.arrived = 0;
      ++warp.passed;
    }
    if (warp.passed < awaited) wait(self, [&warp, awaited] { return warp.passed >= awaited; });
    value theirs;
    std::memcpy(&theirs, warp.slots[awaited % 2][(current_ % kWarp) ^ lane_mask], sizeof(value));
    return theirs;
  }

  // How many barriers the last block passed.
  uint64_t barriers() const { return passed_; }
  unsigned char* shared() const { return shared_.get(); }
  unsigned current() const { return static_cast<unsigned>(current_); }

  Index block_index, block_dim, grid_dim;

 private:
  struct Fiber {
    static constexpr std::size_t kStack = 256 * 1024;
    std::unique_ptr<char[]> stack{new char[kStack]};
    ucontext_t context;  // not on the stack that start() leaves without returning
    std::jmp_buf state;
    bool started = false;
    bool finished = false;
    uint64_t barriers = 0;
    uint64_t shuffles = 0;
    std::function<bool()> ready;
    void* sanitizer_state = nullptr;
  };
  struct Warp {
    unsigned char slots[2][kWarp][8];
    int arrived = 0;
    uint64_t passed = 0;
  };
  struct Free {
    void operator()(unsigned char* pointer) const { std::free(pointer); }
  };

  void run_block(int threads) {
    arrived_ = 0;
    passed_ = 0;
    warps_.assign(static_cast<std::size_t>(threads / kWarp), Warp{});
    for (int i = 0; i < threads; ++i) {
      Fiber& fiber = *fibers_[static_cast<std::size_t>(i)];
      fiber.finished = false;
      fiber.barriers = fiber.shuffles = 0;
      fiber.ready = nullptr;
    }
    std::vector<int> order(static_cast<std::size_t>(threads));
    for (int i = 0; i < threads; ++i) order[static_cast<std::size_t>(i)] = i;
    if (device().order == Order::kDescending) {
      for (int i = 0; i < threads; ++i) order[static_cast<std::size_t>(i)] = threads - 1 - i;
    }
    int finished = 0;
    while (finished < threads) {
      if (device().order == Order::kShuffled) {
        for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[next_random() % i]);
      }
      bool progress = false;
      for (const int index : order) {
        Fiber& fiber = *fibers_[static_cast<std::size_t>(index)];
        if (fiber.finished || (fiber.ready && !fiber.ready())) continue;
        fiber.ready = nullptr;
        progress = true;
        resume(index);
        if (!error_.empty()) fail(error_);
        if (fiber.finished) ++finished;
      }
      if (!progress) fail("threads of a block wait for threads that never arrive");
    }
  }

  [[noreturn]] void fail(const std::string& reason) {
    // The stacks of the fibers that still wait cannot be unwound; fresh ones replace them.
    fibers_.clear();
    error_.clear();
    throw std::runtime_error("emulation: " + reason);
  }

  uint64_t next_random() {
    random_ = random_ * 6364136223846793005ull + 1442695040888963407ull;
    return random_ >> 33;
  }

  // Contexts are made once by makecontext and then switched by longjmp: swapcontext costs a system call a
  // switch.
  void resume(int index) {
    current_ = static_cast<std::size_t>(index);
    Fiber& fiber = *fibers_[current_];
#ifdef DMMLKD_FIBER_SANITIZER
    __sanitizer_start_switch_fiber(&scheduler_sanitizer_state_, fiber.stack.get(), Fiber::kStack);
#endif
    if (_setjmp(scheduler_) == 0) {
      if (fiber.started) jump(fiber.state);
      start(fiber);
    }
#ifdef DMMLKD_FIBER_SANITIZER
    __sanitizer_finish_switch_fiber(scheduler_sanitizer_state_, nullptr, nullptr);
#endif
  }

  static void jump(std::jmp_buf& state) {
#ifdef DMMLKD_FIBER_SANITIZER
    // The sanitizer's longjmp would treat the jump as one up the same stack.
    using Longjmp = void (*)(std::jmp_buf, int);
    static const auto libc_longjmp =
        reinterpret_cast<Longjmp>(dlsym(dlopen("libc.so.6", RTLD_LAZY), "_longjmp"));
    libc_longjmp(state, 1);
#else
    _longjmp(state, 1);
#endif
  }

  void start(Fiber& fiber) {
    fiber.started = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = Fiber::kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Machine::enter, 0);
    setcontext(&fiber.context);
  }

  static void enter() {
    Machine& machine = instance();
#ifdef DMMLKD_FIBER_SANITIZER
    __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack_, &machine.scheduler_stack_size_);
#endif
    Fiber& self = *machine.fibers_[machine.current_];
    while (true) {
      try {
        (*machine.body_)();
      } catch (const std::exception& error) {
        machine.error_ = error.what();
      }
      self.finished = true;
      machine.yield(self);
    }
  }

  void wait(Fiber& self, std::function<bool()> ready) {
    self.ready = std::move(ready);
    yield(self);
  }

  void yield(Fiber& self) {
#ifdef DMMLKD_FIBER_SANITIZER
    __sanitizer_start_switch_fiber(&self.sanitizer_state, scheduler_stack_, scheduler_stack_size_);
#endif
    if (_setjmp(self.state) == 0) jump(scheduler_);
#ifdef DMMLKD_FIBER_SANITIZER
    __sanitizer_finish_switch_fiber(self.sanitizer_state, &scheduler_stack_, &scheduler_stack_size_);
#endif
  }

  std::mutex launching_;
  const std::function<void()>* body_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Warp> warps_;
  std::unique_ptr<unsigned char, Free> shared_;
  std::size_t current_ = 0;
  int arrived_ = 0;
  uint64_t passed_ = 0;
  uint64_t random_ = 1;
  std::string error_;
  std::jmp_buf scheduler_;
  void* scheduler_sanitizer_state_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_stack_size_ = 0;
};

// A kernel that asks for more shared memory than every device grants must have been allowed to.
inline std::map<const void*, std::size_t>& shared_allowances() {
  static std::map<const void*, std::size_t> instance;
  return instance;
}

inline std::string& last_error() {
  static std::string instance;
  return instance;
}

template <typename kernel_type, typename... arguments>
void launch(kernel_type* kernel, int64_t grid, int block, std::size_t shared_bytes, void*,
            const arguments&... values) {
  const auto allowance = shared_allowances().find(reinterpret_cast<const void*>(kernel));
  const std::size_t allowed = allowance == shared_allowances().end() ? kDefaultShared : allowance->second;
  if (shared_bytes > allowed) {
    last_error() =
        "emulation: the kernel was not allowed " + std::to_string(shared_bytes) + " bytes of shared memory";
    return;
  }
  try {
    Machine::instance().launch(grid, block, shared_bytes, [&] { kernel(values...); });
  } catch (const std::exception& error) {
    last_error() = error.what();
  }
}

// ex2.approx.ftz.f32 is good to 2^-22: the result here is off by up to that, in a direction that depends on
// the argument's bits, so that nothing passes its test because the emulated instruction is better than the
// real one.
inline float exp2_approximate(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const double exact = std::exp2(static_cast<double>(x));
  const double noise = (static_cast<double>((bits * 2654435761u) >> 16) / 65536.0 - 0.5) * 0x1p-21;
  const float result = static_cast<float>(exact * (1.0 + noise));
  return result < 0x1p-126f ? 0.0f : result;  // ftz; keeps NaN
}

}  // namespace dmmlkd::emulation

#define threadIdx (::dmmlkd::emulation::Index{::dmmlkd::emulation::Machine::instance().current()})
#define blockIdx (::dmmlkd::emulation::Machine::instance().block_index)
#define blockDim (::dmmlkd::emulation::Machine::instance().block_dim)
#define gridDim (::dmmlkd::emulation::Machine::instance().grid_dim)

#define DMMLKD_DYNAMIC_SHARED(name) \
  unsigned char* const name = ::dmmlkd::emulation::Machine::instance().shared()
#define DMMLKD_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::dmmlkd::emulation::launch(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

inline void __syncthreads() { ::dmmlkd::emulation::Machine::instance().barrier(); }

template <typename value>
value __shfl_xor_sync(unsigned mask, value mine, int lane_mask) {
  return ::dmmlkd::emulation::Machine::instance().shuffle_xor(mask, mine, lane_mask);
}

using std::min;

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }

struct __half {
  _Float16 value;
};
inline float __half2float(__half x) { return static_cast<float>(x.value); }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  if (std::isnan(x)) return {0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorUnknown = 999 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto& device = ::dmmlkd::emulation::device();
  *value = attribute == cudaDevAttrMultiProcessorCount ? device.processors : device.max_shared;
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > ::dmmlkd::emulation::device().max_shared) return cudaErrorUnknown;
  ::dmmlkd::emulation::shared_allowances()[kernel] = static_cast<std::size_t>(bytes);
  return cudaSuccess;
}
// As in CUDA, the error is forgotten once it is asked for; cudaGetErrorString below still knows its text.
inline std::string& cudaEmulationReported() {
  static std::string instance;
  return instance;
}
inline cudaError_t cudaGetLastError() {
  cudaEmulationReported() = ::dmmlkd::emulation::last_error();
  ::dmmlkd::emulation::last_error().clear();
  return cudaEmulationReported().empty() ? cudaSuccess : cudaErrorUnknown;
}
inline const char* cudaGetErrorString(cudaError_t) { return cudaEmulationReported().c_str(); }
