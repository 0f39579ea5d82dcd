// nybble.h does what the C++ interface does, and what goes wrong comes back as a status with a text.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <thread>

#include "nybble.h"
#include "nybble/gemm.h"
#include "nybble/pack.h"
#include "nybble/quantize.h"
#include "support/temp_folder.h"
#include "support/weights.h"

namespace nybble {
namespace {

using ::testing::HasSubstr;
using testing::random_weight;

struct Destroy {
  void operator()(nybble_weight* handle) const { nybble_weight_destroy(handle); }
  void operator()(nybble_packed* handle) const { nybble_packed_destroy(handle); }
  void operator()(nybble_device* handle) const { nybble_device_destroy(handle); }
  void operator()(nybble_tuning_table* handle) const { nybble_tuning_table_destroy(handle); }
  void operator()(nybble_plan* handle) const { nybble_plan_destroy(handle); }
};
template <class Handle> using Owned = std::unique_ptr<Handle, Destroy>;

// Calls create(&handle), which must succeed.
template <class Handle> Owned<Handle> made(const std::function<nybble_status(Handle**)>& create) {
  Handle* handle = nullptr;
  EXPECT_EQ(create(&handle), NYBBLE_OK) << nybble_last_error();
  EXPECT_NE(handle, nullptr);
  return Owned<Handle>(handle);
}

nybble_arrays arrays_of(const QuantizedWeight& weight) {
  return {.size = sizeof(nybble_arrays),
          .name = weight.name.c_str(),
          .n = weight.n,
          .k = weight.k,
          .group_size = weight.group_size,
          .scale_dtype = static_cast<int32_t>(weight.scales.dtype),
          .zero_kind = static_cast<int32_t>(weight.zero_kind),
          .codes = weight.codes.data(),
          .scales = weight.scales.bytes.data(),
          .zeros = weight.zero_kind == ZeroKind::kNone  ? nullptr
                   : weight.zero_kind == ZeroKind::kInt ? static_cast<const void*>(weight.int_zeros.data())
                                                        : weight.float_zeros.bytes.data(),
          .k_order = weight.k_order.empty() ? nullptr : weight.k_order.data()};
}

template <class T> void expect_bytes(const void* data, const std::vector<T>& want) {
  if (want.empty()) return;
  ASSERT_NE(data, nullptr);
  EXPECT_EQ(std::memcmp(data, want.data(), want.size() * sizeof(T)), 0);
}

void expect_arrays(const nybble_arrays& arrays, const QuantizedWeight& weight) {
  EXPECT_EQ(arrays.n, weight.n);
  EXPECT_EQ(arrays.k, weight.k);
  EXPECT_EQ(arrays.group_size, weight.group_size);
  EXPECT_EQ(arrays.scale_dtype, static_cast<int32_t>(weight.scales.dtype));
  EXPECT_EQ(arrays.zero_kind, static_cast<int32_t>(weight.zero_kind));
  expect_bytes(arrays.codes, weight.codes);
  expect_bytes(arrays.scales, weight.scales.bytes);
  if (weight.zero_kind == ZeroKind::kInt) {
    expect_bytes(arrays.zeros, weight.int_zeros);
  } else {
    expect_bytes(arrays.zeros, weight.float_zeros.bytes);
  }
  EXPECT_EQ(arrays.zeros == nullptr, weight.zero_kind == ZeroKind::kNone);
  expect_bytes(arrays.k_order, weight.k_order);
  EXPECT_EQ(arrays.k_order == nullptr, weight.k_order.empty());
}

TEST(CApi, PacksAndUnpacksTheSameBytes) {
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32})
    for (const ZeroKind zero : {ZeroKind::kNone, ZeroKind::kInt, ZeroKind::kFloat, ZeroKind::kOffset})
      for (const bool order : {false, true}) {
        const WeightFormat format{.scale_dtype = dtype, .zero_kind = zero, .group_size = 32, .k_order = order};
        SCOPED_TRACE(to_string(format));
        const QuantizedWeight weight = random_weight({.n = 70, .k = 200, .format = format});
        const PackedWeight want = *pack(weight);
        const nybble_arrays arrays = arrays_of(weight);

        size_t bytes = 0;
        ASSERT_EQ(nybble_packed_bytes(&arrays, nullptr, &bytes), NYBBLE_OK) << nybble_last_error();
        ASSERT_EQ(bytes, want.size_bytes());
        std::vector<std::byte> memory(bytes + 1, std::byte{0x5A});
        ASSERT_EQ(nybble_pack_into(&arrays, nullptr, memory.data(), bytes), NYBBLE_OK) << nybble_last_error();
        EXPECT_EQ(std::memcmp(memory.data(), want.data(), bytes), 0);
        EXPECT_EQ(memory.back(), std::byte{0x5A});

        const auto packed = made<nybble_packed>([&](auto out) { return nybble_pack(&arrays, nullptr, out); });
        ASSERT_EQ(nybble_packed_size_bytes(packed.get()), bytes);
        EXPECT_EQ(std::memcmp(nybble_packed_data(packed.get()), want.data(), bytes), 0);

        const auto back = made<nybble_weight>([&](auto out) { return nybble_unpack(packed.get(), out); });
        nybble_arrays view{.size = sizeof view};
        ASSERT_EQ(nybble_weight_view(back.get(), &view), NYBBLE_OK);
        expect_arrays(view, weight);
      }
}

