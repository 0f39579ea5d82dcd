// PackedWeight: its memory, what its header says, and whether its bytes can be trusted.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "base/check.h"
#include "base/error.h"
#include "layout/blob.h"
#include "nybble/weight.h"
#include "weight/packed_blob.h"

namespace nybble {

using layout::PackedHeader;

PackedWeight::PackedWeight(std::shared_ptr<std::byte[]> data, size_t size) : data_(std::move(data)), size_(size) {
  NYBBLE_CHECK(size_ >= sizeof(PackedHeader), "a packed weight is at least its header");
  NYBBLE_CHECK(reinterpret_cast<uintptr_t>(data_.get()) % layout::kSectionAlign == 0, "a packed weight is aligned");
}

int64_t PackedWeight::n() const { return data_ ? layout::header_of(data()).n : 0; }
int64_t PackedWeight::k() const { return data_ ? layout::header_of(data()).k : 0; }
WeightFormat PackedWeight::format() const {
  return data_ ? layout::format_of(layout::header_of(data())) : WeightFormat{};
}
int PackedWeight::layout_version() const {
  return data_ ? static_cast<int>(layout::header_of(data()).layout_version) : layout::kLayoutVersion;
}

std::shared_ptr<std::byte[]> allocate_packed(size_t size) {
  const size_t rounded = std::max<size_t>(layout::align_section(static_cast<int64_t>(size)), layout::kSectionAlign);
  void* memory = std::aligned_alloc(layout::kSectionAlign, rounded);
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, 0, rounded);
  return {static_cast<std::byte*>(memory), [](std::byte* bytes) { std::free(bytes); }};
}

Result<void> check_packed_header(const PackedHeader& header, uint64_t size, std::string_view what) {
  constexpr int64_t kMaxFeatures = INT32_MAX;
  if (std::memcmp(header.magic, layout::kMagic, sizeof header.magic) != 0)
    return invalid_data("{}: byte 0: no packed weight of nybble, it does not begin with NYBBLEW4", what);
  if (header.layout_version != layout::kLayoutVersion)
    return invalid_data("{}: byte {}: layout version {}, but this library reads version {}; pack the weight again",
                        what, offsetof(PackedHeader, layout_version), header.layout_version, layout::kLayoutVersion);
  // The other fields of a version 1 header; each error says where the field stands.
  const auto refuse = [&](const char* name, const auto& field, const std::string& rule) {
    const auto byte = reinterpret_cast<const std::byte*>(&field) - reinterpret_cast<const std::byte*>(&header);
    return invalid_data("{}: byte {}: {} in the header is {}; {}", what, byte, name, field, rule);
  };
  if (header.header_bytes != layout::kHeaderBytes)
    return refuse("header_bytes", header.header_bytes, fmt::format("layout version 1 has {}", layout::kHeaderBytes));
  if (header.n < 0 || header.n > kMaxFeatures)
    return refuse("n", header.n, fmt::format("it may be 0 to {}", kMaxFeatures));
  if (header.k < 0 || header.k > kMaxFeatures)
    return refuse("k", header.k, fmt::format("it may be 0 to {}", kMaxFeatures));
  if (header.scale_dtype > static_cast<uint8_t>(DType::kFp32))
    return refuse("scale_dtype", header.scale_dtype, "known are 0 to 2");
  if (header.zero_kind > static_cast<uint8_t>(ZeroKind::kOffset))
    return refuse("zero_kind", header.zero_kind, "known are 0 to 3");
  if (header.k_order > 1) return refuse("k_order", header.k_order, "it is 0 or 1");
  if (header.scales_in_window > 1) return refuse("scales_in_window", header.scales_in_window, "it is 0 or 1");
  if (!layout::packable_group_size(header.group_size, header.k))
    return refuse("group_size", header.group_size, fmt::format("it has no packed form at k = {}", header.k));
  const auto refuse_exponent = [&] {
    return refuse(
        "scale_exponent", header.scale_exponent,
        fmt::format("it is 0 to {}, and 0 unless bf16 scales in groups lie in the window", layout::kMaxScaleExponent));
  };
  if (header.scale_exponent < 0 || header.scale_exponent > layout::kMaxScaleExponent) return refuse_exponent();
  if (header.scale_exponent != 0 && layout::stored_scale_shift(header) == 0) return refuse_exponent();
  if (const layout::BlobMap map = layout::blob_map(header);
      header.total_bytes != static_cast<uint64_t>(map.total_bytes))
    return refuse(
        "total_bytes", header.total_bytes,
        fmt::format("{} x {} {} takes {}", header.n, header.k, to_string(layout::format_of(header)), map.total_bytes));
  if (size != header.total_bytes)
    return invalid_data("{}: holds {} bytes, but its header claims {}; it is {}", what, size, header.total_bytes,
                        size < header.total_bytes ? "truncated" : "longer than it should be");
  return {};
}

namespace {

// Kernels index activations by these numbers, so a checksum is not enough.
Result<void> check_order(const std::byte* blob, const layout::BlobMap& map, int64_t k, std::string_view what) {
  if (map.k_order < 0) return {};
  const int32_t* order = reinterpret_cast<const int32_t*>(blob + map.k_order);
  std::vector<bool> seen(k, false);
  for (int64_t p = 0; p < map.k_blocks * layout::kBlockK; ++p) {
    const bool padding = p >= k;
    if (padding ? order[p] != -1 : order[p] < 0 || order[p] >= k || seen[order[p]])
      return invalid_data("{}: byte {}: k_order[{}] is {}, {}", what, map.k_order + 4 * p, p, order[p],
                          padding                         ? "but padding holds -1"
                          : order[p] < 0 || order[p] >= k ? "which is no input feature"
                                                          : "which stands there twice");
    if (!padding) seen[order[p]] = true;
  }
  return {};
}

}  // namespace

Result<void> validate_packed(std::span<const std::byte> blob, std::string_view what) {
  if (blob.size() < sizeof(PackedHeader))
    return invalid_data("{}: {} bytes are less than the header of a packed weight ({} bytes)", what, blob.size(),
                        sizeof(PackedHeader));
  PackedHeader header;
  std::memcpy(&header, blob.data(), sizeof header);
  if (Result<void> fine = check_packed_header(header, blob.size(), what); !fine) return fine;
  if (const uint64_t checksum = packed_checksum(blob); checksum != header.checksum)
    return invalid_data("{}: damaged: the checksum is {:016x}, but its header claims {:016x}", what, checksum,
                        header.checksum);
  return check_order(blob.data(), layout::blob_map(header), header.k, what);
}

Problem problem_for(const PackedWeight& weight, int64_t m, DType act_dtype) {
  Problem problem;
  problem.m = m;
  problem.n = weight.n();
  problem.k = weight.k();
  problem.act_dtype = problem.out_dtype = act_dtype;
  problem.weight = weight.format();
  problem.layout = weight.layout_version();
  const int64_t row_elements = 16 / static_cast<int64_t>(dtype_bytes(act_dtype));
  problem.aligned = problem.n % row_elements == 0 && problem.k % row_elements == 0;
  return problem;
}

}  // namespace nybble
