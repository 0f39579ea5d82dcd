// The CPU routines for AVX2. This file is compiled with the instruction set's flags: see isa.h for what may leave it.
#define NYBBLE_CPU_EIGEN nybble_eigen_avx2
#include "cpu/multiply.h"

#include "cpu/convert.h"
#include "cpu/decode.h"
#include "cpu/vector_avx2.h"

namespace nybble::cpu {

const IsaRoutines kAvx2Routines = {
    .max_tokens = Avx2::kMaxTokens,
    .prepare_act = prepare_act<Avx2>,
    .gemv = gemv<Avx2>,
    .dequantize = dequantize<Avx2>,
    .multiply = multiply,
    .finish = finish<Avx2>,
};

}  // namespace nybble::cpu
