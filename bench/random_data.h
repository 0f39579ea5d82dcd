// Inputs that look like a model's to the machine: never zeros, which cost less power and time than real numbers do.
// The same seed gives the same numbers on any machine and any number of threads.
#pragma once

#include "nybble/weight.h"

namespace nybble::bench {

// Codes as rounding Gaussian weights gives them (mean 8, standard deviation 2.7), scales in 0.01 .. 0.03, zero points
// around 8.
QuantizedWeight random_weight(int64_t n, int64_t k, const WeightFormat& format, uint64_t seed);

// `count` Gaussian numbers of the given standard deviation, rounded to dtype.
FloatArray random_numbers(int64_t count, DType dtype, double deviation, uint64_t seed);

// The weight that holds only these output features of `weight`, in this order.
QuantizedWeight take_rows(const QuantizedWeight& weight, const std::vector<int64_t>& rows);

}  // namespace nybble::bench
