// The one place where arguments of the operators are checked. Each message names the argument, what it got
// and what it needs. Shapes that torch.compile left symbolic pass through: only what is read here is fixed.
#pragma once

#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <utility>
#include <vector>

namespace dmmlkd {

enum Reduction : int64_t { reduction_none = 0, reduction_mean = 1, reduction_sum = 2 };

inline void check_floating(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(at::isFloatingType(tensor.scalar_type()) && tensor.scalar_type() != at::kFloat8_e4m3fn &&
                        tensor.scalar_type() != at::kFloat8_e5m2,
                    op, ": ", name, " must be float16, bfloat16, float32 or float64, got ",
                    tensor.scalar_type());
}

inline void check_mask(const char* op, const at::Tensor& mask, c10::SymIntArrayRef shape,
                       const char* meaning) {
  TORCH_CHECK_VALUE(mask.scalar_type() == at::kBool, op, ": mask must be bool, got ", mask.scalar_type());
  const auto sizes = mask.sym_sizes();
  bool fits = sizes.size() <= shape.size();
  for (size_t i = 1; fits && i <= sizes.size(); ++i)
    fits = sizes[sizes.size() - i] == 1 || sizes[sizes.size() - i] == shape[shape.size() - i];
  TORCH_CHECK_VALUE(fits, op, ": mask must broadcast to ", shape, " (", meaning, "), got ", sizes);
}

inline void check_reduction(const char* op, int64_t reduction) {
  TORCH_CHECK_VALUE(reduction >= reduction_none && reduction <= reduction_sum, op,
                    ": reduction must be 0 (none), 1 (mean) or 2 (sum), got ", reduction);
}

inline void check_pairwise_kl(const at::Tensor& logits, const std::optional<at::Tensor>& mask,
                              int64_t reduction) {
  const char* op = "pairwise_kl_similarity";
  check_floating(op, "logits", logits);
  TORCH_CHECK_VALUE(logits.dim() >= 2, op, ": logits must have shape [..., modalities, classes], got ",
                    logits.sym_sizes());
  TORCH_CHECK_VALUE(logits.sym_size(-2) >= 1 && logits.sym_size(-1) >= 1, op,
                    ": logits must hold at least one modality and one class, got shape ", logits.sym_sizes());
  check_reduction(op, reduction);
  if (!mask) return;
  check_mask(op, *mask, logits.sym_sizes().slice(0, logits.dim() - 1), "[..., modalities] of logits");
  TORCH_CHECK_VALUE(mask->device() == logits.device(), op, ": mask must be on ", logits.device(),
                    " like logits, got ", mask->device());
}

inline void check_orthogonality(const at::Tensor& common, const at::Tensor& specific,
                                const std::optional<at::Tensor>& mask, int64_t reduction) {
  const char* op = "orthogonality_difference";
  check_floating(op, "common", common);
  TORCH_CHECK_VALUE(common.dim() >= 2, op, ": common must have shape [..., samples, features], got ",
                    common.sym_sizes());
  TORCH_CHECK_VALUE(common.dim() == specific.dim() && common.sym_sizes().slice(0, common.dim() - 1) ==
                                                          specific.sym_sizes().slice(0, common.dim() - 1),
                    op, ": specific must have the leading shape of common, ", common.sym_sizes(), ", got ",
                    specific.sym_sizes());
  TORCH_CHECK_VALUE(common.scalar_type() == specific.scalar_type() && common.device() == specific.device(),
                    op, ": specific must have the dtype and device of common, ", common.scalar_type(), " on ",
                    common.device(), ", got ", specific.scalar_type(), " on ", specific.device());
  TORCH_CHECK_VALUE(common.sym_size(-1) >= 1 && specific.sym_size(-1) >= 1, op,
                    ": common and specific must hold at least one feature, got shapes ", common.sym_sizes(),
                    " and ", specific.sym_sizes());
  check_reduction(op, reduction);
  if (!mask) return;
  check_mask(op, *mask, common.sym_sizes().slice(0, common.dim() - 1), "[..., samples] of common");
  TORCH_CHECK_VALUE(mask->device() == common.device(), op, ": mask must be on ", common.device(),
                    " like common, got ", mask->device());
}

// Types and sizes of the compressed rows; their values are checked by check_compressed_rows, on a CPU.
inline void check_weights(const char* op, const at::Tensor& local, const at::Tensor& row_pointers,
                          const at::Tensor& columns, const at::Tensor& values) {
  check_floating(op, "local", local);
  TORCH_CHECK_VALUE(local.dim() == 2, op, ": local must have shape [rows, parameters], got ",
                    local.sym_sizes());
  TORCH_CHECK_VALUE(
      row_pointers.scalar_type() == at::kLong && row_pointers.dim() == 1 && row_pointers.sym_size(0) >= 1, op,
      ": row_pointers must be int64 of shape [rows + 1], got ", row_pointers.scalar_type(), " of shape ",
      row_pointers.sym_sizes());
  TORCH_CHECK_VALUE(columns.scalar_type() == at::kLong && columns.dim() == 1, op,
                    ": columns must be int64 of shape [nonzeros], got ", columns.scalar_type(), " of shape ",
                    columns.sym_sizes());
  const auto wanted = local.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_VALUE(values.scalar_type() == wanted && values.sym_sizes() == columns.sym_sizes(), op,
                    ": values must be ", wanted, " for local of ", local.scalar_type(),
                    ", of the shape of columns ", columns.sym_sizes(), ", got ", values.scalar_type(),
                    " of shape ", values.sym_sizes());
  for (const auto* tensor : {&row_pointers, &columns, &values})
    TORCH_CHECK_VALUE(tensor->device() == local.device(), op, ": the weights must be on ", local.device(),
                      " like local, got ", tensor->device());
}

// Refuses weights that would read outside of `rows_in` rows; reads host memory.
inline void check_compressed_rows(const char* op, const int64_t* row_pointers, int64_t rows_out,
                                  const int64_t* columns, int64_t nonzeros, int64_t rows_in) {
  TORCH_CHECK_VALUE(row_pointers[0] == 0 && row_pointers[rows_out] == nonzeros, op,
                    ": row_pointers must begin with 0 and end with the number of nonzeros, ", nonzeros,
                    ", got ", row_pointers[0], " and ", row_pointers[rows_out]);
  for (int64_t row = 0; row < rows_out; ++row)
    TORCH_CHECK_VALUE(row_pointers[row] <= row_pointers[row + 1], op,
                      ": row_pointers must not decrease, got ", row_pointers[row], " before ",
                      row_pointers[row + 1], " at row ", row);
  for (int64_t i = 0; i < nonzeros; ++i)
    TORCH_CHECK_VALUE(columns[i] >= 0 && columns[i] < rows_in, op, ": columns must be in [0, ", rows_in,
                      "), the rows of local, got ", columns[i], " at position ", i);
}

// Whether two matrices with contiguous rows share memory: exact where their rows lie at one distance, as
// blocks of columns of a wider matrix do; else whether their address ranges meet.
inline bool rows_share_memory(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const int64_t bytes = a.element_size(), width = a.size(1) * bytes;
  const int64_t offset =
      static_cast<const char*>(b.const_data_ptr()) - static_cast<const char*>(a.const_data_ptr());
  const int64_t a_length = (a.size(0) - 1) * a.stride(0) * bytes,
                b_length = (b.size(0) - 1) * b.stride(0) * bytes;
  if (offset >= a_length + width || -offset >= b_length + width) return false;
  const int64_t stride = (a.size(0) > 1 ? a : b).stride(0) * bytes;
  if (stride == 0 || (a.size(0) > 1 && b.size(0) > 1 && a.stride(0) != b.stride(0))) return true;
  // Row i of a and row j of b begin offset + (j - i) stride apart; the closest pair decides.
  const auto apart = [&](int64_t rows) {
    return std::abs(offset + std::clamp<int64_t>(rows, 1 - a.size(0), b.size(0) - 1) * stride);
  };
  return std::min(apart(-offset / stride),
                  std::min(apart(-offset / stride - 1), apart(-offset / stride + 1))) < width;
}

inline void check_gossip_out(const char* op, const at::Tensor& local, const at::Tensor& row_pointers,
                             const at::Tensor& out, int64_t column_begin, int64_t column_end, bool measure) {
  TORCH_CHECK_VALUE(out.scalar_type() == local.scalar_type() && out.device() == local.device(), op,
                    ": out must have the dtype and device of local, ", local.scalar_type(), " on ",
                    local.device(), ", got ", out.scalar_type(), " on ", out.device());
  TORCH_CHECK_VALUE(out.dim() == 2 && out.sym_size(1) == local.sym_size(1) &&
                        out.sym_size(0) == row_pointers.sym_size(0) - 1,
                    op, ": out must have shape [rows of the weights, columns of local] = [",
                    row_pointers.sym_size(0) - 1, ", ", local.sym_size(1), "], got ", out.sym_sizes());
  TORCH_CHECK_VALUE((local.sym_stride(1) == 1 || local.sym_size(1) <= 1) &&
                        (out.sym_stride(1) == 1 || out.sym_size(1) <= 1),
                    op, ": local and out must be contiguous in their rows, got strides ", local.sym_strides(),
                    " and ", out.sym_strides());
  TORCH_CHECK_VALUE(0 <= column_begin && column_begin <= column_end && column_end <= local.sym_size(1), op,
                    ": the column range must lie in [0, ", local.sym_size(1), "], got [", column_begin, ", ",
                    column_end, ")");
  TORCH_CHECK_VALUE(out.sym_size(0) <= 1 || out.sym_stride(0) >= out.sym_size(1), op,
                    ": the rows of out must not overlap, got strides ", out.sym_strides());
  TORCH_CHECK_VALUE(!measure || local.sym_size(0) >= out.sym_size(0), op,
                    ": to measure, local must hold a row for each row of out, ", out.sym_size(0), ", got ",
                    local.sym_size(0));
}

inline void check_real(const char* op, const char* name, const at::Tensor& tensor, at::ScalarType type,
                       at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == type && tensor.sizes() == shape, op, ": ", name, " must be ",
                    type, " of shape ", shape, ", got ", tensor.scalar_type(), " of shape ", tensor.sizes());
}

