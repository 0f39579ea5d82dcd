// Each table is a file of tables/ in words of its own, written by scripts/ship_tables.py: a format, a kernel, the
// shapes it was measured on, and "at so many tokens, so many microseconds". Compiled, it is an array of constants.
#include "dispatch/shipped_tables.h"

#include <iterator>

#include "base/check.h"
#include "dispatch/tuning_data.h"

namespace nybble {
namespace {

// One word of a table; what it leaves out stays as the words before it said.
struct Word {
  const char* format = nullptr;  // "bf16 g128"
  const char* kernel = nullptr;
  int n = 0, k = 0;
  int m = 0;
  double us = 0;
};

#define FORMAT(text) {.format = text},
#define KERNEL(name) {.kernel = #name},
#define SHAPE(n_, k_) {.n = n_, .k = k_},
#define AT(m_, us_) {.m = m_, .us = us_},
constexpr Word kH200[] = {
#include "dispatch/tables/h200.inc"
    {}};
#undef FORMAT
#undef KERNEL
#undef SHAPE
#undef AT

TuningTable read(const std::string& device, const Word* begin, const Word* end) {
  auto data = std::make_shared<TuningData>();
  data->device = device;
  Problem problem;
  std::string kernel;
  for (const Word* word = begin; word != end; ++word) {
    if (word->format != nullptr) {
      const Result<Problem> format = parse_problem(std::string("m1 n1 k1 ") + word->format);
      NYBBLE_CHECK(format.ok(), "a shipped table names a format that is none");
      problem = *format;
    }
    if (word->kernel != nullptr) kernel = word->kernel;
    if (word->n > 0) problem.n = word->n, problem.k = word->k;
    if (word->m == 0) continue;
    problem.m = word->m;
    const bool added = data->add(problem, kernel, word->us);
    NYBBLE_CHECK(added, "a shipped table has two times for one kernel and problem");
  }
  return data->formats.empty() ? TuningTable() : TuningTable(std::move(data));
}

}  // namespace

std::vector<TuningTable> read_shipped_tables() {
  return {read(Device::h200().name, std::begin(kH200), std::end(kH200))};
}

}  // namespace nybble
