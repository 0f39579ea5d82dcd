// nybble.h over the C++ interface: structs become values, Results become statuses, and no exception gets out.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>

#include "base/error.h"
#include "nybble.h"
#include "nybble/gemm.h"
#include "nybble/pack.h"
#include "nybble/quantize.h"

struct nybble_weight {
  nybble::QuantizedWeight value;
};
struct nybble_packed {
  nybble::PackedWeight value;
};
struct nybble_device {
  nybble::Device value;
};
struct nybble_tuning_table {
  nybble::TuningTable value;
};
struct nybble_plan {
  nybble::Plan value;
};

namespace nybble::capi {
namespace {

nybble_status status_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return NYBBLE_INVALID_ARGUMENT;
    case ErrorCode::kUnsupported:
      return NYBBLE_UNSUPPORTED;
    case ErrorCode::kInvalidData:
      return NYBBLE_INVALID_DATA;
    case ErrorCode::kIo:
      return NYBBLE_IO;
    case ErrorCode::kCuda:
      return NYBBLE_CUDA;
    case ErrorCode::kOutOfMemory:
      return NYBBLE_OUT_OF_MEMORY;
    case ErrorCode::kWorkspaceTooSmall:
      return NYBBLE_WORKSPACE_TOO_SMALL;
  }
  return NYBBLE_INTERNAL;
}

// What nybble_last_error() shows: `text`, or a literal where there was no memory to keep a text.
struct LastError {
  std::string text;
  const char* shown = "";
};
thread_local LastError last_error;

nybble_status fail(nybble_status status, const char* literal) {
  last_error.shown = literal;
  return status;
}

nybble_status fail(nybble_status status, const std::string& text) {
  last_error.text = text;
  last_error.shown = last_error.text.c_str();
  return status;
}

nybble_status fail_of_exception() noexcept {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return fail(NYBBLE_OUT_OF_MEMORY, "host memory is exhausted");
  } catch (const std::length_error&) {
    return fail(NYBBLE_OUT_OF_MEMORY, "more memory was asked for than a process can have");
  } catch (const std::exception& exception) {
    try {
      return fail(NYBBLE_INTERNAL,
                  fmt::format("an exception that nybble should have turned into an error: {}", exception.what()));
    } catch (...) {
      return fail(NYBBLE_OUT_OF_MEMORY, "host memory is exhausted");
    }
  } catch (...) {
    return fail(NYBBLE_INTERNAL, "an exception without a text, which nybble should have turned into an error");
  }
}

template <class Body>  // () -> Result<void>
nybble_status guarded(const Body& body) noexcept {
  try {
    const Result<void> result = body();
    return result ? NYBBLE_OK : fail(status_of(result.error().code), result.error().message);
  } catch (...) {
    return fail_of_exception();
  }
}

// sizeof in the first release that has the struct; never changes. Fields that came later are 0 for a caller that does
// not know them.
template <class T> inline constexpr size_t kFirstBytes = 0;
template <> inline constexpr size_t kFirstBytes<nybble_dense> = 48;
template <> inline constexpr size_t kFirstBytes<nybble_arrays> = 80;
template <> inline constexpr size_t kFirstBytes<nybble_rtn_options> = 32;
template <> inline constexpr size_t kFirstBytes<nybble_pack_options> = 24;
template <> inline constexpr size_t kFirstBytes<nybble_problem> = 80;
template <> inline constexpr size_t kFirstBytes<nybble_plan_options> = 24;
template <> inline constexpr size_t kFirstBytes<nybble_launch_args> = 104;

template <class T> Result<void> check_size(const T* given, const char* what) {
  static_assert(kFirstBytes<T> > 0 && kFirstBytes<T> <= sizeof(T) && offsetof(T, size) == 0);
  if (given == nullptr) return invalid_argument("{} is NULL", what);
  if (given->size < kFirstBytes<T>)
    return invalid_argument("{}->size is {}; set it to sizeof the struct, which is at least {}", what, given->size,
                            kFirstBytes<T>);
  return {};
}

