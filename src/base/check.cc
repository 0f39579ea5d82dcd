#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace nybble::base {

void check_failed(const char* file, int line, const char* condition, const char* message) {
  std::fprintf(stderr, "nybble: internal error at %s:%d: %s (%s). Please report this.\n", file, line, message,
               condition);
  std::abort();
}

}  // namespace nybble::base
