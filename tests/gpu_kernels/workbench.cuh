// The bench that every kernel test works at: one weight, pools of activations, guarded buffers, the reference's sums,
// and run(), which puts one case through make_plan and launch and judges every byte that it may have touched.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <regex>
#include <string>
#include <vector>

#include "nybble/gemm.h"
#include "nybble/pack.h"
#include "registry/registry.h"
#include "runtime/kernel_entry.h"
#include "support/case_data.h"
#include "support/device_memory.h"
#include "support/device_reference.cuh"

namespace nybble::testing {

// Why GPU tests cannot run here; empty: they can.
inline const std::string& why_no_gpu() {
  static const std::string reason = [] {
    const Result<Device> device = Device::cuda(0);
    if (!device) return device.error().message;
    if (device->sm != 90)
      return fmt::format("needs compute capability 9.0, this GPU has {}.{}", device->sm / 10, device->sm % 10);
    return std::string();
  }();
  return reason;
}
inline const Device& gpu() {
  static const Device device = Device::cuda(0).value();
  return device;
}

// NYBBLE_TEST_REDUCED=1: a short list, for runs under a sanitizer.
inline bool reduced() {
  static const bool value = [] {
    const char* text = std::getenv("NYBBLE_TEST_REDUCED");
    return text != nullptr && *text != '\0' && *text != '0';
  }();
  return value;
}

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!why_no_gpu().empty()) GTEST_SKIP() << why_no_gpu();
  }
};

inline std::vector<const KernelEntry*> gpu_rows() {
  std::vector<const KernelEntry*> rows;
  for (const KernelEntry& row : registry())
    if (row.device == DeviceKind::kCuda) rows.push_back(&row);
  return rows;
}

// tile_m and tile_n of a row, from its name ("..._t128x256x128_..."); 64 and 64 where the name tells none.
struct RowTile {
  int m = 64, n = 64;
};
inline RowTile row_tile(const KernelEntry& row) {
  static const std::regex pattern("_t(\\d+)x(\\d+)");
  std::smatch found;
  if (!std::regex_search(row.name, found, pattern)) return {};
  return {std::stoi(found[1]), std::stoi(found[2])};
}

// The problem with outputs in fp32 where the row writes nothing else.
inline Problem for_row(Problem problem, const KernelEntry& row) {
  Problem fp32 = problem;
  fp32.out_dtype = DType::kFp32;
  return !row.why_not(problem, gpu()).empty() && row.why_not(fp32, gpu()).empty() ? fp32 : problem;
}

// What a case's seed holds beside the seed of its numbers: how the arguments lie in memory.
struct Arrangement {
  static constexpr int kBits = 13;
  int act_gap, out_gap;  // 0..3: elements between a row's end and the next row
  int alpha;             // 0..7, index into kAlphas
  int rows_behind;       // 0: the act ends where its mapping ends; else rows of the pool that follow
  bool pdl;
  bool in_place;  // the residual, where there is one, lies where out does

  explicit Arrangement(uint64_t seed)
      : act_gap(seed & 3),
        out_gap(seed >> 2 & 3),
        alpha(seed >> 4 & 7),
        rows_behind(seed >> 7 & 1 ? 1 + (seed >> 8 & 7) : 0),
        pdl(seed >> 11 & 1),
        in_place(seed >> 12 & 1) {}
  static constexpr int kMostRowsBehind = 8;
  static constexpr float kAlphas[8] = {1, 1, 1, 0.5f, -2, 3, 2, -0.5f};
  bool alpha_on_device() const { return alpha >= 6; }
  static int64_t leading_dimension(int64_t columns, int gap, bool aligned) {
    static constexpr int kGaps[2][4] = {{0, 1, 3, 17}, {0, 8, 24, 136}};
    return (aligned ? (columns + 7) / 8 * 8 : columns) + kGaps[aligned][gap];
  }
};

struct Case {
  Problem problem;
  const KernelEntry* row = nullptr;
  uint64_t seed = 0;
  Data data = Data::kExact;

  std::string repeat_command() const {
    return fmt::format("test_gpu_kernels --case '{}' --kernel {} --data {} --seed {}", to_string(problem), row->name,
                       data_name(data), seed);
  }
};