TEST(CApi, PackConvertsScalesWhenAsked) {
  const QuantizedWeight weight = random_weight({.n = 16, .k = 64, .format = {.scale_dtype = DType::kFp32}});
  const nybble_arrays arrays = arrays_of(weight);
  const nybble_dtype bf16 = NYBBLE_BF16;
  const nybble_pack_options options{.size = sizeof options, .scale_dtype = &bf16};
  const PackedWeight want = *pack(weight, {.scale_dtype = DType::kBf16});
  size_t bytes = 0;
  ASSERT_EQ(nybble_packed_bytes(&arrays, &options, &bytes), NYBBLE_OK);
  EXPECT_EQ(bytes, want.size_bytes());
  const auto packed = made<nybble_packed>([&](auto out) { return nybble_pack(&arrays, &options, out); });
  EXPECT_EQ(std::memcmp(nybble_packed_data(packed.get()), want.data(), bytes), 0);
}

TEST(CApi, QuantizesTheSame) {
  std::vector<float> values(24 * 96);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(static_cast<int>(i * 7919 % 2003) - 1001) / 512;
  const DenseWeight dense{
      .name = "w", .n = 24, .k = 96, .values = FloatArray::from_floats(DType::kFp32, values), .bias = {}};
  const nybble_dense c_dense{
      .size = sizeof c_dense, .name = "w", .n = 24, .k = 96, .values = values.data(), .dtype = NYBBLE_FP32};
  nybble_arrays view{.size = sizeof view};

  const auto standard = made<nybble_weight>([&](auto out) { return nybble_quantize_rtn(&c_dense, nullptr, out); });
  ASSERT_EQ(nybble_weight_view(standard.get(), &view), NYBBLE_OK);
  expect_arrays(view, *quantize_rtn(dense, {}));
  EXPECT_STREQ(view.name, "w");

  const nybble_rtn_options options{.size = sizeof options,
                                   .group_size = 32,
                                   .asymmetric = 1,
                                   .range_search = NYBBLE_RANGE_SQUARED_ERROR,
                                   .scale_dtype = NYBBLE_FP16};
  const auto other = made<nybble_weight>([&](auto out) { return nybble_quantize_rtn(&c_dense, &options, out); });
  ASSERT_EQ(nybble_weight_view(other.get(), &view), NYBBLE_OK);
  expect_arrays(view, *quantize_rtn(dense, {.group_size = 32,
                                            .symmetric = false,
                                            .range_search = RangeSearch::kSquaredError,
                                            .scale_dtype = DType::kFp16}));
}

