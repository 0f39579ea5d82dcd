#include "fuzz/seeds.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "checkpoint/model_building.h"
#include "fuzz/folder_image.h"
#include "fuzz/memory_files.h"
#include "fuzz/targets.h"
#include "nybble/pack.h"
#include "support/weights.h"

namespace nybble::fuzz {
namespace {

namespace fs = std::filesystem;
using testing::TestTensor;

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string text_of(const PackedWeight& packed) {
  return {reinterpret_cast<const char*>(packed.data()), packed.size_bytes()};
}

// n = 8, k = 16 in groups of 8.
std::vector<ImageFile> gptq_model(const std::string& settings, bool act_order) {
  std::vector<TestTensor> tensors = {{"a.qweight", "I32", {2, 8}, std::string(64, '\x5A')},
                                     {"a.qzeros", "I32", {2, 1}, std::string(8, '\x77')},
                                     {"a.scales", "F16", {2, 8}, std::string(32, '\x2C')},
                                     {"a.bias", "F16", {8}, std::string(16, '\x2C')}};
  if (act_order) {
    std::vector<uint32_t> groups;
    for (uint32_t feature = 0; feature < 16; ++feature) groups.push_back(feature % 2);
    tensors.push_back({"a.g_idx", "I32", {16}, testing::i32(groups)});
  }
  return {{"config.json",
           "{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":8" + settings + "}}"},
          {"model.safetensors", testing::safetensors(tensors)}};
}

std::vector<ImageFile> awq_model() {
  const std::vector<TestTensor> tensors = {{"a.qweight", "I32", {16, 1}, std::string(64, '\x5A')},
                                           {"a.qzeros", "I32", {2, 1}, std::string(8, '\x77')},
                                           {"a.scales", "F16", {2, 8}, std::string(32, '\x2C')}};
  return {
      {"config.json",
       R"({"quantization_config":{"quant_method":"awq","bits":4,"group_size":8,"zero_point":true,"version":"gemm"}})"},
      {"model.safetensors", testing::safetensors(tensors)}};
}

std::vector<ImageFile> dense_model() {
  return {{"config.json", R"({"hidden_size":4})"},
          {"model.safetensors", testing::safetensors({{"a.weight", "BF16", {2, 4}, std::string(16, '\x3F')},
                                                      {"a.bias", "F32", {2}, std::string(8, '\x3F')},
                                                      {"norm", "F16", {4}, std::string(8, '\x2C')}})}};
}

std::vector<ImageFile> sharded_model() {
  return {{"config.json", "{}"},
          {"model.safetensors.index.json",
           R"({"metadata":{"total_size":24},"weight_map":{"a.weight":"a.safetensors","b.weight":"b.safetensors"}})"},
          {"a.safetensors", testing::safetensors({{"a.weight", "BF16", {2, 4}, std::string(16, '\x3F')}})},
          {"b.safetensors", testing::safetensors({{"b.weight", "F16", {2, 2}, std::string(8, '\x2C')}})}};
}

// Lists as settings have them, and expressions that are made to cost much.
std::vector<std::pair<std::string, std::vector<ImageFile>>> expressions() {
  const auto list = [](const std::vector<std::string>& texts, const std::vector<std::string>& names) {
    std::vector<ImageFile> files;
    for (const std::string& text : texts) files.push_back({kExpression, text});
    for (const std::string& name : names) files.push_back({"", name});
    return files;
  };
  const std::vector<std::string> layers = {"model.layers.0.self_attn.q_proj", "model.layers.17.mlp.experts.3.up_proj",
                                           "model.vision.proj", "lm_head"};
  const std::string many(300, 'a');
  std::string ahead = "x";
  for (int i = 0; i < 20; ++i) ahead = "(?=.*" + ahead + ")";
  return {{"ignore", list({".*lm_head", "^(?!.*experts).*proj$", "(?i)VISION"}, layers)},
          {"dynamic", list({R"(model\.layers\.\d+\.mlp)", "(?P<which>up|gate)_proj", R"(.*\.([0-9])\1\..*)"}, layers)},
          {"plain", list({"q_proj", "model", "17"}, layers)},
          {"groups",
           list({"(?<n>mlp|attn)\\.(?:(?=up)|(?!down)).*(?<=proj)$", "(a(?1)?b)", "(?(1)a|b)(?|(c)|(d))"}, layers)},
          {"classes", list({R"(^[^.]*\.[[:alpha:]_]+\.\d{1,3}\b)", R"(\Amodel\..*?\Kproj\z)"}, layers)},
          {"backtracking", list({"(a+)+(a+)+(a|aa)*$x"}, {many})},
          {"looking_ahead", list({ahead + "a"}, {many})},
          {"memory", list({"(?:(a)|b)*x"}, {many})},
          {"large", list({"(?:ab){1000}"}, {many})},
          {"wrong", list({"lm_head", "a(b", "q_proj"}, layers)}};
}

std::string statistics() {
  return testing::safetensors({{"a.mean_square", "F32", {4}, testing::f32({1, 2, 3, 4})},
                               {"b.hessian", "F32", {2, 2}, testing::f32({2, 1, 1, 2})}},
                              R"({"nybble.statistics":"1","tokens.a":"10","tokens.b":"12","same_input.c":"b"})");
}

}  // namespace

