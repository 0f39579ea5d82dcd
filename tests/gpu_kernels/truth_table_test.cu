// What a weight is worth, read off the kernels: one-hot activations make out = weight, so that every code meets every
// zero point and every scale pattern and must come out as (u - z) * s rounded once to 16 bits. For weights in exact
// form (Numerics::kExactWeight) the store rounds the exact product, so both numerics have the same answer here.
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <map>

#include "gpu_kernels/workbench.cuh"

namespace nybble::testing {
namespace {

// A weight whose rows go through scale patterns and whose groups go through zero points; 16 consecutive input features
// of a group hold the 16 codes, in another order in every row.
struct Table {
  DType act;
  int group_size;
  ZeroKind zero_kind;
  DType scale_dtype;
  std::vector<uint32_t> scales;    // patterns
  std::vector<uint32_t> zeros;     // integers, or patterns of scale_dtype; without a zero point one entry per group
  std::vector<int32_t> positions;  // the input feature of each one-hot token
  int64_t column_width = 144;      // input features of a table per column

  QuantizedWeight weight() {
    const int64_t num_zeros = static_cast<int64_t>(zeros.size()), num_scales = static_cast<int64_t>(scales.size());
    const bool per_column = group_size == kPerColumn;
    QuantizedWeight weight;
    weight.name = "table";
    weight.n = per_column ? num_scales * num_zeros : num_scales;
    weight.group_size = group_size;
    const int64_t stride = per_column ? column_width : group_size;
    weight.k = per_column ? stride : stride * num_zeros;
    weight.zero_kind = zero_kind;
    weight.scales.dtype = scale_dtype;
    const int64_t groups = weight.groups();
    weight.scales.resize(weight.n * groups);
    weight.codes.resize(weight.n * weight.k);
    const bool integers = zero_kind == ZeroKind::kInt,
               floats = zero_kind == ZeroKind::kFloat || zero_kind == ZeroKind::kOffset;
    if (integers) weight.int_zeros.resize(weight.n * groups);
    if (floats) weight.float_zeros.dtype = scale_dtype, weight.float_zeros.resize(weight.n * groups);
    base::parallel_for(weight.n, 0, [&](int64_t row) {
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t zero = per_column ? row / num_scales : (row + group) % num_zeros;
        weight.scales.set_bits(row * groups + group, scales[row % num_scales]);
        if (integers) weight.int_zeros[row * groups + group] = static_cast<uint8_t>(zeros[zero]);
        if (floats) weight.float_zeros.set_bits(row * groups + group, zeros[zero]);
      }
      for (int64_t column = 0; column < weight.k; ++column)
        weight.codes[row * weight.k + column] = static_cast<uint8_t>((column * 7 + row) % 16);
    });
    positions.clear();
    for (int64_t group = 0; group < groups; ++group)
      for (int64_t i = 0; i < 16; ++i)
        positions.push_back(static_cast<int32_t>(group * stride + (group * 48 + 37) % (stride - 15) + i));
    return weight;
  }
};

__global__ void fill_one_hot(uint16_t* act, uint16_t one, const int32_t* positions, int64_t rows, int64_t k,
                             int64_t ld) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < rows * ld; i += int64_t{gridDim.x} * blockDim.x)
    act[i] = i % ld >= k ? 0xFFFF : i % ld == positions[i / ld] ? one : 0;
}

struct TableVerdict {
  unsigned long long wrong;
  unsigned long long first;  // ~index of the first wrong element, so that 0 means none
};

__device__ double round_to_bits(double value, int bits) {
  int exponent = 0;
  const double fraction = frexp(value, &exponent);
  return ldexp(rint(ldexp(fraction, bits)), exponent - bits);
}

// position null: every token is all ones and k is 1. Where outputs have more bits than the weights that are multiplied,
// `held` is the type of these. Its range may be wider there than in memory (scales of a window share a power of two).
__global__ void judge_table(WeightView weight, const int32_t* positions, int64_t rows, const void* out, int64_t ld_out,
                            DType dtype, DType held, bool through_fp32, TableVerdict* verdict) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < rows * weight.n;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t token = i / weight.n, row = i % weight.n;
    double exact = weight.value(row, positions == nullptr ? 0 : positions[token]);
    const uint32_t got = load_bits(out, dtype, token * ld_out + row);
    if (held != dtype) {
      if (same_number(got, narrow(round_to_bits(exact, float_shape(held).mantissa_bits + 1), dtype), dtype)) continue;
      exact = widen(narrow(exact, held), held);
    }
    if (same_number(got, narrow(exact, dtype), dtype)) continue;
    // A weight held in fp32 may be rounded there first; only fp32 scales have more bits than that leaves.
    if (through_fp32 && same_number(got, narrow(widen(narrow(exact, DType::kFp32), DType::kFp32), dtype), dtype))
      continue;
    atomicAdd(&verdict->wrong, 1ull);
    atomicMax(&verdict->first, ~static_cast<unsigned long long>(i));
  }
}