// The caller's struct, older or newer than ours, as ours.
template <class T> Result<T> read(const T* given, const char* what) {
  if (Result<void> fine = check_size(given, what); !fine) return fine.error();
  const std::byte* bytes = reinterpret_cast<const std::byte*>(given);
  if (std::any_of(bytes + std::min(given->size, sizeof(T)), bytes + given->size,
                  [](std::byte b) { return b != std::byte{0}; }))
    return unsupported("{} sets a field that nybble {} does not know; use the library that its header came with", what,
                       NYBBLE_VERSION);
  T copy{};
  std::memcpy(&copy, given, std::min(given->size, sizeof copy));
  if constexpr (requires { copy.reserved; })
    if (copy.reserved != 0) return invalid_argument("{}->reserved is {}; it must be 0", what, copy.reserved);
  return copy;
}

// The other way round, into a struct that check_size() has passed.
template <class T> void write(const T& value, T* out) {
  const size_t size = out->size;
  std::memset(out, 0, size);
  std::memcpy(out, &value, std::min(size, sizeof value));
  out->size = size;
}

template <class Enum> Result<Enum> enum_of(int32_t value, Enum last, const char* what) {
  if (value < 0 || value > static_cast<int32_t>(last))
    return invalid_argument("{} is {}; known are 0 to {}", what, value, static_cast<int32_t>(last));
  return static_cast<Enum>(value);
}

Result<DType> dtype_of(int32_t value, const char* what) { return enum_of(value, DType::kFp32, what); }

// `count` elements at `data`, which may be null only where there are none.
struct Span {
  const std::byte* data;
  size_t bytes;
};
Result<Span> span_of(const void* data, int64_t rows, int64_t columns, size_t element_bytes, const char* what) {
  int64_t bytes = 0;
  if (rows < 0 || columns < 0 || __builtin_mul_overflow(rows, columns, &bytes) ||
      __builtin_mul_overflow(bytes, static_cast<int64_t>(element_bytes), &bytes))
    return invalid_argument("{} would be {} x {} numbers; no array has that shape", what, rows, columns);
  if (data == nullptr && bytes > 0)
    return invalid_argument("{} is NULL; {} x {} numbers were to be there", what, rows, columns);
  return Span{static_cast<const std::byte*>(data), static_cast<size_t>(bytes)};
}

template <class T>
Result<void> copy(const void* data, int64_t rows, int64_t columns, const char* what, std::vector<T>& out,
                  size_t element_bytes = sizeof(T)) {
  const Result<Span> span = span_of(data, rows, columns, element_bytes, what);
  if (!span) return span.error();
  out.resize(span->bytes / sizeof(T));
  if (span->bytes > 0) std::memcpy(out.data(), span->data, span->bytes);
  return {};
}

Result<FloatArray> floats_of(const void* data, int64_t rows, int64_t columns, DType dtype, const char* what) {
  FloatArray floats{.dtype = dtype};
  if (Result<void> done = copy(data, rows, columns, what, floats.bytes, dtype_bytes(dtype)); !done) return done.error();
  return floats;
}

std::string name_of(const char* name) { return name != nullptr ? name : ""; }

Result<PackOptions> pack_options_of(const nybble_pack_options* given) {
  PackOptions options;
  if (given == nullptr) return options;
  const Result<nybble_pack_options> known = read(given, "options");
  if (!known) return known.error();
  if (known->scale_dtype != nullptr) {
    const Result<DType> dtype = dtype_of(*known->scale_dtype, "options->scale_dtype");
    if (!dtype) return dtype.error();
    options.scale_dtype = *dtype;
  }
  options.num_threads = known->num_threads;
  return options;
}

Result<WeightFormat> format_of(const nybble_arrays& arrays) {
  const Result<DType> scale_dtype = dtype_of(arrays.scale_dtype, "arrays->scale_dtype");
  if (!scale_dtype) return scale_dtype.error();
  const Result<ZeroKind> zero_kind = enum_of(arrays.zero_kind, ZeroKind::kTable, "arrays->zero_kind");
  if (!zero_kind) return zero_kind.error();
  return WeightFormat{.scale_dtype = *scale_dtype,
                      .zero_kind = *zero_kind,
                      .group_size = arrays.group_size,
                      .k_order = arrays.k_order != nullptr};
}

Result<size_t> packed_bytes_of(const nybble_arrays& arrays, const PackOptions& options) {
  const Result<WeightFormat> format = format_of(arrays);
  if (!format) return format.error();
  WeightFormat packed = *format;
  packed.scale_dtype = options.scale_dtype.value_or(packed.scale_dtype);
  return packed_bytes(arrays.n, arrays.k, packed);
}