// Whether the values of each device lie side by side, as they do in a view of a row of parameters.
inline bool rows_are_contiguous(const at::Tensor& tensor) {
  int64_t stride = 1;
  for (int64_t dim = tensor.dim() - 1; dim > 0; --dim) {
    if (tensor.size(dim) != 1 && tensor.stride(dim) != stride) return false;
    stride *= tensor.size(dim);
  }
  return true;
}

inline void check_written(const char* op, const char* name, const at::Tensor& tensor, at::ScalarType type,
                          at::IntArrayRef shape) {
  check_real(op, name, tensor, type, shape);
  TORCH_CHECK_VALUE(rows_are_contiguous(tensor), op, ": ", name,
                    " must be contiguous in each device, got strides ", tensor.strides());
}

// Rows that are written must lie apart from each other, and from what is read or written beside them.
inline void check_apart(const char* op, size_t block, const at::Tensor& parameters, const char* name,
                        const at::Tensor& other) {
  TORCH_CHECK_VALUE(parameters.size(0) <= 1 || parameters.stride(0) >= parameters.size(1), op,
                    ": rows of parameters must not overlap, those of block ", block, " do: strides ",
                    parameters.strides());
  TORCH_CHECK_VALUE(other.size(0) <= 1 || other.stride(0) >= other.size(1), op, ": rows of ", name,
                    " must not overlap, those of block ", block, " do: strides ", other.strides());
  const auto status = at::get_overlap_status(parameters, other);
  TORCH_CHECK_VALUE(status != at::MemOverlapStatus::Full && status != at::MemOverlapStatus::Partial, op, ": ",
                    name, " must not share memory with parameters, those of block ", block, " do");
}

