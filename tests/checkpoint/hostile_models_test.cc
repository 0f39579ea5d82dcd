// Models that lie: every fixture, damaged in ways that leave the container sound, so that what is wrong is for the
// format's reader to find. Whatever it says, it must not crash, and a layer that it does read must be valid. Under the
// sanitizers (PRESET=sanitize) and with --gtest_repeat=N --gtest_shuffle, each round of which has another seed, this is
// a fuzzer.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>

#include "checkpoint/model_building.h"
#include "nybble/checkpoint.h"
#include "support/temp_folder.h"

namespace nybble {
namespace {

using namespace nybble::testing;

struct Parts {
  std::vector<TestTensor> tensors;
  std::string metadata;
  nlohmann::json config;
};

Parts take_apart(const std::filesystem::path& folder) {
  const std::string file = read_text(folder / "model.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  const nlohmann::json header = nlohmann::json::parse(file.substr(8, length));
  Parts parts;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      parts.metadata = entry.dump();
      continue;
    }
    const uint64_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
    parts.tensors.push_back({name, entry["dtype"], entry["shape"].get<std::vector<int64_t>>(),
                             file.substr(8 + length + begin, end - begin)});
  }
  parts.config = nlohmann::json::parse(read_text(folder / "config.json"));
  return parts;
}

class Damage {
 public:
  explicit Damage(uint64_t seed) : random_(seed) {}

  void apply(Parts& parts) {
    for (int count = 1 + below(3); count > 0; --count) {
      if (below(4) == 0)
        change_value(parts.config);
      else
        change_tensor(parts);
    }
  }

 private:
  int below(int end) { return static_cast<int>(random_() % static_cast<uint64_t>(end)); }
  template <class T> T& any(std::vector<T>& values) { return values[random_() % values.size()]; }

  void change_tensor(Parts& parts) {
    if (parts.tensors.empty()) return;
    const size_t index = random_() % parts.tensors.size();
    TestTensor& tensor = parts.tensors[index];
    switch (below(7)) {
      case 0:
        parts.tensors.erase(parts.tensors.begin() + static_cast<std::ptrdiff_t>(index));
        return;
      case 1:  // bytes
        for (int count = 1 + below(8); count > 0 && !tensor.bytes.empty(); --count)
          tensor.bytes[random_() % tensor.bytes.size()] = static_cast<char>(random_());
        return;
      case 2: {  // the extremes of a number
        constexpr const char* kPatterns[] = {"\0\0\0\0\0\0\0", "\377\377\377\377\377\377\377", "\0\0\0\200\0\0\0",
                                             "\0\0\300\177\0\0\0"};
        const size_t at = tensor.bytes.size() < 8 ? 0 : random_() % (tensor.bytes.size() / 8) * 8;
        const std::string_view pattern(kPatterns[below(4)], 8);
        for (size_t i = at; i < std::min(at + 8, tensor.bytes.size()); ++i) tensor.bytes[i] = pattern[i - at];
        return;
      }
      case 3:  // a dimension more, or two that trade places
        if (tensor.shape.empty() || below(2) == 0)
          tensor.shape.insert(tensor.shape.begin() + below(static_cast<int>(tensor.shape.size()) + 1), 1);
        else
          std::swap(any(tensor.shape), any(tensor.shape));
        return;
      case 4:  // another type of the same width, or one of half a byte
        if (below(8) == 0) {
          tensor.dtype = "F4";
          if (!tensor.shape.empty()) tensor.shape.back() = static_cast<int64_t>(2 * tensor.bytes.size());
          for (size_t i = 0; i + 1 < tensor.shape.size(); ++i)
            tensor.shape.back() /= std::max<int64_t>(tensor.shape[i], 1);
          return;
        }
        for (const auto& alike : std::vector<std::vector<const char*>>{
                 {"U8", "I8", "F8_E4M3", "F8_E8M0", "BOOL"}, {"F16", "BF16", "I16"}, {"F32", "I32"}, {"F64", "I64"}})
          for (const char* type : alike)
            if (tensor.dtype == type) {
              tensor.dtype = alike[random_() % alike.size()];
              return;
            }
        return;
      case 5:  // fewer or more of the first dimension
        if (tensor.shape.empty() || tensor.shape[0] == 0) return;
        {
          const size_t row = tensor.bytes.size() / static_cast<size_t>(tensor.shape[0]);
          tensor.shape[0] = below(2) == 0 ? tensor.shape[0] - 1 : tensor.shape[0] + 1;
          tensor.bytes.resize(row * static_cast<size_t>(tensor.shape[0]), '\1');
        }
        return;
      default: {  // another tensor's bytes under this name
        const TestTensor other = any(parts.tensors);
        tensor = {tensor.name, other.dtype, other.shape, other.bytes};
      }
    }
  }