// Reads the caller's arrays, whose shape has a packed form.
Result<QuantizedWeight> weight_of(const nybble_arrays& arrays) {
  const Result<WeightFormat> format = format_of(arrays);
  if (!format) return format.error();
  QuantizedWeight weight;
  weight.name = name_of(arrays.name);
  weight.n = arrays.n;
  weight.k = arrays.k;
  weight.group_size = format->group_size;
  weight.zero_kind = format->zero_kind;
  if (Result<void> done = copy(arrays.codes, weight.n, weight.k, "arrays->codes", weight.codes); !done)
    return done.error();
  Result<FloatArray> scales =
      floats_of(arrays.scales, weight.n, weight.groups(), format->scale_dtype, "arrays->scales");
  if (!scales) return scales.error();
  weight.scales = std::move(*scales);
  if (weight.zero_kind == ZeroKind::kNone) {
    if (arrays.zeros != nullptr)
      return invalid_argument(
          "arrays->zeros is given, but arrays->zero_kind is NYBBLE_ZERO_NONE: set one of both right");
  } else if (weight.zero_kind == ZeroKind::kInt) {
    if (Result<void> done = copy(arrays.zeros, weight.n, weight.groups(), "arrays->zeros", weight.int_zeros); !done)
      return done.error();
  } else {
    Result<FloatArray> zeros = floats_of(arrays.zeros, weight.n, weight.groups(), format->scale_dtype, "arrays->zeros");
    if (!zeros) return zeros.error();
    weight.float_zeros = std::move(*zeros);
  }
  if (format->k_order)
    if (Result<void> done = copy(arrays.k_order, 1, weight.k, "arrays->k_order", weight.k_order); !done)
      return done.error();
  return weight;
}

Result<PackedWeight> pack_arrays(const nybble_arrays* given, const nybble_pack_options* given_options) {
  const Result<nybble_arrays> arrays = read(given, "arrays");
  if (!arrays) return arrays.error();
  const Result<PackOptions> options = pack_options_of(given_options);
  if (!options) return options.error();
  if (Result<size_t> bytes = packed_bytes_of(*arrays, *options); !bytes) return bytes.error();
  const Result<QuantizedWeight> weight = weight_of(*arrays);
  if (!weight) return weight.error();
  return pack(*weight, *options);
}

Result<Problem> problem_of(const nybble_problem* given) {
  const Result<nybble_problem> known = read(given, "problem");
  if (!known) return known.error();
  const Result<DType> act_dtype = dtype_of(known->act_dtype, "problem->act_dtype");
  if (!act_dtype) return act_dtype.error();
  const Result<DType> out_dtype = dtype_of(known->out_dtype, "problem->out_dtype");
  if (!out_dtype) return out_dtype.error();
  const Result<DType> scale_dtype = dtype_of(known->scale_dtype, "problem->scale_dtype");
  if (!scale_dtype) return scale_dtype.error();
  const Result<ZeroKind> zero_kind = enum_of(known->zero_kind, ZeroKind::kTable, "problem->zero_kind");
  if (!zero_kind) return zero_kind.error();
  return Problem{.m = known->m,
                 .n = known->n,
                 .k = known->k,
                 .act_dtype = *act_dtype,
                 .out_dtype = *out_dtype,
                 .weight = {.scale_dtype = *scale_dtype,
                            .zero_kind = *zero_kind,
                            .group_size = known->group_size,
                            .k_order = known->k_order != 0,
                            .scales_in_window = known->wide_scales == 0},
                 .layout = known->layout == 0 ? Problem{}.layout : known->layout,
                 .epilogue = {.bias = known->bias != 0, .residual = known->residual != 0},
                 .aligned = known->unaligned == 0};
}

nybble_problem to_c(const Problem& problem) {
  return {.size = sizeof(nybble_problem),
          .m = problem.m,
          .n = problem.n,
          .k = problem.k,
          .act_dtype = static_cast<int32_t>(problem.act_dtype),
          .out_dtype = static_cast<int32_t>(problem.out_dtype),
          .scale_dtype = static_cast<int32_t>(problem.weight.scale_dtype),
          .zero_kind = static_cast<int32_t>(problem.weight.zero_kind),
          .group_size = problem.weight.group_size,
          .k_order = problem.weight.k_order,
          .wide_scales = !problem.weight.scales_in_window,
          .layout = problem.layout,
          .bias = problem.epilogue.bias,
          .residual = problem.epilogue.residual,
          .unaligned = !problem.aligned,
          .reserved = 0};
}

