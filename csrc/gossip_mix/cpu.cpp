// gossip_mix_ and gossip_mix_inplace_ on CPU tensors: checks, then shares out ranges of columns.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../check.h"
#include "../simd/kernels.h"
#include "../simd/scratch.h"

namespace dmmlkd {
namespace {

void run(const GossipColumns<float, float>& g) { kernels().gossip_float(g); }
void run(const GossipColumns<double, double>& g) { kernels().gossip_double(g); }
void run(const GossipColumns<bfloat16_bits, float>& g) { kernels().gossip_bfloat16(g); }
void run(const GossipColumns<float16_bits, float>& g) { kernels().gossip_float16(g); }

// Norms are summed in float32 within a chunk of columns and in float64, in order, over the chunks.
constexpr int64_t chunk_columns = 8192;
constexpr int64_t cache_bytes = 16 << 20;

template <class T, class A>
at::Tensor mix(const at::Tensor& local, const at::Tensor& row_pointers, const at::Tensor& columns,
               const at::Tensor& values, const at::Tensor& out, int64_t begin, int64_t end, bool measure) {
  GossipColumns<T, A> g{};
  g.local = static_cast<const T*>(local.const_data_ptr()), g.local_stride = local.stride(0);
  g.out = static_cast<T*>(out.mutable_data_ptr()), g.out_stride = out.stride(0);
  g.row_pointers = row_pointers.const_data_ptr<int64_t>(), g.columns = columns.const_data_ptr<int64_t>();
  g.values = values.const_data_ptr<A>(), g.rows_in = local.size(0), g.rows_out = out.size(0);
  g.fetch_end = end;
  const int64_t chunks = (end - begin + chunk_columns - 1) / chunk_columns, rows = g.rows_out;
  g.past_cache = rows * (end - begin) * static_cast<int64_t>(sizeof(T)) > cache_bytes;
  std::vector<double> norms(measure ? chunks * 2 * rows : 0);
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    const Scratch<A> scratch(gossip_scratch(g.rows_in, rows));
    for (int64_t chunk = first; chunk < last; ++chunk) {
      GossipColumns<T, A> part = g;
      part.begin = begin + chunk * chunk_columns, part.end = std::min(end, part.begin + chunk_columns);
      part.norms = measure ? norms.data() + chunk * 2 * rows : nullptr;
      part.scratch = scratch.data();
      run(part);
    }
  });
  at::Tensor total = at::empty({measure ? 2 : 0, rows}, local.options().dtype(at::kDouble));
  if (!measure) return total;
  double* sums = total.mutable_data_ptr<double>();
  std::fill_n(sums, 2 * rows, 0.0);
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t i = 0; i < 2 * rows; ++i) sums[i] += norms[chunk * 2 * rows + i];
  return total;
}

at::Tensor mix_any(const at::Tensor& local, const at::Tensor& row_pointers, const at::Tensor& columns,
                   const at::Tensor& values, const at::Tensor& out, int64_t begin, int64_t end,
                   bool measure) {
  const at::Tensor pointers = row_pointers.contiguous(), indices = columns.contiguous(),
                   weights = values.contiguous();
  check_compressed_rows("gossip_mix", pointers.const_data_ptr<int64_t>(), out.size(0),
                        indices.const_data_ptr<int64_t>(), indices.size(0), local.size(0));
  switch (local.scalar_type()) {
    case at::kFloat:
      return mix<float, float>(local, pointers, indices, weights, out, begin, end, measure);
    case at::kDouble:
      return mix<double, double>(local, pointers, indices, weights, out, begin, end, measure);
    case at::kBFloat16:
      return mix<bfloat16_bits, float>(local, pointers, indices, weights, out, begin, end, measure);
    default:
      return mix<float16_bits, float>(local, pointers, indices, weights, out, begin, end, measure);
  }
}

at::Tensor gossip_mix_cpu(const at::Tensor& local, const at::Tensor& row_pointers, const at::Tensor& columns,
                          const at::Tensor& values, at::Tensor& out, int64_t begin, int64_t end,
                          bool measure) {
  check_weights("gossip_mix", local, row_pointers, columns, values);
  check_gossip_out("gossip_mix", local, row_pointers, out, begin, end, measure);
  TORCH_CHECK_VALUE(!rows_share_memory(local, out),
                    "gossip_mix: out must not share memory with local, unless it is local itself");
  return mix_any(local, row_pointers, columns, values, out, begin, end, measure);
}

void gossip_mix_inplace_cpu(at::Tensor& local, const at::Tensor& row_pointers, const at::Tensor& columns,
                            const at::Tensor& values, int64_t begin, int64_t end) {
  check_weights("gossip_mix", local, row_pointers, columns, values);
  check_gossip_out("gossip_mix", local, row_pointers, local, begin, end, false);
  mix_any(local, row_pointers, columns, values, local, begin, end, false);
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) {
  m.impl("gossip_mix_", gossip_mix_cpu);
  m.impl("gossip_mix_inplace_", gossip_mix_inplace_cpu);
}

}  // namespace dmmlkd