// Rows of some blocks, of the same floating type. Returns how many rows and columns there are in all.
inline std::pair<int64_t, int64_t> check_blocks(const char* op, at::TensorList blocks) {
  const auto type = blocks[0].scalar_type();
  int64_t rows = 0, columns = 0;
  for (const at::Tensor& block : blocks) {
    TORCH_CHECK_VALUE(
        block.dim() == 2 && block.scalar_type() == type && (type == at::kFloat || type == at::kDouble), op,
        ": blocks must be all float32 or all float64 of shape [rows, columns], got ", block.scalar_type(),
        " of shape ", block.sizes());
    check_written(op, "blocks", block, type, block.sizes());
    rows += block.size(0), columns += block.size(1);
  }
  return {rows, columns};
}

// Rows of some blocks, of the same floating type; positions say which device a row belongs to.
inline void check_sgd_step(at::TensorList parameters, at::TensorList momenta, at::TensorList gradients,
                           at::TensorList positions, int64_t devices) {
  const char* op = "sgd_step";
  const size_t blocks = parameters.size();
  TORCH_CHECK_VALUE(
      momenta.size() == blocks && gradients.size() == blocks && positions.size() == blocks && devices >= 0,
      op, ": parameters, momenta, gradients and positions must hold one tensor a block, got ", blocks, ", ",
      momenta.size(), ", ", gradients.size(), " and ", positions.size(), ", for ", devices, " devices");
  for (size_t block = 0; block < blocks; ++block) {
    const at::Tensor& own = parameters[block];
    TORCH_CHECK_VALUE(own.dim() == 2 && own.scalar_type() == parameters[0].scalar_type() &&
                          (own.scalar_type() == at::kFloat || own.scalar_type() == at::kDouble),
                      op, ": parameters must be all float32 or all float64 of shape [rows, columns], got ",
                      own.scalar_type(), " of shape ", own.sizes());
    check_real(op, "momenta", momenta[block], own.scalar_type(), own.sizes());
    check_real(op, "gradients", gradients[block], own.scalar_type(), own.sizes());
    check_real(op, "positions", positions[block], at::kLong, {own.size(0)});
    for (const at::Tensor& rows : {own, momenta[block], gradients[block]})
      TORCH_CHECK_VALUE(rows.size(1) <= 1 || rows.stride(1) == 1, op,
                        ": rows must be contiguous, got strides ", rows.strides());
  }
}

