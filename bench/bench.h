// Measures one problem at a time: nybble's kernel and the dense product, or several kernels, interleaved, at the same
// duty cycle, with weights that are never in the cache when they are used again, and only after the result was found
// right.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nybble/gemm.h"

namespace nybble::bench {

// How hard the chip works while it is timed. Its clock depends on that, so only rows of the same duty compare.
enum class Duty : uint8_t {
  kIdle10,     // 10 ms idle before each replay of about 4 ms
  kBurst,      // 100 ms idle before each
  kSustained,  // replays of 400 ms back to back
};

const char* duty_name(Duty duty);  // "idle10", "burst", "sustained"
Result<Duty> parse_duty(std::string_view text);

struct Timing {
  double us = 0;                 // of one launch, median over replays
  double spread = 0;             // (p90 - p10) / median over replays
  std::optional<double> sm_mhz;  // mean clock during the replays, median over them; GPU only
};

struct MeasureOptions {
  PlanOptions plan;
  std::optional<DType> out;  // also of the dense product on a GPU; none: as the activations
  Duty duty = Duty::kIdle10;
  bool dense = true;
  int replays = 0;  // 0: 15, 9 or 5, by duty
  // Of several kernels, only those within this factor of the best so far get more than two replays; 0: all do.
  double keep_within = 0;
};

struct Measurement {
  Problem problem;
  std::string kernel;
  bool pdl = false;
  double floor_us = 0;  // GPU only: what the memory or the tensor cores need at least
  std::string wrong;    // what is wrong with the result; then nothing was timed. Empty: it is right
  Timing ours;
  std::optional<Timing> dense;  // absent where it was not asked for or nothing here can do it
};

// One device with its buffers. Not thread-safe.
class Bench {
 public:
  virtual ~Bench() = default;
  virtual const Device& device() const = 0;
  virtual std::string dense_impl() const = 0;  // "cublas", "eigen"; empty: nothing here multiplies dense matrices
  virtual std::string dense_note() const = 0;  // version of it, or why there is none
  // Packs the weight and makes activations for up to max_m tokens; measure() works on the weight loaded last.
  virtual Result<void> load(QuantizedWeight weight, DType act_dtype, int64_t max_m) = 0;
  virtual Result<Measurement> measure(int64_t m, const MeasureOptions& options) = 0;
  // Each of these kernels, their replays in turn, so that all meet the same clock. options.plan.kernel and
  // options.dense do not count. A kernel whose result is wrong is not timed, the others are.
  virtual Result<std::vector<Measurement>> measure_each(int64_t m, const std::vector<std::string>& kernels,
                                                        const MeasureOptions& options) = 0;
};

// `cublas` is the library's file name or path; empty: the names it is installed under are tried.
Result<std::unique_ptr<Bench>> open_bench(const Device& device, const std::string& cublas);

// What an H200 was measured to reach: 4.73 TB/s of reading by bulk copies whose kernels overlap, 860 TFLOP/s of bf16
// wgmma with its weight operand in registers on random data.
inline constexpr double kFloorTbS = 4.73;
inline constexpr double kFloorTflopS = 860;

// Microseconds that any kernel needs: packed weight, activations and outputs once each through the memory, or the
// multiplications.
Result<double> floor_us(const Problem& problem);

}  // namespace nybble::bench