std::vector<Seed> seeds(const std::string& data) {
  std::vector<Seed> all;
  const auto add_model = [&](const std::string& name, const std::vector<ImageFile>& files) {
    const std::string image = write_image(files);
    set_memory_files(view_image({reinterpret_cast<const uint8_t*>(image.data()), image.size()}));
    const auto model = checkpoint::ModelFiles::open(kFolder);
    const auto format = model ? checkpoint::find_format(**model) : model.error();
    if (!format) return;
    all.push_back({std::string("reader-") + (*format)->name, name, image});
    all.push_back({"config", name, image});
  };
  for (const auto& entry : fs::directory_iterator(data)) {
    const std::string name = entry.path().filename();
    if (fs::exists(entry.path() / "model.gguf")) all.push_back({"gguf", name, read_text(entry.path() / "model.gguf")});
    if (!fs::exists(entry.path() / "model.safetensors")) continue;
    std::vector<ImageFile> files;
    for (const auto& file : fs::directory_iterator(entry.path()))
      if (file.path().filename() != "expected.safetensors")
        files.push_back({file.path().filename(), read_text(file.path())});
    std::sort(files.begin(), files.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    add_model(name, files);
    all.push_back({"safetensors", name, read_text(entry.path() / "model.safetensors")});
  }
  add_model("gptq", gptq_model(R"(,"sym":false)", false));
  add_model("gptq_v2", gptq_model(R"(,"sym":true,"checkpoint_format":"gptq_v2")", false));
  add_model("gptq_act_order", gptq_model(R"(,"desc_act":true,"meta":{"quantizer":["gptqmodel:1.4"]})", true));
  add_model("gptq_dynamic", gptq_model(R"(,"dynamic":{"-:b.*":{},"+:a":{"group_size":8,"sym":true}})", false));
  add_model("awq", awq_model());
  add_model("dense", dense_model());
  add_model("sharded", sharded_model());
  all.push_back({"index", "sharded", write_image(sharded_model())});
  all.push_back({"index", "single", write_image(dense_model())});
  all.push_back({"statistics", "small", statistics()});
  for (const auto& [name, files] : expressions()) all.push_back({"expressions", name, write_image(files)});
  all.push_back(
      {"tuning_table", "small",
       R"({"kind":"tuning table","schema":1,"gpu":"G","threads":null,"rows":[{"problem":)"
       R"("m1 n64 k64 bf16 g64","kernels":[{"kernel":"a","us":1.5,"estimate_us":2},{"kernel":"b","us":3}]}]})"});
  int packed = 0;
  for (const WeightFormat& format :
       {WeightFormat{}, WeightFormat{.scale_dtype = DType::kFp16, .zero_kind = ZeroKind::kInt, .group_size = 32},
        WeightFormat{.zero_kind = ZeroKind::kFloat, .group_size = 64, .k_order = true},
        WeightFormat{.scale_dtype = DType::kFp32, .zero_kind = ZeroKind::kOffset, .group_size = kPerColumn}})
    if (const auto weight = pack(testing::random_weight({.n = 3, .k = 20, .format = format})); weight)
      all.push_back({"packed", "format" + std::to_string(packed++), text_of(*weight)});
  return all;
}

int write_seeds(const std::string& data, const std::string& folder) {
  int count = 0;
  for (const Seed& seed : seeds(data)) {
    fs::create_directories(fs::path(folder) / seed.target);
    std::ofstream(fs::path(folder) / seed.target / ("seed-" + seed.name), std::ios::binary)
        .write(seed.bytes.data(), static_cast<std::streamsize>(seed.bytes.size()));
    ++count;
  }
  return count;
}

}  // namespace nybble::fuzz