// Layers of all devices on top of each other: the first of them with a bias, the first `rectified` rectified.
inline void check_linear_layers(const at::Tensor& inputs, at::TensorList weights, at::TensorList biases,
                                int64_t rectified) {
  const char* op = "linear_layers";
  const auto type = inputs.scalar_type();
  TORCH_CHECK_VALUE(inputs.dim() == 3 && (type == at::kFloat || type == at::kDouble), op,
                    ": inputs must be float32 or float64 of shape [devices, samples, in], got ", type,
                    " of shape ", inputs.sizes());
  TORCH_CHECK_VALUE(!weights.empty() && biases.size() <= weights.size(), op,
                    ": weights must hold at least one layer, and biases no more than those, got ",
                    weights.size(), " and ", biases.size());
  TORCH_CHECK_VALUE(rectified >= 0 && rectified <= static_cast<int64_t>(weights.size()), op,
                    ": rectified must be in [0, ", weights.size(), "], got ", rectified);
  int64_t width = inputs.size(2);
  for (size_t i = 0; i < weights.size(); ++i) {
    const at::Tensor& weight = weights[i];
    TORCH_CHECK_VALUE(weight.dim() == 3 && weight.scalar_type() == type && weight.size(0) == inputs.size(0) &&
                          weight.size(1) == width,
                      op, ": weights of layer ", i, " must be ", type, " of shape [", inputs.size(0), ", ",
                      width, ", out], got ", weight.scalar_type(), " of shape ", weight.sizes());
    width = weight.size(2);
    if (i < biases.size()) check_real(op, "biases", biases[i], type, {inputs.size(0), width});
  }
}

inline void check_linear_layers_gradients(const at::Tensor& upstream, const at::Tensor& inputs,
                                          at::TensorList weights, at::TensorList outputs,
                                          at::TensorList weight_gradients, at::TensorList bias_gradients) {
  const char* op = "linear_layers";
  TORCH_CHECK_VALUE(outputs.size() == weights.size() && weight_gradients.size() == weights.size() &&
                        bias_gradients.size() <= weights.size(),
                    op, ": outputs and weight_gradients must hold one tensor a layer = ", weights.size(),
                    ", bias_gradients no more than those, got ", outputs.size(), ", ",
                    weight_gradients.size(), " and ", bias_gradients.size());
  const auto type = inputs.scalar_type();
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t made[] = {inputs.size(0), inputs.size(1), weights[i].size(2)};
    check_real(op, "outputs", outputs[i], type, made);
    if (i + 1 == weights.size()) check_real(op, "upstream", upstream, type, made);
    check_written(op, "weight_gradients", weight_gradients[i], type, weights[i].sizes());
    if (i < bias_gradients.size())
      check_written(op, "bias_gradients", bias_gradients[i], type, {inputs.size(0), weights[i].size(2)});
  }
}

inline void check_objective(at::TensorList features, at::TensorList heads, at::TensorList positions,
                            const at::Tensor& shared_head, const at::Tensor& labels,
                            const at::Tensor& present, at::ArrayRef<double> weights,
                            at::TensorList head_gradients, const at::Tensor& shared_head_gradient) {
  const char* op = "objective";
  const auto type = shared_head.scalar_type();
  TORCH_CHECK_VALUE(shared_head.dim() == 3 && (type == at::kFloat || type == at::kDouble) &&
                        rows_are_contiguous(shared_head),
                    op, ": shared_head must be float32 or float64 of shape [devices, width, classes], got ",
                    type, " of shape ", shared_head.sizes());
  TORCH_CHECK_VALUE(
      labels.dim() == 2 && labels.scalar_type() == at::kLong && labels.size(0) == shared_head.size(0), op,
      ": labels must be int64 of shape [", shared_head.size(0), ", batch], got ", labels.scalar_type(),
      " of shape ", labels.sizes());
  const size_t modalities = features.size();
  TORCH_CHECK_VALUE(modalities > 0 && heads.size() == modalities && positions.size() == modalities &&
                        head_gradients.size() == modalities,
                    op,
                    ": features, heads, positions and head_gradients must hold one tensor a modality, got ",
                    modalities, ", ", heads.size(), ", ", positions.size(), " and ", head_gradients.size());
  TORCH_CHECK_VALUE(weights.size() == 5, op, ": weights must be 5 numbers, got ", weights.size());
  check_real(op, "present", present, at::kBool,
             {labels.size(0), labels.size(1), static_cast<int64_t>(modalities)});
  check_written(op, "shared_head_gradient", shared_head_gradient, type, shared_head.sizes());
  for (size_t m = 0; m < modalities; ++m) {
    TORCH_CHECK_VALUE(positions[m].dim() == 1 && positions[m].scalar_type() == at::kLong, op,
                      ": positions must be int64 of shape [devices], got ", positions[m].scalar_type(),
                      " of shape ", positions[m].sizes());
    const int64_t devices = positions[m].size(0),
                  head[] = {devices, shared_head.size(1), shared_head.size(2)};
    check_real(op, "features", features[m], type, {devices, labels.size(1), 2 * shared_head.size(1)});
    check_written(op, "heads", heads[m], type, head);
    check_written(op, "head_gradients", head_gradients[m], type, head);
  }
}

