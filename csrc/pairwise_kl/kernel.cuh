// Pairwise KL similarity and its gradient, one pass over memory. With row maxima mx_m, p_m = softmax(z_m), r
// the first modality present, n their number, means (bars) over those present, and
//   u_m,i = (z_m,i - z_r,i) - (mx_m - mx_r),  d_m = u_m - ubar,  A_m = sum_i p_m,i d_m,i,
//   R_m = sum_i (p_m,i - pbar_i), zero but for the rounding of p :
//   loss = 1/(n-1) sum_m (sum_i (p_m,i - pbar_i) d_m,i - A_m R_m),
//   gradient_m = 1/(n-1) (p_m (d_m - A_m - R_m) + p_m - pbar).
// Both differences in u are exact when the modalities nearly agree, so nothing cancels; and no logarithm is
// needed, because the log-sum-exps are constant over i and fall out. Rows that lie far apart by a constant
// are moved together first (row_move). Where all modalities present exclude a class by -inf, u is set to 0:
// p is 0, and the class counts nothing. Any other element that is not finite makes the loss NaN (0 * inf in
// A, inf - inf in d), and through it every gradient of its sample. ../cuda/README.md has the limits that
// shaped the layout; kernel.inl beside this file computes the same on a CPU.
#pragma once

#include "../cuda/common.cuh"

namespace dmmlkd::cuda {

constexpr int kMaxUnrolledModalities = 8;
// With 128 registers for a thread of float, 255 for one of double: what ptxas needs to spill none.
template <typename scalar>
constexpr int kMaxResidentThreads = sizeof(scalar) == 8 ? 256 : 512;
constexpr int kStreamedThreads = 512;
constexpr int kStreamedChunk = 1024;

// Classes of a sample that one thread holds in registers, logits and probabilities: 24 or 32 of each over all
// rows.
template <typename scalar, int kModalities>
constexpr int kClassesPerThread = (kModalities == 2   ? 12
                                   : kModalities <= 4 ? 8
                                                      : 4) /
                                  (sizeof(scalar) == 8 ? 2 : 1);

// How a tile of samples travels between global and shared memory.
enum class Transfer : int {
  kDirect,  // not at all: a group's threads read consecutive classes from global memory as they are
  kFlat,    // the tile is one contiguous run: packs, from the first aligned element on
  kPacks,   // classes are contiguous and every row starts aligned: packs
  kScalars  // anything else
};

struct TransferPlan {
  Transfer kind;
  FastDivisor runs;  // packs or scalars per row
};

// Where a row of a tile lies in global and in shared memory; a place of -1 is a row of no sample.
struct Row {
  int64_t logits;
  int64_t gradient;
  int64_t place;
};

// A group of `lanes` threads handles a sample, `samples` groups per block. Samples of fewer classes than a
// warp reads at once go through shared memory, where sample i of a block's tile lies at i * pitch.
struct ResidentPlan {
  int lanes;
  int threads;
  int samples;
  int pitch;
  int64_t tiles;
  int grid;
  int shared_bytes;
  FastDivisor sample_size;  // modalities * classes
  bool modality_major;      // the tile's rows are walked modality by modality, where that is how memory lies
  TransferPlan load;
  TransferPlan store;
};

// Byte offsets into a block's shared memory.
struct ResidentShared {
  int tile, rows, totals, scratch, end;

