// HQQ (Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023), group by group.
//
// With the scale s fixed, min over z of sum |w / s - (u - z)|^p is split by an error e that may keep what the grid
// misses:
//   e <- shrink(w / s - (u - z))   shrink(x) = sign(x) max(0, |x| - |x|^(p - 1) / beta)
//   z <- mean(u - (w / s - e))     beta <- beta * kappa
// Errors are counted in steps of the grid. In the weights' own units, as HQQ counts them, |x|^(p - 1) / beta is
// more than any |x| below 0.17 (p = 0.7, beta = 10): of ordinary weights e stays 0, and z becomes the mean of u - w /
// s.
//
// A whole zero point has nowhere better to go while the scale stands still: the one that puts 0 on the grid wins. So
// there the scale takes the step, by the same least squares, and the zero point follows, rounded:
//   s <- s <u - z, w / s - e> / <u - z, u - z>
// Each step is small, so ranges that clip more than the errors' gain is worth in squares are not reached. A search over
// all ranges by a norm below 1 does reach them, for it forgives a clipped weight nearly anything.
#include <cmath>
#include <limits>
#include <optional>

#include "base/error.h"
#include "quantize/group_fit.h"
#include "quantize/per_isa.h"
#include "quantize/rows.h"

namespace nybble {

using namespace quantize;

namespace {

// A grid as it is stored, with a zero point that need not be whole.
struct Fit {
  uint32_t scale_bits = 0, zero_bits = 0;  // in the scale's type; zero_bits is a whole number with round_zeros
  double scale = 0, zero = 0;
  double objective = 0;  // sum |error|^p
};

// levels: u - z; errors: w / s less that.
NYBBLE_PER_ISA void round_to_steps(const float* weights, int64_t count, double scale, double zero, double* levels,
                                   double* errors) {
  for (int64_t i = 0; i < count; ++i) {
    const double x = weights[i] / scale;
    levels[i] = std::min(15.0, std::max(0.0, std::nearbyint(x + zero))) - zero;
    errors[i] = x - levels[i];
  }
}

NYBBLE_PER_ISA void take_powers(const double* errors, int64_t count, float exponent, float* powers) {
  for (int64_t i = 0; i < count; ++i) powers[i] = power(static_cast<float>(errors[i]), exponent);
}

double narrowed(double value, DType dtype, uint32_t& bits) {
  switch (dtype) {
    case DType::kBf16:
      bits = base::float_to_bf16(static_cast<float>(value));
      return base::bf16_to_float(static_cast<uint16_t>(bits));
    case DType::kFp16:
      bits = base::float_to_fp16(static_cast<float>(value));
      return base::fp16_to_float(static_cast<uint16_t>(bits));
    default:
      bits = rtn::bits_of(static_cast<float>(value));
      return rtn::float_of(bits);
  }
}

// u of a weight. A level near the end of fp32's range moves towards zero until the weight it stands for is finite.
int code_of(double weight, const Fit& fit) {
  if (fit.scale == 0) return static_cast<int>(std::clamp(std::nearbyint(fit.zero), 0.0, 15.0));
  int code = static_cast<int>(std::clamp(std::nearbyint(weight / fit.scale + fit.zero), 0.0, 15.0));
  const auto value = [&] { return (code - fit.zero) * fit.scale; };
  while (std::abs(value()) > FLT_MAX && code > 0 && value() > 0) --code;
  while (std::abs(value()) > FLT_MAX && code < 15 && value() < 0) ++code;
  return code;
}

class GroupSearch {
 public:
  GroupSearch(const GridOptions& grid, const HqqOptions& options) : grid_(grid), options_(options) {}

  // nullopt: the scale overflows its type.
  std::optional<Fit> run(std::span<const float> weights) {
    weights_ = weights;
    levels_.resize(weights.size());
    errors_.resize(weights.size());
    powers_.resize(weights.size());
    const rtn::GroupScale plain = scale_for(range_of(weights), 1.0f, {false, grid_.scale_dtype});
    if (plain.overflows) return std::nullopt;
    // Round to nearest on min <= 0 <= max is where the search must not fall behind.
    Fit best = judged(plain.scale, plain.zero);
    if (plain.scale == 0) return best;
    improve(best, plain.scale, plain.zero);
    if (options_.round_zeros) return best;
    // A float zero point need not be whole, and the range need not hold 0.
    const auto [low, high] = std::minmax_element(weights.begin(), weights.end());
    uint32_t bits = 0;
    const double scale = narrowed((static_cast<double>(*high) - *low) / 15, grid_.scale_dtype, bits);
    if (scale > 0 && std::isfinite(scale)) improve(best, scale, -*low / scale);
    return best;
  }

