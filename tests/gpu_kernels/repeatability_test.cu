// The same bits however a launch runs: again, captured into a graph, overlapped with its neighbours (programmatic
// dependent launch), beside another stream; and the reach of a NaN.
#include <gtest/gtest.h>

#include <functional>

#include "gpu_kernels/case_lists.cuh"
#include "gpu_kernels/workbench.cuh"
#include "layout/blob.h"

namespace nybble::testing {
namespace {

// Lets the next kernel of the stream begin, then waits, then copies: what comes next must have waited for this kernel's
// end.
__global__ void copy_late(const uint32_t* from, uint32_t* to, int64_t words, const float* alpha_from, float* alpha_to) {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  uint64_t start, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (now - start < 50'000);
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < words; i += int64_t{gridDim.x} * blockDim.x)
    to[i] = from[i];
  if (alpha_to != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *alpha_to = *alpha_from;
}

__global__ void set_bits16(uint16_t* values, int64_t index, uint16_t bits) { values[index] = bits; }

class Counter {
 public:
  void clear(cudaStream_t stream) { CUDA_OK(cudaMemsetAsync(count_.reserve(8), 0, 8, stream)); }
  void add_differences(const void* a, const void* b, size_t bytes, cudaStream_t stream) {
    device::count_differences<<<grid_for(static_cast<int64_t>(bytes)), 256, 0, stream>>>(
        static_cast<const unsigned char*>(a), static_cast<const unsigned char*>(b), static_cast<int64_t>(bytes),
        static_cast<unsigned long long*>(count_.data()));
  }
  void add_other_bytes(const void* a, size_t bytes, unsigned char byte, cudaStream_t stream) {
    device::count_other_bytes<<<grid_for(static_cast<int64_t>(bytes)), 256, 0, stream>>>(
        static_cast<const unsigned char*>(a), static_cast<int64_t>(bytes), byte,
        static_cast<unsigned long long*>(count_.data()));
  }
  uint64_t read(cudaStream_t stream) {
    uint64_t count = 0;
    CUDA_OK(cudaMemcpyAsync(&count, count_.data(), 8, cudaMemcpyDeviceToHost, stream));
    CUDA_OK(cudaStreamSynchronize(stream));
    return count;
  }

 private:
  DeviceScratch count_;
};

struct Stream {
  cudaStream_t handle = nullptr;
  Stream() { CUDA_OK(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(handle); }
  Stream(const Stream&) = delete;
};

struct Graph {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  // Global mode, the strictest: a call that is unsafe during capture fails in every thread.
  Graph(cudaStream_t stream, const std::function<void()>& enqueue) {
    CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    enqueue();
    CUDA_OK(cudaStreamEndCapture(stream, &graph));
    CUDA_OK(cudaGraphInstantiate(&executable, graph, 0));
  }
  ~Graph() {
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
  }
  Graph(const Graph&) = delete;
};

// An output and a workspace of their own for a launch.
struct Lane {
  GuardedDeviceBuffer out;
  EndBuffer workspace;

  LaunchArgs place(LaunchArgs args, const Problem& problem, const Plan& plan, cudaStream_t stream) {
    args.ld_out = (problem.n + 7) / 8 * 8;
    args.out = out.place(problem.m * args.ld_out * dtype_bytes(problem.out_dtype), 0);
    args.workspace_bytes = plan.workspace_bytes();
    args.workspace = args.workspace_bytes > 0 ? workspace.place(args.workspace_bytes, 256) : nullptr;
    args.stream = stream;
    return args;
  }
  void poison(unsigned char byte, cudaStream_t stream) {
    out.poison(stream, byte);
    if (workspace.size_bytes() > 0) CUDA_OK(cudaMemsetAsync(workspace.data(), byte, workspace.size_bytes(), stream));
  }
};

// What a launch wrote, on the host.
class Outputs {
 public:
  Outputs(const LaunchArgs& args, const Problem& problem)
      : dtype_(problem.out_dtype), ld_(args.ld_out), bytes_(problem.m * ld_ * dtype_bytes(dtype_)) {
    CUDA_OK(cudaMemcpy(bytes_.data(), args.out, bytes_.size(), cudaMemcpyDeviceToHost));
  }
  uint32_t at(int64_t m, int64_t n) const { return load_bits(bytes_.data(), dtype_, m * ld_ + n); }

 private:
  DType dtype_;
  int64_t ld_;
  std::vector<std::byte> bytes_;
};

class Repeatability : public GpuTest {
 protected:
  static constexpr uint64_t kSeed = uint64_t{40} << Arrangement::kBits;

  // Calls body(row, problem) for every row with two of the formats it takes, at m around its tile, the bench set to the
  // weight. Every row must have been reached.
  void for_rows(int64_t n, int64_t k, const std::function<void(const KernelEntry&, const Problem&)>& body) {
    std::map<std::string, int> formats_of_row;
    for (const FormatCase& format : format_cases()) {
      bool loaded = false;
      for (const KernelEntry* row : gpu_rows()) {
        if (formats_of_row[row->name] >= (reduced() ? 1 : 2)) continue;
        Problem asked{
            .m = 1, .n = n, .k = k, .act_dtype = format.act, .out_dtype = format.act, .weight = format.format};
        bool reached = false;
        for (int64_t m : tokens_of(*row)) {
          asked.m = m;
          if (!row->why_not(for_row(asked, *row), gpu()).empty()) continue;
          if (!loaded) bench().set_weight(n, k, format.format, format.act, Data::kRandom, kSeed, 520);
          loaded = reached = true;
          body(*row, for_row(bench().problem(m), *row));
          ++cases_;
        }
        formats_of_row[row->name] += reached;
      }
    }
    for (const KernelEntry* row : gpu_rows())
      EXPECT_GT(formats_of_row[row->name], 0) << row->name << " was not reached";
    fmt::print("{}: {} cases\n", ::testing::UnitTest::GetInstance()->current_test_info()->name(), cases_);
    std::fflush(stdout);
  }
  static std::vector<int64_t> tokens_of(const KernelEntry& row) {
    const int tile = row_tile(row).m;
    if (reduced()) return {1, tile};
    std::vector<int64_t> tokens = {1, 16, tile, tile + 1, 300};
    std::sort(tokens.begin(), tokens.end());
    tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
    return tokens;
  }

  Workbench& bench() {
    if (bench_ == nullptr) bench_ = std::make_unique<Workbench>();
    return *bench_;
  }
  static Plan plan(const KernelEntry& row, const Problem& problem, bool pdl = true) {
    Result<Plan> plan = make_plan(problem, gpu(), {.kernel = row.name, .pdl = pdl});
    if (!plan) throw std::runtime_error(plan.error().message);
    return *plan;
  }
  static void run(const Plan& plan, const LaunchArgs& args) {
    const Result<void> launched = launch(plan, args);
    if (!launched) throw std::runtime_error(launched.error().message);
  }
  static std::string name(const KernelEntry& row, const Problem& problem) {
    return to_string(problem) + " on " + row.name;
  }

  Counter counter_;

 private:
  std::unique_ptr<Workbench> bench_;
  int cases_ = 0;
};

TEST_F(Repeatability, SecondRunHasTheSameBits) {
  Lane first, second;
  for_rows(520, 1500, [&](const KernelEntry& row, const Problem& problem) {
    const Plan plan = this->plan(row, problem);
    const cudaStream_t stream = bench().stream();
    const LaunchArgs args = bench().prepare(bench().make_case(problem, row, 0), 0);
    const LaunchArgs a = first.place(args, problem, plan, stream), b = second.place(args, problem, plan, stream);
    first.poison(0xFF, stream);
    run(plan, a);
    counter_.clear(stream);
    for (unsigned char poison : {0x00, 0x7F}) {
      second.poison(poison, stream);
      run(plan, b);
      ASSERT_EQ(a.ld_out, problem.n);  // no gaps, whose poison would differ
      counter_.add_differences(a.out, b.out, first.out.size_bytes(), stream);
    }
    EXPECT_EQ(counter_.read(stream), 0u) << name(row, problem);
  });
}

// What a launch leaves in the workspace must not pass for what the next one waits for, whatever part of it someone else
// has written in between: sums of other activations would be added (docs/decisions/0019).
TEST_F(Repeatability, PartsOfAnEarlierLaunchDoNotCount) {
  constexpr unsigned char kPoison = 0xFF;
  constexpr uint64_t kOtherTokens = 1 << 7 | 3 << 8;  // Arrangement::rows_behind is 4
  Lane fresh, used;
  int shared = 0;
  for_rows(520, 1500, [&](const KernelEntry& row, const Problem& problem) {
    const Plan plan = this->plan(row, problem);
    const size_t bytes = plan.workspace_bytes();
    if (bytes == 0) return;
    ++shared;
    const cudaStream_t stream = bench().stream();
    const LaunchArgs earlier = bench().prepare(bench().make_case(problem, row, kOtherTokens), 0),
                     later = bench().prepare(bench().make_case(problem, row, 0), 0);
    const LaunchArgs expected = fresh.place(later, problem, plan, stream);
    fresh.poison(kPoison, stream);
    run(plan, expected);
    const LaunchArgs first = used.place(earlier, problem, plan, stream),
                     second = used.place(later, problem, plan, stream);
    auto* const workspace = static_cast<unsigned char*>(second.workspace);
    counter_.clear(stream);
    for (const auto& [begin, end] : {std::pair{size_t{8}, bytes},
                                     {size_t{256}, bytes},
                                     {size_t{0}, bytes / 2},
                                     {size_t{8}, std::min(bytes, size_t{12} << 10)}}) {
      used.poison(kPoison, stream);
      run(plan, first);
      used.out.poison(stream, kPoison);
      CUDA_OK(cudaMemsetAsync(workspace, kPoison, begin, stream));
      CUDA_OK(cudaMemsetAsync(workspace + end, kPoison, bytes - end, stream));
      run(plan, second);
      counter_.add_differences(expected.out, second.out, fresh.out.size_bytes(), stream);
    }
    EXPECT_EQ(counter_.read(stream), 0u) << name(row, problem);
  });
  EXPECT_GT(shared, 0);
}

// The kernel is captured before it ever ran in this process (ctest starts one per test): capture may not need a
// warm-up.
TEST_F(Repeatability, GraphReplayEqualsEager) {
  Lane eager, captured;
  Stream stream;
  for_rows(520, 1500, [&](const KernelEntry& row, const Problem& problem) {
    const Plan plan = this->plan(row, problem);
    const LaunchArgs args = bench().prepare(bench().make_case(problem, row, 0), 0);
    const LaunchArgs a = eager.place(args, problem, plan, stream.handle),
                     b = captured.place(args, problem, plan, stream.handle);
    CUDA_OK(cudaDeviceSynchronize());
    const Graph graph(stream.handle, [&] { run(plan, b); });
    eager.poison(0xFF, stream.handle);
    run(plan, a);
    counter_.clear(stream.handle);
    for (int replay = 0; replay < 3; ++replay) {
      captured.poison(0xFF, stream.handle);
      CUDA_OK(cudaGraphLaunch(graph.executable, stream.handle));
      counter_.add_differences(a.out, b.out, eager.out.size_bytes(), stream.handle);
    }
    EXPECT_EQ(counter_.read(stream.handle), 0u) << name(row, problem);
  });
}

// Four layers, each multiplying the one before's output: with and without overlap, eager and in a graph.
TEST_F(Repeatability, DependentLayersOverlapWithTheSameBits) {
  constexpr int kLayers = 4;
  constexpr int64_t kWidth = 1024;
  TestWeight weights[kLayers];
  WeightFormat loaded{.group_size = -1};
  DType loaded_act = DType::kFp32;
  GuardedDeviceBuffer plain[kLayers], overlapped[kLayers];
  EndBuffer workspace;
  Stream stream;
  for_rows(kWidth, kWidth, [&](const KernelEntry& row, const Problem& problem) {
    if (problem.out_dtype != problem.act_dtype) return;  // feeds no layer
    if (!(loaded == problem.weight) || loaded_act != problem.act_dtype) {
      for (int layer = 0; layer < kLayers; ++layer)
        weights[layer].load(make_weight(kWidth, kWidth, problem.weight, Data::kRandom, 50 + layer));
      loaded = problem.weight, loaded_act = problem.act_dtype;
      ASSERT_EQ(weights[0].format(), problem.weight);
    }
    const Plan with = plan(row, problem, true), without = plan(row, problem, false);
    const LaunchArgs first = bench().prepare(bench().make_case(problem, row, 0), 0);
    const size_t bytes = problem.m * kWidth * 2;
    for (int layer = 0; layer < kLayers; ++layer) {
      plain[layer].place(bytes, 0);
      overlapped[layer].place(bytes, 0);
    }
    void* scratch = with.workspace_bytes() > 0 ? workspace.place(with.workspace_bytes(), 256) : nullptr;
    const auto run_chain = [&](const Plan& plan, const GuardedDeviceBuffer* outs) {
      for (int layer = 0; layer < kLayers; ++layer)
        run(plan, {.act = layer == 0 ? first.act : outs[layer - 1].data(),
                   .ld_act = layer == 0 ? first.ld_act : 0,
                   .weight = weights[layer].blob(),
                   .out = outs[layer].data(),
                   .workspace = scratch,
                   .workspace_bytes = plan.workspace_bytes(),
                   .stream = stream.handle});
    };
    const auto poison = [&](const GuardedDeviceBuffer* outs) {
      for (int layer = 0; layer < kLayers; ++layer) outs[layer].poison(stream.handle);
    };
    CUDA_OK(cudaDeviceSynchronize());
    poison(plain);
    run_chain(without, plain);
    counter_.clear(stream.handle);
    const auto compare = [&] {
      for (int layer = 0; layer < kLayers; ++layer)
        counter_.add_differences(plain[layer].data(), overlapped[layer].data(), bytes, stream.handle);
    };
    for (int round = 0; round < 5; ++round) {
      poison(overlapped);
      run_chain(with, overlapped);
      compare();
    }
    const Graph graph(stream.handle, [&] { run_chain(with, overlapped); });
    for (int round = 0; round < 5; ++round) {
      poison(overlapped);
      CUDA_OK(cudaGraphLaunch(graph.executable, stream.handle));
      compare();
    }
    EXPECT_EQ(counter_.read(stream.handle), 0u) << name(row, problem);
    std::vector<uint16_t> last(problem.m * kWidth);
    CUDA_OK(cudaMemcpy(last.data(), plain[kLayers - 1].data(), bytes, cudaMemcpyDeviceToHost));
    for (uint16_t bits : last)
      ASSERT_TRUE(is_finite(bits, problem.out_dtype)) << name(row, problem) << ": the chain must stay finite";
  });
}

// A predecessor that lets its successor begin at once and writes act, residual and alpha 50 us later.
TEST_F(Repeatability, WaitsForWhatThePredecessorWrites) {
  Lane expected, got;
  Stream stream;
  DeviceScratch act, residual, alpha;
  for_rows(520, 1500, [&](const KernelEntry& row, Problem problem) {
    problem.epilogue.residual = true;
    if (!row.why_not(problem, gpu()).empty()) problem.epilogue.residual = false;
    const Plan plan = this->plan(row, problem, true);
    const LaunchArgs args =
        bench().prepare(bench().make_case(problem, row, 6u << 4), 0);  // arrangement 6: alpha on the device
    const LaunchArgs a = expected.place(args, problem, plan, stream.handle);
    LaunchArgs b = got.place(args, problem, plan, stream.handle);
    ASSERT_NE(a.alpha_device, nullptr);
    const int64_t ld_act = args.ld_act > 0 ? args.ld_act : problem.k;
    // Whole 32-bit words; the last row ends at k.
    const int64_t act_words = ((problem.m - 1) * ld_act + problem.k) / 2,
                  residual_words = ((problem.m - 1) * a.ld_out + problem.n) * dtype_bytes(problem.out_dtype) / 4;
    b.act = act.reserve(act_words * 4 + 16);
    auto* late_alpha = alpha.reserve_as<float>(1);
    b.alpha_device = late_alpha;
    CUDA_OK(cudaDeviceSynchronize());
    expected.poison(0xFF, stream.handle);
    run(plan, a);
    counter_.clear(stream.handle);
    for (int round = 0; round < 2; ++round) {
      got.poison(0xFF, stream.handle);
      CUDA_OK(cudaMemsetAsync(act.data(), 0xFF, act_words * 4 + 16, stream.handle));
      CUDA_OK(cudaMemsetAsync(late_alpha, 0xFF, 4, stream.handle));
      if (problem.epilogue.residual && round == 1) {  // round 0: act and alpha come late; round 1: the residual
        b.residual = residual.reserve(residual_words * 4);
        CUDA_OK(cudaMemsetAsync(residual.data(), 0xFF, residual_words * 4, stream.handle));
        copy_late<<<8, 256, 0, stream.handle>>>(static_cast<const uint32_t*>(a.act), static_cast<uint32_t*>(act.data()),
                                                act_words, a.alpha_device, late_alpha);
        CUDA_OK(cudaStreamSynchronize(stream.handle));
        copy_late<<<8, 256, 0, stream.handle>>>(static_cast<const uint32_t*>(a.residual),
                                                static_cast<uint32_t*>(residual.data()), residual_words, nullptr,
                                                nullptr);
      } else {
        copy_late<<<8, 256, 0, stream.handle>>>(static_cast<const uint32_t*>(a.act), static_cast<uint32_t*>(act.data()),
                                                act_words, a.alpha_device, late_alpha);
      }
      run(plan, b);
      counter_.add_differences(a.out, b.out, expected.out.size_bytes(), stream.handle);
    }
    EXPECT_EQ(counter_.read(stream.handle), 0u) << name(row, problem);
  });
}

// A predecessor that reads out 50 us after it let its successor begin must find what stood there.
TEST_F(Repeatability, WaitsForWhatThePredecessorReads) {
  Lane lane;
  Stream stream;
  DeviceScratch snapshot;
  for_rows(520, 1500, [&](const KernelEntry& row, const Problem& problem) {
    const Plan plan = this->plan(row, problem, true);
    const LaunchArgs args =
        lane.place(bench().prepare(bench().make_case(problem, row, 0), 0), problem, plan, stream.handle);
    const size_t bytes = lane.out.size_bytes() / 4 * 4;
    snapshot.reserve(bytes);
    CUDA_OK(cudaDeviceSynchronize());
    lane.poison(0xFF, stream.handle);
    counter_.clear(stream.handle);
    copy_late<<<8, 256, 0, stream.handle>>>(static_cast<const uint32_t*>(args.out),
                                            static_cast<uint32_t*>(snapshot.data()), static_cast<int64_t>(bytes / 4),
                                            nullptr, nullptr);
    run(plan, args);
    counter_.add_other_bytes(snapshot.data(), bytes, 0xFF, stream.handle);
    EXPECT_EQ(counter_.read(stream.handle), 0u) << name(row, problem);
  });
}

TEST_F(Repeatability, TwoStreamsAtOnce) {
  Lane alone, lanes[2];
  Stream streams[2];
  Counter counters[2];
  for_rows(520, 1500, [&](const KernelEntry& row, const Problem& problem) {
    const Plan plan = this->plan(row, problem);
    const LaunchArgs args = bench().prepare(bench().make_case(problem, row, 0), 0);
    const LaunchArgs expected = alone.place(args, problem, plan, bench().stream());
    alone.poison(0xFF, bench().stream());
    run(plan, expected);
    LaunchArgs both[2];
    for (int i : {0, 1}) {
      both[i] = lanes[i].place(args, problem, plan, streams[i].handle);
      counters[i].clear(streams[i].handle);
    }
    CUDA_OK(cudaDeviceSynchronize());
    for (int round = 0; round < (reduced() ? 2 : 10); ++round)
      for (int i : {0, 1}) {
        lanes[i].poison(0xFF, streams[i].handle);
        run(plan, both[i]);
        run(plan, both[i]);  // one right behind the other, in the same workspace
        counters[i].add_differences(expected.out, both[i].out, alone.out.size_bytes(), streams[i].handle);
      }
    for (int i : {0, 1}) EXPECT_EQ(counters[i].read(streams[i].handle), 0u) << name(row, problem) << " in stream " << i;
  });
}

// A NaN or an infinity in one token spoils all of that token's outputs and nothing else.
TEST_F(Repeatability, BadTokenStaysAlone) {
  Lane clean, spoilt;
  DeviceScratch act;
  for_rows(200, 1500, [&](const KernelEntry& row, const Problem& problem) {
    const Plan plan = this->plan(row, problem);
    const cudaStream_t stream = bench().stream();
    const LaunchArgs args = bench().prepare(bench().make_case(problem, row, 0), 0);
    const LaunchArgs a = clean.place(args, problem, plan, stream);
    LaunchArgs b = spoilt.place(args, problem, plan, stream);
    const int64_t ld_act = args.ld_act > 0 ? args.ld_act : problem.k, bad = problem.m / 2;
    const size_t act_bytes = ((problem.m - 1) * ld_act + problem.k) * 2;
    b.act = act.reserve(act_bytes);
    clean.poison(0xFF, stream);
    run(plan, a);
    for (uint32_t pattern :
         {float_shape(problem.act_dtype).infinity() + 1, float_shape(problem.act_dtype).infinity()}) {
      CUDA_OK(cudaMemcpyAsync(act.data(), a.act, act_bytes, cudaMemcpyDeviceToDevice, stream));
      set_bits16<<<1, 1, 0, stream>>>(static_cast<uint16_t*>(act.data()), bad * ld_act + problem.k * 2 / 3,
                                      static_cast<uint16_t>(pattern));
      spoilt.poison(0xFF, stream);
      run(plan, b);
      const Outputs want(a, problem), got(b, problem);
      int64_t finite = 0, changed = 0, unwritten = 0, infinite = 0;
      for (int64_t m = 0; m < problem.m; ++m)
        for (int64_t n = 0; n < problem.n; ++n) {
          const uint32_t bits = got.at(m, n);
          if (m != bad) {
            changed += bits != want.at(m, n);
          } else {
            finite += is_finite(bits, problem.out_dtype);
            infinite += !is_finite(bits, problem.out_dtype) && !is_nan(bits, problem.out_dtype);
            unwritten += bits == (problem.out_dtype == DType::kFp32 ? 0xFFFFFFFF : 0xFFFF);
          }
        }
      EXPECT_EQ(changed, 0) << name(row, problem) << ": outputs of other tokens";
      EXPECT_EQ(finite, 0) << name(row, problem) << ": outputs of the bad token that hide it";
      EXPECT_EQ(unwritten, 0) << name(row, problem);
      if (pattern != float_shape(problem.act_dtype).infinity()) {
        EXPECT_EQ(infinite, 0) << name(row, problem) << ": a NaN in gives a NaN out";
      }
    }
  });
}

// A NaN scale, which pack() refuses and which is put into the blob by hand, spoils its output feature and nothing else.
TEST_F(Repeatability, BadScaleStaysInItsColumn) {
  constexpr int64_t kN = 200, kK = 700, kBad = 77;
  TestWeight weight;
  Lane clean, spoilt;
  for_rows(kN, kK, [&](const KernelEntry& row, const Problem& problem) {
    const Plan plan = this->plan(row, problem);
    const cudaStream_t stream = bench().stream();
    const LaunchArgs args = bench().prepare(bench().make_case(problem, row, 0), 0);
    const QuantizedWeight& canonical = bench().weight().canonical();
    Result<PackedWeight> packed = pack(canonical);
    ASSERT_TRUE(packed) << packed.error().message;
    const layout::BlobMap map = layout::blob_map(kN, kK, packed->format());
    const DType scale = packed->format().scale_dtype;
    const uint32_t nan = float_shape(scale).infinity() | 1u << (float_shape(scale).mantissa_bits - 1);
    const int64_t place = map.column_scales >= 0
                              ? map.column_scales + kBad * static_cast<int64_t>(dtype_bytes(scale))
                              : map.block_offset(kBad / 64, 1) + map.block.scale_offset(kBad % 64, 0);
    std::memcpy(packed->mutable_data() + place, &nan, dtype_bytes(scale));
    weight.load(canonical, *packed);
    const LaunchArgs a = clean.place(args, problem, plan, stream);
    LaunchArgs b = spoilt.place(args, problem, plan, stream);
    b.weight = weight.blob();
    clean.poison(0xFF, stream);
    spoilt.poison(0xFF, stream);
    run(plan, a);
    run(plan, b);
    const Outputs want(a, problem), got(b, problem);
    int64_t changed = 0, finite = 0;
    for (int64_t m = 0; m < problem.m; ++m)
      for (int64_t n = 0; n < kN; ++n) {
        const uint32_t bits = got.at(m, n);
        if (n == kBad)
          finite += is_finite(bits, problem.out_dtype);
        else
          changed += bits != want.at(m, n);
      }
    EXPECT_EQ(changed, 0) << name(row, problem) << ": outputs of other features";
    EXPECT_EQ(finite, 0) << name(row, problem) << ": outputs that hide the NaN";
  });
}

}  // namespace
}  // namespace nybble::testing
