// Every CPU row against plain double loops over the canonical weight: bit-equal where fp32 is exact, within the
// envelope elsewhere. All operands end at a page that may not be touched, and outputs are poisoned before each launch.
#include "cpu/kernels.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "base/float16.h"
#include "nybble/pack.h"
#include "reference/envelope.h"

namespace nybble {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
const Device kCpu{.kind = DeviceKind::kCpu, .name = "cpu", .num_threads = 2};

// Bytes that end where an unreadable page begins, and start poisoned: 0xFF is a NaN in every element type.
class GuardedBytes {
 public:
  explicit GuardedBytes(size_t size) : size_(size) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (size + page - 1) / page * page + page;
    void* map = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    begin_ = static_cast<std::byte*>(map);
    if (mprotect(begin_ + mapped_ - page, page, PROT_NONE) != 0) throw std::bad_alloc();
    std::memset(begin_, 0xFF, mapped_ - page);
    data_ = begin_ + mapped_ - page - size;
  }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  ~GuardedBytes() { munmap(begin_, mapped_); }

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  // Nothing was written below the first byte.
  bool untouched_before() const {
    return std::all_of(begin_, data_, [](std::byte b) { return b == std::byte{0xFF}; });
  }

 private:
  std::byte *begin_, *data_;
  size_t size_, mapped_;
};

float get(const std::byte* from, DType dtype, int64_t i) {
  uint16_t half;
  float wide;
  if (dtype == DType::kFp32) {
    std::memcpy(&wide, from + 4 * i, 4);
    return wide;
  }
  std::memcpy(&half, from + 2 * i, 2);
  return dtype == DType::kBf16 ? base::bf16_to_float(half) : base::fp16_to_float(half);
}

void put(std::byte* to, DType dtype, int64_t i, float value) {
  if (dtype == DType::kFp32) {
    std::memcpy(to + 4 * i, &value, 4);
    return;
  }
  const uint16_t half = dtype == DType::kBf16 ? base::float_to_bf16(value) : base::float_to_fp16(value);
  std::memcpy(to + 2 * i, &half, 2);
}

uint32_t bits(const std::byte* from, DType dtype, int64_t i) {
  uint32_t value = 0;
  std::memcpy(&value, from + i * static_cast<int64_t>(dtype_bytes(dtype)), dtype_bytes(dtype));
  return value;
}

struct Case {
  int64_t m = 1, n = 64, k = 128;
  int group_size = 128;
  ZeroKind zero_kind = ZeroKind::kNone;
  DType scale_dtype = DType::kBf16;
  bool k_order = false;
  DType act_dtype = DType::kBf16, out_dtype = DType::kBf16;
  bool bias = false, residual = false, alpha_device = false;
  bool in_place = false;  // the residual lies where out does
  float alpha = 1;
  int64_t act_pad = 0, out_pad = 0;  // leading dimension minus width
  bool exact = true;                 // numbers whose sums are exact in fp32, or random ones
  uint32_t seed = 1;
};

std::string describe(const Case& c) {
  Problem problem{.m = c.m, .n = c.n, .k = c.k, .act_dtype = c.act_dtype, .out_dtype = c.out_dtype};
  problem.weight.scale_dtype = c.scale_dtype;
  problem.weight.zero_kind = c.zero_kind;
  problem.weight.group_size = c.group_size;
  problem.weight.k_order = c.k_order;
  problem.epilogue = {.bias = c.bias, .residual = c.residual};
  return fmt::format("{}{} alpha={}{} ld_act=k+{} ld_out=n+{} {} seed {}", to_string(problem),
                     c.in_place ? " in place" : "", c.alpha, c.alpha_device ? " (pointer)" : "", c.act_pad, c.out_pad,
                     c.exact ? "exact" : "random", c.seed);
}

