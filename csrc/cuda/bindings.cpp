// The operators on CUDA tensors: checks, allocates, and hands raw pointers to the launchers. Includes no CUDA
// header, neither torch's nor NVIDIA's, so that it compiles beside a torch without CUDA.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <limits>
#include <mutex>
#include <optional>
#include <tuple>

#include "../check.h"
#include "../interface.h"
#include "../orthogonality/form.h"
#include "launchers.h"

namespace dmmlkd::cuda {
namespace {

// In-place mixing of rows that shared memory does not hold goes through a scratch of at most this many bytes.
constexpr int64_t kScratchBytes = int64_t{64} << 20;
constexpr int64_t kScratchColumns = 256;

// The stream that torch would launch on, as the driver's handle. Only emulation comes here with CPU tensors.
void* current_stream(const at::Device& device) {
  if (device.is_cpu()) return nullptr;
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}

int device_index(const at::Device& device) { return device.is_cpu() ? 0 : device.index(); }

void check_launch(const char* op, const char* error) {
  TORCH_CHECK(error == nullptr, op, " on CUDA: ", error);
}

Dtype dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Dtype::kFloat32;
    case at::kDouble:
      return Dtype::kFloat64;
    case at::kHalf:
      return Dtype::kFloat16;
    case at::kBFloat16:
      return Dtype::kBFloat16;
    default:
      TORCH_INTERNAL_ASSERT(false, "no kernel for ", tensor.scalar_type());  // check_floating let it pass
  }
}

// Describes the leading dimensions, neighbours merged where all tensors allow it. False if too many remain.
bool describe_samples(const at::Tensor& logits, const at::Tensor& gradient, const at::Tensor& mask,
                      PairwiseKlArguments& a) {
  const std::array<const at::Tensor*, 3> tensors = {&logits, &gradient, &mask};
  const std::array<Strides*, 3> strides = {&a.logits_strides, &a.gradient_strides, &a.mask_strides};
  a.batch_dims = 0;
  for (int64_t dim = 0; dim < logits.dim() - 2; ++dim) {
    const int64_t size = logits.size(dim);
    if (size == 1) continue;
    bool merges = a.batch_dims > 0;
    for (size_t t = 0; t < tensors.size(); ++t) {
      if (merges && tensors[t]->defined()) {
        merges = strides[t]->batch[a.batch_dims - 1] == size * tensors[t]->stride(dim);
      }
    }
    if (!merges) {
      if (a.batch_dims == kMaxBatchDims) return false;
      a.batch_sizes[a.batch_dims++] = 1;
    }
    a.batch_sizes[a.batch_dims - 1] *= size;
    for (size_t t = 0; t < tensors.size(); ++t) {
      if (tensors[t]->defined()) strides[t]->batch[a.batch_dims - 1] = tensors[t]->stride(dim);
    }
  }
  if (a.batch_dims == 0) a.batch_sizes[a.batch_dims++] = 1;
  a.logits_strides.modality = logits.stride(-2), a.logits_strides.classes = logits.stride(-1);
  if (gradient.defined()) {
    a.gradient_strides.modality = gradient.stride(-2), a.gradient_strides.classes = gradient.stride(-1);
  }
  if (mask.defined()) a.mask_strides.modality = mask.stride(-1);
  return true;
}

// Weights that were checked, so that the copy to the host and its wait come once per matrix, not once per
// call. A tensor is known by its identity and its version, which grows with every write to it.
class CheckedWeights {
 public:
  void check(const char* op, const at::Tensor& row_pointers, const at::Tensor& columns, int64_t rows_in) {
    const bool versioned = !row_pointers.is_inference() && !columns.is_inference();
    if (versioned && known(row_pointers, columns, rows_in)) return;
    const at::Tensor pointers = row_pointers.cpu().contiguous(), indices = columns.cpu().contiguous();
    check_compressed_rows(op, pointers.const_data_ptr<int64_t>(), pointers.size(0) - 1,
                          indices.const_data_ptr<int64_t>(), indices.size(0), rows_in);
    if (!versioned) return;
    const std::lock_guard<std::mutex> guard(mutex_);
    Entry& entry = entries_[next_++ % entries_.size()];
    entry.row_pointers = Handle(row_pointers.getIntrusivePtr()),
    entry.columns = Handle(columns.getIntrusivePtr());
    entry.pointers_version = row_pointers._version(), entry.columns_version = columns._version();
    entry.rows_in = rows_in;
  }