struct Outcome {
  std::string refusal;  // the row's reason; nothing ran
  std::string failure;  // what went wrong, in words, with the command that repeats it; empty: right
  int64_t elements = 0;
  double closest = 0;    // largest share of the accumulation allowance that an element used
  uint64_t rounded = 0;  // elements equal to the correctly rounded result
};

// A weight, canonical on the host and on the device, and packed on the device.
class TestWeight {
 public:
  void load(QuantizedWeight weight) {
    Result<PackedWeight> packed = pack(weight);
    if (!packed) throw std::runtime_error("pack: " + packed.error().message);
    load(std::move(weight), *packed);
  }
  // For blobs that pack() would not make.
  void load(QuantizedWeight weight, const PackedWeight& packed) {
    canonical_ = std::move(weight);
    format_ = packed.format();
    CUDA_OK(
        cudaMemcpy(blob_.place(packed.size_bytes(), 128), packed.data(), packed.size_bytes(), cudaMemcpyHostToDevice));
    std::vector<int32_t> group_of(canonical_.k, 0);
    for (int64_t p = 0; p < canonical_.k && canonical_.group_size != kPerColumn; ++p)
      group_of[canonical_.k_order.empty() ? p : canonical_.k_order[p]] =
          static_cast<int32_t>(p / canonical_.group_size);
    view_ = {
        .codes = codes_.upload(canonical_.codes.data(), canonical_.codes.size()),
        .scales = scales_.upload(canonical_.scales.bytes.data(), canonical_.scales.bytes.size()),
        .int_zeros = int_zeros_.upload(canonical_.int_zeros.data(), canonical_.int_zeros.size()),
        .float_zeros = float_zeros_.upload(canonical_.float_zeros.bytes.data(), canonical_.float_zeros.bytes.size()),
        .group_of = group_of_.upload(group_of.data(), group_of.size()),
        .n = canonical_.n,
        .k = canonical_.k,
        .groups = canonical_.groups(),
        .scale_dtype = canonical_.scales.dtype,
        .zero_kind = canonical_.zero_kind};
  }

  const QuantizedWeight& canonical() const { return canonical_; }
  const WeightFormat& format() const { return format_; }  // as packed
  const WeightView& view() const { return view_; }
  const void* blob() const { return blob_.data(); }
  size_t blob_bytes() const { return blob_.size_bytes(); }

 private:
  QuantizedWeight canonical_;
  WeightFormat format_;
  WeightView view_{};
  DeviceScratch codes_, scales_, int_zeros_, float_zeros_, group_of_;
  EndBuffer blob_;
};

// The double sums of a pool of activations, once for all m, kernels and epilogues.
class ReferenceSumsOnDevice {
 public:
  void compute(const WeightView& weight, Numerics numerics, const void* act, DType act_dtype, int64_t ld_act,
               int64_t rows, bool with_magnitude, cudaStream_t stream) {
    double* values = values_.reserve_as<double>(weight.n * weight.k);
    double* sum = sum_.reserve_as<double>(rows * weight.n);
    double* magnitude = with_magnitude ? magnitude_.reserve_as<double>(rows * weight.n) : nullptr;
    device::dequantize<<<grid_for(weight.n * weight.k), 256, 0, stream>>>(weight, numerics, act_dtype, values);
    const dim3 grid(static_cast<unsigned>((weight.n + 63) / 64), static_cast<unsigned>((rows + 63) / 64));
    if (with_magnitude)
      device::multiply<true>
          <<<grid, 256, 0, stream>>>(act, act_dtype, ld_act, values, rows, weight.n, weight.k, sum, magnitude);
    else
      device::multiply<false>
          <<<grid, 256, 0, stream>>>(act, act_dtype, ld_act, values, rows, weight.n, weight.k, sum, nullptr);
    CUDA_OK(cudaGetLastError());
    has_magnitude_ = with_magnitude;
  }
  const double* sum() const { return static_cast<const double*>(sum_.data()); }
  const double* magnitude() const { return has_magnitude_ ? static_cast<const double*>(magnitude_.data()) : nullptr; }

 private:
  DeviceScratch values_, sum_, magnitude_;
  bool has_magnitude_ = false;
};