  __host__ __device__ ResidentShared(int tile_elements, int tile_rows, int lanes, int threads, int modalities,
                                     int compute_bytes) {
    const int warps = threads / kWarpSize;
    tile = 0;
    rows = (tile_elements * compute_bytes + kPackBytes - 1) / kPackBytes * kPackBytes;
    totals = rows + tile_rows * static_cast<int>(sizeof(Row));
    scratch = totals + warps * static_cast<int>(sizeof(double));
    // Three combinations per tile, each with separate scratch, so that one barrier per combination is enough.
    end = scratch + (lanes > kWarpSize ? warps * (4 * modalities + 1) * compute_bytes : 0);
  }
};

// Peaks of two rows may differ by so much: the rounding of z_m - z_r is then that of a log-softmax.
constexpr int kFarApart = 4;

// What is taken off a row that is far from the one whose peak is the smallest number. The difference of a row
// and this constant is exact wherever p counts.
template <typename compute>
__device__ __forceinline__ compute row_move(compute peak, compute smallest) {
  const compute move = peak - smallest;
  return fabs(move) > compute(kFarApart) ? move : compute(0);
}

// Never negative; NaN unless it is finite.
template <typename compute>
__device__ __forceinline__ compute finite_loss(compute loss) {
  loss = loss < compute(0) ? compute(0) : loss;
  return loss < static_cast<compute>(INFINITY) ? loss : loss - loss;
}

// Where a sample begins. Not unrolled: more than one leading dimension is rare, and its divisions are long.
__device__ __forceinline__ int64_t batch_offset(int64_t sample, const PairwiseKlArguments& a,
                                                const Strides& strides) {
  int64_t offset = 0;
#pragma unroll 1
  for (int d = a.batch_dims - 1; d > 0; --d) {
    const int64_t rest = sample / a.batch_sizes[d];
    offset += (sample - rest * a.batch_sizes[d]) * strides.batch[d];
    sample = rest;
  }
  return offset + sample * strides.batch[0];
}

// What a sample's gradient is multiplied by, besides the reduction's weight.
template <typename compute>
__device__ __forceinline__ compute upstream_of(const PairwiseKlArguments& a, int64_t sample) {
  if (a.upstream == nullptr) return compute(1);
  return static_cast<const compute*>(a.upstream)[a.reduction == Reduction::kNone ? sample : 0];
}

// One bit per modality.
template <int kModalities>
__device__ __forceinline__ unsigned present_bits(const PairwiseKlArguments& a, int64_t sample) {
  if (a.mask == nullptr) return (1u << static_cast<unsigned>(a.modalities)) - 1u;
  const bool* mask = a.mask + batch_offset(sample, a, a.mask_strides);
  unsigned bits = 0;
#pragma unroll
  for (int m = 0; m < kModalities; ++m) {
    if (m < a.modalities && mask[m * a.mask_strides.modality]) bits |= 1u << m;
  }
  return bits;
}

__device__ __forceinline__ void describe_rows(const PairwiseKlArguments& a, const ResidentPlan& plan,
                                              int64_t first_sample, int valid, Row* rows) {
  const int modalities = static_cast<int>(a.modalities);
  for (int i = threadIdx.x; i < plan.samples * modalities; i += blockDim.x) {
    const int sample = plan.modality_major ? i % plan.samples : i / modalities;
    const int modality = plan.modality_major ? i / plan.samples : i % modalities;
    Row row{0, 0, -1};
    if (sample < valid) {
      row.logits =
          batch_offset(first_sample + sample, a, a.logits_strides) + modality * a.logits_strides.modality;
      row.gradient =
          batch_offset(first_sample + sample, a, a.gradient_strides) + modality * a.gradient_strides.modality;
      row.place = sample * plan.pitch + modality * static_cast<int>(a.classes);
    }
    rows[i] = row;
  }
}

// Calls visit(row, class) for the first element of every run of kWidth classes.
template <int kWidth, typename Visit>
__device__ __forceinline__ void for_each_run(const ResidentPlan& plan, const TransferPlan& transfer,
                                             int modalities, const Row* rows, Visit visit) {
  const unsigned items = static_cast<unsigned>(plan.samples * modalities) * transfer.runs.divisor;
#pragma unroll 4
  for (unsigned item = threadIdx.x; item < items; item += blockDim.x) {
    const unsigned row = transfer.runs.quotient(item);
    if (rows[row].place >= 0) visit(rows[row], static_cast<int>(item - row * transfer.runs.divisor) * kWidth);
  }
}

// Walks a contiguous tile: scalar(place, index) up to the first aligned element and for the tail, pack(place
// of the first element, how far it lies in its sample, index) between them.
template <typename scalar, typename VisitScalar, typename VisitPack>
__device__ __forceinline__ void for_each_flat(const scalar* base, const ResidentPlan& plan, int valid,
                                              VisitScalar visit_scalar, VisitPack visit_pack) {
  constexpr unsigned kWidth = Pack<scalar>::kWidth;
  const unsigned count = static_cast<unsigned>(valid) * plan.sample_size.divisor;
  const unsigned misaligned =
      static_cast<unsigned>(reinterpret_cast<uintptr_t>(base) % kPackBytes / sizeof(scalar));
  const unsigned head = min((kWidth - misaligned) % kWidth, count);
  const unsigned packs = (count - head) / kWidth;
  const unsigned padding = static_cast<unsigned>(plan.pitch) - plan.sample_size.divisor;
#pragma unroll 4
  for (unsigned i = threadIdx.x; i < packs; i += blockDim.x) {
    const unsigned index = head + i * kWidth;
    const unsigned sample = plan.sample_size.quotient(index);
    visit_pack(index + sample * padding, index - sample * plan.sample_size.divisor, index);
  }
  for (unsigned i = threadIdx.x; i < count - packs * kWidth; i += blockDim.x) {
    const unsigned index = i < head ? i : i + packs * kWidth;
    visit_scalar(index + plan.sample_size.quotient(index) * padding, index);
  }
}

// A pack's elements to or from shared memory, 16 bytes at a time where they lie so.
template <int kWidth, typename compute>
__device__ __forceinline__ void put_run(compute* tile, unsigned place, const compute (&values)[kWidth]) {
  if (place % Pack<compute>::kWidth == 0) {
    store_run(tile + place, values);
  } else {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) tile[place + j] = values[j];
  }
}