inline void check_objective_guidance(
    const at::Tensor& shared_head, const at::Tensor& labels, const std::optional<at::Tensor>& waiting_logits,
    const std::optional<at::Tensor>& waiting_count, const std::optional<at::Tensor>& target,
    const std::optional<at::Tensor>& known, const std::optional<at::Tensor>& rehearsal,
    const std::optional<at::Tensor>& rehearsal_labels, const std::optional<at::Tensor>& rehearsal_known) {
  const char* op = "objective";
  const auto type = shared_head.scalar_type();
  const int64_t devices = labels.size(0), samples = labels.size(1), width = shared_head.size(1);
  TORCH_CHECK_VALUE(waiting_logits.has_value() == waiting_count.has_value(), op,
                    ": waiting_logits and waiting_count must be given together");
  TORCH_CHECK_VALUE(target.has_value() == known.has_value(), op, ": target and known must be given together");
  TORCH_CHECK_VALUE(rehearsal.has_value() == rehearsal_labels.has_value() &&
                        rehearsal.has_value() == rehearsal_known.has_value(),
                    op, ": rehearsal, rehearsal_labels and rehearsal_known must be given together");
  if (waiting_logits) {
    check_real(op, "waiting_logits", *waiting_logits, type, {devices, samples, shared_head.size(2)});
    check_real(op, "waiting_count", *waiting_count, at::kLong, {devices, samples});
  }
  if (target) {
    check_real(op, "target", *target, type, {devices, samples, width});
    check_real(op, "known", *known, at::kBool, {devices, samples});
  }
  if (rehearsal) {
    TORCH_CHECK_VALUE(rehearsal->dim() == 3, op, ": rehearsal must have shape [devices, n, width], got ",
                      rehearsal->sizes());
    check_real(op, "rehearsal", *rehearsal, type, {devices, rehearsal->size(1), width});
    check_real(op, "rehearsal_labels", *rehearsal_labels, at::kLong, {rehearsal->size(1)});
    check_real(op, "rehearsal_known", *rehearsal_known, at::kBool, {devices, rehearsal->size(1)});
  }
}

// Refuses numbers that would index outside of [0, end); reads host memory.
inline void check_range(const char* op, const char* name, const int64_t* numbers, int64_t count,
                        int64_t end) {
  for (int64_t i = 0; i < count; ++i)
    TORCH_CHECK_VALUE(numbers[i] >= 0 && numbers[i] < end, op, ": ", name, " must be in [0, ", end, "), got ",
                      numbers[i], " at position ", i);
}
inline void check_range(const char* op, const char* name, const at::Tensor& numbers, int64_t end) {
  check_range(op, name, numbers.const_data_ptr<int64_t>(), numbers.numel(), end);
}

// Inputs [devices, samples, *space, channels] of one or two dimensions, weight [devices, window * channels,
// out].
inline void check_convolution(const at::Tensor& inputs, const at::Tensor& weight, int64_t kernel,
                              int64_t stride) {
  const char* op = "convolve";
  TORCH_CHECK_VALUE((inputs.dim() == 4 || inputs.dim() == 5) &&
                        (inputs.scalar_type() == at::kFloat || inputs.scalar_type() == at::kDouble),
                    op, ": inputs must be float32 or float64 of shape [devices, samples, *space, channels] ",
                    "with one or two dimensions of space, got ", inputs.scalar_type(), " of shape ",
                    inputs.sym_sizes());
  TORCH_CHECK_VALUE(kernel >= 1 && kernel % 2 == 1 && kernel <= 1024, op,
                    ": kernel must be odd and in [1, 1023], got ", kernel);
  TORCH_CHECK_VALUE(stride >= 1 && stride <= 1024, op, ": stride must be in [1, 1024], got ", stride);
  TORCH_CHECK_VALUE(inputs.sym_size(-1) >= 1, op, ": inputs must have at least one channel, got shape ",
                    inputs.sym_sizes());
  const auto fan_in = inputs.sym_size(-1) * (inputs.dim() == 5 ? kernel * kernel : kernel);
  TORCH_CHECK_VALUE(weight.dim() == 3 && weight.scalar_type() == inputs.scalar_type() &&
                        weight.device() == inputs.device() && weight.sym_size(0) == inputs.sym_size(0) &&
                        weight.sym_size(1) == fan_in,
                    op, ": weight must be ", inputs.scalar_type(), " on ", inputs.device(),
                    " of shape [devices, window * channels, out] = [", inputs.sym_size(0), ", ", fan_in,
                    ", out], got ", weight.scalar_type(), " on ", weight.device(), " of shape ",
                    weight.sym_sizes());
}