// A small problem on the CPU, through both interfaces.
class CApiLaunch : public ::testing::Test {
 protected:
  static constexpr int64_t kM = 3, kN = 16, kK = 64;

  void SetUp() override {
    const nybble_arrays arrays = arrays_of(weight_);
    packed_ = made<nybble_packed>([&](auto out) { return nybble_pack(&arrays, nullptr, out); });
    cpu_ = made<nybble_device>([](auto out) { return nybble_device_cpu(1, out); });
    problem_ = {.size = sizeof problem_};
    ASSERT_EQ(nybble_packed_problem(packed_.get(), kM, NYBBLE_BF16, &problem_), NYBBLE_OK) << nybble_last_error();
    problem_.out_dtype = NYBBLE_FP32;
    problem_.bias = 1;
    std::vector<float> act(kM * kK), bias(kN);
    for (size_t i = 0; i < act.size(); ++i) act[i] = static_cast<float>(static_cast<int>(i % 7) - 3);
    std::iota(bias.begin(), bias.end(), 1.0f);
    act_ = aligned(FloatArray::from_floats(DType::kBf16, act));
    bias_ = aligned(FloatArray::from_floats(DType::kBf16, bias));
    out_ = allocate_packed(kM * kN * sizeof(float));
  }

  static std::shared_ptr<std::byte[]> aligned(const FloatArray& values) {
    std::shared_ptr<std::byte[]> copy = allocate_packed(values.bytes.size());
    std::memcpy(copy.get(), values.bytes.data(), values.bytes.size());
    return copy;
  }

  nybble_launch_args args() const {
    return {.size = sizeof(nybble_launch_args),
            .act = act_.get(),
            .weight = nybble_packed_data(packed_.get()),
            .out = out_.get(),
            .bias = bias_.get()};
  }

  QuantizedWeight weight_ =
      random_weight({.n = kN, .k = kK, .format = {.zero_kind = ZeroKind::kInt, .group_size = 32}});
  Owned<nybble_packed> packed_;
  Owned<nybble_device> cpu_;
  nybble_problem problem_;
  std::shared_ptr<std::byte[]> act_, bias_, out_;
};

TEST_F(CApiLaunch, ComputesTheSame) {
  const auto plan =
      made<nybble_plan>([&](auto out) { return nybble_plan_create(&problem_, cpu_.get(), nullptr, out); });
  Problem problem = problem_for(*pack(weight_), kM, DType::kBf16);
  problem.out_dtype = DType::kFp32;
  problem.epilogue.bias = true;
  const Plan want_plan = *make_plan(problem, Device::cpu(1));
  EXPECT_EQ(nybble_plan_kernel(plan.get()), want_plan.kernel());
  EXPECT_EQ(nybble_plan_why(plan.get()), want_plan.why());
  EXPECT_EQ(nybble_plan_workspace_bytes(plan.get()), want_plan.workspace_bytes());
  EXPECT_EQ(nybble_device_name(cpu_.get()), want_plan.device().name);

  const size_t workspace_bytes = want_plan.workspace_bytes();
  alignas(256) static std::byte workspace[1 << 20];
  ASSERT_LE(workspace_bytes, sizeof workspace);
  for (const float alpha : {1.0f, -2.0f}) {
    nybble_launch_args c_args = args();
    c_args.alpha = alpha == 1.0f ? nullptr : &alpha;
    c_args.workspace = workspace;
    c_args.workspace_bytes = workspace_bytes;
    ASSERT_EQ(nybble_launch(plan.get(), &c_args), NYBBLE_OK) << nybble_last_error();
    const std::shared_ptr<std::byte[]> want = allocate_packed(kM * kN * sizeof(float));
    const Result<void> launched = launch(want_plan, {.act = act_.get(),
                                                     .weight = nybble_packed_data(packed_.get()),
                                                     .out = want.get(),
                                                     .bias = bias_.get(),
                                                     .alpha = alpha,
                                                     .workspace = workspace,
                                                     .workspace_bytes = workspace_bytes});
    ASSERT_TRUE(launched) << launched.error().message;
    EXPECT_EQ(std::memcmp(out_.get(), want.get(), kM * kN * sizeof(float)), 0);
  }
}