 private:
  using Handle = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
  struct Entry {
    Handle row_pointers{at::Tensor().getIntrusivePtr()};
    Handle columns{at::Tensor().getIntrusivePtr()};
    int64_t pointers_version = 0, columns_version = 0, rows_in = -1;
  };

  // A weak pointer keeps the identity from being given to another tensor, even after its tensor has died.
  bool known(const at::Tensor& row_pointers, const at::Tensor& columns, int64_t rows_in) {
    const std::lock_guard<std::mutex> guard(mutex_);
    return std::any_of(entries_.begin(), entries_.end(), [&](const Entry& entry) {
      return entry.rows_in == rows_in &&
             entry.row_pointers._unsafe_get_target() == row_pointers.unsafeGetTensorImpl() &&
             entry.columns._unsafe_get_target() == columns.unsafeGetTensorImpl() &&
             entry.pointers_version == row_pointers._version() && entry.columns_version == columns._version();
    });
  }

  std::mutex mutex_;
  std::array<Entry, 32> entries_;
  size_t next_ = 0;
};

void check_values(const char* op, const at::Tensor& row_pointers, const at::Tensor& columns,
                  int64_t rows_in) {
  static CheckedWeights weights;
  weights.check(op, row_pointers, columns, rows_in);
}

// The weights, contiguous, and what describes them to the launcher.
struct Mixing {
  at::Tensor row_pointers, columns, values;
  GossipMixArguments arguments{};

  Mixing(const at::Tensor& local, const at::Tensor& row_pointers_, const at::Tensor& columns_,
         const at::Tensor& values_)
      : row_pointers(row_pointers_.contiguous()),
        columns(columns_.contiguous()),
        values(values_.contiguous()) {
    arguments.row_pointers = row_pointers.const_data_ptr<int64_t>();
    arguments.columns = columns.const_data_ptr<int64_t>();
    arguments.values = values.const_data_ptr();
    arguments.dtype = dtype_of(local);
    arguments.rows_in = local.size(0), arguments.rows_out = row_pointers.size(0) - 1;
    arguments.nonzeros = columns.size(0);
    arguments.local_stride = local.stride(0);
  }
};

}  // namespace

