// Small checkpoints made by hand, apart from the code under test: the tests' own idea of the formats.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace nybble::testing {

struct TestTensor {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

template <class T> std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}
inline std::string i32(const std::vector<uint32_t>& values) { return bytes_of(values); }
inline std::string i64(const std::vector<int64_t>& values) { return bytes_of(values); }
inline std::string f32(const std::vector<float>& values) { return bytes_of(values); }
inline std::string u16(const std::vector<uint16_t>& values) { return bytes_of(values); }  // bits of bf16 or fp16

inline std::string joined(const std::vector<int64_t>& numbers) {
  std::string text;
  for (const int64_t number : numbers) text += (text.empty() ? "" : ",") + std::to_string(number);
  return text;
}

// A length, the header, the data.
inline std::string container(std::string_view header, std::string_view data) {
  const uint64_t length = header.size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof length);
  return file.append(header).append(data);
}

inline std::string safetensors(const std::vector<TestTensor>& tensors, const std::string& metadata = "") {
  std::string header = "{" + (metadata.empty() ? "" : "\"__metadata__\":" + metadata), data;
  for (const TestTensor& tensor : tensors) {
    if (header.size() > 1) header += ',';
    header += "\"" + tensor.name + "\":{\"dtype\":\"" + tensor.dtype + "\",\"shape\":[" + joined(tensor.shape) +
              "],\"data_offsets\":[" + std::to_string(data.size()) + "," +
              std::to_string(data.size() + tensor.bytes.size()) + "]}";
    data += tensor.bytes;
  }
  return container(header + "}", data);
}

}  // namespace nybble::testing