class TruthTableRun {
 public:
  void run(Table table) {
    weight_.load(table.weight());
    const int64_t k = weight_.canonical().k, ld = (k + 7) / 8 * 8,
                  tokens = static_cast<int64_t>(table.positions.size());
    const int32_t* positions = positions_.upload(table.positions.data(), table.positions.size());
    auto* act = static_cast<uint16_t*>(act_.place(tokens * ld * 2, 16));
    fill_one_hot<<<grid_for(tokens * ld), 256>>>(act, static_cast<uint16_t>(narrow(1, table.act)), positions, tokens, k,
                                                 ld);
    run_rows(table, act, ld, tokens, positions);
  }

  // Scales whose products may pass the type's range, where 0 * infinity would spoil a one-hot sum: k is 1, and every
  // (scale, zero point, code) is an output feature of its own.
  void run_overflow(Table table) {
    QuantizedWeight weight;
    weight.name = "overflow";
    const int64_t num_zeros = static_cast<int64_t>(table.zeros.size());
    weight.n = static_cast<int64_t>(table.scales.size()) * num_zeros * 16;
    weight.k = 1;
    weight.group_size = table.group_size;
    weight.zero_kind = table.zero_kind;
    weight.scales.dtype = table.scale_dtype;
    weight.scales.resize(weight.n);
    for (int64_t row = 0; row < weight.n; ++row) {
      weight.codes.push_back(row % 16);
      weight.scales.set_bits(row, table.scales[row / 16 / num_zeros]);
      if (table.zero_kind == ZeroKind::kInt)
        weight.int_zeros.push_back(static_cast<uint8_t>(table.zeros[row / 16 % num_zeros]));
    }
    weight_.load(std::move(weight));
    constexpr int64_t kTokens = 17, kLd = 8;
    const std::vector<int32_t> positions(kTokens, 0);
    const int32_t* zero_positions = positions_.upload(positions.data(), kTokens);
    auto* act = static_cast<uint16_t*>(act_.place(kTokens * kLd * 2, 16));
    fill_one_hot<<<1, 256>>>(act, static_cast<uint16_t>(narrow(1, table.act)), zero_positions, kTokens, 1, kLd);
    run_rows(table, act, kLd, kTokens, nullptr);
  }

  void finish(const char* title) {
    uint64_t all = 0;
    fmt::print("{}\n{:<52} {:>9} {:>9} {:>16}\n", title, "row", "launches", "failed", "weights checked");
    for (const KernelEntry* row : gpu_rows()) {
      const Count& count = counts_[row->name];
      all += count.weights;
      fmt::print("{:<52} {:>9} {:>9} {:>16}\n", row->name, count.launches, count.failed, count.weights);
    }
    fmt::print("{}: {} weights checked bit for bit in {} tables\n", title, all, tables_);
    std::fflush(stdout);
    EXPECT_GT(all, 0u);
  }
  // Every row, each in a format of its own, must have been read off.
  void expect_all_rows() {
    for (const KernelEntry* row : gpu_rows())
      EXPECT_GT(counts_[row->name].weights, 0u) << row->name << " took no table";
  }

 private:
  struct Count {
    uint64_t launches = 0, failed = 0, weights = 0;
  };

  void run_rows(const Table& table, const uint16_t* act, int64_t ld_act, int64_t tokens, const int32_t* positions) {
    ++tables_;
    Problem problem{
        .n = weight_.canonical().n, .k = weight_.canonical().k, .act_dtype = table.act, .out_dtype = table.act};
    problem.weight = weight_.format();
    for (const KernelEntry* row : gpu_rows()) {
      problem.m = tokens, problem.out_dtype = table.act;
      problem.out_dtype = for_row(problem, *row).out_dtype;
      int64_t most = 0;  // tokens that the row takes at once
      for (int64_t m :
           {tokens, int64_t{128}, int64_t{64}, int64_t{32}, int64_t{16}, int64_t{8}, int64_t{4}, int64_t{1}}) {
        problem.m = std::min(m, tokens);
        if (row->why_not(problem, gpu()).empty()) {
          most = problem.m;
          break;
        }
      }
      for (int64_t first = 0; most > 0 && first < tokens; first += most) {
        problem.m = most;
        run_row(table, *row, problem, act, ld_act, std::min(first, tokens - most), positions);
      }
    }
  }

