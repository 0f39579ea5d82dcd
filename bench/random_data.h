// Inputs that look like a model's to the machine: never zeros, which cost less power and time than real numbers do.
// The same seed gives the same numbers on any machine and any number of threads.
#pragma once

#include "nybble/weight.h"

namespace nybble::bench {

// Codes as rounding Gaussian weights gives them (mean 8, standard deviation 2.7), scales of 0.5 to 1.5 times
// mean_scale, zero points of mean 8.
QuantizedWeight random_weight(int64_t n, int64_t k, const WeightFormat& format, uint64_t seed,
                              float mean_scale = 0.02f);

// The mean_scale at which a random weight keeps the size of what it multiplies: activations of mean square 1 give
// outputs of mean square 1, so that a chain of products neither explodes nor vanishes.
float neutral_scale(int64_t k, const WeightFormat& format);

// `count` Gaussian numbers of the given standard deviation, rounded to dtype.
FloatArray random_numbers(int64_t count, DType dtype, double deviation, uint64_t seed);

// The weight that holds only these output features of `weight`, in this order.
QuantizedWeight take_rows(const QuantizedWeight& weight, const std::vector<int64_t>& rows);

}  // namespace nybble::bench
