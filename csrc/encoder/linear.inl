// A linear layer of one device on its samples, with bias and rectifier in the same pass, and its gradients.
//
// Matrices whose widths are whole vectors are used in place, others through padded copies.
#pragma once

#include "../simd/kernels.h"
#include "../simd/simd.h"
#include "../simd/small_product.inl"

namespace dmmlkd {
namespace {

template <class T>
inline Padded<T> padded_view(const T* memory, int64_t rows, int64_t columns) {
  return Padded<T>(const_cast<T*>(memory), rows, columns, columns);
}

// The matrix itself if its rows are whole vectors, else a padded copy in scratch.
template <class T>
inline Padded<T> readable(const T* memory, int64_t rows, int64_t columns, T*& scratch) {
  if (columns == whole_vectors(columns)) return padded_view(memory, rows, columns);
  const Padded<T> copy(scratch, rows, columns);
  copy_rows(memory, columns, static_cast<const T*>(nullptr), copy);
  return copy;
}

// The matrix itself if its rows are whole vectors, else a place in scratch for copy_back.
template <class T>
inline Padded<T> writable(T* memory, int64_t rows, int64_t columns, T*& scratch) {
  if (columns == whole_vectors(columns)) return padded_view(memory, rows, columns);
  return Padded<T>(scratch, rows, columns);
}

template <class T>
inline void copy_back(const Padded<T>& source, T* target) {
  if (source.data == target) return;
  for (int64_t row = 0; row < source.rows; ++row)
    for (int64_t i = 0; i < source.columns; ++i)
      target[row * source.columns + i] = source.data[row * source.stride + i];
}

template <class T>
void linear_forward(const LinearLayer<T>& layer) {
  T* scratch = layer.scratch;
  const Padded<T> weight = readable(layer.weight, layer.inputs_width, layer.outputs_width, scratch);
  const Padded<T> outputs = writable(layer.outputs, layer.samples, layer.outputs_width, scratch);
  Ending<T> end;
  end.rectify = layer.rectify;
  if (layer.bias) end.bias = readable(layer.bias, 1, layer.outputs_width, scratch).data;
  multiply(layer.inputs, layer.inputs_width, 1, weight, outputs, end);
  copy_back(outputs, layer.outputs);
}

// The gradient before the rectifier, whose derivative at 0 is 0; its sums over the samples go to the bias.
template <class T>
inline Padded<T> through_rectifier(const LinearGradient<T>& layer, T*& scratch) {
  constexpr int width = Simd<T>::width;
  const int64_t columns = layer.outputs_width, whole = whole_vectors(columns);
  const Padded<T> passed = layer.outputs || columns != whole
                               ? Padded<T>(scratch, layer.samples, columns)
                               : padded_view(layer.gradient, layer.samples, columns);
  T* sums = layer.bias_gradient;
  if (!sums && passed.data == layer.gradient) return passed;
  for (int64_t i = 0; sums && i < columns; ++i) sums[i] = 0;
  for (int64_t row = 0; row < layer.samples; ++row) {
    const T* gradient = layer.gradient + row * columns;
    const T* output = layer.outputs ? layer.outputs + row * columns : nullptr;
    T* out = passed.data + row * passed.stride;
    int64_t i = 0;
    for (; i + width <= columns; i += width) {
      Vector<T> value = load(gradient + i);
      if (output) value = load(output + i) <= T(0) ? Vector<T>{} : value;
      if (out != gradient) store(out + i, value);
      if (sums) store(sums + i, load(sums + i) + value);
    }
    for (; i < columns; ++i) {
      const T value = output && output[i] <= T(0) ? T(0) : gradient[i];
      out[i] = value;
      if (sums) sums[i] += value;
    }
    for (; i < passed.stride; ++i) out[i] = 0;
  }
  return passed;
}

template <class T>
void linear_backward(const LinearGradient<T>& layer) {
  T* scratch = layer.scratch;
  const int64_t inputs = layer.inputs_width, outputs = layer.outputs_width;
  const Padded<T> gradient = through_rectifier(layer, scratch);
  const Padded<T> weight_gradient = writable(layer.weight_gradient, inputs, outputs, scratch);
  multiply(layer.inputs, 1, inputs, gradient, weight_gradient, {});
  copy_back(weight_gradient, layer.weight_gradient);
  if (!layer.input_gradient) return;
  const Padded<T> columns(scratch, outputs, inputs);
  copy_transposed(padded_view(layer.weight, inputs, outputs), columns);
  const Padded<T> input_gradient = writable(layer.input_gradient, layer.samples, inputs, scratch);
  multiply(gradient.data, gradient.stride, 1, columns, input_gradient, {});
  copy_back(input_gradient, layer.input_gradient);
}

}  // namespace
}  // namespace dmmlkd