// Everything that a launch reads, and the double sums that judge it.
class Trial {
 public:
  explicit Trial(const Case& c)
      : case_(c),
        ld_act_(c.k + c.act_pad),
        ld_out_(c.n + c.out_pad),
        act_(bytes(c.m == 0 ? 0 : (c.m - 1) * ld_act_ + c.k, c.act_dtype)),
        bias_(bytes(c.n, c.act_dtype)),
        residual_(out_bytes()) {
    std::mt19937 random(c.seed);
    const auto integer = [&](int low, int high) {
      return static_cast<float>(low + static_cast<int>(random() % static_cast<uint32_t>(high - low + 1)));
    };
    const auto normal = [&] { return std::normal_distribution<float>()(random); };
    weight_ = {.name = "w", .n = c.n, .k = c.k, .group_size = c.group_size, .zero_kind = c.zero_kind};
    weight_.codes.resize(c.n * c.k);
    for (uint8_t& code : weight_.codes) code = random() % 16;
    const size_t groups = static_cast<size_t>(c.n * weight_.groups());
    std::vector<float> scales(groups), zeros(groups);
    for (float& scale : scales) {
      scale =
          c.exact ? std::ldexp(random() % 4 == 0 ? -1.0f : 1.0f, static_cast<int>(random() % 3) - 1) : 0.02f * normal();
    }
    weight_.scales = FloatArray::from_floats(c.scale_dtype, scales);
    if (c.zero_kind == ZeroKind::kInt) {
      weight_.int_zeros.resize(groups);
      for (uint8_t& zero : weight_.int_zeros) zero = random() % 17;
    } else if (c.zero_kind != ZeroKind::kNone) {
      for (size_t i = 0; i < groups; ++i) {
        if (c.zero_kind == ZeroKind::kFloat) {
          zeros[i] = c.exact ? integer(0, 32) / 2 : 7.5f + 2 * normal();
        } else {
          zeros[i] = c.exact ? integer(-16, 16) / 2 : -8 * scales[i] + 0.01f * normal();
        }
      }
      weight_.float_zeros = FloatArray::from_floats(c.scale_dtype, zeros);
    }
    if (c.k_order) {
      weight_.k_order.resize(c.k);
      std::iota(weight_.k_order.begin(), weight_.k_order.end(), 0);
      std::shuffle(weight_.k_order.begin(), weight_.k_order.end(), random);
    }
    for (int64_t row = 0; row < c.m; ++row)
      for (int64_t i = 0; i < c.k; ++i)
        put(act_.data(), c.act_dtype, row * ld_act_ + i, c.exact ? integer(-2, 2) : normal());
    for (int64_t i = 0; i < c.n; ++i) put(bias_.data(), c.act_dtype, i, c.exact ? integer(-64, 64) / 2 : normal());
    for (int64_t row = 0; row < c.m; ++row)
      for (int64_t i = 0; i < c.n; ++i)
        put(residual_.data(), c.out_dtype, row * ld_out_ + i, c.exact ? integer(-64, 64) / 4 : normal());

    Result<PackedWeight> packed = pack(weight_);
    if (!packed) throw std::runtime_error(packed.error().message);
    blob_ = std::make_unique<GuardedBytes>(packed->size_bytes());
    std::memcpy(blob_->data(), packed->data(), packed->size_bytes());
    problem_ = problem_for(*packed, c.m, c.act_dtype);
    problem_.out_dtype = c.out_dtype;
    problem_.epilogue = {.bias = c.bias, .residual = c.residual};
    problem_.aligned = false;
  }

  const Problem& problem() const { return problem_; }
  int64_t ld_out() const { return ld_out_; }
  size_t out_bytes() const { return bytes(case_.m == 0 ? 0 : (case_.m - 1) * ld_out_ + case_.n, case_.out_dtype); }
  void set_act(int64_t row, int64_t i, float value) { put(act_.data(), case_.act_dtype, row * ld_act_ + i, value); }