// Puts a value into a new handle.
template <class Handle, class Value> Result<void> hand_out(Result<Value>&& value, Handle** out) {
  if (!value) return value.error();
  *out = new Handle{std::move(*value)};
  return {};
}

Result<void> check_given(const void* pointer, const char* what) {
  if (pointer == nullptr) return invalid_argument("{} is NULL", what);
  return {};
}

constexpr size_t kBlobAlign = 128;  // of PackedWeight and LaunchArgs::weight

Result<PackedWeight> copy_blob(const void* blob, size_t bytes) {
  if (Result<void> given = check_given(blob, "blob"); !given) return given.error();
  if (bytes > PTRDIFF_MAX / 2) return invalid_argument("blob_bytes is {}, more than any memory", bytes);
  std::shared_ptr<std::byte[]> data = allocate_packed(bytes);
  std::memcpy(data.get(), blob, bytes);
  if (Result<void> valid = validate_packed({data.get(), bytes}, "blob"); !valid) return valid.error();
  return PackedWeight(std::move(data), bytes);
}

}  // namespace
}  // namespace nybble::capi

using namespace nybble;
using namespace nybble::capi;

const char* nybble_status_string(nybble_status status) {
  switch (status) {
    case NYBBLE_OK:
      return "ok";
    case NYBBLE_INVALID_ARGUMENT:
      return error_code_name(ErrorCode::kInvalidArgument);
    case NYBBLE_UNSUPPORTED:
      return error_code_name(ErrorCode::kUnsupported);
    case NYBBLE_INVALID_DATA:
      return error_code_name(ErrorCode::kInvalidData);
    case NYBBLE_IO:
      return error_code_name(ErrorCode::kIo);
    case NYBBLE_CUDA:
      return error_code_name(ErrorCode::kCuda);
    case NYBBLE_OUT_OF_MEMORY:
      return error_code_name(ErrorCode::kOutOfMemory);
    case NYBBLE_WORKSPACE_TOO_SMALL:
      return error_code_name(ErrorCode::kWorkspaceTooSmall);
    case NYBBLE_INTERNAL:
      return "internal";
  }
  return "unknown";
}

const char* nybble_last_error(void) { return last_error.shown; }

const char* nybble_version(void) { return NYBBLE_VERSION; }

nybble_status nybble_weight_view(const nybble_weight* weight, nybble_arrays* out) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(weight, "weight"); !given) return given;
    if (Result<void> fine = check_size(out, "out"); !fine) return fine;
    const QuantizedWeight& value = weight->value;
    const void* zeros = value.zero_kind == ZeroKind::kNone  ? nullptr
                        : value.zero_kind == ZeroKind::kInt ? static_cast<const void*>(value.int_zeros.data())
                                                            : value.float_zeros.bytes.data();
    write({.size = sizeof(nybble_arrays),
           .name = value.name.c_str(),
           .n = value.n,
           .k = value.k,
           .group_size = value.group_size,
           .scale_dtype = static_cast<int32_t>(value.scales.dtype),
           .zero_kind = static_cast<int32_t>(value.zero_kind),
           .reserved = 0,
           .codes = value.codes.data(),
           .scales = value.scales.bytes.data(),
           .zeros = zeros,
           .k_order = value.k_order.empty() ? nullptr : value.k_order.data()},
          out);
    return {};
  });
}

void nybble_weight_destroy(nybble_weight* weight) { delete weight; }

nybble_status nybble_quantize_rtn(const nybble_dense* dense, const nybble_rtn_options* options, nybble_weight** out) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(out, "out"); !given) return given;
    const Result<nybble_dense> known = read(dense, "dense");
    if (!known) return known.error();
    RtnOptions rtn;
    if (options != nullptr) {
      const Result<nybble_rtn_options> known_options = read(options, "options");
      if (!known_options) return known_options.error();
      const Result<RangeSearch> search =
          enum_of(known_options->range_search, RangeSearch::kSquaredError, "options->range_search");
      if (!search) return search.error();
      const Result<DType> scale_dtype = dtype_of(known_options->scale_dtype, "options->scale_dtype");
      if (!scale_dtype) return scale_dtype.error();
      rtn = {.group_size = known_options->group_size,
             .symmetric = known_options->asymmetric == 0,
             .range_search = *search,
             .scale_dtype = *scale_dtype,
             .num_threads = known_options->num_threads};
    }
    const Result<DType> dtype = dtype_of(known->dtype, "dense->dtype");
    if (!dtype) return dtype.error();
    Result<FloatArray> values = floats_of(known->values, known->n, known->k, *dtype, "dense->values");
    if (!values) return values.error();
    const DenseWeight weight{
        .name = name_of(known->name), .n = known->n, .k = known->k, .values = std::move(*values), .bias = {}};
    return hand_out(quantize_rtn(weight, rtn), out);
  });
}

