// NYBBLE_CHECK: our own faults abort loudly, with words.
#pragma once

namespace nybble::base {
[[noreturn]] void check_failed(const char* file, int line, const char* condition, const char* message);
}

#define NYBBLE_CHECK(condition, message) \
  ((condition) ? void(0) : ::nybble::base::check_failed(__FILE__, __LINE__, #condition, message))