  Result<void> launch(const KernelEntry& row, const Device& device, GuardedBytes& out) {
    GuardedBytes workspace(row.workspace_bytes(problem_, device));
    const float alpha = case_.alpha;
    LaunchArgs args{.act = act_.data(),
                    .ld_act = ld_act_,
                    .weight = blob_->data(),
                    .out = out.data(),
                    .ld_out = ld_out_,
                    .alpha = case_.alpha_device ? kNan : alpha,
                    .workspace = workspace.data(),
                    .workspace_bytes = workspace.size()};
    if (case_.alpha_device) args.alpha_device = &alpha;
    if (case_.bias) args.bias = bias_.data();
    if (case_.residual) args.residual = residual_.data();
    if (case_.in_place) {
      args.residual = out.data();
      for (int64_t token = 0; token < case_.m; ++token) {
        const size_t begin = bytes(token * ld_out_, case_.out_dtype);
        std::memcpy(out.data() + begin, residual_.data() + begin, bytes(case_.n, case_.out_dtype));
      }
    }
    Result<void> done = row.launch(problem_, device, args, false);
    EXPECT_TRUE(workspace.untouched_before()) << row.name << " wrote before its workspace";
    return done;
  }

  // sums[m, n] in double, and the sums of absolute products.
  void compute_sums() {
    const int64_t groups = weight_.groups();
    sum_.assign(case_.m * case_.n, 0);
    magnitude_.assign(case_.m * case_.n, 0);
    std::vector<double> w(case_.k);
    std::vector<int64_t> position(case_.k);  // of each input feature
    for (int64_t p = 0; p < case_.k; ++p) position[case_.k_order ? weight_.k_order[p] : p] = p;
    std::vector<double> act(case_.m * case_.k);
    for (int64_t row = 0; row < case_.m; ++row)
      for (int64_t i = 0; i < case_.k; ++i)
        act[row * case_.k + i] = get(act_.data(), case_.act_dtype, row * ld_act_ + i);
    for (int64_t n = 0; n < case_.n; ++n) {
      for (int64_t i = 0; i < case_.k; ++i) {
        const int64_t g = n * groups + (case_.group_size == kPerColumn ? 0 : position[i] / case_.group_size);
        const double u = weight_.codes[n * case_.k + i], s = weight_.scales.at(g);
        switch (case_.zero_kind) {
          case ZeroKind::kNone:
            w[i] = (u - 8) * s;
            break;
          case ZeroKind::kInt:
            w[i] = (u - weight_.int_zeros[g]) * s;
            break;
          case ZeroKind::kFloat:
            w[i] = (u - weight_.float_zeros.at(g)) * s;
            break;
          case ZeroKind::kOffset:
            w[i] = u * s + weight_.float_zeros.at(g);
            break;
          case ZeroKind::kTable:
            w[i] = weight_.table[u] * s;
            break;
        }
      }
      for (int64_t row = 0; row < case_.m; ++row) {
        double sum = 0, magnitude = 0;
        for (int64_t i = 0; i < case_.k; ++i) {
          const double product = act[row * case_.k + i] * w[i];
          sum += product;
          magnitude += std::abs(product);
        }
        sum_[row * case_.n + n] = sum;
        magnitude_[row * case_.n + n] = magnitude;
      }
    }
  }