inline void check_convolution_bias(const at::Tensor& weight, const at::Tensor& bias) {
  TORCH_CHECK_VALUE(bias.dim() == 2 && bias.scalar_type() == weight.scalar_type() &&
                        bias.device() == weight.device() && bias.sym_size(0) == weight.sym_size(0) &&
                        bias.sym_size(1) == weight.sym_size(2),
                    "convolve: bias must be ", weight.scalar_type(), " on ", weight.device(), " of shape [",
                    weight.sym_size(0), ", ", weight.sym_size(2), "], got ", bias.scalar_type(), " on ",
                    bias.device(), " of shape ", bias.sym_sizes());
}

inline std::vector<int64_t> convolution_shape(const at::Tensor& inputs, const at::Tensor& weight,
                                              int64_t stride) {
  std::vector<int64_t> shape = inputs.sizes().vec();
  for (size_t i = 2; i + 1 < shape.size(); ++i) shape[i] = (shape[i] + stride - 1) / stride;
  shape.back() = weight.size(2);
  return shape;
}

inline void check_convolution_outputs(const char* name, const at::Tensor& tensor, const at::Tensor& inputs,
                                      const at::Tensor& weight, int64_t stride) {
  const std::vector<int64_t> shape = convolution_shape(inputs, weight, stride);
  TORCH_CHECK_VALUE(tensor.sizes() == at::IntArrayRef(shape) &&
                        tensor.scalar_type() == inputs.scalar_type() && tensor.device() == inputs.device(),
                    "convolve_backward: ", name, " must be ", inputs.scalar_type(), " on ", inputs.device(),
                    " of shape ", at::IntArrayRef(shape), ", got ", tensor.scalar_type(), " on ",
                    tensor.device(), " of shape ", tensor.sizes());
}

// One tensor a layer in each list.
inline void check_convolution_list(const char* name, at::TensorList tensors, at::TensorList weights) {
  TORCH_CHECK_VALUE(!weights.empty(), "convolve_layers: weights must hold at least one layer, got none");
  TORCH_CHECK_VALUE(tensors.size() == weights.size(), "convolve_layers: ", name,
                    " must hold one tensor a layer = ", weights.size(), ", got ", tensors.size());
}

inline void check_gather_samples(const at::Tensor& values, const at::Tensor& indices,
                                 const at::Tensor& devices, const std::optional<at::Tensor>& noise,
                                 const std::optional<at::Tensor>& offsets) {
  const char* op = "gather_samples";
  const auto type = values.scalar_type();
  TORCH_CHECK_VALUE(values.dim() >= 1 && (type == at::kFloat || type == at::kDouble), op,
                    ": values must be float32 or float64 of shape [samples, ...], got ", type, " of shape ",
                    values.sizes());
  TORCH_CHECK_VALUE(indices.dim() == 2 && indices.scalar_type() == at::kLong, op,
                    ": indices must be int64 of shape [devices, batch], got ", indices.scalar_type(),
                    " of shape ", indices.sizes());
  TORCH_CHECK_VALUE(devices.dim() == 1 && devices.scalar_type() == at::kLong, op,
                    ": devices must be int64 of shape [n], got ", devices.scalar_type(), " of shape ",
                    devices.sizes());
  TORCH_CHECK_VALUE(noise.has_value() == offsets.has_value(), op,
                    ": noise and offsets must be given together");
  if (!noise) return;
  check_real(op, "offsets", *offsets, at::kLong, {indices.size(0)});
  const int64_t read = indices.size(1) * c10::multiply_integers(values.sizes().slice(1));
  TORCH_CHECK_VALUE(noise->dim() == 1 && noise->scalar_type() == type && noise->size(0) >= read, op,
                    ": noise must be ", type, " of shape [at least ", read, "], got ", noise->scalar_type(),
                    " of shape ", noise->sizes());
}

inline void check_class_moments(const at::Tensor& features, const at::Tensor& labels,
                                const at::Tensor& present, const at::Tensor& devices, const at::Tensor& count,
                                const at::Tensor& sum, const at::Tensor& product) {
  const char* op = "class_moments";
  const auto type = features.scalar_type();
  TORCH_CHECK_VALUE(features.dim() == 3 && (type == at::kFloat || type == at::kDouble), op,
                    ": features must be float32 or float64 of shape [n, samples, width], got ", type,
                    " of shape ", features.sizes());
  check_real(op, "labels", labels, at::kLong, {features.size(0), features.size(1)});
  check_real(op, "present", present, at::kBool, {features.size(0), features.size(1)});
  check_real(op, "devices", devices, at::kLong, {features.size(0)});
  TORCH_CHECK_VALUE(count.dim() == 2, op, ": count must have shape [devices, classes], got ", count.sizes());
  const int64_t width = features.size(2), shape[] = {count.size(0), count.size(1), width, width};
  check_written(op, "count", count, type, count.sizes());
  check_written(op, "sum", sum, type, {shape, 3});
  check_written(op, "product", product, type, {shape, product.dim() == 4 ? size_t(4) : size_t(3)});
}

