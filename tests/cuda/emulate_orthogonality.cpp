// The emulated orthogonality kernels against their definition.
#include "emulate.h"

namespace {

struct Matrix {
  std::vector<double> rows, unit, length, slope;
  int64_t width;

  template <typename scalar>
  Matrix(Array<scalar>& features, const bool* held, int64_t first, int64_t samples, int64_t width,
         bool normalize)
      : slope(samples * width), width(width) {
    for (int64_t row = 0; row < samples; ++row) {
      double square = 0;
      for (int64_t i = 0; i < width; ++i) {
        rows.push_back(held[row] ? features.at((first + row) * width + i) : 0.0);
        square += rows.back() * rows.back();
      }
      length.push_back(normalize ? std::sqrt(square) : held[row] ? 1.0 : 0.0);
      for (int64_t i = 0; i < width; ++i)
        unit.push_back(length[row] == 0 ? 0.0 : rows[row * width + i] / length[row]);
    }
  }

  // Through the scaling to unit length.
  double slope_at(int64_t row, int64_t i, bool normalize) const {
    if (length[row] == 0) return 0;
    double along = 0;
    for (int64_t k = 0; normalize && k < width; ++k) along += slope[row * width + k] * unit[row * width + k];
    return (slope[row * width + i] - along * unit[row * width + i]) / length[row];
  }
};

struct Case {
  int64_t problems, samples, d, e;
  bool masked, normalize, gradients;
  Reduction reduction;
};

template <typename scalar>
void check(const Case& c) {
  Array<scalar> common(c.problems * c.samples * c.d), specific(c.problems * c.samples * c.e),
      common_gradient(c.problems * c.samples * c.d), specific_gradient(c.problems * c.samples * c.e),
      loss(c.reduction == Reduction::kNone ? c.problems : 1);
  for (auto* features : {&common, &specific})  // so that no loss leaves float16
    for (int64_t i = 0; i < c.problems * c.samples * (features == &common ? c.d : c.e); ++i)
      features->data()[i] = from_compute<scalar>(static_cast<compute_t<scalar>>(features->at(i) / 4));
  const std::unique_ptr<bool[]> mask(new bool[c.problems * c.samples]);
  for (int64_t i = 0; i < c.problems * c.samples; ++i) mask[i] = !c.masked || chance(0.6);

  OrthogonalityArguments a{};
  a.common = common.data(), a.specific = specific.data(), a.mask = c.masked ? mask.get() : nullptr;
  if (c.gradients) a.common_gradient = common_gradient.data(), a.specific_gradient = specific_gradient.data();
  a.loss = loss.data(), a.dtype = dtype_of<scalar>(), a.reduction = c.reduction;
  a.scale = c.reduction == Reduction::kMean ? 1.0 / static_cast<double>(c.problems) : 1.0;
  a.problems = c.problems, a.samples = static_cast<int>(c.samples);
  a.common_features = static_cast<int>(c.d), a.specific_features = static_cast<int>(c.e);
  a.normalize = c.normalize;
  bool fits = false;
  int64_t products = 0;
  require_success(dmmlkd_cuda_orthogonality_plan(&a, 0, &fits, &products));
  Array<double> partials(c.reduction == Reduction::kNone ? 0 : c.problems);
  Array<compute_t<scalar>> shares(products);
  a.partials = partials.data(), a.products = shares.data();
  const char* error = dmmlkd_cuda_orthogonality(&a, 0, nullptr);
  if (!fits) return require(error != nullptr, "features that do not fit are refused");
  require_success(error);

  double total = 0;
  for (int64_t problem = 0; problem < c.problems; ++problem) {
    const int64_t first = problem * c.samples;
    const bool* held = mask.get() + first;
    const double count = static_cast<double>(std::max<int64_t>(1, std::count(held, held + c.samples, true)));
    const double weight = c.normalize ? 1 / (count * count) : 1;
    Matrix h(common, held, first, c.samples, c.d, c.normalize),
        s(specific, held, first, c.samples, c.e, c.normalize);
    double expected = 0, largest = 0.05;
    for (int64_t i = 0; i < c.d; ++i) {
      for (int64_t j = 0; j < c.e; ++j) {
        double product = 0;
        for (int64_t row = 0; row < c.samples; ++row)
          product += h.unit[row * c.d + i] * s.unit[row * c.e + j];
        expected += weight * product * product;
        for (int64_t row = 0; row < c.samples; ++row) {
          h.slope[row * c.d + i] += 2 * weight * a.scale * s.unit[row * c.e + j] * product;
          s.slope[row * c.e + j] += 2 * weight * a.scale * h.unit[row * c.d + i] * product;
        }
      }
    }
    total += expected;
    if (c.reduction == Reduction::kNone)
      require(close(loss.at(problem), expected, tolerance<scalar>()), "loss of a pair");
    for (const double slope : h.slope) largest = std::max(largest, std::abs(slope));
    for (const double slope : s.slope) largest = std::max(largest, std::abs(slope));
    const auto check_gradient = [&](const Matrix& matrix, Array<scalar>& gradient) {
      for (int64_t i = 0; c.gradients && i < c.samples * matrix.width; ++i) {
        const double slope = matrix.slope_at(i / matrix.width, i % matrix.width, c.normalize);
        require(std::abs(gradient.at(first * matrix.width + i) - slope) <= tolerance<scalar>() * largest,
                "gradient of a pair");
      }
    };
    check_gradient(h, common_gradient), check_gradient(s, specific_gradient);
  }
  if (c.reduction != Reduction::kNone)
    require(close(loss.at(0), a.scale * total, tolerance<scalar>()), "reduced loss of pairs");
}

// The form by samples alone, for which a block needs few barriers: were rows read before they are there, what
// comes of it would not be trusted, and computed again, rightly, by features.
template <typename scalar>
void check_form_by_samples() {
  check<scalar>({1, 12, 40, 36, false, false, true, Reduction::kNone});
  require(dmmlkd::emulation::Machine::instance().barriers() == 7,
          "a pair of few samples is computed by samples");
}

}  // namespace

template <typename scalar>
void check_orthogonality() {
  check_form_by_samples<scalar>();
  constexpr int64_t shapes[][4] = {{3, 5, 3, 3},    {2, 3, 5, 5},   {2, 33, 8, 7},   {2, 7, 40, 3},
                                   {1, 1, 1, 1},    {3, 41, 1, 9},  {2, 45, 30, 66}, {2, 200, 9, 12},
                                   {1, 9, 128, 99}, {1, 6, 8, 129}, {1, 30, 40, 36}};
  int turn = 0;
  for (const auto& shape : shapes) {
    for (const auto reduction : {Reduction::kNone, Reduction::kMean, Reduction::kSum}) {
      ++turn;
      check<scalar>(
          {shape[0], shape[1], shape[2], shape[3], turn % 3 != 0, turn % 2 == 0, turn % 5 != 0, reduction});
    }
  }
}

template void check_orthogonality<float>();
template void check_orthogonality<double>();
template void check_orthogonality<__half>();
template void check_orthogonality<__nv_bfloat16>();