nybble_status nybble_packed_bytes(const nybble_arrays* arrays, const nybble_pack_options* options, size_t* out) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(out, "out"); !given) return given;
    const Result<nybble_arrays> known = read(arrays, "arrays");
    if (!known) return known.error();
    const Result<PackOptions> known_options = pack_options_of(options);
    if (!known_options) return known_options.error();
    const Result<size_t> bytes = packed_bytes_of(*known, *known_options);
    if (!bytes) return bytes.error();
    *out = *bytes;
    return {};
  });
}

nybble_status nybble_pack(const nybble_arrays* arrays, const nybble_pack_options* options, nybble_packed** out) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(out, "out"); !given) return given;
    return hand_out(pack_arrays(arrays, options), out);
  });
}

nybble_status nybble_pack_into(const nybble_arrays* arrays, const nybble_pack_options* options, void* memory,
                               size_t memory_bytes) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(memory, "memory"); !given) return given;
    const Result<PackedWeight> packed = pack_arrays(arrays, options);
    if (!packed) return packed.error();
    if (memory_bytes < packed->size_bytes())
      return invalid_argument("memory has {} bytes, the packed form takes {}; ask nybble_packed_bytes() first",
                              memory_bytes, packed->size_bytes());
    std::memcpy(memory, packed->data(), packed->size_bytes());
    return {};
  });
}

nybble_status nybble_unpack(const nybble_packed* packed, nybble_weight** out) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(packed, "packed"); !given) return given;
    if (Result<void> given = check_given(out, "out"); !given) return given;
    return hand_out(unpack(packed->value), out);
  });
}

nybble_status nybble_packed_validate(const void* blob, size_t blob_bytes) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(blob, "blob"); !given) return given;
    if (reinterpret_cast<uintptr_t>(blob) % kBlobAlign != 0)
      return invalid_argument(
          "blob is not aligned to {} bytes, as launches want it; nybble_packed_copy() takes it anywhere", kBlobAlign);
    return validate_packed({static_cast<const std::byte*>(blob), blob_bytes}, "blob");
  });
}

nybble_status nybble_packed_copy(const void* blob, size_t blob_bytes, nybble_packed** out) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(out, "out"); !given) return given;
    return hand_out(copy_blob(blob, blob_bytes), out);
  });
}

nybble_status nybble_packed_load(const char* path, nybble_packed** out) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(path, "path"); !given) return given;
    if (Result<void> given = check_given(out, "out"); !given) return given;
    return hand_out(load_packed(path), out);
  });
}

nybble_status nybble_packed_save(const nybble_packed* packed, const char* path) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(packed, "packed"); !given) return given;
    if (Result<void> given = check_given(path, "path"); !given) return given;
    return save_packed(packed->value, path);
  });
}

const void* nybble_packed_data(const nybble_packed* packed) {
  return packed != nullptr ? packed->value.data() : nullptr;
}

size_t nybble_packed_size_bytes(const nybble_packed* packed) {
  return packed != nullptr ? packed->value.size_bytes() : 0;
}

void nybble_packed_destroy(nybble_packed* packed) { delete packed; }

nybble_status nybble_packed_problem(const nybble_packed* packed, int64_t m, nybble_dtype act_dtype,
                                    nybble_problem* out) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(packed, "packed"); !given) return given;
    if (Result<void> fine = check_size(out, "out"); !fine) return fine;
    const Result<DType> dtype = dtype_of(act_dtype, "act_dtype");
    if (!dtype) return dtype.error();
    write(to_c(problem_for(packed->value, m, *dtype)), out);
    return {};
  });
}

nybble_status nybble_problem_parse(const char* text, nybble_problem* out) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(text, "text"); !given) return given;
    if (Result<void> fine = check_size(out, "out"); !fine) return fine;
    const Result<Problem> problem = parse_problem(text);
    if (!problem) return problem.error();
    write(to_c(*problem), out);
    return {};
  });
}