class Workbench {
 public:
  Workbench() {
    CUDA_OK(cudaSetDevice(gpu().ordinal));
    CUDA_OK(cudaStreamCreate(&stream_));
    CUDA_OK(cudaMallocHost(&verdict_host_, sizeof(Verdict)));
    CUDA_OK(cudaMallocHost(&count_host_, sizeof(unsigned long long)));
    alphas_.upload(Arrangement::kAlphas, std::size(Arrangement::kAlphas));
    verdict_.reserve(sizeof(Verdict));
  }
  ~Workbench() {
    cudaFreeHost(verdict_host_);
    cudaFreeHost(count_host_);
    cudaStreamDestroy(stream_);
  }

  // Makes the numbers of all cases up to most_m tokens. `seed` is a Case's seed; its low bits are not looked at.
  void set_weight(int64_t n, int64_t k, const WeightFormat& format, DType act_dtype, Data data, uint64_t seed,
                  int64_t most_m) {
    data_ = data, act_dtype_ = act_dtype, seed_ = seed >> Arrangement::kBits;
    rows_ = most_m + Arrangement::kMostRowsBehind;
    key_ = weight_key(seed_, n, k, format);
    weight_.load(make_weight(n, k, format, data, seed_));
    pools_filled_ = 0;
    sums_ready_[0] = sums_ready_[1] = false;
    bias_dtype_.reset();
  }
  const TestWeight& weight() const { return weight_; }
  cudaStream_t stream() const { return stream_; }

  // The problem of m tokens at this bench's weight.
  Problem problem(int64_t m) const {
    Problem problem;
    problem.m = m;
    problem.n = weight_.canonical().n;
    problem.k = weight_.canonical().k;
    problem.act_dtype = problem.out_dtype = act_dtype_;
    problem.weight = weight_.format();
    return problem;
  }
  Case make_case(const Problem& problem, const KernelEntry& row, uint64_t arrangement) const {
    return {problem, &row, seed_ << Arrangement::kBits | (arrangement & ((1u << Arrangement::kBits) - 1)), data_};
  }

  // Everything a launch of the case needs; the buffers belong to the bench and live until the next prepare().
  LaunchArgs prepare(const Case& c, size_t workspace_bytes) {
    const Problem& problem = c.problem;
    const Arrangement arrangement(c.seed);
    const int64_t ld_act = Arrangement::leading_dimension(problem.k, arrangement.act_gap, problem.aligned);
    const int64_t ld_out = Arrangement::leading_dimension(problem.n, arrangement.out_gap, problem.aligned);
    const size_t out_size = dtype_bytes(problem.out_dtype);
    const int64_t out_count = problem.m == 0 ? 0 : (problem.m - 1) * ld_out + problem.n;
    LaunchArgs args;
    args.act = static_cast<const char*>(pool(arrangement.act_gap, problem.aligned)) +
               (rows_ - arrangement.rows_behind - problem.m) * ld_act * 2;
    args.ld_act = ld_act == problem.k ? 0 : ld_act;
    args.weight = weight_.blob();
    args.out = out_.place(out_count * out_size, problem.aligned ? 0 : out_size);
    args.ld_out = ld_out == problem.n ? 0 : ld_out;
    if (problem.epilogue.bias) args.bias = bias();
    if (problem.epilogue.residual) {
      addend_ = residual_.place(std::max<size_t>(out_count * out_size, 16), problem.aligned ? 16 : out_size);
      fill_residual(problem, addend_, ld_out);
      args.residual = arrangement.in_place ? args.out : addend_;
    }
    args.alpha = Arrangement::kAlphas[arrangement.alpha];
    if (arrangement.alpha_on_device()) {
      args.alpha_device = static_cast<const float*>(alphas_.data()) + arrangement.alpha;
      args.alpha = std::numeric_limits<float>::quiet_NaN();
    }
    if (workspace_bytes > 0) {
      args.workspace = workspace_.place(workspace_bytes, 256);
      args.workspace_bytes = workspace_bytes;
      CUDA_OK(cudaMemsetAsync(args.workspace, kPoisonByte, workspace_bytes, stream_));
    }
    args.stream = stream_;
    out_.poison(stream_);
    if (args.residual == args.out) fill_residual(problem, args.out, ld_out);
    return args;
  }