 private:
  // What storing the two makes of them. Where nothing can store the scale, the objective is infinite.
  Fit judged(double scale, double zero) {
    Fit fit;
    fit.scale = narrowed(scale, grid_.scale_dtype, fit.scale_bits);
    if (options_.round_zeros) {
      fit.zero = std::clamp(std::nearbyint(zero), 0.0, 15.0);
      fit.zero_bits = static_cast<uint32_t>(fit.zero);
    } else {
      fit.zero = narrowed(zero, grid_.scale_dtype, fit.zero_bits);
    }
    if (!(fit.scale > 0 && std::isfinite(fit.scale))) {
      fit.objective = std::numeric_limits<double>::infinity();
      return fit;
    }
    round_in(fit.scale, fit.zero, options_.lp_norm);
    for (const float loss : powers_) fit.objective += loss;
    fit.objective *= std::pow(fit.scale, options_.lp_norm);
    return fit;
  }

  // Iterates from a scale and a zero point, and keeps what is better than `best`.
  void improve(Fit& best, double scale, double zero) {
    double beta = options_.beta;
    for (int i = 0; std::abs(zero) <= kLargestZero; ++i, beta *= options_.kappa) {
      if (const Fit fit = judged(scale, zero); fit.objective < best.objective) best = fit;
      if (i == options_.iterations) return;
      round_in(scale, zero, options_.lp_norm - 1);
      double levels = 0, targets = 0, dot = 0, square = 0;  // a target is w / s - e
      for (size_t j = 0; j < levels_.size(); ++j) {
        const double level = levels_[j], size = std::abs(errors_[j]);
        const double target = level + std::copysign(std::min(size, powers_[j] / beta), errors_[j]);
        levels += level;
        targets += target;
        dot += level * target;
        square += level * level;
      }
      const double growth = options_.round_zeros ? dot / square : 1;
      if (!(growth > 0)) return;
      zero += (levels - targets / growth) / static_cast<double>(levels_.size());
      if (options_.round_zeros) zero = std::clamp(std::nearbyint(zero), 0.0, 15.0);
      scale *= growth;
    }
  }

  // Sets levels_, errors_ and powers_.
  void round_in(double scale, double zero, double exponent) {
    const int64_t count = static_cast<int64_t>(weights_.size());
    round_to_steps(weights_.data(), count, scale, zero, levels_.data(), errors_.data());
    take_powers(errors_.data(), count, static_cast<float>(exponent), powers_.data());
  }

  // Beyond, neighbouring codes are one number in bf16.
  static constexpr double kLargestZero = 256;

  const GridOptions& grid_;
  const HqqOptions& options_;
  std::span<const float> weights_;
  std::vector<double> levels_, errors_;  // in steps
  std::vector<float> powers_;
};

Result<void> check(const GridOptions& grid, const HqqOptions& options) {
  if (grid.symmetric)
    return invalid_argument(
        "HQQ searches zero points, so it needs an asymmetric grid (GridOptions::symmetric = false)");
  if (!(options.lp_norm > 0 && options.lp_norm <= 1))
    return invalid_argument("HqqOptions::lp_norm is {}; it may be above 0, up to 1", options.lp_norm);
  if (!(options.beta > 0 && options.beta <= 1e6 && options.kappa >= 1 && options.kappa <= 10))
    return invalid_argument("HqqOptions: beta {} must be above 0, up to 1e6, and kappa {} from 1 to 10", options.beta,
                            options.kappa);
  if (options.iterations < 0 || options.iterations > 1000)
    return invalid_argument("HqqOptions::iterations is {}; it may be 0 to 1000", options.iterations);
  return {};
}

}  // namespace

Result<QuantizedWeight> quantize_hqq(const DenseWeight& dense, const GridOptions& grid, const HqqOptions& options) {
  if (Result<void> fine = check(grid, options); !fine) return fine.error();
  Result<QuantizedWeight> prepared = quantize::prepare(dense, grid);
  if (!prepared) return prepared;
  QuantizedWeight weight = std::move(*prepared);
  if (!options.round_zeros) {
    weight.zero_kind = ZeroKind::kFloat;
    weight.int_zeros.clear();
    weight.float_zeros.dtype = grid.scale_dtype;
    weight.float_zeros.resize(weight.n * weight.groups());
  }
  const auto make_fit = [&] {
    return [&, search = GroupSearch(grid, options)](const Group& group) mutable {
      const std::optional<Fit> fit = search.run(group.weights);
      if (!fit) return false;
      for (size_t i = 0; i < group.weights.size(); ++i)
        weight.codes[group.first_code + i] = static_cast<uint8_t>(code_of(group.weights[i], *fit));
      weight.scales.set_bits(group.index, fit->scale_bits);
      if (options.round_zeros)
        weight.int_zeros[group.index] = static_cast<uint8_t>(fit->zero_bits);
      else
        weight.float_zeros.set_bits(group.index, fit->zero_bits);
      return true;
    };
  };
  if (Result<void> done = for_each_group(dense, grid, make_fit); !done) return done.error();
  return weight;
}

}  // namespace nybble
