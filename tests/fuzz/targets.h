// What is fuzzed: each target takes bytes that may be anything and must refuse them with words, or read something that
// keeps every promise of the library.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/format.h"

namespace nybble::fuzz {

// What an input of a target is, which decides how it is changed sensibly.
enum class InputKind : uint8_t {
  kFolder,       // folder_image.h: a model
  kConfig,       // the same, of which only config.json is changed
  kSafetensors,  // one file of it
  kJson,
  kGguf,
  kPacked,
  kExpressions,  // an image: files named kExpression, and names to compare with them
};

// The name of a file of an image that holds a regular expression; all others hold names.
inline constexpr char kExpression[] = "expression";

struct Target {
  std::string name;
  InputKind kind;
  void (*run)(const Target& target, std::span<const uint8_t> input);  // aborts with words where a promise is broken
  const checkpoint::Format* format = nullptr;                         // the only one that the input may belong to
};

// One for each container and file, and "reader-FORMAT" for each checkpoint format.
const std::vector<Target>& targets();
const Target* find_target(const std::string& name);  // nullptr: there is none

}  // namespace nybble::fuzz