  void fill_residual(const Problem& problem, void* to, int64_t ld) {
    device::fill_addend<<<grid_for(problem.m == 0 ? 0 : (problem.m - 1) * ld + problem.n), 256, 0, stream_>>>(
        to, problem.out_dtype, problem.m, problem.n, ld, key_, kResidual, data_);
  }

  Expectation expectation(const Case& c, const LaunchArgs& args, Numerics numerics) {
    const Problem& problem = c.problem;
    const Arrangement arrangement(c.seed);
    const ReferenceSumsOnDevice& sums = reference(numerics);
    const int64_t first = (rows_ - arrangement.rows_behind - problem.m) * problem.n;
    return {.sum = sums.sum() + first,
            .magnitude = sums.magnitude() == nullptr ? nullptr : sums.magnitude() + first,
            .bias = args.bias,
            .residual = args.residual == nullptr ? nullptr : addend_,
            .alpha = Arrangement::kAlphas[arrangement.alpha],
            .act_dtype = problem.act_dtype,
            .out_dtype = problem.out_dtype,
            .m = problem.m,
            .n = problem.n,
            .k = problem.k,
            .ld_out = Arrangement::leading_dimension(problem.n, arrangement.out_gap, problem.aligned)};
  }

  Outcome run(const Case& c) {
    Outcome outcome;
    outcome.refusal = c.row->why_not(c.problem, gpu());
    if (!outcome.refusal.empty()) return outcome;
    const auto fail = [&](const std::string& what) {
      outcome.failure =
          fmt::format("{} on {}: {}\n  repeat: {}", to_string(c.problem), c.row->name, what, c.repeat_command());
      return outcome;
    };
    const Result<Plan> plan = make_plan(c.problem, gpu(), {.kernel = c.row->name, .pdl = Arrangement(c.seed).pdl});
    if (!plan) return fail("make_plan refuses what why_not accepts: " + plan.error().message);
    if (plan->kernel() != c.row->name)
      return fail("make_plan chose another kernel than the one that was forced: " + plan->kernel());
    const LaunchArgs args = prepare(c, plan->workspace_bytes());
    const Expectation expected = expectation(c, args, c.row->numerics);
    if (const Result<void> launched = launch(*plan, args); !launched)
      return fail("launch: " + launched.error().message);
    try {
      const Verdict verdict = judge(expected);
      outcome.elements = c.problem.m * c.problem.n;
      outcome.rounded = verdict.rounded;
      float closest;
      std::memcpy(&closest, &verdict.closest, sizeof closest);
      outcome.closest = closest;
      if (verdict.wrong > 0) return fail(describe(c, expected, verdict));
      if (verdict.gap_writes > 0)
        return fail(fmt::format("{} elements between n and ld_out were written", verdict.gap_writes));
      if (verdict.guard_writes > 0)
        return fail(fmt::format("{} bytes before or behind out were written", verdict.guard_writes));
      if (args.workspace != nullptr && workspace_guard_writes() > 0)
        return fail("bytes around the workspace were written");
    } catch (const std::exception& error) {
      fail(error.what());
      throw std::runtime_error(outcome.failure);  // the context is lost: no later case means anything
    }
    return outcome;
  }

  const GuardedDeviceBuffer& out() const { return out_; }

 private:
  // act with NaN between its rows, its last element the last of its mapping.
  void* pool(int gap, bool aligned) {
    const int which = gap + (aligned ? 4 : 0);
    EndBuffer& buffer = pools_[which];
    if (!(pools_filled_ >> which & 1)) {
      const int64_t k = weight_.canonical().k, ld = Arrangement::leading_dimension(k, gap, aligned);
      void* data = buffer.place(((rows_ - 1) * ld + k) * 2, aligned ? 16 : 2);
      device::fill_act<<<grid_for(rows_ * ld), 256, 0, stream_>>>(data, act_dtype_, rows_, k, ld, key_, data_);
      CUDA_OK(cudaGetLastError());
      pools_filled_ |= 1 << which;
    }
    return buffer.data();
  }

  const void* bias() {
    const int64_t n = weight_.canonical().n;
    if (bias_dtype_ != act_dtype_) {
      bias_.place(n * 2, 16);
      device::fill_addend<<<grid_for(n), 256, 0, stream_>>>(bias_.data(), act_dtype_, 1, n, n, key_, kBias, data_);
      bias_dtype_ = act_dtype_;
    }
    return bias_.data();
  }

