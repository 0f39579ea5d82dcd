// Errors with formatted messages: `return invalid_argument("k is {}, not a multiple of {}", k, g);`
#pragma once

#include <fmt/format.h>

#include "nybble/result.h"

namespace nybble {

template <class... Args> Error make_error(ErrorCode code, fmt::format_string<Args...> text, Args&&... args) {
  return Error{code, fmt::format(text, std::forward<Args>(args)...)};
}

#define NYBBLE_ERROR_MAKER(name, code)                                                    \
  template <class... Args> Error name(fmt::format_string<Args...> text, Args&&... args) { \
    return make_error(ErrorCode::code, text, std::forward<Args>(args)...);                \
  }
NYBBLE_ERROR_MAKER(invalid_argument, kInvalidArgument)
NYBBLE_ERROR_MAKER(unsupported, kUnsupported)
NYBBLE_ERROR_MAKER(invalid_data, kInvalidData)
NYBBLE_ERROR_MAKER(io_error, kIo)
NYBBLE_ERROR_MAKER(cuda_error, kCuda)
NYBBLE_ERROR_MAKER(out_of_memory, kOutOfMemory)
#undef NYBBLE_ERROR_MAKER

}  // namespace nybble
