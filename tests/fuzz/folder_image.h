// A folder of files as one input of a fuzzer: for each file a byte with its name's length, the name, four bytes with
// its size (little-endian), its bytes. What is cut off or says too much ends with the input.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace nybble::fuzz {

struct ImageFile {
  std::string name;
  std::string bytes;
};

std::vector<ImageFile> read_image(std::span<const uint8_t> image);
std::string write_image(const std::vector<ImageFile>& files);

// The same without copies: name to bytes of `image`. Of files with one name the last counts.
std::map<std::string, std::span<const uint8_t>> view_image(std::span<const uint8_t> image);

}  // namespace nybble::fuzz