// The shared block, then one a modality; devices say whose the rows are.
inline void check_device_blocks(const char* op, at::TensorList parameters, at::TensorList devices,
                                at::TensorList values, int64_t classes) {
  const size_t blocks = parameters.size();
  TORCH_CHECK_VALUE(
      blocks >= 2 && devices.size() == blocks && values.size() + 1 == blocks, op,
      ": parameters and devices must hold the shared block and one a modality, values one tensor a "
      "modality, got ",
      blocks, ", ", devices.size(), " and ", values.size());
  const auto type = parameters[0].scalar_type();
  for (size_t block = 0; block < blocks; ++block) {
    const at::Tensor& own = parameters[block];
    TORCH_CHECK_VALUE(
        own.dim() == 2 && own.scalar_type() == type && (type == at::kFloat || type == at::kDouble), op,
        ": parameters must be all float32 or all float64 of shape [rows, columns], got ", own.scalar_type(),
        " of shape ", own.sizes());
    check_real(op, "devices", devices[block], at::kLong, {own.size(0)});
    check_written(op, "parameters", own, type, own.sizes());
  }
  TORCH_CHECK_VALUE(classes >= 1 && parameters[0].size(1) >= classes && parameters[0].size(1) % classes == 0,
                    op, ": classes must divide the columns of the shared block, ", parameters[0].size(1),
                    ", got ", classes);
}

inline void check_encoders(const char* op, at::TensorList values, at::ArrayRef<int64_t> kernels,
                           at::ArrayRef<int64_t> strides, at::ArrayRef<int64_t> layers,
                           at::ArrayRef<int64_t> widths) {
  TORCH_CHECK_VALUE(
      kernels.size() == values.size() && strides.size() == values.size() && layers.size() == values.size(),
      op, ": kernels, strides and layers must hold one number a modality = ", values.size(), ", got ",
      kernels.size(), ", ", strides.size(), " and ", layers.size());
  int64_t all = 0;
  for (size_t m = 0; m < values.size(); ++m) {
    const int64_t space = values[m].dim() - 2;
    TORCH_CHECK_VALUE(kernels[m] == 0 ? space == 0
                                      : kernels[m] % 2 == 1 && kernels[m] < 1024 && kernels[m] > 0 &&
                                            (space == 1 || space == 2),
                      op, ": kernels must be 0 for values [samples, features], odd and at most 1023 for ",
                      "[samples, channels, *space] with one or two dimensions of space, got ", kernels[m],
                      " for shape ", values[m].sizes());
    TORCH_CHECK_VALUE(strides[m] >= 1 && strides[m] <= 1024, op, ": strides must be in [1, 1024], got ",
                      strides[m]);
    TORCH_CHECK_VALUE(layers[m] >= 1, op, ": layers must be at least 1, got ", layers[m]);
    all += layers[m];
  }
  TORCH_CHECK_VALUE(all == static_cast<int64_t>(widths.size()), op,
                    ": widths must hold one number a layer = ", all, ", got ", widths.size());
  for (const int64_t width : widths)
    TORCH_CHECK_VALUE(width >= 1, op, ": widths must be at least 1, got ", width);
}

// The samples of all modalities, their labels and who is present.
inline void check_samples(const char* op, at::ScalarType type, at::TensorList values,
                          const at::Tensor& labels, const at::Tensor& present) {
  TORCH_CHECK_VALUE(labels.dim() == 1 && labels.scalar_type() == at::kLong, op,
                    ": labels must be int64 of shape [samples], got ", labels.scalar_type(), " of shape ",
                    labels.sizes());
  check_real(op, "present", present, at::kBool, {labels.size(0), static_cast<int64_t>(values.size())});
  for (const at::Tensor& own : values) {
    std::vector<int64_t> shape = own.sizes().vec();
    shape[0] = labels.size(0);
    check_real(op, "values", own, type, shape);
    TORCH_CHECK_VALUE(c10::multiply_integers(own.sizes().slice(1)) >= 1, op,
                      ": values must hold at least one number a sample, got shape ", own.sizes());
  }
}