TEST_F(CApiLaunch, KernelsAreForcedByName) {
  nybble_plan_options options{.size = sizeof options, .kernel = "cpu_reference"};
  const auto plan =
      made<nybble_plan>([&](auto out) { return nybble_plan_create(&problem_, cpu_.get(), &options, out); });
  EXPECT_STREQ(nybble_plan_kernel(plan.get()), "cpu_reference");
  options.kernel = "no_such_kernel";
  nybble_plan* none = nullptr;
  EXPECT_EQ(nybble_plan_create(&problem_, cpu_.get(), &options, &none), NYBBLE_INVALID_ARGUMENT);
  EXPECT_THAT(nybble_last_error(), HasSubstr("no_such_kernel"));
  EXPECT_EQ(none, nullptr);
}

TEST_F(CApiLaunch, PlansAreMadeByTheTableGiven) {
  const auto empty = made<nybble_tuning_table>(nybble_tuning_table_empty);
  nybble_plan_options options{.size = sizeof options, .table = empty.get()};
  const auto plan =
      made<nybble_plan>([&](auto out) { return nybble_plan_create(&problem_, cpu_.get(), &options, out); });
  EXPECT_THAT(nybble_plan_why(plan.get()), HasSubstr("lowest estimate"));

  const testing::TempFolder folder;
  const std::string path = folder / "table.json";
  testing::write_text(path, R"({"schema": 1, "kind": "tuning table", "gpu": "NVIDIA H200", "rows": [
    {"problem": "m1 n8 k16 bf16 g16", "kernels": [{"kernel": "no_such_kernel", "us": 1}]}]})");
  const auto table = made<nybble_tuning_table>([&](auto out) { return nybble_tuning_table_load(path.c_str(), out); });
  EXPECT_EQ(nybble_tuning_table_num_problems(table.get()), 1u);
  EXPECT_EQ(nybble_tuning_table_num_unknown(table.get()), 1u);
  options.table = table.get();
  nybble_plan* none = nullptr;
  EXPECT_EQ(nybble_plan_create(&problem_, cpu_.get(), &options, &none), NYBBLE_INVALID_ARGUMENT);
  EXPECT_THAT(nybble_last_error(), HasSubstr("NVIDIA H200"));
  nybble_tuning_table* missing = nullptr;
  EXPECT_EQ(nybble_tuning_table_load((folder / "none").c_str(), &missing), NYBBLE_IO);
  EXPECT_EQ(missing, nullptr);
  // A program that was built before the table was a field.
  options.size = offsetof(nybble_plan_options, table);
  EXPECT_TRUE(made<nybble_plan>([&](auto out) { return nybble_plan_create(&problem_, cpu_.get(), &options, out); }));
}

TEST_F(CApiLaunch, WrongArgumentsAreRefused) {
  const auto plan =
      made<nybble_plan>([&](auto out) { return nybble_plan_create(&problem_, cpu_.get(), nullptr, out); });
  nybble_launch_args wrong = args();
  wrong.act = nullptr;
  EXPECT_EQ(nybble_launch(plan.get(), &wrong), NYBBLE_INVALID_ARGUMENT);
  EXPECT_THAT(nybble_last_error(), HasSubstr("act is null"));
  wrong = args();
  wrong.bias = nullptr;
  EXPECT_EQ(nybble_launch(plan.get(), &wrong), NYBBLE_INVALID_ARGUMENT);
  EXPECT_THAT(nybble_last_error(), HasSubstr("bias"));
}

