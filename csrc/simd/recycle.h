// Blocks of memory that are kept for the next call: above about 64 KiB the page faults of a new block take as
// long as filling it.
#pragma once

#include <cstddef>

#include "../stable/tensor.h"

namespace dmmlkd {

// Take and give back a block of at least `bytes`, aligned for the widest vector; at most 64 MiB in 8 blocks
// are kept.
void* take_block(size_t bytes);
void give_block(void* block);

// An empty CPU tensor, and one of the layout of another, whose memory comes from there if it is large.
Tensor recycled_empty(Sizes sizes, ScalarType type);
Tensor recycled_empty_like(const Tensor& tensor);

}  // namespace dmmlkd