  // Poisons, launches and checks every byte of out.
  void expect_right(const KernelEntry& row) {
    GuardedBytes out(out_bytes());
    const Result<void> done = launch(row, kCpu, out);
    ASSERT_TRUE(done.ok()) << done.error().message;
    EXPECT_TRUE(out.untouched_before()) << row.name << " wrote before out: " << describe(case_);
    const DType dtype = case_.out_dtype;
    const uint32_t poison = dtype == DType::kFp32 ? 0xFFFFFFFFu : 0xFFFFu;
    int64_t wrong = 0;
    for (int64_t m = 0; m < case_.m && wrong < 4; ++m)
      for (int64_t i = 0; i < (m + 1 < case_.m ? ld_out_ : case_.n) && wrong < 4; ++i) {
        const int64_t at = m * ld_out_ + i;
        if (i >= case_.n) {
          if (bits(out.data(), dtype, at) != poison) {
            ++wrong;
            ADD_FAILURE() << row.name << " wrote between rows at [" << m << ", " << i << "]: " << describe(case_);
          }
          continue;
        }
        const double sum = sum_[m * case_.n + i];
        const float bias = get(bias_.data(), case_.act_dtype, i), residual = get(residual_.data(), dtype, at);
        const float got = get(out.data(), dtype, at);
        if (case_.exact) {
          std::byte want[4] = {};
          float value = case_.alpha * static_cast<float>(sum);
          if (case_.bias) value += bias;
          if (case_.residual) value += residual;
          put(want, dtype, 0, value + 0.0f);
          if (got != get(want, dtype, 0)) {
            ++wrong;
            ADD_FAILURE() << row.name << " [" << m << ", " << i << "] is " << got << ", want " << get(want, dtype, 0)
                          << ": " << describe(case_);
          }
        } else {
          const double magnitude = magnitude_[m * case_.n + i];
          const double want = case_.alpha * sum + (case_.bias ? bias : 0) + (case_.residual ? residual : 0);
          // Three fp32 roundings of the epilogue come on top of the sum's own error.
          const double epilogue =
              3 * half_ulp(std::abs(case_.alpha * sum) + std::abs(bias) + std::abs(residual), DType::kFp32);
          const double allowed = allowed_error(want, std::abs(case_.alpha) * magnitude, case_.k, dtype) + epilogue;
          if (dtype == DType::kFp32) worst_ = std::max(worst_, std::abs(got - want) / allowed);
          if (!(std::abs(got - want) <= allowed)) {
            ++wrong;
            ADD_FAILURE() << row.name << " [" << m << ", " << i << "] is " << got << ", want " << want << " +- "
                          << allowed << ": " << describe(case_);
          }
        }
      }
  }

  // The largest error as a part of what is allowed, of fp32 outputs: others are as far off as their rounding.
  double worst() const { return worst_; }

 private:
  static size_t bytes(int64_t count, DType dtype) { return static_cast<size_t>(count) * dtype_bytes(dtype); }

  Case case_;
  int64_t ld_act_, ld_out_;
  GuardedBytes act_, bias_, residual_;
  QuantizedWeight weight_;
  std::unique_ptr<GuardedBytes> blob_;
  Problem problem_;
  std::vector<double> sum_, magnitude_;
  double worst_ = 0;
};

const KernelEntry& row_named(const std::string& name) {
  for (const KernelEntry& row : cpu::cpu_kernels())
    if (row.name == name) return row;
  throw std::runtime_error("no CPU row " + name);
}

class CpuKernel : public testing::TestWithParam<const KernelEntry*> {
 protected:
  void SetUp() override {
    Problem any{.m = 1, .n = 64, .k = 128};
    if (const std::string reason = row().why_not(any, kCpu); !reason.empty())
      GTEST_SKIP() << row().name << " " << reason;
  }
  const KernelEntry& row() const { return *GetParam(); }
};

constexpr int kGroupSizes[] = {16, 32, 48, 64, 96, 128, 256, 512, kPerColumn};
constexpr ZeroKind kZeroKinds[] = {ZeroKind::kNone, ZeroKind::kInt, ZeroKind::kFloat, ZeroKind::kOffset};
constexpr DType kDTypes[] = {DType::kBf16, DType::kFp16, DType::kFp32};

template <class T, size_t N> T pick(std::mt19937& random, const T (&from)[N]) { return from[random() % N]; }

// The parts of a case that do not steer the kernel's inner loops, drawn at random.
void draw_epilogue(std::mt19937& random, Case& c) {
  c.bias = random() % 2;
  c.residual = random() % 2;
  c.in_place = random() % 2 && c.residual;
  c.alpha_device = random() % 4 == 0;
  c.alpha = random() % 2 ? 1.0f : std::ldexp(1.0f, static_cast<int>(random() % 5) - 2);
  c.act_pad = random() % 2 ? 0 : static_cast<int64_t>(random() % 40);
  c.out_pad = random() % 2 ? 0 : static_cast<int64_t>(random() % 40);
  c.seed = random();
}