TEST(CApi, ProblemsHaveOneLineOfText) {
  for (const char* line :
       {"m16 n4096 k4096 bf16 g128", "m1 n512 k300 fp16 out=fp32 g64 zp bias",
        "m3 n64 k64 bf16 g32 sfp16 offset order wide residual unaligned", "m3 n64 k64 bf16 col fzp layout=2"}) {
    nybble_problem problem{.size = sizeof problem};
    ASSERT_EQ(nybble_problem_parse(line, &problem), NYBBLE_OK) << nybble_last_error();
    size_t bytes = 0;
    ASSERT_EQ(nybble_problem_text(&problem, nullptr, 0, &bytes), NYBBLE_OK);
    ASSERT_EQ(bytes, std::strlen(line) + 1);
    std::string text(bytes, '?');
    EXPECT_EQ(nybble_problem_text(&problem, text.data(), bytes - 1, nullptr), NYBBLE_INVALID_ARGUMENT);
    EXPECT_EQ(text, std::string(bytes, '?'));
    ASSERT_EQ(nybble_problem_text(&problem, text.data(), bytes, nullptr), NYBBLE_OK);
    EXPECT_STREQ(text.c_str(), line);
  }
  nybble_problem problem{.size = sizeof problem, .m = 42};
  EXPECT_EQ(nybble_problem_parse("m1 n1 k1 bananas", &problem), NYBBLE_INVALID_ARGUMENT);
  EXPECT_THAT(nybble_last_error(), HasSubstr("bananas"));
  EXPECT_EQ(problem.m, 42);
}

TEST(CApi, PlansForAGpuThatIsNotThere) {
  const auto h200 = made<nybble_device>([](auto out) { return nybble_device_h200(out); });
  EXPECT_STREQ(nybble_device_name(h200.get()), "NVIDIA H200");
  nybble_problem problem{.size = sizeof problem};
  ASSERT_EQ(nybble_problem_parse("m16 n4096 k4096 bf16 g128", &problem), NYBBLE_OK);
  const auto plan = made<nybble_plan>([&](auto out) { return nybble_plan_create(&problem, h200.get(), nullptr, out); });
  EXPECT_EQ(nybble_plan_kernel(plan.get()),
            make_plan(*parse_problem("m16 n4096 k4096 bf16 g128"), Device::h200())->kernel());
}

TEST(CApi, PackedBytesAreCheckedInMemoryAndInFiles) {
  const QuantizedWeight weight = random_weight({.n = 10, .k = 100, .format = {.group_size = 32}});
  const nybble_arrays arrays = arrays_of(weight);
  const auto packed = made<nybble_packed>([&](auto out) { return nybble_pack(&arrays, nullptr, out); });
  const void* data = nybble_packed_data(packed.get());
  const size_t bytes = nybble_packed_size_bytes(packed.get());
  EXPECT_EQ(nybble_packed_validate(data, bytes), NYBBLE_OK);
  EXPECT_EQ(nybble_packed_validate(data, bytes - 1), NYBBLE_INVALID_DATA);
  EXPECT_EQ(nybble_packed_validate(static_cast<const std::byte*>(data) + 1, bytes - 1), NYBBLE_INVALID_ARGUMENT);

  const std::string path = ::testing::TempDir() + "nybble_capi_test.packed";
  ASSERT_EQ(nybble_packed_save(packed.get(), path.c_str()), NYBBLE_OK) << nybble_last_error();
  const auto loaded = made<nybble_packed>([&](auto out) { return nybble_packed_load(path.c_str(), out); });
  ASSERT_EQ(nybble_packed_size_bytes(loaded.get()), bytes);
  EXPECT_EQ(std::memcmp(nybble_packed_data(loaded.get()), data, bytes), 0);
  std::remove(path.c_str());
  nybble_packed* none = nullptr;
  EXPECT_EQ(nybble_packed_load(path.c_str(), &none), NYBBLE_IO);
  EXPECT_THAT(nybble_last_error(), HasSubstr(path));

  std::vector<std::byte> off(bytes + 1);  // copies are taken from any address
  std::memcpy(off.data() + 1, data, bytes);
  const auto copy = made<nybble_packed>([&](auto out) { return nybble_packed_copy(off.data() + 1, bytes, out); });
  EXPECT_EQ(std::memcmp(nybble_packed_data(copy.get()), data, bytes), 0);
  off[bytes / 2] ^= std::byte{1};
  EXPECT_EQ(nybble_packed_copy(off.data() + 1, bytes, &none), NYBBLE_INVALID_DATA);
  EXPECT_THAT(nybble_last_error(), HasSubstr("checksum"));
  EXPECT_EQ(nybble_packed_copy(off.data(), 1, &none), NYBBLE_INVALID_DATA);
  EXPECT_EQ(nybble_packed_copy(off.data(), SIZE_MAX, &none), NYBBLE_INVALID_ARGUMENT);
  EXPECT_EQ(none, nullptr);
}

