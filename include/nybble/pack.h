// Canonical <-> packed, on the CPU and on the GPU, bit-equal.
#pragma once

#include <optional>
#include <string>

#include "nybble/weight.h"

#pragma GCC visibility push(default)
namespace nybble {

struct PackOptions {
  // Type of the scales in the packed form. Absent: kept as read. Given: rounded to nearest; out of range is an error.
  std::optional<DType> scale_dtype;
  int num_threads = 0;  // 0: all cores
};

// The bytes pack() will need, header included.
Result<size_t> packed_bytes(int64_t n, int64_t k, const WeightFormat& format);

Result<PackedWeight> pack(const QuantizedWeight& weight, const PackOptions& options = {});

// The inverse. The bias of the canonical form is not part of the packed one: it goes to LaunchArgs.
Result<QuantizedWeight> unpack(const PackedWeight& weight);

// The same two on the current CUDA device: host canonical form in, packed blob in device memory out. `device_blob` is
// 128-byte aligned and holds packed_bytes(...) bytes; the call uploads, packs there and synchronizes. The same bytes
// as pack().
Result<void> pack_cuda(const QuantizedWeight& weight, const PackOptions& options, void* device_blob, size_t bytes);
Result<QuantizedWeight> unpack_cuda(const void* device_blob, size_t bytes);

// Atomic write and checked read of a packed file. A damaged or foreign file is an error that names it and the byte.
Result<void> save_packed(const PackedWeight& weight, const std::string& path);
Result<PackedWeight> load_packed(const std::string& path);

}  // namespace nybble
#pragma GCC visibility pop