TEST_P(CpuKernel, EveryFormatIsExact) {
  std::mt19937 random(1);
  for (int group_size : kGroupSizes)
    for (ZeroKind zero_kind : kZeroKinds)
      for (DType scale_dtype : kDTypes)
        for (bool k_order : {false, true})
          for (DType act_dtype : kDTypes)
            for (DType out_dtype : kDTypes) {
              Case c{.m = static_cast<int64_t>(1 + random() % 9),
                     .n = 70,
                     .k = 600,
                     .group_size = group_size,
                     .zero_kind = zero_kind,
                     .scale_dtype = scale_dtype,
                     .k_order = k_order,
                     .act_dtype = act_dtype,
                     .out_dtype = out_dtype};
              draw_epilogue(random, c);
              Trial trial(c);
              trial.compute_sums();
              trial.expect_right(row());
              if (HasFailure()) return;
            }
}

TEST_P(CpuKernel, EveryEdgeShapeIsExact) {
  std::mt19937 random(2);
  for (int64_t m : {0, 1, 2, 3, 7, 8, 9, 33})
    for (int64_t n : {1, 15, 16, 63, 64, 65, 130})
      for (int64_t k : {1, 63, 64, 65, 127, 128, 129, 300})
        for (int repeat = 0; repeat < 3; ++repeat) {
          Case c{.m = m,
                 .n = n,
                 .k = k,
                 .group_size = pick(random, kGroupSizes),
                 .zero_kind = pick(random, kZeroKinds),
                 .scale_dtype = pick(random, kDTypes),
                 .k_order = random() % 2 == 0,
                 .act_dtype = pick(random, kDTypes),
                 .out_dtype = pick(random, kDTypes)};
          draw_epilogue(random, c);
          Trial trial(c);
          trial.compute_sums();
          trial.expect_right(row());
          if (HasFailure()) return;
        }
}

// More tokens than one tile or one pass of the many-token rows holds.
TEST(CpuGemm, ManyTilesAndPassesAreExact) {
  for (const char* isa : {"avx512", "avx2"}) {
    const KernelEntry& gemm = row_named(fmt::format("cpu_{}_gemm", isa));
    if (const std::string reason = gemm.why_not({.m = 1, .n = 64, .k = 128}, kCpu); !reason.empty())
      GTEST_SKIP() << gemm.name << " " << reason;
    for (const Case& c : {Case{.m = 1100, .n = 1030, .k = 140, .bias = true}, Case{.m = 600, .n = 2, .k = 66000},
                          Case{.m = 5, .n = 4100, .k = 130}}) {
      Trial trial(c);
      trial.compute_sums();
      trial.expect_right(gemm);
    }
  }
}

// A group of any size has a packed form where it covers all of k.
TEST_P(CpuKernel, OneOddGroupIsExact) {
  Case c{.m = 3, .n = 33, .k = 100, .group_size = 100, .zero_kind = ZeroKind::kInt};
  Trial trial(c);
  trial.compute_sums();
  trial.expect_right(row());
}

TEST_P(CpuKernel, RandomNumbersStayInTheEnvelope) {
  std::mt19937 random(3);
  double worst = 0;
  const auto check = [&](Case c) {
    c.exact = false;
    c.seed = random();
    Trial trial(c);
    trial.compute_sums();
    trial.expect_right(row());
    worst = std::max(worst, trial.worst());
  };
  for (int group_size : kGroupSizes)
    for (ZeroKind zero_kind : kZeroKinds)
      for (DType scale_dtype : kDTypes) {
        Case c{
            .m = 9, .n = 80, .k = 1500, .group_size = group_size, .zero_kind = zero_kind, .scale_dtype = scale_dtype};
        draw_epilogue(random, c);
        c.act_dtype = pick(random, kDTypes);
        c.out_dtype = DType::kFp32;
        check(c);
      }
  check({.m = 3, .n = 40, .k = 40000, .act_dtype = DType::kFp32, .out_dtype = DType::kFp32});
  check({.m = 33,
         .n = 1100,
         .k = 700,
         .zero_kind = ZeroKind::kFloat,
         .act_dtype = DType::kFp16,
         .out_dtype = DType::kFp16});
  check({.m = 100, .n = 300, .k = 1000, .group_size = 32});
  RecordProperty("worst_error_over_allowed", std::to_string(worst));
  std::printf("%s: worst error %.3f of what is allowed\n", row().name.c_str(), worst);
}