template <int kWidth, typename compute>
__device__ __forceinline__ void get_run(const compute* tile, unsigned place, compute (&values)[kWidth]) {
  if (place % Pack<compute>::kWidth == 0) {
    load_run(tile + place, values);
  } else {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = tile[place + j];
  }
}

template <typename scalar>
__device__ __forceinline__ void load_tile(const PairwiseKlArguments& a, const ResidentPlan& plan,
                                          int64_t first_sample, int valid, const Row* rows,
                                          compute_t<scalar>* tile) {
  constexpr int kWidth = Pack<scalar>::kWidth;
  const scalar* logits = static_cast<const scalar*>(a.logits);
  const auto load_pack = [](const scalar* from, compute_t<scalar>(&values)[kWidth]) {
    const Pack<scalar> pack = *reinterpret_cast<const Pack<scalar>*>(from);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = to_compute(pack.values[j]);
  };
  if (plan.load.kind == Transfer::kFlat) {
    const scalar* base = logits + first_sample * plan.sample_size.divisor;
    const unsigned size = plan.sample_size.divisor;
    const unsigned padding = static_cast<unsigned>(plan.pitch) - size;
    for_each_flat(
        base, plan, valid, [&](unsigned place, unsigned index) { tile[place] = to_compute(base[index]); },
        [&](unsigned place, unsigned within, unsigned index) {
          compute_t<scalar> values[kWidth];
          load_pack(base + index, values);
          if (within + kWidth <= size) {
            put_run(tile, place, values);
            return;
          }
#pragma unroll
          for (unsigned j = 0; j < kWidth; ++j) {
            tile[place + j + plan.sample_size.quotient(within + j) * padding] = values[j];
          }
        });
    return;
  }
  const int modalities = static_cast<int>(a.modalities);
  if (plan.load.kind == Transfer::kPacks) {
    for_each_run<kWidth>(plan, plan.load, modalities, rows, [&](const Row& row, int c) {
      compute_t<scalar> values[kWidth];
      load_pack(logits + row.logits + c, values);
      put_run(tile, static_cast<unsigned>(row.place + c), values);
    });
  } else {
    const int stride = static_cast<int>(a.logits_strides.classes);
    for_each_run<1>(plan, plan.load, modalities, rows, [&](const Row& row, int c) {
      tile[row.place + c] = to_compute(logits[row.logits + c * stride]);
    });
  }
}

template <typename scalar>
__device__ __forceinline__ void store_tile(const PairwiseKlArguments& a, const ResidentPlan& plan,
                                           int64_t first_sample, int valid, const Row* rows,
                                           const compute_t<scalar>* tile) {
  constexpr int kWidth = Pack<scalar>::kWidth;
  scalar* gradient = static_cast<scalar*>(a.gradient);
  const auto store_pack = [](scalar* to, const compute_t<scalar>(&values)[kWidth]) {
    Pack<scalar> pack;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) pack.values[j] = from_compute<scalar>(values[j]);
    *reinterpret_cast<Pack<scalar>*>(to) = pack;
  };
  if (plan.store.kind == Transfer::kFlat) {
    scalar* base = gradient + first_sample * plan.sample_size.divisor;
    const unsigned size = plan.sample_size.divisor;
    const unsigned padding = static_cast<unsigned>(plan.pitch) - size;
    for_each_flat(
        base, plan, valid,
        [&](unsigned place, unsigned index) { base[index] = from_compute<scalar>(tile[place]); },
        [&](unsigned place, unsigned within, unsigned index) {
          compute_t<scalar> values[kWidth];
          if (within + kWidth <= size) {
            get_run(tile, place, values);
          } else {
#pragma unroll
            for (unsigned j = 0; j < kWidth; ++j) {
              values[j] = tile[place + j + plan.sample_size.quotient(within + j) * padding];
            }
          }
          store_pack(base + index, values);
        });
    return;
  }
  const int modalities = static_cast<int>(a.modalities);
  if (plan.store.kind == Transfer::kPacks) {
    for_each_run<kWidth>(plan, plan.store, modalities, rows, [&](const Row& row, int c) {
      compute_t<scalar> values[kWidth];
      get_run(tile, static_cast<unsigned>(row.place + c), values);
      store_pack(gradient + row.gradient + c, values);
    });
  } else {
    const int stride = static_cast<int>(a.gradient_strides.classes);
    for_each_run<1>(plan, plan.store, modalities, rows, [&](const Row& row, int c) {
      gradient[row.gradient + c * stride] = from_compute<scalar>(tile[row.place + c]);
    });
  }
}