  void run_row(const Table& table, const KernelEntry& row, const Problem& problem, const uint16_t* act, int64_t ld_act,
               int64_t first, const int32_t* positions) {
    Count& count = counts_[row.name];
    const Result<Plan> plan = make_plan(problem, gpu(), {.kernel = row.name});
    ASSERT_TRUE(plan) << plan.error().message;
    const int64_t ld_out = (problem.n + 7) / 8 * 8;
    out_.place(problem.m * ld_out * dtype_bytes(problem.out_dtype), 0);
    out_.poison(nullptr);
    LaunchArgs args{
        .act = act + first * ld_act, .ld_act = ld_act, .weight = weight_.blob(), .out = out_.data(), .ld_out = ld_out};
    args.workspace_bytes = plan->workspace_bytes();
    if (args.workspace_bytes > 0) args.workspace = workspace_.place(args.workspace_bytes, 256);
    const Result<void> launched = launch(*plan, args);
    ASSERT_TRUE(launched) << launched.error().message;
    auto* verdict = verdict_.reserve_as<TableVerdict>(1);
    CUDA_OK(cudaMemset(verdict, 0, sizeof *verdict));
    const bool through_fp32 = table.scale_dtype == DType::kFp32 && row.numerics == Numerics::kExactWeight;
    const DType held = row.numerics == Numerics::kRoundedWeight ? table.act : problem.out_dtype;
    judge_table<<<grid_for(problem.m * problem.n), 256>>>(
        weight_.view(), positions == nullptr ? nullptr : positions + first, problem.m, out_.data(), ld_out,
        problem.out_dtype, held, through_fp32, verdict);
    TableVerdict result;
    CUDA_OK(cudaMemcpy(&result, verdict, sizeof result, cudaMemcpyDeviceToHost));
    ++count.launches;
    count.weights += problem.m * problem.n;
    if (result.wrong == 0) return;
    if (++count.failed > 3) return;
    const int64_t index = static_cast<int64_t>(~result.first), token = first + index / problem.n,
                  column = index % problem.n;
    const int64_t position = positions == nullptr ? 0 : table.positions[token];
    const QuantizedWeight& weight = weight_.canonical();
    const int64_t group =
        column * weight.groups() + (weight.group_size == kPerColumn ? 0 : position / weight.group_size);
    uint32_t got = 0;
    const size_t bytes = dtype_bytes(problem.out_dtype);
    CUDA_OK(cudaMemcpy(&got, static_cast<const std::byte*>(out_.data()) + ((token - first) * ld_out + column) * bytes,
                       bytes, cudaMemcpyDeviceToHost));
    const std::string zero = !weight.int_zeros.empty()    ? std::to_string(weight.int_zeros[group])
                             : weight.float_zeros.empty() ? "none"
                                                          : fmt::format("0x{:x}", weight.float_zeros.bits_at(group));
    ADD_FAILURE() << fmt::format(
                         "{} on {}: {} of {} weights are wrong; first: code {}, zero {}, scale 0x{:x} at [n {}, k {}]: "
                         "got 0x{:04x} ({:.9g})",
                         to_string(problem), row.name, result.wrong, problem.m * problem.n,
                         weight.codes[column * weight.k + position], zero, weight.scales.bits_at(group), column,
                         position, got, widen(got, problem.out_dtype))
                  << "\n  repeat: test_gpu_kernels --gtest_filter="
                  << ::testing::UnitTest::GetInstance()->current_test_info()->test_suite_name() << "."
                  << ::testing::UnitTest::GetInstance()->current_test_info()->name();
  }

  TestWeight weight_;
  DeviceScratch positions_, verdict_;
  EndBuffer act_, workspace_;
  GuardedDeviceBuffer out_;
  std::map<std::string, Count> counts_;
  int tables_ = 0;
};

std::vector<uint32_t> integers_to(uint32_t last) {
  std::vector<uint32_t> all;
  for (uint32_t i = 0; i <= last; ++i) all.push_back(i);
  return all;
}

// The patterns of both signs whose exponent field is in [first, last].
std::vector<uint32_t> patterns(DType dtype, int first, int last) {
  const FloatShape shape = float_shape(dtype);
  std::vector<uint32_t> all;
  const uint32_t step = reduced() ? 61 : 1;
  for (uint32_t bits = static_cast<uint32_t>(first) << shape.mantissa_bits;
       bits < static_cast<uint32_t>(last + 1) << shape.mantissa_bits; bits += step) {
    all.push_back(bits);
    all.push_back(bits | shape.sign());
  }
  return all;
}

// `count` patterns with exponent fields in [first, last], the mantissas at random.
std::vector<uint32_t> sampled_patterns(DType dtype, int first, int last, int count, uint64_t seed) {
  const FloatShape shape = float_shape(dtype);
  const RandomStream stream(seed, kScales);
  std::vector<uint32_t> all;
  for (int i = 0; i < count; ++i) {
    const uint32_t exponent = first + stream.below(2 * i, last - first + 1);
    all.push_back(exponent << shape.mantissa_bits | (stream.bits(2 * i + 1) & ((1u << shape.mantissa_bits) - 1)) |
                  (i % 2 == 0 ? 0 : shape.sign()));
  }
  return all;
}

