// Canonical <-> packed on the GPU: the blocks there, header and sections as the CPU makes them.
#include <vector>

#include "nybble/pack.h"
#include "pack/block.h"
#include "pack/prepare.h"
#include "runtime/cuda_call.h"
#include "weight/packed_blob.h"

namespace nybble {
namespace {

using namespace pack_detail;
using layout::BlobMap;
using layout::kPieceCodeBytes;
using layout::kPiecesPerBlock;
using runtime::DeviceBuffer;

constexpr int kThreads = 256;
constexpr int kBlockCodes = kBlockN * kBlockK;
constexpr int kPieceWords = kPieceCodeBytes / 4;

// One CTA per block of the layout: the codes meet in shared memory, then every thread writes whole words.
__global__ void __launch_bounds__(kThreads) pack_blocks(Source source, BlobMap map, std::byte* blob) {
  __shared__ uint8_t tile[kBlockCodes];
  const uint32_t k_blocks = static_cast<uint32_t>(map.k_blocks), n_block = blockIdx.x / k_blocks,
                 k_block = blockIdx.x % k_blocks;
  for (int i = threadIdx.x; i < kBlockCodes; i += kThreads) {
    const int64_t n = int64_t{n_block} * kBlockN + i / kBlockK, k = int64_t{k_block} * kBlockK + i % kBlockK;
    tile[i] = n < source.n && k < source.k ? source.codes[source.code_index(n, k)] : source.padding_code(n, k);
  }
  __syncthreads();
  std::byte* block = blob + map.block_offset(n_block, k_block);
  for (int i = threadIdx.x; i < kPiecesPerBlock * kPieceWords; i += kThreads) {
    const int piece = i / kPieceWords, word = i % kPieceWords;
    uint32_t bits = 0;
    for (int nibble = 0; nibble < 8; ++nibble) {
      const layout::CodePlace place = layout::code_place(word, nibble);
      bits |= uint32_t{tile[(piece * kPieceN + place.n) * kBlockK + place.k]} << (4 * nibble);
    }
    *reinterpret_cast<uint32_t*>(block + piece * map.block.piece_bytes() + 4 * word) = bits;
  }
  for (int i = threadIdx.x; i < kBlockN * map.block.groups; i += kThreads)
    write_group(source, map.block, n_block, k_block, i, block);
}

__global__ void __launch_bounds__(kThreads) unpack_blocks(Target target, BlobMap map, const std::byte* blob) {
  const uint32_t k_blocks = static_cast<uint32_t>(map.k_blocks), n_block = blockIdx.x / k_blocks,
                 k_block = blockIdx.x % k_blocks;
  const std::byte* block = blob + map.block_offset(n_block, k_block);
  for (int i = threadIdx.x; i < kBlockCodes; i += kThreads) {
    const int in_n = i / kBlockK, in_k = i % kBlockK;
    const int64_t n = int64_t{n_block} * kBlockN + in_n, k = int64_t{k_block} * kBlockK + in_k;
    if (n >= target.n || k >= target.k) continue;
    const uint32_t word = *reinterpret_cast<const uint32_t*>(block + map.block.word_offset(in_n, in_k));
    target.codes[target.code_index(n, k)] = word >> layout::BlockShape::code_bit(in_n, in_k) & 15;
  }
  for (int i = threadIdx.x; i < kBlockN * map.block.groups; i += kThreads)
    read_group(target, map.block, n_block, k_block, i, block);
}

Result<DeviceBuffer> upload(const void* from, size_t bytes) {
  Result<DeviceBuffer> buffer = DeviceBuffer::allocate(bytes);
  if (buffer && bytes > 0) NYBBLE_CUDA(cudaMemcpy(buffer->data(), from, bytes, cudaMemcpyHostToDevice));
  return buffer;
}

Result<void> download(void* to, const void* from, size_t bytes) {
  if (bytes > 0) NYBBLE_CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
  return {};
}

Result<void> check_blob_pointer(const void* device_blob) {
  if (device_blob == nullptr) return invalid_argument("the packed blob's device pointer is null");
  if (reinterpret_cast<uintptr_t>(device_blob) % layout::kSectionAlign != 0)
    return invalid_argument("the packed blob's device pointer {} is not {}-byte aligned", device_blob,
                            layout::kSectionAlign);
  return {};
}

}  // namespace

Result<void> pack_cuda(const QuantizedWeight& weight, const PackOptions& options, void* device_blob, size_t bytes) {
  const Result<PreparedWeight> result = prepare(weight, options);
  if (!result) return result.error();
  const PreparedWeight& prepared = *result;
  const size_t total = prepared.header.total_bytes;
  if (Result<void> fine = check_blob_pointer(device_blob); !fine) return fine;
  if (bytes < total)
    return invalid_argument(
        "weight '{}': the packed form takes {} bytes, but device_blob holds {}; packed_bytes() tells", weight.name,
        total, bytes);
  std::byte* blob = static_cast<std::byte*>(device_blob);

  std::vector<std::byte> tail(total - prepared.sections_begin());
  write_sections(weight, prepared, tail.data());
  NYBBLE_CUDA(cudaMemset(blob, 0, total));
  if (!tail.empty())
    NYBBLE_CUDA(cudaMemcpy(blob + prepared.sections_begin(), tail.data(), tail.size(), cudaMemcpyHostToDevice));

  if (const int64_t blocks = prepared.map.n_blocks * prepared.map.k_blocks; blocks > 0) {
    const Result<DeviceBuffer> codes = upload(weight.codes.data(), weight.codes.size());
    if (!codes) return codes.error();
    const Result<DeviceBuffer> scales = upload(prepared.scales.bytes.data(), prepared.scales.bytes.size());
    if (!scales) return scales.error();
    const Result<DeviceBuffer> zeros =
        weight.zero_kind == ZeroKind::kInt
            ? upload(weight.int_zeros.data(), weight.int_zeros.size())
            : upload(prepared.float_zeros.bytes.data(), prepared.float_zeros.bytes.size());
    if (!zeros) return zeros.error();
    Source source = view_of<Source>(prepared.header);
    source.codes = codes->as<uint8_t>();
    source.scales = scales->as<std::byte>();
    source.zeros = zeros->as<std::byte>();
    if (prepared.map.k_order >= 0) source.k_order = reinterpret_cast<const int32_t*>(blob + prepared.map.k_order);
    pack_blocks<<<static_cast<unsigned>(blocks), kThreads>>>(source, prepared.map, blob);
    NYBBLE_CUDA(cudaGetLastError());
    NYBBLE_CUDA(cudaDeviceSynchronize());
  }

  std::vector<std::byte> copy(total);
  if (Result<void> fine = download(copy.data(), blob, total); !fine) return fine;
  layout::PackedHeader header = prepared.header;
  std::memcpy(copy.data(), &header, sizeof header);
  header.checksum = packed_checksum(copy);
  NYBBLE_CUDA(cudaMemcpy(blob, &header, sizeof header, cudaMemcpyHostToDevice));
  return {};
}

Result<QuantizedWeight> unpack_cuda(const void* device_blob, size_t bytes) {
  if (Result<void> fine = check_blob_pointer(device_blob); !fine) return fine.error();
  const std::byte* blob = static_cast<const std::byte*>(device_blob);
  std::vector<std::byte> copy(bytes);
  if (Result<void> fine = download(copy.data(), blob, bytes); !fine) return fine.error();
  if (bytes >= sizeof(layout::PackedHeader) && layout::header_of(copy.data()).total_bytes < bytes)
    copy.resize(layout::header_of(copy.data()).total_bytes);  // device_blob may be longer than the blob
  if (Result<void> valid = validate_packed(copy, "packed weight in device memory"); !valid) return valid.error();

  const layout::PackedHeader& header = layout::header_of(copy.data());
  const BlobMap map = layout::blob_map(header);
  QuantizedWeight weight = read_sections(copy.data());
  if (const int64_t blocks = map.n_blocks * map.k_blocks; blocks > 0) {
    const bool integers = weight.zero_kind == ZeroKind::kInt;
    std::byte* host_zeros =
        integers ? reinterpret_cast<std::byte*>(weight.int_zeros.data()) : weight.float_zeros.bytes.data();
    const size_t zero_bytes = integers ? weight.int_zeros.size() : weight.float_zeros.bytes.size();
    const Result<DeviceBuffer> codes = DeviceBuffer::allocate(weight.codes.size());
    if (!codes) return codes.error();
    const Result<DeviceBuffer> scales = DeviceBuffer::allocate(weight.scales.bytes.size());
    if (!scales) return scales.error();
    const Result<DeviceBuffer> zeros = DeviceBuffer::allocate(zero_bytes);
    if (!zeros) return zeros.error();
    Target target = view_of<Target>(header);
    target.codes = codes->as<uint8_t>();
    target.scales = scales->as<std::byte>();
    target.zeros = zeros->as<std::byte>();
    if (map.k_order >= 0) target.k_order = reinterpret_cast<const int32_t*>(blob + map.k_order);
    unpack_blocks<<<static_cast<unsigned>(blocks), kThreads>>>(target, map, blob);
    NYBBLE_CUDA(cudaGetLastError());
    NYBBLE_CUDA(cudaDeviceSynchronize());
    if (Result<void> fine = download(weight.codes.data(), codes->data(), weight.codes.size()); !fine)
      return fine.error();
    if (map.block.groups > 0) {  // scales of a column stand in the sections
      if (Result<void> fine = download(weight.scales.bytes.data(), scales->data(), weight.scales.bytes.size()); !fine)
        return fine.error();
      if (Result<void> fine = download(host_zeros, zeros->data(), zero_bytes); !fine) return fine.error();
    }
  }
  restore_scales(header, weight);
  if (Result<void> valid = validate(weight); !valid) return valid.error();
  return weight;
}

}  // namespace nybble
