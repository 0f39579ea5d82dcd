// Changes to inputs that leave most of them sound, so that what is wrong is deep inside: one tensor's shape, one number
// of a configuration, one field of a header whose checksum is made right again. Blind changes of bytes are mixed in.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <string>

#include "fuzz/targets.h"

namespace nybble::fuzz {

// Changes bytes without knowing what they mean; the result has at most max_bytes.
using BlindMutator = std::function<void(std::string& bytes, size_t max_bytes)>;

class Mutator {
 public:
  Mutator(uint64_t seed, BlindMutator blind) : random_(seed), blind_(std::move(blind)) {}

  // One change, or a few, to an input of this kind. The result may be longer than max_bytes.
  void apply(InputKind kind, std::string& input, size_t max_bytes);

 private:
  int below(int end) { return static_cast<int>(random_() % static_cast<uint64_t>(end)); }
  template <class List> auto& any(List& list) { return list[random_() % std::size(list)]; }

  void change_folder(std::string& image, bool config_only, size_t max_bytes);
  void change_json(std::string& text, size_t max_bytes);
  void change_safetensors(std::string& file, size_t max_bytes);
  void change_gguf(std::string& file, size_t max_bytes);
  void change_packed(std::string& file, size_t max_bytes);
  void change_expressions(std::string& image, size_t max_bytes);
  void overwrite_number(std::string& bytes, size_t begin, size_t end);

  std::minstd_rand random_;
  BlindMutator blind_;
};

}  // namespace nybble::fuzz
