// Checks of a dense weight and of the options.
#include "quantize/prepare.h"

namespace nybble::rtn {

Result<QuantizedWeight> prepare(const DenseWeight& dense, const RtnOptions& options) {
  if (options.group_size < 0 || options.group_size % 16 != 0)
    return invalid_argument("group_size {} was asked for; it must be a multiple of 16, or kPerColumn (0)",
                            options.group_size);
  if (options.scale_dtype > DType::kFp32)
    return invalid_argument("RtnOptions::scale_dtype has no meaning (enum value {})", int(options.scale_dtype));
  if (options.range_search > RangeSearch::kSquaredError)
    return invalid_argument("RtnOptions::range_search has no meaning (enum value {})", int(options.range_search));
  constexpr int64_t kMaxFeatures = std::numeric_limits<int32_t>::max();
  if (dense.n < 0 || dense.k < 0 || dense.n > kMaxFeatures || dense.k > kMaxFeatures)
    return invalid_data("weight '{}': the shape is {} x {}; both may be 0 to {}", dense.name, dense.n, dense.k,
                        kMaxFeatures);
  if (dense.values.dtype > DType::kFp32)
    return invalid_data("weight '{}': values have no element type (enum value {})", dense.name,
                        int(dense.values.dtype));
  if (dense.values.bytes.size() != static_cast<size_t>(dense.n * dense.k) * dtype_bytes(dense.values.dtype))
    return invalid_data("weight '{}': values must hold {} x {} numbers of {}, but hold {} bytes", dense.name, dense.n,
                        dense.k, dtype_name(dense.values.dtype), dense.values.bytes.size());
  QuantizedWeight weight;
  weight.name = dense.name;
  weight.n = dense.n;
  weight.k = dense.k;
  weight.group_size = options.group_size;
  weight.zero_kind = options.symmetric ? ZeroKind::kNone : ZeroKind::kInt;
  weight.codes.resize(weight.n * weight.k);
  weight.scales.dtype = options.scale_dtype;
  weight.scales.resize(weight.n * weight.groups());
  if (!options.symmetric) weight.int_zeros.resize(weight.n * weight.groups());
  weight.bias = dense.bias;
  return weight;
}

Result<void> report(const DenseWeight& dense, const RtnOptions& options, const Faults& faults) {
  if (faults.element != kNoFault)
    return invalid_data("weight '{}': values[{}, {}] is {}; only finite numbers can be quantized", dense.name,
                        faults.element / dense.k, faults.element % dense.k, dense.values.at(faults.element));
  if (faults.group == kNoFault) return {};
  const int64_t group_size = options.group_size == kPerColumn ? dense.k : options.group_size;
  const int64_t groups = (dense.k + group_size - 1) / group_size;
  const int64_t n = faults.group / groups, begin = faults.group % groups * group_size;
  return invalid_argument(
      "weight '{}': values[{}, {} .. {}] need a scale that {} cannot hold; quantize with scale_dtype bf16 or fp32",
      dense.name, n, begin, std::min(begin + group_size, dense.k) - 1, dtype_name(options.scale_dtype));
}

}  // namespace nybble::rtn
