// A launch allocates nothing on the host either, once its kernel has run on the device.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "layout/blob.h"
#include "nybble/gemm.h"
#include "registry/registry.h"
#include "support/device_memory.h"

namespace {
std::atomic<int> allocations{0};
}

void* operator new(size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace nybble::testing {
namespace {

TEST(Launch, AllocatesNothingOnTheHost) {
  const Result<Device> device = Device::cuda();
  if (!device) GTEST_SKIP() << device.error().message;
  if (device->sm != 90) GTEST_SKIP() << "needs compute capability 9.0, " << device->name << " has another";
  constexpr int64_t kN = 512, kK = 1024;
  constexpr int kPlaces = 100;  // more than there are tensor maps in the cache
  constexpr size_t kPlaceBytes = 256;
  DeviceScratch weight, act, out, workspace;
  int launched = 0;
  for (const DType dtype : {DType::kBf16, DType::kFp16}) {
    for (const KernelEntry& row : registry()) {
      const Problem problem{
          .m = 1, .n = kN, .k = kK, .act_dtype = dtype, .out_dtype = dtype, .weight = {.scale_dtype = dtype}};
      if (row.device != DeviceKind::kCuda || !row.why_not(problem, *device).empty()) continue;
      const Result<Plan> plan = make_plan(problem, *device, {.kernel = row.name});
      ASSERT_TRUE(plan) << plan.error().message;
      const size_t weight_bytes = layout::blob_map(kN, kK, problem.weight).total_bytes;
      const LaunchArgs first{.act = act.reserve(kK * 2 + kPlaces * kPlaceBytes),
                             .weight = weight.reserve(weight_bytes),
                             .out = out.reserve(kN * 2 + kPlaces * kPlaceBytes),
                             .workspace = workspace.reserve(plan->workspace_bytes()),
                             .workspace_bytes = plan->workspace_bytes()};
      CUDA_OK(cudaMemset(weight.data(), 0, weight_bytes));
      const Result<void> warm_up = launch(*plan, first);
      ASSERT_TRUE(warm_up) << warm_up.error().message;
      const int before = allocations;
      for (int place = 0; place < kPlaces; ++place) {
        LaunchArgs args = first;
        args.act = static_cast<const std::byte*>(first.act) + place * kPlaceBytes;
        args.out = static_cast<std::byte*>(first.out) + place * kPlaceBytes;
        launched += launch(*plan, args).ok();
      }
      EXPECT_EQ(allocations, before) << row.name;
      CUDA_OK(cudaDeviceSynchronize());
    }
  }
  EXPECT_GT(launched, 0);
  EXPECT_EQ(launched % kPlaces, 0) << "a launch was refused";
}

}  // namespace
}  // namespace nybble::testing