// Which samples each device is judged by.
inline void check_chosen_samples(const char* op, const std::optional<at::Tensor>& chosen, int64_t devices,
                                 int64_t samples) {
  if (!chosen) return;
  TORCH_CHECK_VALUE(chosen->dim() == 2 && chosen->scalar_type() == at::kLong && chosen->size(0) == devices,
                    op, ": samples must be int64 of shape [", devices, ", n], got ", chosen->scalar_type(),
                    " of shape ", chosen->sizes());
  check_range(op, "samples", chosen->contiguous(), samples);
}

// Where the common features of each modality are written, if they are wanted.
inline void check_common_features(const char* op, at::TensorList common, at::TensorList parameters,
                                  int64_t samples, int64_t width) {
  TORCH_CHECK_VALUE(common.empty() || common.size() + 1 == parameters.size(), op,
                    ": common must hold one tensor a modality = ", parameters.size() - 1, " or none, got ",
                    common.size());
  for (size_t m = 0; m < common.size(); ++m)
    check_written(op, "common", common[m], parameters[0].scalar_type(),
                  {parameters[m + 1].size(0), samples, width});
}

inline void check_local_round(at::TensorList parameters, at::TensorList momenta, at::TensorList starts,
                              double proximal, at::TensorList values, const at::Tensor& indices,
                              const std::optional<at::Tensor>& noise,
                              const std::optional<at::Tensor>& offsets, const at::Tensor& start,
                              const at::Tensor& iterations, at::ArrayRef<double> weights) {
  const char* op = "local_round";
  const auto type = parameters[0].scalar_type();
  TORCH_CHECK_VALUE(momenta.size() == parameters.size(), op,
                    ": momenta must hold one tensor a block = ", parameters.size(), ", got ", momenta.size());
  TORCH_CHECK_VALUE(starts.size() == (proximal == 0 ? 0 : parameters.size()), op,
                    ": starts must hold one tensor a block = ", parameters.size(),
                    " with a proximal factor, none without, got ", starts.size(), " and ", proximal);
  for (size_t block = 0; block < parameters.size(); ++block) {
    check_written(op, "momenta", momenta[block], type, parameters[block].sizes());
    if (!starts.empty()) check_written(op, "starts", starts[block], type, parameters[block].sizes());
  }
  const auto modalities = static_cast<int64_t>(values.size());
  TORCH_CHECK_VALUE(noise.has_value() == offsets.has_value(), op,
                    ": noise and offsets must be given together");
  if (noise) {
    int64_t read = 0;
    for (const at::Tensor& own : values)
      read = std::max(read, indices.size(2) * c10::multiply_integers(own.sizes().slice(1)));
    check_real(op, "offsets", *offsets, at::kLong, {indices.size(0), modalities, indices.size(1)});
    TORCH_CHECK_VALUE(noise->dim() == 1 && noise->scalar_type() == type && noise->size(0) >= read, op,
                      ": noise must be ", type, " of shape [at least ", read, "], got ", noise->scalar_type(),
                      " of shape ", noise->sizes());
  }
  check_real(op, "start", start, at::kLong, {indices.size(1), modalities});
  check_real(op, "iterations", iterations, at::kLong, {indices.size(1), modalities});
  TORCH_CHECK_VALUE(weights.size() == 5, op, ": weights must be 5 numbers, got ", weights.size());
}

inline void check_local_round_guidance(at::ScalarType type, const at::Tensor& indices, int64_t classes,
                                       int64_t width, const std::optional<at::Tensor>& pool,
                                       const std::optional<at::Tensor>& known,
                                       const std::optional<at::Tensor>& draws,
                                       const std::optional<at::Tensor>& count,
                                       const std::optional<at::Tensor>& sum,
                                       const std::optional<at::Tensor>& product) {
  const char* op = "local_round";
  const int64_t devices = indices.size(1);
  TORCH_CHECK_VALUE(pool.has_value() == known.has_value() && pool.has_value() == draws.has_value(), op,
                    ": pool, known and draws must be given together");
  TORCH_CHECK_VALUE(count.has_value() == sum.has_value() && count.has_value() == product.has_value(), op,
                    ": count, sum and product must be given together");
  if (pool) {
    TORCH_CHECK_VALUE(pool->dim() == 4, op, ": pool must have shape [devices, classes, n, width], got ",
                      pool->sizes());
    check_real(op, "pool", *pool, type, {devices, classes, pool->size(2), width});
    check_real(op, "known", *known, at::kBool, {devices, classes});
    check_real(op, "draws", *draws, at::kLong, {3, indices.size(0), indices.size(2)});
  }
  if (count) {
    const int64_t shape[] = {devices, classes, width, width};
    check_written(op, "count", *count, type, {devices, classes});
    check_written(op, "sum", *sum, type, {shape, 3});
    check_written(op, "product", *product, type, {shape, product->dim() == 4 ? size_t(4) : size_t(3)});
  }
}

}  // namespace dmmlkd