TEST(CApi, StructsMayGrow) {
  const QuantizedWeight weight = random_weight({.n = 2, .k = 32, .format = {.group_size = 32}});
  struct Newer {
    nybble_arrays arrays;
    int64_t added;
  } newer{arrays_of(weight), 0};
  newer.arrays.size = sizeof newer;
  size_t bytes = 0;
  EXPECT_EQ(nybble_packed_bytes(&newer.arrays, nullptr, &bytes), NYBBLE_OK) << nybble_last_error();
  newer.added = 1;
  EXPECT_EQ(nybble_packed_bytes(&newer.arrays, nullptr, &bytes), NYBBLE_UNSUPPORTED);
  EXPECT_THAT(nybble_last_error(), HasSubstr(nybble_version()));
  newer.added = 0;
  newer.arrays.size = sizeof(nybble_arrays) - 1;
  EXPECT_EQ(nybble_packed_bytes(&newer.arrays, nullptr, &bytes), NYBBLE_INVALID_ARGUMENT);
  EXPECT_THAT(nybble_last_error(), HasSubstr("sizeof"));
  newer.arrays.size = sizeof(nybble_arrays);
  newer.arrays.reserved = 1;
  EXPECT_EQ(nybble_packed_bytes(&newer.arrays, nullptr, &bytes), NYBBLE_INVALID_ARGUMENT);

  const auto packed = [&] {
    const nybble_arrays arrays = arrays_of(weight);
    return made<nybble_packed>([&](auto out) { return nybble_pack(&arrays, nullptr, out); });
  }();
  const auto back = made<nybble_weight>([&](auto out) { return nybble_unpack(packed.get(), out); });
  newer.arrays.size = sizeof newer;
  newer.added = -1;
  ASSERT_EQ(nybble_weight_view(back.get(), &newer.arrays), NYBBLE_OK) << nybble_last_error();
  EXPECT_EQ(newer.arrays.size, sizeof newer);
  EXPECT_EQ(newer.added, 0);
  expect_arrays(newer.arrays, weight);
}

TEST(CApi, NumbersWithoutMeaningAreRefused) {
  const QuantizedWeight weight = random_weight({.n = 2, .k = 32, .format = {.group_size = 32}});
  const auto refused = [&](const std::function<void(nybble_arrays&)>& spoil, const char* word) {
    nybble_arrays arrays = arrays_of(weight);
    spoil(arrays);
    nybble_packed* none = nullptr;
    EXPECT_EQ(nybble_pack(&arrays, nullptr, &none), NYBBLE_INVALID_ARGUMENT) << word;
    EXPECT_THAT(nybble_last_error(), HasSubstr(word));
    EXPECT_EQ(none, nullptr);
  };
  refused([](nybble_arrays& a) { a.scale_dtype = 256; }, "scale_dtype");
  refused([](nybble_arrays& a) { a.zero_kind = -1; }, "zero_kind");
  refused([](nybble_arrays& a) { a.zeros = a.codes; }, "zeros");
  refused([](nybble_arrays& a) { a.zero_kind = NYBBLE_ZERO_FLOAT; }, "zeros");
  refused([](nybble_arrays& a) { a.codes = nullptr; }, "codes");
  refused([](nybble_arrays& a) { a.scales = nullptr; }, "scales");
  refused([](nybble_arrays& a) { a.n = -1; }, "-1");
  refused([](nybble_arrays& a) { a.k = INT64_MAX; }, "9223372036854775807");
  refused([](nybble_arrays& a) { a.group_size = -32; }, "group_size");

  nybble_arrays table = arrays_of(weight);
  table.zero_kind = NYBBLE_ZERO_TABLE;
  nybble_packed* no_table = nullptr;
  EXPECT_EQ(nybble_pack(&table, nullptr, &no_table), NYBBLE_UNSUPPORTED);
  EXPECT_THAT(nybble_last_error(), HasSubstr("dequantize it"));
  table.zero_kind = NYBBLE_ZERO_TABLE + 1;
  EXPECT_EQ(nybble_pack(&table, nullptr, &no_table), NYBBLE_INVALID_ARGUMENT);

  const float value = 1;
  nybble_dense dense{.size = sizeof dense, .n = INT64_MAX, .k = INT64_MAX, .values = &value, .dtype = NYBBLE_FP32};
  nybble_weight* none = nullptr;
  EXPECT_EQ(nybble_quantize_rtn(&dense, nullptr, &none), NYBBLE_INVALID_ARGUMENT);
  dense.n = dense.k = 1;
  dense.dtype = 3;
  EXPECT_EQ(nybble_quantize_rtn(&dense, nullptr, &none), NYBBLE_INVALID_ARGUMENT);
  EXPECT_EQ(none, nullptr);
}