  const ReferenceSumsOnDevice& reference(Numerics numerics) {
    // On exact data both numerics have one meaning.
    const int which = is_exact(data_) ? 0 : static_cast<int>(numerics);
    if (!sums_ready_[which]) {
      const int64_t ld = Arrangement::leading_dimension(weight_.canonical().k, 0, true);
      sums_[which].compute(weight_.view(), numerics, pool(0, true), act_dtype_, ld, rows_, !is_exact(data_), stream_);
      sums_ready_[which] = true;
    }
    return sums_[which];
  }

  Verdict judge(const Expectation& expected) {
    Verdict* verdict = static_cast<Verdict*>(verdict_.data());
    CUDA_OK(cudaMemsetAsync(verdict, 0, sizeof(Verdict), stream_));
    const auto* out = static_cast<const unsigned char*>(out_.data());
    device::judge_output<<<grid_for(std::max<int64_t>(expected.m * expected.ld_out, kRedZoneBytes)), 256, 0, stream_>>>(
        expected, out, out - kRedZoneBytes, out + out_.size_bytes(), verdict);
    CUDA_OK(cudaGetLastError());
    CUDA_OK(cudaMemcpyAsync(verdict_host_, verdict, sizeof(Verdict), cudaMemcpyDeviceToHost, stream_));
    CUDA_OK(cudaStreamSynchronize(stream_));
    return *verdict_host_;
  }

  uint64_t workspace_guard_writes() {
    auto* count = count_.reserve_as<unsigned long long>(1);
    const auto* begin = static_cast<const unsigned char*>(workspace_.data());
    CUDA_OK(cudaMemsetAsync(count, 0, sizeof *count, stream_));
    device::count_other_bytes<<<16, 256, 0, stream_>>>(begin - kRedZoneBytes, kRedZoneBytes, kRedZoneByte, count);
    if (workspace_.slack_bytes() > 0)
      device::count_other_bytes<<<1, 256, 0, stream_>>>(begin + workspace_.size_bytes(), workspace_.slack_bytes(),
                                                        kRedZoneByte, count);
    CUDA_OK(cudaMemcpyAsync(count_host_, count, sizeof *count, cudaMemcpyDeviceToHost, stream_));
    CUDA_OK(cudaStreamSynchronize(stream_));
    return *count_host_;
  }

  // The worst element in words.
  std::string describe(const Case& c, Expectation expected, const Verdict& verdict) const {
    const uint32_t index = ~static_cast<uint32_t>(verdict.worst);
    const int64_t row = index / c.problem.n, column = index % c.problem.n, place = row * expected.ld_out + column;
    const auto fetch = [](const void* values, size_t size, int64_t i) {
      uint64_t bits = 0;
      CUDA_OK(cudaMemcpy(&bits, static_cast<const char*>(values) + i * size, size, cudaMemcpyDeviceToHost));
      return bits;
    };
    const DType dtype = expected.out_dtype;
    const uint32_t got = static_cast<uint32_t>(fetch(out_.data(), dtype_bytes(dtype), place));
    double absolute =
        expected.magnitude == nullptr
            ? 0
            : double_from_bits(fetch(expected.magnitude, 8, row * c.problem.n + column)) * std::abs(expected.alpha);
    double exact = expected.alpha * double_from_bits(fetch(expected.sum, 8, row * c.problem.n + column));
    if (expected.bias != nullptr)
      exact += widen(static_cast<uint32_t>(fetch(expected.bias, 2, column)), expected.act_dtype);
    if (expected.residual != nullptr)
      exact += widen(static_cast<uint32_t>(fetch(expected.residual, dtype_bytes(dtype), place)), dtype);
    const uint32_t want = narrow(exact, dtype);
    std::string text = fmt::format(
        "{} of {} elements are wrong ({} not written); worst at [{}, {}]: got {:.9g} (0x{:x}), want {:.9g} (0x{:x})",
        verdict.wrong, c.problem.m * c.problem.n, verdict.unwritten, row, column, widen(got, dtype), got,
        widen(want, dtype), want);
    if (expected.magnitude != nullptr)
      text += fmt::format(", allowed {:.3g}",
                          accumulation_allowance(absolute, expected.k) + half_step(std::abs(exact), dtype));
    return text;
  }

