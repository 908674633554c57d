// gossip_mix on CPU tensors: checks, then divides ranges of columns among threads.
#include "cpu.h"

#include <algorithm>
#include <vector>

#include "../check.h"
#include "../simd/kernels.h"
#include "../simd/scratch.h"
#include "../stable/parallel.h"

namespace dmmlkd {
namespace {

void run(const GossipColumns<float, float>& g) { kernels().gossip_float(g); }
void run(const GossipColumns<double, double>& g) { kernels().gossip_double(g); }
void run(const GossipColumns<bfloat16_bits, float>& g) { kernels().gossip_bfloat16(g); }
void run(const GossipColumns<float16_bits, float>& g) { kernels().gossip_float16(g); }

// Norms are summed in float32 within a chunk of columns and in float64, in order, over the chunks.
constexpr int64_t chunk_columns = 8192;
constexpr int64_t cache_bytes = 16 << 20;

// Compressed rows whose entries have been checked.
template <class A>
struct Weights {
  const int64_t *row_pointers, *columns;
  const A* values;
};

// Calls action(T{}, A{}) with the type of the parameters and the one in which they are summed.
template <class Action>
Tensor with_types(ScalarType type, const Action& action) {
  switch (type) {
    case kFloat:
      return action(float{}, float{});
    case kDouble:
      return action(double{}, double{});
    case kBFloat16:
      return action(bfloat16_bits{}, float{});
    default:
      return action(float16_bits{}, float{});
  }
}

template <class T, class A>
Tensor mix(const Tensor& local, const Weights<A>& weights, const Tensor& out, int64_t begin, int64_t end,
           bool measure) {
  GossipColumns<T, A> g{};
  g.local = static_cast<const T*>(local.const_data_ptr()), g.local_stride = local.stride(0);
  g.out = static_cast<T*>(out.mutable_data_ptr()), g.out_stride = out.stride(0);
  g.row_pointers = weights.row_pointers, g.columns = weights.columns, g.values = weights.values;
  g.rows_in = local.size(0), g.rows_out = out.size(0);
  g.fetch_end = end;
  const int64_t chunks = (end - begin + chunk_columns - 1) / chunk_columns, rows = g.rows_out;
  g.past_cache = rows * (end - begin) * static_cast<int64_t>(sizeof(T)) > cache_bytes;
  std::vector<double> norms(measure ? chunks * 2 * rows : 0);
  parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    const Scratch<A> scratch(gossip_scratch(g.rows_in, rows));
    for (int64_t chunk = first; chunk < last; ++chunk) {
      GossipColumns<T, A> part = g;
      part.begin = begin + chunk * chunk_columns, part.end = std::min(end, part.begin + chunk_columns);
      part.norms = measure ? norms.data() + chunk * 2 * rows : nullptr;
      part.scratch = scratch.data();
      run(part);
    }
  });
  Tensor total = local.new_empty({measure ? 2 : 0, rows}, kDouble);
  if (!measure) return total;
  double* sums = total.mutable_data_ptr<double>();
  std::fill_n(sums, 2 * rows, 0.0);
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t i = 0; i < 2 * rows; ++i) sums[i] += norms[chunk * 2 * rows + i];
  return total;
}

template <class A>
Weights<A> checked(const Tensor& row_pointers, const Tensor& columns, const Tensor& values, int64_t rows_in) {
  const Weights<A> weights{row_pointers.const_data_ptr<int64_t>(), columns.const_data_ptr<int64_t>(),
                           values.const_data_ptr<A>()};
  check_compressed_rows("gossip_mix", weights.row_pointers, row_pointers.size(0) - 1, weights.columns,
                        columns.size(0), rows_in);
  return weights;
}

