#include "recycle.h"

#include <array>
#include <mutex>
#include <new>
#include <type_traits>
#include <utility>

#include "../stable/call.h"

#ifdef __linux__
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace dmmlkd {
namespace {

constexpr size_t alignment = 64, smallest = 64 << 10, page = 4 << 10, most_kept = 64 << 20;

struct alignas(alignment) Header {
  size_t bytes;  // of the block behind it
};

// Blocks too large to be kept are new each time; pages of 2 MiB give 512 times fewer page faults.
constexpr size_t large_page = 2 << 20;
std::align_val_t alignment_of(size_t bytes) {
  return std::align_val_t{bytes > most_kept ? large_page : alignment};
}

Header* allocate(size_t bytes) {
  void* block = ::operator new(sizeof(Header) + bytes, alignment_of(bytes));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes > most_kept)
    madvise(block, sizeof(Header) + bytes, MADV_HUGEPAGE);  // optional: failure is harmless
#endif
  Header* header = static_cast<Header*>(block);
  header->bytes = bytes;
  return header;
}

void release(Header* header) { ::operator delete(header, alignment_of(header->bytes)); }

class Kept {
 public:
  // A block that wastes at most half of itself, or null.
  Header* take(size_t bytes) {
    const std::lock_guard<std::mutex> guard(mutex_);
    for (Header*& slot : slots_)
      if (slot && slot->bytes >= bytes && slot->bytes <= 2 * bytes) {
        total_ -= slot->bytes;
        return std::exchange(slot, nullptr);
      }
    return nullptr;
  }

  // Keeps the block, replacing another if there is no slot; returns the block to release, or null.
  Header* give(Header* header) {
    const std::lock_guard<std::mutex> guard(mutex_);
    if (total_ + header->bytes > most_kept) return header;
    Header** target = &slots_[next_];
    for (Header*& slot : slots_)
      if (!slot) target = &slot;
    if (*target) {
      next_ = (next_ + 1) % slots_.size();
      total_ -= (*target)->bytes;
    }
    total_ += header->bytes;
    return std::exchange(*target, header);
  }

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
  std::array<Header*, 8> slots_{};
  size_t total_ = 0, next_ = 0;
};

// Ready before any code runs and never destroyed: tensors may outlive every static object.
constinit Kept kept;
static_assert(std::is_trivially_destructible_v<Kept>);

#ifdef __linux__
// A child forked while another thread holds the lock would wait forever: that thread is not in the child.
[[maybe_unused]] const int lock_around_forks =
    pthread_atfork([] { kept.lock(); }, [] { kept.unlock(); }, [] { kept.unlock(); });
#endif

Tensor kept_tensor(Sizes sizes, Sizes strides, ScalarType type, size_t bytes) {
  void* block = take_block(bytes);
  AtenTensorHandle made = nullptr;
  const auto give_back = [](void* data, void*) { give_block(data); };
  check_torch(torch_from_blob(block, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0,
                              code_of(type), aoti_torch_device_type_cpu(), -1, &made,
                              aoti_torch_layout_strided(), nullptr, 0, give_back, nullptr),
              "from_blob");
  return Tensor(made);
}

size_t bytes_of(Sizes sizes, ScalarType type) {
  return static_cast<size_t>(numel(sizes)) * aoti_torch_dtype_element_size(code_of(type));
}

}  // namespace

void* take_block(size_t bytes) {
  Header* header = bytes >= smallest ? kept.take(bytes) : nullptr;
  if (!header) {
    const size_t rounded = bytes >= smallest ? (bytes + page - 1) / page * page : bytes;
    header = allocate(rounded);
  }
  return header + 1;
}

void give_block(void* block) {
  if (!block) return;
  Header* header = static_cast<Header*>(block) - 1;
  if (header->bytes >= smallest) header = kept.give(header);
  if (header) release(header);
}

Tensor recycled_empty(Sizes sizes, ScalarType type) {
  const size_t bytes = bytes_of(sizes, type);
  return bytes < smallest ? empty_cpu(sizes, type)
                          : kept_tensor(sizes, contiguous_strides(sizes), type, bytes);
}

Tensor recycled_empty_like(const Tensor& tensor) {
  // A tensor that is not dense is laid out anew, as torch does it.
  constexpr std::nullopt_t same = std::nullopt;
  if (!tensor.is_dense()) return call("aten::empty_like", "", tensor, same, same, same, same, same);
  const ScalarType type = tensor.scalar_type();
  const size_t bytes = bytes_of(tensor.sizes(), type);
  return bytes < smallest ? empty_strided_cpu(tensor.sizes(), tensor.strides(), type)
                          : kept_tensor(tensor.sizes(), tensor.strides(), type, bytes);
}

}  // namespace dmmlkd