TEST(CApi, NullIsRefusedEverywhere) {
  nybble_weight* weight = nullptr;
  nybble_packed* packed = nullptr;
  nybble_device* device = nullptr;
  nybble_plan* plan = nullptr;
  nybble_arrays arrays{.size = sizeof arrays};
  nybble_problem problem{.size = sizeof problem};
  nybble_launch_args args{.size = sizeof args};
  nybble_dense dense{.size = sizeof dense};
  size_t bytes = 0;
  const std::pair<const char*, std::function<nybble_status()>> calls[] = {
      {"weight is NULL", [&] { return nybble_weight_view(nullptr, &arrays); }},
      {"dense is NULL", [&] { return nybble_quantize_rtn(nullptr, nullptr, &weight); }},
      {"out is NULL", [&] { return nybble_quantize_rtn(&dense, nullptr, nullptr); }},
      {"arrays is NULL", [&] { return nybble_packed_bytes(nullptr, nullptr, &bytes); }},
      {"out is NULL", [&] { return nybble_packed_bytes(&arrays, nullptr, nullptr); }},
      {"arrays is NULL", [&] { return nybble_pack(nullptr, nullptr, &packed); }},
      {"out is NULL", [&] { return nybble_pack(&arrays, nullptr, nullptr); }},
      {"arrays is NULL", [&] { return nybble_pack_into(nullptr, nullptr, &bytes, sizeof bytes); }},
      {"memory is NULL", [&] { return nybble_pack_into(&arrays, nullptr, nullptr, 1000); }},
      {"packed is NULL", [&] { return nybble_unpack(nullptr, &weight); }},
      {"blob is NULL", [&] { return nybble_packed_validate(nullptr, 256); }},
      {"blob is NULL", [&] { return nybble_packed_copy(nullptr, 256, &packed); }},
      {"out is NULL", [&] { return nybble_packed_copy(&bytes, 8, nullptr); }},
      {"path is NULL", [&] { return nybble_packed_load(nullptr, &packed); }},
      {"out is NULL", [&] { return nybble_packed_load("file", nullptr); }},
      {"packed is NULL", [&] { return nybble_packed_save(nullptr, "file"); }},
      {"packed is NULL", [&] { return nybble_packed_problem(nullptr, 1, NYBBLE_BF16, &problem); }},
      {"text is NULL", [&] { return nybble_problem_parse(nullptr, &problem); }},
      {"out is NULL", [&] { return nybble_problem_parse("m1 n1 k1 bf16 g128", nullptr); }},
      {"problem is NULL", [&] { return nybble_problem_text(nullptr, nullptr, 0, &bytes); }},
      {"both NULL", [&] { return nybble_problem_text(&problem, nullptr, 0, nullptr); }},
      {"out is NULL", [&] { return nybble_device_cpu(0, nullptr); }},
      {"out is NULL", [&] { return nybble_device_cuda(0, nullptr); }},
      {"out is NULL", [&] { return nybble_device_h200(nullptr); }},
      {"device is NULL", [&] { return nybble_plan_create(&problem, nullptr, nullptr, &plan); }},
      {"plan is NULL", [&] { return nybble_launch(nullptr, &args); }},
  };
  for (size_t i = 0; i < std::size(calls); ++i) {
    EXPECT_EQ(calls[i].second(), NYBBLE_INVALID_ARGUMENT) << "call " << i;
    EXPECT_THAT(nybble_last_error(), HasSubstr(calls[i].first)) << "call " << i;
  }
  EXPECT_EQ(weight, nullptr);
  EXPECT_EQ(packed, nullptr);
  EXPECT_EQ(device, nullptr);
  EXPECT_EQ(plan, nullptr);

  nybble_weight_destroy(nullptr);
  nybble_packed_destroy(nullptr);
  nybble_device_destroy(nullptr);
  nybble_tuning_table_destroy(nullptr);
  EXPECT_EQ(nybble_tuning_table_num_problems(nullptr), 0u);
  EXPECT_EQ(nybble_tuning_table_num_unknown(nullptr), 0u);
  nybble_plan_destroy(nullptr);
  EXPECT_EQ(nybble_packed_data(nullptr), nullptr);
  EXPECT_EQ(nybble_packed_size_bytes(nullptr), 0u);
  EXPECT_EQ(nybble_plan_workspace_bytes(nullptr), 0u);
  EXPECT_STREQ(nybble_plan_kernel(nullptr), "");
  EXPECT_STREQ(nybble_plan_why(nullptr), "");
  EXPECT_STREQ(nybble_device_name(nullptr), "");
}