  void change_value(nlohmann::json& root) {
    nlohmann::json* at = &root;
    while (at->is_structured() && !at->empty() && (at == &root || below(5) != 0)) {
      auto member = at->begin();
      std::advance(member, below(static_cast<int>(at->size())));
      at = &*member;
    }
    const nlohmann::json values[] = {nullptr,
                                     0,
                                     -1,
                                     7,
                                     1e9,
                                     int64_t{1} << 40,
                                     0.5,
                                     "x",
                                     "re:(",
                                     true,
                                     false,
                                     nlohmann::json::array(),
                                     nlohmann::json::object()};
    if (at != &root) *at = values[random_() % std::size(values)];
  }

  std::mt19937_64 random_;
};

void expect_sound(const std::string& path) {
  const auto checkpoint = open_checkpoint(path);
  if (!checkpoint) {
    EXPECT_FALSE(checkpoint.error().message.empty());
    return;
  }
  const Result<void> checked = (*checkpoint)->check({});
  EXPECT_FALSE((*checkpoint)->convention().empty());
  (*checkpoint)->warnings();
  for (const LayerInfo& layer : (*checkpoint)->layers()) {
    if (!layer.quantized) continue;
    const auto weight = (*checkpoint)->read_quantized(layer.name);
    EXPECT_TRUE(weight || !checked) << "check() passed what read_quantized() refuses";
    if (!weight) continue;
    EXPECT_TRUE(validate(*weight));
    EXPECT_EQ(weight->n, layer.n);
    EXPECT_EQ(weight->k, layer.k);
    EXPECT_EQ(weight->format(), layer.format);
    EXPECT_EQ(dequantize(*weight).size(), static_cast<size_t>(layer.n * layer.k));
  }
  for (const OtherTensor& tensor : (*checkpoint)->other_tensors())
    EXPECT_TRUE((*checkpoint)->read_other_tensor(tensor.name)) << tensor.name;
}

TEST(HostileModels, AreRefusedOrReadAsValidWeights) {
  constexpr int kRounds = 100;
  const auto seed = static_cast<uint64_t>(::testing::UnitTest::GetInstance()->random_seed());
  const TempFolder folder;
  int fixtures = 0;
  for (const auto& entry : std::filesystem::directory_iterator(NYBBLE_SOURCE_DIR "/tests/data")) {
    if (!std::filesystem::exists(entry.path() / "model.safetensors")) continue;
    ++fixtures;
    const Parts whole = take_apart(entry.path());
    const std::string name = entry.path().filename();
    for (int round = 0; round < kRounds; ++round) {
      SCOPED_TRACE(name + ", seed " + std::to_string(seed) + ", round " + std::to_string(round));
      Parts parts = whole;
      Damage(seed * 7919 + std::hash<std::string>()(name) + static_cast<uint64_t>(round)).apply(parts);
      write_text(folder / "model.safetensors", safetensors(parts.tensors, parts.metadata));
      write_text(folder / "config.json", parts.config.dump());
      expect_sound(folder.path());
      if (HasFailure()) return;
    }
  }
  EXPECT_GE(fixtures, 30);
}

}  // namespace
}  // namespace nybble
