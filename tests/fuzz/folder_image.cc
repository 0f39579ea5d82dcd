#include "fuzz/folder_image.h"

#include <algorithm>
#include <cstring>

namespace nybble::fuzz {
namespace {

// Calls visit(name, bytes) for each file of the image.
template <class Visit> void walk(std::span<const uint8_t> image, Visit&& visit) {
  while (image.size() > 1) {
    const size_t name_bytes = std::min<size_t>(image[0], image.size() - 1);
    const std::string name(reinterpret_cast<const char*>(image.data()) + 1, name_bytes);
    image = image.subspan(1 + name_bytes);
    uint32_t size = 0;
    if (image.size() < sizeof size) return;
    std::memcpy(&size, image.data(), sizeof size);
    image = image.subspan(sizeof size);
    const size_t count = std::min<size_t>(size, image.size());
    visit(name, image.first(count));
    image = image.subspan(count);
  }
}

}  // namespace

std::vector<ImageFile> read_image(std::span<const uint8_t> image) {
  std::vector<ImageFile> files;
  walk(image, [&](const std::string& name, std::span<const uint8_t> bytes) {
    files.push_back({name, std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size())});
  });
  return files;
}

std::string write_image(const std::vector<ImageFile>& files) {
  std::string image;
  for (const ImageFile& file : files) {
    const auto size = static_cast<uint32_t>(file.bytes.size());
    image += static_cast<char>(static_cast<uint8_t>(file.name.size()));
    image += file.name;
    image.append(reinterpret_cast<const char*>(&size), sizeof size);
    image += file.bytes;
  }
  return image;
}

std::map<std::string, std::span<const uint8_t>> view_image(std::span<const uint8_t> image) {
  std::map<std::string, std::span<const uint8_t>> files;
  walk(image, [&](const std::string& name, std::span<const uint8_t> bytes) { files[name] = bytes; });
  return files;
}

}  // namespace nybble::fuzz