Tensor mix_into(const Tensor& local, const Tensor& row_pointers, const Tensor& columns, const Tensor& values,
                const Tensor& out, int64_t begin, int64_t end, bool measure) {
  const Tensor pointers = row_pointers.contiguous(), indices = columns.contiguous(),
               factors = values.contiguous();
  return with_types(local.scalar_type(), [&](auto type, auto sum) {
    const auto weights = checked<decltype(sum)>(pointers, indices, factors, local.size(0));
    return mix<decltype(type), decltype(sum)>(local, weights, out, begin, end, measure);
  });
}

// The transposed weights: their entries sorted by column, each column's in the order of rows.
template <class A>
struct Transposed {
  std::vector<int64_t> row_pointers, columns;
  std::vector<A> values;

  Transposed(const Weights<A>& weights, int64_t rows_out, int64_t rows_in)
      : row_pointers(rows_in + 1), columns(weights.row_pointers[rows_out]), values(columns.size()) {
    for (size_t entry = 0; entry < columns.size(); ++entry) ++row_pointers[weights.columns[entry] + 1];
    for (int64_t row = 0; row < rows_in; ++row) row_pointers[row + 1] += row_pointers[row];
    std::vector<int64_t> next(row_pointers.begin(), row_pointers.end() - 1);
    for (int64_t row = 0; row < rows_out; ++row)
      for (int64_t entry = weights.row_pointers[row]; entry < weights.row_pointers[row + 1]; ++entry) {
        const int64_t place = next[weights.columns[entry]]++;
        columns[place] = row, values[place] = weights.values[entry];
      }
  }

  Weights<A> view() const { return {row_pointers.data(), columns.data(), values.data()}; }
};

Tensor mix_transposed(const Tensor& local, const Tensor& row_pointers, const Tensor& columns,
                      const Tensor& values, const Tensor& out) {
  const Tensor pointers = row_pointers.contiguous(), indices = columns.contiguous(),
               factors = values.contiguous();
  return with_types(local.scalar_type(), [&](auto type, auto sum) {
    const auto weights = checked<decltype(sum)>(pointers, indices, factors, out.size(0));
    const Transposed<decltype(sum)> transposed(weights, local.size(0), out.size(0));
    return mix<decltype(type), decltype(sum)>(local, transposed.view(), out, 0, out.size(1), false);
  });
}

}  // namespace

Tensor gossip_mix_cpu(const Tensor& local, const Tensor& row_pointers, const Tensor& columns,
                      const Tensor& values, std::optional<int64_t> transposed) {
  check_weights("gossip_mix", local, row_pointers, columns, values);
  const int64_t rows = row_pointers.size(0) - 1;
  CHECK_VALUE(!transposed || (local.size(0) == rows && *transposed >= 0), "gossip_mix: local must have ",
              rows, " rows, those of the weights that are transposed, got ", local.size(0));
  const Tensor lines = local.stride(1) == 1 ? local : local.contiguous();
  const Tensor out = local.new_empty({transposed.value_or(rows), local.size(1)});
  if (transposed)
    mix_transposed(lines, row_pointers, columns, values, out);
  else
    mix_into(lines, row_pointers, columns, values, out, 0, local.size(1), false);
  return out;
}

Tensor gossip_mix_into_cpu(const Tensor& local, const Tensor& row_pointers, const Tensor& columns,
                           const Tensor& values, Tensor& out, int64_t begin, int64_t end, bool measure) {
  check_weights("gossip_mix", local, row_pointers, columns, values);
  check_gossip_out("gossip_mix", local, row_pointers, out, begin, end, measure);
  CHECK_VALUE(!rows_share_memory(local, out),
              "gossip_mix: out must not share memory with local, unless it is local itself");
  return mix_into(local, row_pointers, columns, values, out, begin, end, measure);
}

void gossip_mix_inplace_cpu(Tensor& local, const Tensor& row_pointers, const Tensor& columns,
                            const Tensor& values, int64_t begin, int64_t end) {
  check_weights("gossip_mix", local, row_pointers, columns, values);
  check_gossip_out("gossip_mix", local, row_pointers, local, begin, end, false);
  mix_into(local, row_pointers, columns, values, local, begin, end, false);
}

}  // namespace dmmlkd
