// Blocks of memory that are kept for the next call: above about 64 KiB the page faults of a new block take as
// long as filling it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>

namespace dmmlkd {

// Take and give back a block of at least `bytes`, aligned for the widest vector; at most 64 MiB in 8 blocks
// are kept.
void* take_block(size_t bytes);
void give_block(void* block);

// at::empty and at::empty_strided for a CPU tensor whose memory comes from there if it is large.
at::Tensor recycled_empty(at::IntArrayRef sizes, const at::TensorOptions& options);
at::Tensor recycled_empty_like(const at::Tensor& tensor);

}  // namespace dmmlkd