// A thread holds classes lane, lane + lanes, ... of all rows of its sample. Beyond the last class it holds
// the last one again, with probability 0. A row whose modality is absent is read as a copy of the first one
// present: it then counts in no mean, its u is 0, and row 0 is the reference r whichever modalities are
// there.
template <typename scalar, int kModalities>
__global__ void __launch_bounds__(kMaxResidentThreads<scalar>, 1)  // without the 1 double spills
    pairwise_kl_resident(const __grid_constant__ PairwiseKlArguments a,
                         const __grid_constant__ ResidentPlan plan) {
  using compute = compute_t<scalar>;
  constexpr int kClasses = kClassesPerThread<scalar, kModalities>;
  DMMLKD_DYNAMIC_SHARED(shared);
  const bool staged = plan.load.kind != Transfer::kDirect;
  const int modalities = static_cast<int>(a.modalities);
  const bool described = staged && (plan.load.kind != Transfer::kFlat || plan.store.kind != Transfer::kFlat);
  const ResidentShared layout(staged ? plan.samples * plan.pitch : 0,
                              described ? plan.samples * modalities : 0, plan.lanes, blockDim.x, kModalities,
                              sizeof(compute));
  compute* tile = reinterpret_cast<compute*>(shared + layout.tile);
  Row* rows = reinterpret_cast<Row*>(shared + layout.rows);
  double* totals = reinterpret_cast<double*>(shared + layout.totals);
  compute* scratch = reinterpret_cast<compute*>(shared + layout.scratch);

  const int lanes = plan.lanes;
  const int lane = threadIdx.x & (lanes - 1);
  const int group = (threadIdx.x - lane) >> (__ffs(lanes) - 1);
  const int warps = blockDim.x / kWarpSize;
  const int classes = static_cast<int>(a.classes);
  // 5 and 7 modalities run as 6 and 8, whose last row is one too many.
  const auto is_row = [&](int m) {
    return kModalities <= 4 || m + 1 < kModalities || modalities == kModalities;
  };
  const compute weight =
      a.reduction == Reduction::kMean ? compute(1) / static_cast<compute>(a.samples) : compute(1);
  double total = 0.0;

  for (int64_t tile_index = blockIdx.x; tile_index < plan.tiles; tile_index += gridDim.x) {
    const int64_t first_sample = tile_index * plan.samples;
    const int valid = static_cast<int>(min(static_cast<int64_t>(plan.samples), a.samples - first_sample));
    const bool active = group < valid;
    const int64_t sample = first_sample + (active ? group : 0);
    if (staged) {
      if (described) {
        describe_rows(a, plan, first_sample, valid, rows);
        __syncthreads();
      }
      load_tile<scalar>(a, plan, first_sample, valid, rows, tile);
    }
    unsigned present = present_bits<kModalities>(a, sample);
    const int count = __popc(present);
    if (count < 2 || !active) present = 0;
    const int first = present != 0 ? __ffs(present) - 1 : 0;
    if (staged) __syncthreads();

    compute* const own = tile + (active ? group : 0) * plan.pitch;
    compute z[kModalities][kClasses], p[kModalities][kClasses];
    if (staged) {
      const compute* row[kModalities];
#pragma unroll
      for (int m = 0; m < kModalities; ++m) row[m] = own + ((present >> m & 1u) != 0 ? m : first) * classes;
#pragma unroll
      for (int k = 0; k < kClasses; ++k) {
        if (k * lanes >= classes) break;
        const int c = min(k * lanes + lane, classes - 1);
#pragma unroll
        for (int m = 0; m < kModalities; ++m) z[m][k] = row[m][c];
      }
    } else {
      const scalar* logits = static_cast<const scalar*>(a.logits) + batch_offset(sample, a, a.logits_strides);
      const char* row[kModalities];
#pragma unroll
      for (int m = 0; m < kModalities; ++m) {
        const int source = (present >> m & 1u) != 0 ? m : first;
        row[m] = reinterpret_cast<const char*>(logits + source * a.logits_strides.modality);
      }
      const unsigned stride = static_cast<unsigned>(a.logits_strides.classes * sizeof(scalar));
#pragma unroll
      for (int k = 0; k < kClasses; ++k) {
        if (k * lanes >= classes) break;
        const unsigned offset = static_cast<unsigned>(min(k * lanes + lane, classes - 1)) * stride;
#pragma unroll
        for (int m = 0; m < kModalities; ++m) {
          z[m][k] = to_compute(*reinterpret_cast<const scalar*>(row[m] + offset));
        }
      }
    }

    compute maximum[kModalities];
#pragma unroll
    for (int m = 0; m < kModalities; ++m) maximum[m] = z[m][0];
#pragma unroll
    for (int k = 1; k < kClasses; ++k) {
      if (k * lanes >= classes) break;
#pragma unroll
      for (int m = 0; m < kModalities; ++m) maximum[m] = Maximum{}(maximum[m], z[m][k]);
    }
    combine_group(maximum, lanes, scratch, Maximum{});

    compute sums[kModalities];
#pragma unroll
    for (int m = 0; m < kModalities; ++m) sums[m] = 0;
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
      if (k * lanes >= classes) break;
      const bool ours = k * lanes + lane < classes;
#pragma unroll
      for (int m = 0; m < kModalities; ++m) {
        p[m][k] = ours ? exponential(z[m][k] - maximum[m]) : compute(0);
        sums[m] += p[m][k];
      }
    }
    combine_group(sums, lanes, scratch + warps * kModalities, Add{});

    compute smallest = maximum[0];
    bool far_apart = false;
#pragma unroll
    for (int m = 1; m < kModalities; ++m) {
      smallest = fabs(maximum[m]) < fabs(smallest) ? maximum[m] : smallest;
      far_apart = far_apart || fabs(maximum[m] - maximum[0]) > compute(kFarApart);
    }
    if (far_apart) {
#pragma unroll
      for (int m = 0; m < kModalities; ++m) {
        const compute move = row_move(maximum[m], smallest);
        maximum[m] -= move;
#pragma unroll
        for (int k = 0; k < kClasses; ++k) {
          if (k * lanes >= classes) break;
          z[m][k] -= move;
        }
      }
    }

    // From here on z holds p d + (p - pbar). `moments` are A_m of every row, their R_m, and the loss.
    compute moments[2 * kModalities + 1], reference_loss = 0;
#pragma unroll
    for (int m = 0; m < kModalities; ++m) {
      sums[m] = compute(1) / sums[m];
      moments[m] = moments[kModalities + m] = 0;
    }
    compute& raw_loss = moments[2 * kModalities];
    raw_loss = 0;
    compute counted[kModalities], shift[kModalities];
#pragma unroll
    for (int m = 0; m < kModalities; ++m) {
      counted[m] = (present >> m & 1u) != 0 ? compute(1) : compute(0);
      shift[m] = maximum[m] - maximum[0];
    }
    const compute inverse_count = compute(1) / static_cast<compute>(count);
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
      if (k * lanes >= classes) break;
      compute reference = z[0][k];
      if (reference == -static_cast<compute>(INFINITY)) {  // excluded, if all the others say so
#pragma unroll
        for (int m = 0; m < kModalities; ++m)
          z[m][k] = z[m][k] == reference ? compute(0) : static_cast<compute>(INFINITY);
        reference = 0;
      }
      compute mean_p = 0, mean_u = 0;
#pragma unroll
      for (int m = 0; m < kModalities; ++m) {
        p[m][k] *= sums[m];
        z[m][k] = (z[m][k] - reference) - shift[m];
        mean_p += p[m][k] - p[0][k];
        mean_u += z[m][k];
      }
      mean_p = fma(mean_p, inverse_count, p[0][k]);  // exact where all rows agree
      mean_u *= inverse_count;
#pragma unroll
      for (int m = 0; m < kModalities; ++m) {
        const compute d = z[m][k] - mean_u;
        const compute distance = p[m][k] - mean_p;
        moments[m] = fma(p[m][k], d, moments[m]);
        moments[kModalities + m] += distance;
        raw_loss = fma(distance, d, raw_loss);
        if (m == 0) reference_loss = fma(distance, d, reference_loss);
        z[m][k] = fma(p[m][k], d, distance);
      }
    }
    // The rows of absent modalities are copies of row 0.
    raw_loss = fma(static_cast<compute>(count - kModalities), reference_loss, raw_loss);
    combine_group(moments, lanes, scratch + 2 * warps * kModalities, Add{});
