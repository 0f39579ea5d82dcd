// The CPU routines for AVX-512. This file is compiled with the instruction set's flags: see isa.h for what may leave
// it.
#define NYBBLE_CPU_EIGEN nybble_eigen_avx512
// GCC 12's AVX-512 headers initialize "undefined" vectors with themselves and then warn of it.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include "cpu/multiply.h"

#include "cpu/convert.h"
#include "cpu/decode.h"
#include "cpu/vector_avx512.h"

namespace nybble::cpu {

const IsaRoutines kAvx512Routines = {
    .max_tokens = Avx512::kMaxTokens,
    .prepare_act = prepare_act<Avx512>,
    .gemv = gemv<Avx512>,
    .dequantize = dequantize<Avx512>,
    .multiply = multiply,
    .finish = finish<Avx512>,
};

}  // namespace nybble::cpu
