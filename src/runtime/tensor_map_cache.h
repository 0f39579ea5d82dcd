// The tensor maps that a thread used last: launches ask for the same few again and again, and encoding one means a call
// of the driver.
#pragma once

#include <algorithm>
#include <cstdint>

#include "runtime/tensor_map.h"

namespace nybble::runtime {

// Plain memory of a fixed size, without constructor or destructor at run time, so that every thread can have its own:
// no lock, no allocation. The least recently used map gives way. Looking through all keys takes nanoseconds.
class TensorMapCache {
 public:
  static constexpr int kEntries = 64;  // four layers' activations and outputs at eight numbers of tokens

  // The map that encode(matrix, box), a Result<CUtensorMap>, gives or gave. Errors are not remembered.
  template <class Encode>
  Result<CUtensorMap> get(const MatrixView& matrix, const TensorBox& box, const Encode& encode) {
    const Key key{matrix, box};
    for (int i = 0; i < kEntries; ++i) {
      if (keys_[i] == key && last_use_[i] > 0) {
        last_use_[i] = ++uses_;
        return maps_[i];
      }
    }
    Result<CUtensorMap> map = encode(matrix, box);
    if (map) {
      const auto oldest = std::min_element(last_use_, last_use_ + kEntries) - last_use_;
      keys_[oldest] = key;
      maps_[oldest] = *map;
      last_use_[oldest] = ++uses_;
    }
    return map;
  }

 private:
  struct Key {
    MatrixView matrix;
    TensorBox box;
    friend bool operator==(const Key&, const Key&) = default;
  };

  Key keys_[kEntries]{};
  uint64_t last_use_[kEntries]{};  // 0: empty
  CUtensorMap maps_[kEntries]{};
  uint64_t uses_ = 0;
};

}  // namespace nybble::runtime
