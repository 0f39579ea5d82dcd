// Text forms of types.h and result.h, and their inverses.
#include "nybble/types.h"

#include <charconv>
#include <vector>

#include "base/error.h"

namespace nybble {

const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid_argument";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kInvalidData:
      return "invalid_data";
    case ErrorCode::kIo:
      return "io";
    case ErrorCode::kCuda:
      return "cuda";
    case ErrorCode::kOutOfMemory:
      return "out_of_memory";
    case ErrorCode::kWorkspaceTooSmall:
      return "workspace_too_small";
  }
  return "unknown";
}

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return "bf16";
    case DType::kFp16:
      return "fp16";
    case DType::kFp32:
      return "fp32";
  }
  return "unknown";
}

Result<DType> parse_dtype(std::string_view text) {
  if (text == "bf16" || text == "bfloat16") return DType::kBf16;
  if (text == "fp16" || text == "f16" || text == "float16") return DType::kFp16;
  if (text == "fp32" || text == "f32" || text == "float32") return DType::kFp32;
  return invalid_argument("'{}' is no element type; known are bf16, fp16 and fp32", text);
}

const char* zero_kind_name(ZeroKind kind) {
  switch (kind) {
    case ZeroKind::kNone:
      return "none";
    case ZeroKind::kInt:
      return "int";
    case ZeroKind::kFloat:
      return "float";
    case ZeroKind::kOffset:
      return "offset";
    case ZeroKind::kTable:
      return "table";
  }
  return "unknown";
}

Result<ZeroKind> parse_zero_kind(std::string_view text) {
  for (ZeroKind kind : {ZeroKind::kNone, ZeroKind::kInt, ZeroKind::kFloat, ZeroKind::kOffset, ZeroKind::kTable})
    if (text == zero_kind_name(kind)) return kind;
  return invalid_argument("'{}' is no kind of zero point; known are none, int, float, offset and table", text);
}

namespace {

// Words of a problem beside its numbers. The first is the short form of ZeroKind.
const char* zero_word(ZeroKind kind) {
  switch (kind) {
    case ZeroKind::kNone:
      return "";
    case ZeroKind::kInt:
      return "zp";
    case ZeroKind::kFloat:
      return "fzp";
    case ZeroKind::kOffset:
      return "offset";
    case ZeroKind::kTable:
      return "table";
  }
  return "";
}

void append_format(std::string& text, const WeightFormat& format, DType default_scale) {
  text += format.group_size == kPerColumn ? "col" : fmt::format("g{}", format.group_size);
  if (format.scale_dtype != default_scale) text += fmt::format(" s{}", dtype_name(format.scale_dtype));
  if (format.zero_kind != ZeroKind::kNone) text += fmt::format(" {}", zero_word(format.zero_kind));
  if (format.k_order) text += " order";
  if (!format.scales_in_window) text += " wide";
}

Result<int64_t> parse_number(std::string_view digits, std::string_view token) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (digits.empty() || error != std::errc{} || end != digits.data() + digits.size() || value < 0)
    return invalid_argument("'{}' in a problem needs a whole number that is not negative", token);
  return value;
}

}  // namespace

std::string to_string(const WeightFormat& format) {
  std::string text;
  append_format(text, format, DType::kBf16);
  return text;
}

std::string to_string(const Problem& problem) {
  std::string text = fmt::format("m{} n{} k{} {} ", problem.m, problem.n, problem.k, dtype_name(problem.act_dtype));
  if (problem.out_dtype != problem.act_dtype) text += fmt::format("out={} ", dtype_name(problem.out_dtype));
  append_format(text, problem.weight, problem.act_dtype);
  if (problem.epilogue.bias) text += " bias";
  if (problem.epilogue.residual) text += " residual";
  if (!problem.aligned) text += " unaligned";
  if (problem.layout != 1) text += fmt::format(" layout={}", problem.layout);
  return text;
}

Result<Problem> parse_problem(std::string_view text) {
  Problem problem;
  bool have_m = false, have_n = false, have_k = false, have_act = false, have_out = false, have_scale = false;
  problem.weight.group_size = 128;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const std::string_view token = text.substr(begin, end - begin);
    begin = end + 1;
    if (token.empty()) continue;
    const std::string_view rest = token.substr(1);
    const bool numeric = !rest.empty() && rest[0] >= '0' && rest[0] <= '9';
    if (token == "bf16" || token == "fp16" || token == "fp32") {
      problem.act_dtype = *parse_dtype(token);
      have_act = true;
    } else if (token.starts_with("out=")) {
      const Result<DType> dtype = parse_dtype(token.substr(4));
      if (!dtype) return dtype.error();
      problem.out_dtype = *dtype;
      have_out = true;
    } else if (token.starts_with("layout=")) {
      const Result<int64_t> number = parse_number(token.substr(7), token);
      if (!number) return number.error();
      problem.layout = static_cast<int>(*number);
    } else if (token == "col") {
      problem.weight.group_size = kPerColumn;
    } else if (token == "zp") {
      problem.weight.zero_kind = ZeroKind::kInt;
    } else if (token == "fzp") {
      problem.weight.zero_kind = ZeroKind::kFloat;
    } else if (token == "offset") {
      problem.weight.zero_kind = ZeroKind::kOffset;
    } else if (token == "table") {
      problem.weight.zero_kind = ZeroKind::kTable;
    } else if (token == "order") {
      problem.weight.k_order = true;
    } else if (token == "wide") {
      problem.weight.scales_in_window = false;
    } else if (token == "bias") {
      problem.epilogue.bias = true;
    } else if (token == "residual") {
      problem.epilogue.residual = true;
    } else if (token == "unaligned") {
      problem.aligned = false;
    } else if (numeric && (token[0] == 'm' || token[0] == 'n' || token[0] == 'k' || token[0] == 'g')) {
      const Result<int64_t> number = parse_number(rest, token);
      if (!number) return number.error();
      switch (token[0]) {
        case 'm':
          problem.m = *number, have_m = true;
          break;
        case 'n':
          problem.n = *number, have_n = true;
          break;
        case 'k':
          problem.k = *number, have_k = true;
          break;
        default:
          if (*number == 0 || *number > 1 << 24)
            return invalid_argument("'{}': a group has 1 to {} input features; per column is 'col'", token, 1 << 24);
          problem.weight.group_size = static_cast<int>(*number);
      }
    } else if (token[0] == 's' && parse_dtype(rest)) {
      problem.weight.scale_dtype = *parse_dtype(rest);
      have_scale = true;
    } else {
      return invalid_argument(
          "'{}' is no word of a problem; an example is 'm16 n4096 k4096 bf16 g128', further words are col, out=fp32, "
          "sfp16, zp, fzp, offset, table, order, wide, bias, residual, unaligned",
          token);
    }
  }
  if (!have_m || !have_n || !have_k || !have_act)
    return invalid_argument("'{}' is no problem: it needs m, n, k and a type, e.g. 'm16 n4096 k4096 bf16 g128'", text);
  if (!have_out) problem.out_dtype = problem.act_dtype;
  if (!have_scale) problem.weight.scale_dtype = problem.act_dtype;
  return problem;
}

}  // namespace nybble