TEST(CApi, NoExceptionGetsOut) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "AddressSanitizer ends the program where operator new would throw std::bad_alloc";
#endif
  const float value = 1;
  const nybble_dense dense{
      .size = sizeof dense, .n = int64_t{1} << 30, .k = int64_t{1} << 30, .values = &value, .dtype = NYBBLE_FP32};
  nybble_weight* none = nullptr;
  EXPECT_EQ(nybble_quantize_rtn(&dense, nullptr, &none), NYBBLE_OUT_OF_MEMORY);
  EXPECT_THAT(nybble_last_error(), HasSubstr("memory"));
  EXPECT_EQ(none, nullptr);
}

TEST(CApi, TheLastErrorBelongsToItsThread) {
  nybble_packed* none = nullptr;
  ASSERT_EQ(nybble_packed_load("/no/such/folder/file", &none), NYBBLE_IO);
  const std::string text = nybble_last_error();
  EXPECT_THAT(text, HasSubstr("/no/such/folder"));
  std::thread([] {
    EXPECT_STREQ(nybble_last_error(), "");
    EXPECT_EQ(nybble_device_cpu(-1, nullptr), NYBBLE_INVALID_ARGUMENT);
  }).join();
  made<nybble_device>([](auto out) { return nybble_device_cpu(0, out); });  // success changes nothing
  EXPECT_EQ(nybble_last_error(), text);
}

TEST(CApi, StatusesAreTheErrorCodes) {
  EXPECT_STREQ(nybble_status_string(NYBBLE_OK), "ok");
  for (int code = NYBBLE_INVALID_ARGUMENT; code <= NYBBLE_WORKSPACE_TOO_SMALL; ++code)
    EXPECT_STREQ(nybble_status_string(static_cast<nybble_status>(code)),
                 error_code_name(static_cast<ErrorCode>(code - 1)));
  EXPECT_STREQ(nybble_status_string(NYBBLE_INTERNAL), "internal");
  EXPECT_STREQ(nybble_status_string(static_cast<nybble_status>(15)), "unknown");
}

}  // namespace
}  // namespace nybble
