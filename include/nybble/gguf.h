// What a GGUF file says beside its weights: hyperparameters, tokenizer tables, a chat template. The weights themselves
// are read by open_checkpoint().
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "nybble/result.h"

namespace nybble::checkpoint {
class GgufFile;
}

#pragma GCC visibility push(default)
namespace nybble {

// The key-value metadata of a GGUF file, versions 2 and 3 (ggml's docs/gguf.md). Keys as they stand in the file, e.g.
// "llama.block_count", "tokenizer.ggml.tokens". An accessor's error is kInvalidData; it names file and key, and says
// what is stored there instead of what was asked for.
class GgufMetadata {
 public:
  // A .gguf file, or a folder that holds exactly one. Reads and checks the header, and no tensor's bytes.
  static Result<GgufMetadata> read(const std::string& path);

  const std::string& path() const;        // of the file
  std::vector<std::string> keys() const;  // sorted
  bool has(const std::string& key) const;

  Result<bool> boolean(const std::string& key) const;
  Result<int64_t> integer(const std::string& key) const;  // of any integer type, signed or not, that int64_t holds
  Result<double> number(const std::string& key) const;    // of any integer or float type
  Result<std::string> text(const std::string& key) const;
  // Arrays whose elements are of these types. A single value is no array of one.
  Result<std::vector<int64_t>> integers(const std::string& key) const;
  Result<std::vector<double>> numbers(const std::string& key) const;
  Result<std::vector<std::string>> texts(const std::string& key) const;

 private:
  explicit GgufMetadata(std::shared_ptr<const checkpoint::GgufFile> file) : file_(std::move(file)) {}

  std::shared_ptr<const checkpoint::GgufFile> file_;
};

}  // namespace nybble
#pragma GCC visibility pop