namespace {

// Fills the gradient of the loss, times `upstream` if that is defined, or the loss, or both.
void run_pairwise_kl(const at::Tensor& logits, const std::optional<at::Tensor>& mask, int64_t reduction,
                     const at::Tensor& upstream, const at::Tensor& loss, const at::Tensor& gradient) {
  PairwiseKlArguments a{};
  a.modalities = logits.size(-2), a.classes = logits.size(-1);
  a.samples = logits.numel() / (a.modalities * a.classes);
  at::Tensor source = logits;
  at::Tensor present = mask ? mask->expand(logits.sizes().slice(0, logits.dim() - 1)) : at::Tensor();
  at::Tensor target = gradient;
  if (!describe_samples(source, target, present, a)) {
    source = source.contiguous();
    if (present.defined()) present = present.contiguous();
    if (target.defined() && !target.is_contiguous()) target = at::empty_like(source);
    describe_samples(source, target, present, a);
  }

  at::Tensor partials;
  if (loss.defined() && reduction != reduction_none) {
    partials = at::empty({std::min(a.samples, kMaxPartials)}, logits.options().dtype(at::kDouble));
    a.partials = partials.mutable_data_ptr<double>();
  }
  a.logits = source.const_data_ptr();
  a.mask = present.defined() ? present.const_data_ptr<bool>() : nullptr;
  a.upstream = upstream.defined() ? upstream.const_data_ptr() : nullptr;
  a.gradient = target.defined() ? target.mutable_data_ptr() : nullptr;
  a.loss = loss.defined() ? loss.mutable_data_ptr() : nullptr;
  a.dtype = dtype_of(logits);
  a.reduction = static_cast<Reduction>(reduction);
  check_launch("pairwise_kl_similarity",
               dmmlkd_cuda_pairwise_kl(&a, device_index(logits.device()), current_stream(logits.device())));
  if (target.defined() && !target.is_same(gradient)) gradient.copy_(target);
}

bool compares_nothing(const at::Tensor& logits) { return logits.numel() == 0 || logits.size(-2) == 1; }

// The layout of the gradient is that of the CPU kernel's, for which torch.compile learns it.
at::Tensor empty_gradient(const at::Tensor& logits) {
  const bool rows_contiguous = logits.stride(-1) == 1 || logits.size(-1) == 1;
  return rows_contiguous ? at::empty_like(logits) : at::empty_like(logits, at::MemoryFormat::Contiguous);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> pairwise_kl_forward(const at::Tensor& logits,
                                                       const std::optional<at::Tensor>& mask,
                                                       int64_t reduction, bool with_gradient) {
  check_pairwise_kl(logits, mask, reduction);
  const c10::DeviceGuard guard(logits.device());
  const auto leading = logits.sizes().slice(0, logits.dim() - 2);
  const auto loss_shape = reduction == reduction_none ? leading : at::IntArrayRef();
  const at::Tensor none = at::empty({0}, logits.options());
  if (compares_nothing(logits))
    return {at::zeros(loss_shape, logits.options()), with_gradient ? at::zeros_like(logits) : none};
  const at::Tensor loss = at::empty(loss_shape, logits.options());
  const at::Tensor gradient = with_gradient ? empty_gradient(logits) : at::Tensor();
  run_pairwise_kl(logits, mask, reduction, at::Tensor(), loss, gradient);
  return {loss, with_gradient ? gradient : none};
}

at::Tensor pairwise_kl_backward(const at::Tensor& upstream, const at::Tensor& logits,
                                const std::optional<at::Tensor>& mask, int64_t reduction) {
  check_pairwise_kl(logits, mask, reduction);
  check_upstream(upstream, logits, reduction);
  const c10::DeviceGuard guard(logits.device());
  if (compares_nothing(logits)) return at::zeros_like(logits);
  const at::Tensor gradient = empty_gradient(logits);
  const auto compute = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  run_pairwise_kl(logits, mask, reduction, upstream.to(compute).contiguous(), at::Tensor(), gradient);
  return gradient;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> orthogonality_forward(const at::Tensor& common,
                                                                     const at::Tensor& specific,
                                                                     const std::optional<at::Tensor>& mask,
                                                                     bool normalize, int64_t reduction,
                                                                     bool with_common, bool with_specific) {
  const char* op = "orthogonality_difference";
  check_orthogonality(common, specific, mask, reduction);
  const c10::DeviceGuard guard(common.device());
  const auto leading = common.sizes().slice(0, common.dim() - 2);
  const auto loss_shape = reduction == reduction_none ? leading : at::IntArrayRef();
  const at::Tensor none = at::empty({0}, common.options());
  const auto like = [&](const at::Tensor& features, bool wanted) {
    return wanted ? at::empty(features.sizes(), features.options()) : none;
  };
  if (common.numel() == 0)
    return {at::zeros(loss_shape, common.options()), like(common, with_common).zero_(),
            like(specific, with_specific).zero_()};

  OrthogonalityArguments a{};
  a.dtype = dtype_of(common);
  a.reduction = static_cast<Reduction>(reduction);
  a.problems = c10::multiply_integers(leading);
  a.scale = reduction == reduction_mean ? 1.0 / static_cast<double>(a.problems) : 1.0;
  const int64_t most = std::numeric_limits<int>::max();
  a.samples = static_cast<int>(std::min(common.size(-2), most));
  a.common_features = static_cast<int>(std::min(common.size(-1), most));
  a.specific_features = static_cast<int>(std::min(specific.size(-1), most));
  a.normalize = normalize;
  const int index = device_index(common.device());
  int64_t products = 0;
  bool fits = false;
  check_launch(op, dmmlkd_cuda_orthogonality_plan(&a, index, &fits, &products));
  const auto type = common.scalar_type(), compute = type == at::kDouble ? at::kDouble : at::kFloat;
  if (!fits) {
    const auto [loss, first, second] = orthogonality_by_library(
        common.to(compute), specific.to(compute), mask, normalize, reduction, with_common, with_specific);
    return {loss.to(type), first.to(type), second.to(type)};
  }

  const at::Tensor h = common.contiguous(), s = specific.contiguous();
  const at::Tensor present =
      mask ? mask->expand(common.sizes().slice(0, common.dim() - 1)).contiguous() : at::Tensor();
  const at::Tensor loss = at::empty(loss_shape, common.options());
  const at::Tensor first = like(common, with_common), second = like(specific, with_specific);
  const at::Tensor sums =
      at::empty({reduction == reduction_none ? 0 : a.problems}, common.options().dtype(at::kDouble));
  const at::Tensor shares = at::empty({products}, common.options().dtype(compute));
  a.common = h.const_data_ptr(), a.specific = s.const_data_ptr();
  a.mask = present.defined() ? present.const_data_ptr<bool>() : nullptr;
  a.common_gradient = with_common ? first.mutable_data_ptr() : nullptr;
  a.specific_gradient = with_specific ? second.mutable_data_ptr() : nullptr;
  a.loss = loss.mutable_data_ptr();
  a.partials = sums.mutable_data_ptr<double>(), a.products = shares.mutable_data_ptr();
  check_launch(op, dmmlkd_cuda_orthogonality(&a, index, current_stream(common.device())));
  return {loss, first, second};
}

at::Tensor gossip_mix_(const at::Tensor& local, const at::Tensor& row_pointers, const at::Tensor& columns,
                       const at::Tensor& values, at::Tensor& out, int64_t column_begin, int64_t column_end,
                       bool measure) {
  const char* op = "gossip_mix";
  check_weights(op, local, row_pointers, columns, values);
  check_gossip_out(op, local, row_pointers, out, column_begin, column_end, measure);
  TORCH_CHECK_VALUE(!rows_share_memory(local, out),
                    "gossip_mix: out must not share memory with local, unless it is local itself");
  const c10::DeviceGuard guard(local.device());
  check_values(op, row_pointers, columns, local.size(0));

  const at::Tensor norms = at::empty({measure ? 2 : 0, out.size(0)}, local.options().dtype(at::kDouble));
  if (out.size(0) == 0 || column_begin == column_end) return norms.zero_();
  Mixing mixing(local, row_pointers, columns, values);
  GossipMixArguments& a = mixing.arguments;
  a.local = local.const_data_ptr();
  a.out = out.mutable_data_ptr();
  a.out_stride = out.stride(0);
  a.column_begin = column_begin, a.column_end = column_end;
  const int index = device_index(local.device());
  at::Tensor partials;
  if (measure) {
    int64_t count = 0;
    bool staged = false;
    check_launch(op, dmmlkd_cuda_gossip_mix_partials(&a, index, &count, &staged));
    partials = at::empty({count}, norms.options());
    a.partials = partials.mutable_data_ptr<double>();
    a.norms = norms.mutable_data_ptr<double>();
  }
  check_launch(op, dmmlkd_cuda_gossip_mix(&a, index, current_stream(local.device())));
  return norms;
}

void gossip_mix_inplace_(at::Tensor& local, const at::Tensor& row_pointers, const at::Tensor& columns,
                         const at::Tensor& values, int64_t column_begin, int64_t column_end) {
  const char* op = "gossip_mix";
  check_weights(op, local, row_pointers, columns, values);
  check_gossip_out(op, local, row_pointers, local, column_begin, column_end, false);
  const c10::DeviceGuard guard(local.device());
  check_values(op, row_pointers, columns, local.size(0));
  if (local.size(0) == 0 || column_begin == column_end) return;

  Mixing mixing(local, row_pointers, columns, values);
  GossipMixArguments& a = mixing.arguments;
  a.local = a.out = local.mutable_data_ptr();
  a.out_stride = local.stride(0);
  a.column_begin = column_begin, a.column_end = column_end;
  const int index = device_index(local.device());
  void* stream = current_stream(local.device());
  int64_t count = 0;
  bool staged = false;
  check_launch(op, dmmlkd_cuda_gossip_mix_partials(&a, index, &count, &staged));
  if (staged) {
    check_launch(op, dmmlkd_cuda_gossip_mix(&a, index, stream));
    return;
  }
  const int64_t fitting = kScratchBytes / (local.size(0) * local.element_size());
  const int64_t width = std::max<int64_t>(kScratchColumns, fitting / kScratchColumns * kScratchColumns);
  for (int64_t begin = column_begin; begin < column_end; begin += width) {
    const int64_t size = std::min(width, column_end - begin);
    const at::Tensor scratch = local.narrow(1, begin, size).clone(at::MemoryFormat::Contiguous);
    a.local = scratch.const_data_ptr();
    a.local_stride = scratch.stride(0);
    a.out = static_cast<char*>(local.mutable_data_ptr()) + begin * local.element_size();
    a.column_begin = 0, a.column_end = size;
    check_launch(op, dmmlkd_cuda_gossip_mix(&a, index, stream));
  }
}

#ifndef DMMLKD_EMULATION
TORCH_LIBRARY_IMPL(dmmlkd, CUDA, m) {
  m.impl("orthogonality_forward", orthogonality_forward);
  m.impl("pairwise_kl_backward", pairwise_kl_backward);
  m.impl("pairwise_kl_forward", pairwise_kl_forward);
  m.impl("gossip_mix_", gossip_mix_);
  m.impl("gossip_mix_inplace_", gossip_mix_inplace_);
}
#endif

}  // namespace dmmlkd::cuda

// Read by native.py before it uses the library.
extern "C" __attribute__((visibility("default"))) int dmmlkd_cuda_interface() {
  return dmmlkd::interface_number;
}
