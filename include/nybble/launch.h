// Where a multiplication runs and what it reads and writes: Device and LaunchArgs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "nybble/types.h"

struct CUstream_st;  // cudaStream_t is a pointer to this

#pragma GCC visibility push(default)
namespace nybble {

enum class DeviceKind : uint8_t { kCpu, kCuda };

// What a plan is made for. A plain value: plans can be made for a GPU that is not there.
struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  std::string name;  // "NVIDIA H200"; "cpu avx512" and the like
  int ordinal = 0;   // CUDA device number
  int sm = 0;        // 90 for compute capability 9.0; 0 on the CPU
  int num_sms = 0;
  int max_smem_bytes = 0;  // shared memory a block may ask for
  int num_threads = 0;     // CPU: worker threads; 0: all cores

  static Device cpu(int num_threads = 0);
  static Result<Device> cuda(int ordinal = 0);  // kUnsupported with the reason where there is no driver or GPU
  static Device h200();                         // a description to plan for, without the GPU
};

struct LaunchArgs {
  const void* act = nullptr;     // [m, k], Problem::act_dtype
  int64_t ld_act = 0;            // elements between rows; 0: k
  const void* weight = nullptr;  // a packed blob: device memory for a CUDA plan, host memory for a CPU plan
  void* out = nullptr;           // [m, n], Problem::out_dtype
  int64_t ld_out = 0;            // elements between rows; 0: n
  const void* bias = nullptr;    // [n], Problem::act_dtype; given exactly when Epilogue::bias
  // [m, n], Problem::out_dtype, leading dimension ld_out; given exactly when Epilogue::residual. It may be `out`
  // itself: every element is read before it is written.
  const void* residual = nullptr;
  float alpha = 1.0f;                   // host value, used when alpha_device is null
  const float* alpha_device = nullptr;  // read by the kernel when it runs
  void* workspace = nullptr;  // Plan::workspace_bytes() bytes, on a GPU 256-byte aligned; needs no initial state
  size_t workspace_bytes = 0;
  CUstream_st* stream = nullptr;  // CUDA plans; the call only enqueues
};

}  // namespace nybble
#pragma GCC visibility pop