// Fields up to these keep 16 * s finite in the type.
constexpr int kLastBf16 = 250, kLastFp16 = 26;

class TruthTable : public GpuTest {};

// The zero points of a table, or without them as many groups as make 512 input features, which rows that split k need.
std::vector<uint32_t> zeros_of(ZeroKind zero, int group) {
  if (zero == ZeroKind::kInt) return integers_to(16);
  return std::vector<uint32_t>(group == kPerColumn || group < 32 ? 1 : 512 / group, 0);
}

TEST_F(TruthTable, EveryScaleZeroPointAndCode) {
  TruthTableRun run;
  for (int group : {128, 64, kPerColumn, 32, 16}) {
    for (ZeroKind zero : {ZeroKind::kNone, ZeroKind::kInt}) {
      const std::vector<uint32_t> zeros = zeros_of(zero, group);
      // Windows of exponents that one power of two can move into bf16's cheap range, then all patterns at once.
      for (auto [first, last] : {std::pair{1, 62}, {63, 124}, {125, 186}, {187, kLastBf16}, {0, kLastBf16}})
        run.run({DType::kBf16, group, zero, DType::kBf16, patterns(DType::kBf16, first, last), zeros});
      for (auto [first, last] : {std::pair{1, 15}, {16, kLastFp16}, {0, kLastFp16}})
        run.run({DType::kFp16, group, zero, DType::kFp16, patterns(DType::kFp16, first, last), zeros});
      if (group != kPerColumn) continue;
      for (auto [act, last] : {std::pair{DType::kBf16, kLastBf16}, {DType::kFp16, kLastFp16}})
        run.run({act, group, zero, act, sampled_patterns(act, 1, last, 1024, 8), zeros, {}, 400});
    }
  }
  run.finish("truth table");
  run.expect_all_rows();
}

TEST_F(TruthTable, OtherScaleTypesAndFloatZeroPoints) {
  TruthTableRun run;
  const int count = reduced() ? 512 : 16384;
  const auto fields = [](DType act, DType scale) {  // exponent fields whose products stay finite in act
    if (scale == DType::kFp16) return std::pair{0, act == DType::kFp16 ? kLastFp16 : 30};
    return std::pair{1, act == DType::kFp16 ? 127 + 11 : kLastBf16};
  };
  for (DType act : {DType::kBf16, DType::kFp16}) {
    for (DType scale : {DType::kBf16, DType::kFp16, DType::kFp32}) {
      const auto [first, last] = fields(act, scale);
      for (int group : {128, kPerColumn}) {
        if (scale != act) {
          run.run({act, group, ZeroKind::kNone, scale, sampled_patterns(scale, first, last, count, 1), {0}});
          run.run({act, group, ZeroKind::kInt, scale, sampled_patterns(scale, first, last, count, 2), integers_to(16)});
        }
        // Float zero points and offsets: any mantissa, magnitudes like those of weights.
        const int bias = float_shape(scale).bias();
        run.run({act,
                 group,
                 ZeroKind::kFloat,
                 scale,
                 sampled_patterns(scale, bias - 8, bias - 1, count, 3),
                 sampled_patterns(scale, bias - 3, bias + 3, 16, 4),
                 {}});
        run.run({act,
                 group,
                 ZeroKind::kOffset,
                 scale,
                 sampled_patterns(scale, bias - 8, bias - 1, count, 5),
                 sampled_patterns(scale, bias - 6, bias + 2, 16, 6),
                 {}});
      }
    }
  }
  run.finish("truth table of the other scales and zero points");
}

TEST_F(TruthTable, ProductsPastTheRangeAreInfinite) {
  TruthTableRun run;
  for (int group : {128, 64, kPerColumn}) {
    for (ZeroKind zero : {ZeroKind::kNone, ZeroKind::kInt}) {
      const std::vector<uint32_t> zeros =
          zero == ZeroKind::kNone ? std::vector<uint32_t>{0} : std::vector<uint32_t>{0, 1, 8, 15, 16};
      run.run_overflow({DType::kBf16, group, zero, DType::kBf16, patterns(DType::kBf16, kLastBf16 + 1, 254), zeros});
      run.run_overflow({DType::kFp16,
                        group,
                        zero,
                        DType::kFp16,
                        sampled_patterns(DType::kFp16, kLastFp16 + 1, 30, 1024, 7),
                        zeros,
                        {}});
    }
  }
  run.finish("overflow table");
}

}  // namespace
}  // namespace nybble::testing