  cudaStream_t stream_ = nullptr;
  Data data_ = Data::kExact;
  DType act_dtype_ = DType::kBf16;
  uint64_t seed_ = 0, key_ = 0;
  int64_t rows_ = 0;
  TestWeight weight_;
  EndBuffer pools_[8], bias_, residual_, workspace_;
  void* addend_ = nullptr;  // the residual's values where no kernel writes
  unsigned pools_filled_ = 0;
  std::optional<DType> bias_dtype_;
  ReferenceSumsOnDevice sums_[2];
  bool sums_ready_[2] = {};
  GuardedDeviceBuffer out_;
  DeviceScratch alphas_, verdict_, count_;
  Verdict* verdict_host_ = nullptr;
  unsigned long long* count_host_ = nullptr;
};

// Accepted and refused cases of every row, printed as a table, with how close each row came to its bound.
class Tally {
 public:
  void add(const KernelEntry& row, const Outcome& outcome, DType out_dtype) {
    Row& r = rows_[row.name];
    if (!outcome.refusal.empty()) {
      ++r.refused;
      auto& [count, example] = r.reasons[without_numbers(outcome.refusal)];
      if (count++ == 0) example = outcome.refusal;
      return;
    }
    ++r.accepted;
    r.elements += outcome.elements;
    r.closest = std::max(r.closest, outcome.closest);
    if (out_dtype != DType::kFp32) r.rounded += outcome.rounded, r.roundable += outcome.elements;
    if (outcome.failure.empty()) return;
    ++failed_;
    if (++r.failed <= 3 && failed_ <= 30) ADD_FAILURE() << outcome.failure;
  }

  // Every row must have run; a row that refuses everything is tested by nothing.
  void finish(const char* title, bool with_envelope) {
    int64_t accepted = 0, refused = 0;
    fmt::print("{}\n{:<52} {:>9} {:>9} {:>7}{}\n", title, "row", "accepted", "refused", "failed",
               with_envelope ? "  of allowance  correctly rounded" : "");
    for (const KernelEntry* entry : gpu_rows()) {
      const Row& r = rows_[entry->name];
      accepted += r.accepted, refused += r.refused;
      fmt::print("{:<52} {:>9} {:>9} {:>7}", entry->name, r.accepted, r.refused, r.failed);
      if (with_envelope && r.accepted > 0) fmt::print("  {:>12.3f}  {:>16.4f} %", r.closest, 100 * share_rounded(r));
      fmt::print("\n");
      EXPECT_GT(r.accepted, 0) << entry->name << " accepted no case of this test";
    }
    for (const KernelEntry* entry : gpu_rows())
      for (const auto& [pattern, reason] : rows_[entry->name].reasons)
        fmt::print("  {} refused {}: {}\n", entry->name, reason.first, reason.second);
    fmt::print("{}: {} cases, {} failed, {} refused\n", title, accepted, failed_, refused);
    std::fflush(stdout);
    EXPECT_EQ(failed_, 0) << "cases failed; the first of each row are shown above";
    accepted_ = accepted;
  }
  int64_t accepted() const { return accepted_; }
  int64_t failed() const { return failed_; }

  struct Row {
    int64_t accepted = 0, refused = 0, failed = 0, elements = 0;
    uint64_t rounded = 0;
    int64_t roundable = 0;
    double closest = 0;
    std::map<std::string, std::pair<int64_t, std::string>> reasons;
  };
  const Row& row(const KernelEntry& entry) { return rows_[entry.name]; }
  static double share_rounded(const Row& r) {
    return r.roundable == 0 ? 1 : static_cast<double>(r.rounded) / r.roundable;
  }

 private:
  // Reasons that differ in their numbers only are one reason.
  static std::string without_numbers(const std::string& text) {
    std::string kind;
    for (char c : text)
      if (c < '0' || c > '9') kind += c;
    return kind;
  }

  std::map<std::string, Row> rows_;
  int64_t failed_ = 0, accepted_ = 0;
};

}  // namespace nybble::testing
