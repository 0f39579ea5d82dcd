#include "registry/registry.h"

#include "cpu/kernels.h"
#include "kernels/dequantize_sm90.h"
#include "kernels/gemm_sm90.h"
#include "kernels/stream_sm90.h"
#include "kernels/sweep_sm90.h"
#include "registry/reference_row.h"

namespace nybble {

const std::vector<KernelEntry>& registry() {
  static const std::vector<KernelEntry> entries = [] {
    std::vector<KernelEntry> list;
    const auto append = [&list](const auto& part) { list.insert(list.end(), part.begin(), part.end()); };
    append(kernels::stream_sm90_kernels());
    append(kernels::sweep_sm90_kernels());
    append(kernels::gemm_sm90_kernels());
    append(kernels::dequantize_sm90_kernels());
    append(cpu::cpu_kernels());
    list.push_back(reference_row());
    return list;
  }();
  return entries;
}

}  // namespace nybble