#pragma unroll
    for (int m = 0; m < kModalities; ++m) {
      raw_loss = fma(-counted[m] * moments[m], moments[kModalities + m], raw_loss);
      moments[m] += moments[kModalities + m];
    }

    const compute inverse_pairs = compute(1) / static_cast<compute>(count - 1);
    const compute loss = present != 0 ? finite_loss(raw_loss) * inverse_pairs : compute(0);
    // NaN if the loss is.
    const compute scale = fma(loss, compute(0), weight * inverse_pairs * upstream_of<compute>(a, sample));
    if (active && lane == 0 && a.loss != nullptr) {
      if (a.reduction == Reduction::kNone) {
        static_cast<scalar*>(a.loss)[sample] = from_compute<scalar>(loss);
      } else {
        total += static_cast<double>(loss);
      }
    }
    if (a.gradient == nullptr) {
      if (staged) __syncthreads();
      continue;
    }

#pragma unroll
    for (int m = 0; m < kModalities; ++m) counted[m] = (present >> m & 1u) != 0 ? scale : compute(0);
    const auto slope = [&](int m, int k) { return counted[m] * fma(-moments[m], p[m][k], z[m][k]); };
    // Zero times the NaN of a copied row would not be zero.
    if (!(loss <= static_cast<compute>(INFINITY)) || present == 0) {
#pragma unroll
      for (int m = 0; m < kModalities; ++m) {
        if ((present >> m & 1u) != 0) continue;
        moments[m] = 0;
#pragma unroll
        for (int k = 0; k < kClasses; ++k) z[m][k] = p[m][k] = 0;
      }
    }
    if (staged) {
      // In place: no other thread reads these classes of this sample.
#pragma unroll
      for (int k = 0; k < kClasses; ++k) {
        if (k * lanes >= classes) break;
        const int c = k * lanes + lane;
        if (active && c < classes) {
#pragma unroll
          for (int m = 0; m < kModalities; ++m) {
            if (is_row(m)) own[m * classes + c] = slope(m, k);
          }
        }
      }
      __syncthreads();
      store_tile<scalar>(a, plan, first_sample, valid, rows, tile);
      __syncthreads();
    } else {
      scalar* gradient = static_cast<scalar*>(a.gradient) + batch_offset(sample, a, a.gradient_strides);
      char* row[kModalities];
#pragma unroll
      for (int m = 0; m < kModalities; ++m) {
        row[m] = reinterpret_cast<char*>(gradient + m * a.gradient_strides.modality);
      }
      const unsigned stride = static_cast<unsigned>(a.gradient_strides.classes * sizeof(scalar));
#pragma unroll
      for (int k = 0; k < kClasses; ++k) {
        if (k * lanes >= classes) break;
        const int c = k * lanes + lane;
        if (active && c < classes) {
          const unsigned offset = static_cast<unsigned>(c) * stride;
#pragma unroll
          for (int m = 0; m < kModalities; ++m) {
            if (is_row(m)) *reinterpret_cast<scalar*>(row[m] + offset) = from_compute<scalar>(slope(m, k));
          }
        }
      }
    }
  }

  if (a.reduction == Reduction::kNone || a.loss == nullptr) return;
  double warp_total[1] = {total};
  combine_group(warp_total, kWarpSize, static_cast<double*>(nullptr), Add{});
  if (threadIdx.x % kWarpSize == 0) totals[threadIdx.x / kWarpSize] = warp_total[0];
  __syncthreads();
  if (threadIdx.x == 0) {
    double block_total = 0.0;
    for (int w = 0; w < warps; ++w) block_total += totals[w];
    if (gridDim.x == 1) {
      static_cast<scalar*>(a.loss)[0] = from_compute<scalar>(static_cast<compute>(block_total) * weight);
    } else {
      a.partials[blockIdx.x] = block_total;
    }
  }
}

