// Is a measured result right? A bench that times a wrong kernel is worse than none.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "nybble/gemm.h"

namespace nybble::bench {

// Some outputs of a problem, and what a double-precision product says they are: tokens and features at the edges and in
// between.
class ResultCheck {
 public:
  // act: [m, k] in host memory. `numerics` says which sum the kernel claims to compute.
  ResultCheck(const QuantizedWeight& weight, const FloatArray& act, int64_t m, Numerics numerics);
  // The same for a dense product; `rows` are the weight's rows at features(), one after the other.
  ResultCheck(int64_t n, int64_t k, const FloatArray& rows, const FloatArray& act, int64_t m);

  static std::vector<int64_t> sampled_tokens(int64_t m);
  static std::vector<int64_t> sampled_features(int64_t n);

  const std::vector<int64_t>& tokens() const { return tokens_; }
  const std::vector<int64_t>& features() const { return features_; }

  // What is wrong with the first bad output, or empty. out: [tokens().size(), n], the rows of these tokens.
  std::string judge(const FloatArray& out) const;

 private:
  int64_t n_, k_;
  std::vector<int64_t> tokens_, features_;
  std::vector<double> sum_, magnitude_;  // [tokens, features]
};

// The checks of several kernels on one problem; those that compute the same sum share one.
class ResultChecks {
 public:
  ResultChecks(const QuantizedWeight& weight, const FloatArray& act, int64_t m) : weight_(weight), act_(act), m_(m) {}
  const ResultCheck& of(Numerics numerics) {
    return made_.try_emplace(numerics, weight_, act_, m_, numerics).first->second;
  }

 private:
  const QuantizedWeight& weight_;
  const FloatArray& act_;
  int64_t m_;
  std::map<Numerics, ResultCheck> made_;
};

}  // namespace nybble::bench
