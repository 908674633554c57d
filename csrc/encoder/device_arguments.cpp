#include "device_arguments.h"

#include "../check.h"

namespace dmmlkd {

void DeviceArguments::check(const char* op) const {
  check_blocks(op);
  check_encoders(op);
  check_samples(op);
}

void DeviceArguments::check_blocks(const char* op) const {
  CHECK_VALUE(
      blocks() >= 2 && devices.size() == blocks() && modalities() + 1 == blocks(), op,
      ": parameters and devices must hold the shared block and one per modality, values one tensor per "
      "modality, got ",
      blocks(), ", ", devices.size(), " and ", modalities());
  for (size_t block = 0; block < blocks(); ++block) {
    check_float_rows(op, "parameters", parameters[block], type());
    check_shape(op, "devices", devices[block], kLong, {parameters[block].size(0)});
  }
  CHECK_VALUE(classes >= 1 && parameters[0].size(1) >= classes && parameters[0].size(1) % classes == 0, op,
              ": classes must divide the columns of the shared block, ", parameters[0].size(1), ", got ",
              classes);
}

void DeviceArguments::check_encoders(const char* op) const {
  check_count(op, "kernels", kernels.size(), "modality", modalities());
  check_count(op, "strides", strides.size(), "modality", modalities());
  check_count(op, "layers", layers.size(), "modality", modalities());
  int64_t all = 0;
  for (size_t m = 0; m < modalities(); ++m) {
    const int64_t space = values[m].dim() - 2, kernel = kernels[m];
    const bool convolves = kernel % 2 == 1 && kernel > 0 && kernel < 1024 && (space == 1 || space == 2);
    CHECK_VALUE(kernel == 0 ? space == 0 : convolves, op,
                ": kernels must be 0 for values [samples, features], odd and at most 1023 for "
                "[samples, channels, *space] with one or two dimensions of space, got ",
                kernel, " for shape ", values[m].sizes());
    CHECK_VALUE(strides[m] >= 1 && strides[m] <= 1024, op, ": strides must be in [1, 1024], got ",
                strides[m]);
    CHECK_VALUE(layers[m] >= 1, op, ": layers must be at least 1, got ", layers[m]);
    all += layers[m];
  }
  check_count(op, "widths", widths.size(), "layer", static_cast<size_t>(all));
  for (const int64_t width : widths) CHECK_VALUE(width >= 1, op, ": widths must be at least 1, got ", width);
}

void DeviceArguments::check_samples(const char* op) const {
  check_dimensions(op, "labels", labels, kLong, {"samples"});
  check_shape(op, "present", present, kBool, {samples(), static_cast<int64_t>(modalities())});
  for (const Tensor& given : values) {
    std::vector<int64_t> shape = given.sizes().vec();
    shape[0] = samples();
    check_shape(op, "values", given, type(), shape);
    CHECK_VALUE(numel(given.sizes().slice(1)) >= 1, op,
                ": values must hold at least one number per sample, got shape ", given.sizes());
  }
  check_range(op, "labels", labels, classes);
}

}  // namespace dmmlkd