nybble_status nybble_problem_text(const nybble_problem* problem, char* text, size_t buffer_bytes, size_t* text_bytes) {
  return guarded([&]() -> Result<void> {
    const Result<Problem> known = problem_of(problem);
    if (!known) return known.error();
    const std::string line = to_string(*known);
    if (text == nullptr && text_bytes == nullptr) return invalid_argument("text and text_bytes are both NULL");
    if (text != nullptr) {
      if (buffer_bytes <= line.size())
        return invalid_argument("text has room for {} bytes, '{}' takes {}", buffer_bytes, line, line.size() + 1);
      std::memcpy(text, line.c_str(), line.size() + 1);
    }
    if (text_bytes != nullptr) *text_bytes = line.size() + 1;
    return {};
  });
}

nybble_status nybble_device_cpu(int32_t num_threads, nybble_device** out) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(out, "out"); !given) return given;
    if (num_threads < 0) return invalid_argument("num_threads is {}; it is a count, or 0 for all cores", num_threads);
    return hand_out(Result<Device>(Device::cpu(num_threads)), out);
  });
}

nybble_status nybble_device_cuda(int32_t ordinal, nybble_device** out) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(out, "out"); !given) return given;
    return hand_out(Device::cuda(ordinal), out);
  });
}

nybble_status nybble_device_h200(nybble_device** out) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(out, "out"); !given) return given;
    return hand_out(Result<Device>(Device::h200()), out);
  });
}

const char* nybble_device_name(const nybble_device* device) {
  return device != nullptr ? device->value.name.c_str() : "";
}

void nybble_device_destroy(nybble_device* device) { delete device; }

nybble_status nybble_tuning_table_load(const char* path, nybble_tuning_table** out) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(out, "out"); !given) return given;
    if (Result<void> given = check_given(path, "path"); !given) return given;
    return hand_out(load_tuning_table(path), out);
  });
}

nybble_status nybble_tuning_table_empty(nybble_tuning_table** out) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(out, "out"); !given) return given;
    return hand_out(Result<TuningTable>(TuningTable()), out);
  });
}

size_t nybble_tuning_table_num_problems(const nybble_tuning_table* table) {
  return table != nullptr ? table->value.num_problems() : 0;
}

size_t nybble_tuning_table_num_unknown(const nybble_tuning_table* table) {
  return table != nullptr ? table->value.unknown_kernels().size() : 0;
}

void nybble_tuning_table_destroy(nybble_tuning_table* table) { delete table; }

nybble_status nybble_plan_create(const nybble_problem* problem, const nybble_device* device,
                                 const nybble_plan_options* options, nybble_plan** out) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(out, "out"); !given) return given;
    if (Result<void> given = check_given(device, "device"); !given) return given;
    const Result<Problem> known = problem_of(problem);
    if (!known) return known.error();
    PlanOptions plan_options;
    if (options != nullptr) {
      const Result<nybble_plan_options> known_options = read(options, "options");
      if (!known_options) return known_options.error();
      plan_options = {.kernel = name_of(known_options->kernel), .pdl = known_options->no_pdl == 0};
      if (known_options->table != nullptr) plan_options.table = known_options->table->value;
    }
    return hand_out(make_plan(*known, device->value, plan_options), out);
  });
}

const char* nybble_plan_kernel(const nybble_plan* plan) { return plan != nullptr ? plan->value.kernel().c_str() : ""; }

const char* nybble_plan_why(const nybble_plan* plan) { return plan != nullptr ? plan->value.why().c_str() : ""; }

size_t nybble_plan_workspace_bytes(const nybble_plan* plan) {
  return plan != nullptr ? plan->value.workspace_bytes() : 0;
}

void nybble_plan_destroy(nybble_plan* plan) { delete plan; }

nybble_status nybble_launch(const nybble_plan* plan, const nybble_launch_args* args) {
  return guarded([&]() -> Result<void> {
    if (Result<void> given = check_given(plan, "plan"); !given) return given;
    const Result<nybble_launch_args> known = read(args, "args");
    if (!known) return known.error();
    return launch(plan->value, {.act = known->act,
                                .ld_act = known->ld_act,
                                .weight = known->weight,
                                .out = known->out,
                                .ld_out = known->ld_out,
                                .bias = known->bias,
                                .residual = known->residual,
                                .alpha = known->alpha != nullptr ? *known->alpha : 1.0f,
                                .alpha_device = known->alpha_device,
                                .workspace = known->workspace,
                                .workspace_bytes = known->workspace_bytes,
                                .stream = static_cast<CUstream_st*>(known->stream)});
  });
}