// Byte offsets into a block's shared memory for the kernel below.
struct StreamedShared {
  int64_t maximum, inverse_sum, move, moment, rest, row_loss, mean_p, mean_u, tile, present, end;

  __host__ __device__ StreamedShared(int64_t modalities, int64_t staged_elements, int compute_bytes) {
    maximum = 0;
    inverse_sum = maximum + modalities * compute_bytes;
    move = inverse_sum + modalities * compute_bytes;
    moment = move + modalities * compute_bytes;
    rest = moment + modalities * compute_bytes;
    row_loss = rest + modalities * compute_bytes;
    mean_p = row_loss + modalities * compute_bytes;
    mean_u = mean_p + kStreamedChunk * compute_bytes;
    tile = mean_u + kStreamedChunk * compute_bytes;
    present = tile + staged_elements * compute_bytes;
    end = present + (modalities + 2) * static_cast<int64_t>(sizeof(int));
  }
};

// For samples that do not fit into a block's registers: one block per sample, which it keeps in shared memory
// if it can, and else reads again in each pass (from the L2 cache, where it fits). Any number of modalities
// and classes.
template <typename scalar>
__global__ void __launch_bounds__(kStreamedThreads, 1)  // without the 1 it spills on 10.0
    pairwise_kl_streamed(const __grid_constant__ PairwiseKlArguments a, bool staged) {
  using compute = compute_t<scalar>;
  DMMLKD_DYNAMIC_SHARED(shared);
  const StreamedShared layout(a.modalities, staged ? a.modalities * a.classes : 0, sizeof(compute));
  compute* maximum = reinterpret_cast<compute*>(shared + layout.maximum);
  compute* inverse_sum = reinterpret_cast<compute*>(shared + layout.inverse_sum);
  compute* move = reinterpret_cast<compute*>(shared + layout.move);
  compute* moment = reinterpret_cast<compute*>(shared + layout.moment);
  compute* rest = reinterpret_cast<compute*>(shared + layout.rest);
  compute* row_loss = reinterpret_cast<compute*>(shared + layout.row_loss);
  compute* mean_p = reinterpret_cast<compute*>(shared + layout.mean_p);
  compute* mean_u = reinterpret_cast<compute*>(shared + layout.mean_u);
  compute* tile = reinterpret_cast<compute*>(shared + layout.tile);
  int* present = reinterpret_cast<int*>(shared + layout.present);
  int* count_and_first = present + a.modalities;

  constexpr int kWarps = kStreamedThreads / kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  const int modalities = static_cast<int>(a.modalities);
  const compute weight =
      a.reduction == Reduction::kMean ? compute(1) / static_cast<compute>(a.samples) : compute(1);
  double block_total = 0.0;

  for (int64_t sample = blockIdx.x; sample < a.samples; sample += gridDim.x) {
    const scalar* logits = static_cast<const scalar*>(a.logits) + batch_offset(sample, a, a.logits_strides);
    const auto far_value = [&](int m, int64_t c) {
      return to_compute(logits[m * a.logits_strides.modality + c * a.logits_strides.classes]);
    };
    const auto value = [&](int m, int64_t c) { return staged ? tile[m * a.classes + c] : far_value(m, c); };
    for (int m = 0; staged && m < modalities; ++m) {
#pragma unroll 4
      for (int64_t c = threadIdx.x; c < a.classes; c += kStreamedThreads)
        tile[m * a.classes + c] = far_value(m, c);
    }
    for (int m = threadIdx.x; m < modalities; m += kStreamedThreads) {
      present[m] =
          a.mask == nullptr || a.mask[batch_offset(sample, a, a.mask_strides) + m * a.mask_strides.modality];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int number = 0, first = 0;
      for (int m = modalities - 1; m >= 0; --m) {
        if (present[m] != 0) {
          ++number;
          first = m;
        }
      }
      count_and_first[0] = number;
      count_and_first[1] = first;
    }
    __syncthreads();
    const int count = count_and_first[0];
    const int first = count_and_first[1];
    const bool pairs = count >= 2;
    const compute inverse_count = compute(1) / static_cast<compute>(count);

    // One warp per row: the maximum, then the sum.
    for (int m = warp; m < modalities; m += kWarps) {
      if (!pairs || present[m] == 0) continue;
      compute row_maximum[1] = {-INFINITY};
      for (int64_t c = lane; c < a.classes; c += kWarpSize)
        row_maximum[0] = Maximum{}(row_maximum[0], value(m, c));
      combine_group(row_maximum, kWarpSize, static_cast<compute*>(nullptr), Maximum{});
      compute sum[1] = {0};
      for (int64_t c = lane; c < a.classes; c += kWarpSize) {
        sum[0] += exponential(value(m, c) - row_maximum[0]);
      }
      combine_group(sum, kWarpSize, static_cast<compute*>(nullptr), Add{});
      if (lane == 0) {
        maximum[m] = row_maximum[0];
        inverse_sum[m] = compute(1) / sum[0];
        moment[m] = rest[m] = row_loss[m] = 0;
      }
    }
    __syncthreads();
    if (threadIdx.x == 0 && pairs) {
      compute smallest = maximum[first];
      bool far_apart = false;
      for (int m = 0; m < modalities; ++m) {
        if (present[m] == 0) continue;
        smallest = fabs(maximum[m]) < fabs(smallest) ? maximum[m] : smallest;
        far_apart = far_apart || fabs(maximum[m] - maximum[first]) > compute(kFarApart);
      }
      for (int m = 0; m < modalities; ++m)
        if (present[m] != 0) move[m] = far_apart ? row_move(maximum[m], smallest) : compute(0);
    }
    __syncthreads();

    const auto probability = [&](int m, compute z) { return exponential(z - maximum[m]) * inverse_sum[m]; };
    const auto shifted = [&](int m, compute z, compute reference) {
      const compute peaks = (maximum[m] - move[m]) - (maximum[first] - move[first]);
      const bool excluded = z == reference && z == -static_cast<compute>(INFINITY);
      return excluded ? -peaks : ((z - move[m]) - (reference - move[first])) - peaks;
    };
    // One thread per class: the means over the modalities of one chunk of classes.
    const auto means = [&](int64_t chunk, int size) {
      for (int i = threadIdx.x; i < size; i += kStreamedThreads) {
        const compute reference = value(first, chunk + i);
        const compute first_p = probability(first, reference);
        compute sum_p = 0, sum_u = 0;
        for (int m = 0; m < modalities; ++m) {
          if (present[m] == 0) continue;
          const compute z = value(m, chunk + i);
          sum_p += probability(m, z) - first_p;
          sum_u += shifted(m, z, reference);
        }
        mean_p[i] = fma(sum_p, inverse_count, first_p);  // exact where all rows agree
        mean_u[i] = sum_u * inverse_count;
      }
    };

    for (int64_t chunk = 0; pairs && chunk < a.classes; chunk += kStreamedChunk) {
      const int size = static_cast<int>(min(static_cast<int64_t>(kStreamedChunk), a.classes - chunk));
      means(chunk, size);
      __syncthreads();
      for (int m = warp; m < modalities; m += kWarps) {
        if (present[m] == 0) continue;
        compute sums[3] = {0, 0, 0};
        for (int i = lane; i < size; i += kWarpSize) {
          const compute z = value(m, chunk + i);
          const compute p = probability(m, z);
          const compute d = shifted(m, z, value(first, chunk + i)) - mean_u[i];
          sums[0] = fma(p, d, sums[0]);
          sums[1] = fma(p - mean_p[i], d, sums[1]);
          sums[2] += p - mean_p[i];
        }
        combine_group(sums, kWarpSize, static_cast<compute*>(nullptr), Add{});
        if (lane == 0) {
          moment[m] += sums[0];
          row_loss[m] += sums[1];
          rest[m] += sums[2];
        }
      }
      __syncthreads();
    }

    compute loss = 0;
    if (pairs) {
      for (int m = 0; m < modalities; ++m)
        if (present[m] != 0) loss += fma(-moment[m], rest[m], row_loss[m]);
      loss = finite_loss(loss) / static_cast<compute>(count - 1);
    }
    if (a.gradient != nullptr) {
      scalar* gradient = static_cast<scalar*>(a.gradient) + batch_offset(sample, a, a.gradient_strides);
      // NaN if the loss is.
      const compute per_pair = weight * upstream_of<compute>(a, sample) / static_cast<compute>(count - 1);
      const compute scale = pairs ? fma(loss, compute(0), per_pair) : compute(0);
      for (int64_t chunk = 0; chunk < a.classes; chunk += kStreamedChunk) {
        const int size = static_cast<int>(min(static_cast<int64_t>(kStreamedChunk), a.classes - chunk));
        // The means of a single chunk are still there.
        if (pairs && a.classes > kStreamedChunk) means(chunk, size);
        __syncthreads();
        for (int m = warp; m < modalities; m += kWarps) {
          for (int i = lane; i < size; i += kWarpSize) {
            compute slope = 0;
            if (pairs && present[m] != 0) {
              const compute z = value(m, chunk + i);
              const compute p = probability(m, z);
              const compute d = shifted(m, z, value(first, chunk + i)) - mean_u[i];
              slope = scale * fma(p, d - (moment[m] + rest[m]), p - mean_p[i]);
            }
            gradient[m * a.gradient_strides.modality + (chunk + i) * a.gradient_strides.classes] =
                from_compute<scalar>(slope);
          }
        }
        __syncthreads();
      }
    }

    if (threadIdx.x == 0 && a.loss != nullptr) {
      if (a.reduction == Reduction::kNone) static_cast<scalar*>(a.loss)[sample] = from_compute<scalar>(loss);
      block_total += static_cast<double>(loss);
    }
    __syncthreads();
  }
  if (a.partials != nullptr && threadIdx.x == 0) a.partials[blockIdx.x] = block_total;
}

}  // namespace dmmlkd::cuda