// Scales at the ends of bf16's range, where the packed form stores them times a power of two.
TEST_P(CpuKernel, ScalesOfAnySizeAreUsedExactly) {
  for (int exponent : {-133, -130, -120, -60, -6, 0, 20, 90, 110, 120}) {
    constexpr int64_t kN = 64, kK = 128;
    QuantizedWeight weight{.name = "w", .n = kN, .k = kK};
    weight.codes.assign(kN * kK, 8);
    std::vector<float> scales(kN);
    for (int64_t n = 0; n < kN; ++n) {
      weight.codes[n * kK + n] = static_cast<uint8_t>(n % 16);
      scales[n] = std::ldexp(1.0f, exponent + static_cast<int>(n % 4));
    }
    weight.scales = FloatArray::from_floats(DType::kBf16, scales);
    const Result<PackedWeight> packed = pack(weight);
    ASSERT_TRUE(packed.ok()) << packed.error().message;
    Problem problem = problem_for(*packed, 1, DType::kFp32);
    const std::vector<float> act(kK, 1.0f);
    std::vector<float> out(kN, kNan);
    GuardedBytes workspace(row().workspace_bytes(problem, kCpu));
    const Result<void> done = row().launch(problem, kCpu,
                                           {.act = act.data(),
                                            .weight = packed->data(),
                                            .out = out.data(),
                                            .workspace = workspace.data(),
                                            .workspace_bytes = workspace.size()},
                                           false);
    ASSERT_TRUE(done.ok()) << done.error().message;
    for (int64_t n = 0; n < kN; ++n)
      EXPECT_EQ(out[n], static_cast<float>(n % 16 - 8) * scales[n]) << exponent << " " << n;
  }
}

TEST_P(CpuKernel, BrokenTokensStayAlone) {
  const float full_nan = std::bit_cast<float>(0x7FFFFFFFu);  // rounding its bits as a number's would give -0 in bf16
  for (float broken : {kNan, full_nan, kInf, -kInf}) {
    Case c{.m = 11, .n = 200, .k = 400, .act_dtype = DType::kFp32, .exact = false};
    Trial trial(c);
    GuardedBytes clean(trial.out_bytes()), out(trial.out_bytes());
    ASSERT_TRUE(trial.launch(row(), kCpu, clean).ok());
    trial.set_act(4, 399, broken);
    ASSERT_TRUE(trial.launch(row(), kCpu, out).ok());
    for (int64_t m = 0; m < c.m; ++m)
      for (int64_t n = 0; n < c.n; ++n) {
        const int64_t at = m * trial.ld_out() + n;
        if (m == 4) {
          EXPECT_FALSE(std::isfinite(get(out.data(), c.out_dtype, at))) << n;
        } else {
          EXPECT_EQ(bits(out.data(), c.out_dtype, at), bits(clean.data(), c.out_dtype, at)) << m << " " << n;
        }
      }
  }
}

TEST_P(CpuKernel, ThreadsDoNotChangeABit) {
  for (const Case& c :
       {Case{.m = 1, .n = 1100, .k = 700, .out_dtype = DType::kFp32, .exact = false},
        Case{.m = 20, .n = 1100, .k = 700, .group_size = 32, .out_dtype = DType::kFp32, .exact = false}}) {
    Trial trial(c);
    GuardedBytes one(trial.out_bytes());
    ASSERT_TRUE(trial.launch(row(), {.num_threads = 1}, one).ok());
    for (int threads : {0, 2, 3, 16}) {
      GuardedBytes many(trial.out_bytes());
      ASSERT_TRUE(trial.launch(row(), {.num_threads = threads}, many).ok());
      EXPECT_EQ(std::memcmp(one.data(), many.data(), one.size()), 0) << threads << " threads: " << describe(c);
    }
  }
}

