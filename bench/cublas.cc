// The few functions of cuBLAS that a dense product needs, declared by hand: building needs no cuBLAS.
#include "bench/cublas.h"

#include <dlfcn.h>
#include <library_types.h>

#include <vector>

#include "base/error.h"
#include "runtime/cuda_call.h"

namespace nybble::bench {
namespace {

using Handle = struct cublasContext*;
using Status = int;                                   // cublasStatus_t; 0 is success
constexpr int kOpN = 0, kOpT = 1;                     // cublasOperation_t
constexpr int kCompute32F = 68;                       // cublasComputeType_t
constexpr int kDefaultAlgorithm = -1;                 // cublasGemmAlgo_t
constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what cuBLAS's documentation advises for Hopper

using Create = Status (*)(Handle*);
using Destroy = Status (*)(Handle);
using GetProperty = Status (*)(libraryPropertyType, int*);
using SetStream = Status (*)(Handle, cudaStream_t);
using SetWorkspace = Status (*)(Handle, void*, size_t);
using GemmEx = Status (*)(Handle, int transa, int transb, int m, int n, int k, const void* alpha, const void* a,
                          cudaDataType a_type, int lda, const void* b, cudaDataType b_type, int ldb, const void* beta,
                          void* c, cudaDataType c_type, int ldc, int compute_type, int algorithm);

class OpenedCublas : public Cublas {
 public:
  ~OpenedCublas() override {
    if (handle_ != nullptr) destroy_(handle_);
    if (library_ != nullptr) dlclose(library_);
  }

  Result<void> open(const std::string& name) {
    std::vector<std::string> names = {"libcublas.so.13", "libcublas.so.12", "libcublas.so"};
    if (!name.empty()) names = {name};
    for (const std::string& candidate : names)
      if (library_ == nullptr) library_ = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library_ == nullptr)
      return unsupported(
          "cuBLAS cannot be opened: no {} is found; install it, put its folder into LD_LIBRARY_PATH, or name "
          "the file with --cublas",
          fmt::join(names, ", "));
    if (!look_up(create_, "cublasCreate_v2") || !look_up(destroy_, "cublasDestroy_v2") ||
        !look_up(get_property_, "cublasGetProperty") || !look_up(set_stream_, "cublasSetStream_v2") ||
        !look_up(set_workspace_, "cublasSetWorkspace_v2") || !look_up(gemm_ex_, "cublasGemmEx"))
      return unsupported("the cuBLAS found lacks a function that the bench calls; version 12 or 13 is needed");
    if (const Status status = create_(&handle_); status != 0) {
      handle_ = nullptr;
      return cuda_error("cublasCreate failed with status {}", status);
    }
    Result<runtime::DeviceBuffer> workspace = runtime::DeviceBuffer::allocate(kWorkspaceBytes);
    if (!workspace) return workspace.error();
    workspace_ = std::move(*workspace);
    return {};
  }

  std::string version() const override {
    int part[3] = {};
    for (int i = 0; i < 3; ++i) get_property_(static_cast<libraryPropertyType>(i), &part[i]);
    return fmt::format("cuBLAS {}.{}.{}", part[0], part[1], part[2]);
  }

  Result<void> gemm(int64_t m, int64_t n, int64_t k, DType dtype, DType out_dtype, const void* act, const void* weight,
                    void* out, cudaStream_t stream) override {
    const cudaDataType type = dtype == DType::kBf16 ? CUDA_R_16BF : CUDA_R_16F;
    const cudaDataType out_type = out_dtype == DType::kFp32 ? CUDA_R_32F : type;
    const float alpha = 1, beta = 0;
    Status status = 0;
    if (stream != stream_) {
      status = set_stream_(handle_, stream);  // drops the workspace, so it is given anew
      if (status == 0) status = set_workspace_(handle_, workspace_.data(), workspace_.size_bytes());
      stream_ = stream;
    }
    // Column-major out^T[n, m] = weight[n, k] x act^T[k, m]; a row-major matrix is its transpose in column-major.
    if (status == 0)
      status = gemm_ex_(handle_, kOpT, kOpN, static_cast<int>(n), static_cast<int>(m), static_cast<int>(k), &alpha,
                        weight, type, static_cast<int>(k), act, type, static_cast<int>(k), &beta, out, out_type,
                        static_cast<int>(n), kCompute32F, kDefaultAlgorithm);
    if (status != 0)
      return cuda_error("cublasGemmEx of m{} n{} k{} {} failed with status {}", m, n, k, dtype_name(dtype), status);
    return {};
  }

 private:
  template <class Function> bool look_up(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(library_, name));
    return function != nullptr;
  }

  void* library_ = nullptr;
  Handle handle_ = nullptr;
  cudaStream_t stream_ = nullptr;
  runtime::DeviceBuffer workspace_;
  Create create_ = nullptr;
  Destroy destroy_ = nullptr;
  GetProperty get_property_ = nullptr;
  SetStream set_stream_ = nullptr;
  SetWorkspace set_workspace_ = nullptr;
  GemmEx gemm_ex_ = nullptr;
};

}  // namespace

Result<std::unique_ptr<Cublas>> Cublas::open(const std::string& library) {
  auto cublas = std::make_unique<OpenedCublas>();
  if (const Result<void> opened = cublas->open(library); !opened) return opened.error();
  return std::unique_ptr<Cublas>(std::move(cublas));
}

}  // namespace nybble::bench