TEST_P(CpuKernel, SaysWhyNot) {
  Problem problem{.m = 1, .n = 64, .k = 128};
  EXPECT_NE(row().why_not(problem, Device::h200()).find("CPU"), std::string::npos);
  Problem foreign = problem;
  foreign.layout = 7;
  EXPECT_NE(row().why_not(foreign, kCpu).find("layout 7"), std::string::npos);
  Problem odd = problem;
  odd.weight.group_size = 24;
  EXPECT_NE(row().why_not(odd, kCpu).find("groups of 24"), std::string::npos);
}

TEST_P(CpuKernel, RefusesAWeightThatThePlanWasNotMadeFor) {
  Case c{.m = 2, .n = 64, .k = 128};
  Trial trial(c);
  Problem other = trial.problem();
  other.k = 256;
  Trial second({.m = 2, .n = 64, .k = 256});
  GuardedBytes out(second.out_bytes()), workspace(row().workspace_bytes(other, kCpu));
  const Result<PackedWeight> packed = pack(QuantizedWeight{
      .name = "w", .n = 1, .k = 1, .codes = {3}, .scales = FloatArray::from_floats(DType::kBf16, {{1.0f}})});
  ASSERT_TRUE(packed.ok()) << packed.error().message;
  const Result<void> done = row().launch(other, kCpu,
                                         {.act = out.data(),
                                          .weight = packed->data(),
                                          .out = out.data(),
                                          .workspace = workspace.data(),
                                          .workspace_bytes = workspace.size()},
                                         false);
  ASSERT_FALSE(done.ok());
  EXPECT_EQ(done.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(done.error().message.find("n1 k1"), std::string::npos) << done.error().message;
}

std::vector<const KernelEntry*> all_rows() {
  std::vector<const KernelEntry*> rows;
  for (const KernelEntry& row : cpu::cpu_kernels()) rows.push_back(&row);
  return rows;
}

INSTANTIATE_TEST_SUITE_P(Rows, CpuKernel, testing::ValuesIn(all_rows()),
                         [](const auto& info) { return info.param->name; });

TEST(CpuGemv, SendsManyTokensToGemm) {
  for (const char* isa : {"avx512", "avx2"}) {
    const KernelEntry& gemv = row_named(fmt::format("cpu_{}_gemv", isa));
    const Problem problem{.m = 1000, .n = 64, .k = 128};
    if (const std::string reason = gemv.why_not({.m = 1, .n = 64, .k = 128}, kCpu); !reason.empty())
      GTEST_SKIP() << gemv.name << " " << reason;
    EXPECT_NE(gemv.why_not(problem, kCpu).find(fmt::format("cpu_{}_gemm", isa)), std::string::npos);
    EXPECT_EQ(row_named(fmt::format("cpu_{}_gemm", isa)).why_not(problem, kCpu), "");
  }
}

// A token's result depends on nothing but the token: not on how many others share the pass over the codes.
TEST(CpuGemv, NeighboursDoNotChangeABit) {
  for (const char* isa : {"avx512", "avx2"}) {
    const KernelEntry& gemv = row_named(fmt::format("cpu_{}_gemv", isa));
    if (const std::string reason = gemv.why_not({.m = 1, .n = 64, .k = 128}, kCpu); !reason.empty())
      GTEST_SKIP() << gemv.name << " " << reason;
    constexpr int64_t kMost = 19, kN = 100;
    Case c{.m = kMost, .n = kN, .k = 900, .out_dtype = DType::kFp32, .exact = false};
    Trial all(c);
    GuardedBytes want(all.out_bytes());
    ASSERT_TRUE(all.launch(gemv, kCpu, want).ok());
    for (int64_t m = 1; m < kMost; ++m) {
      c.m = m;
      Trial some(c);  // the same seed draws the same first tokens
      GuardedBytes out(some.out_bytes());
      ASSERT_TRUE(some.launch(gemv, kCpu, out).ok());
      EXPECT_EQ(std::memcmp(out.data(), want.data(), out.size()), 0) << isa << " m " << m;
    }
  }
}

}  // namespace
}  // namespace nybble
