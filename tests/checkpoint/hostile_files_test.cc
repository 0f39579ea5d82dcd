// Files that lie, each made here, each opened and checked in a process of its own: the right refusal, in words that
// name the file and what is wrong in it, within five seconds and without memory that the file's own size does not
// explain. safetensors_test.cc, model_files_test.cc and gguf_test.cc hold what needs no such watch.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <functional>

#include "checkpoint/model_parts.h"
#include "nybble/checkpoint.h"
#include "support/temp_folder.h"

namespace nybble {
namespace {

using nlohmann::json;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using namespace nybble::testing;

constexpr ErrorCode kBad = ErrorCode::kInvalidData;
constexpr ErrorCode kUnread = ErrorCode::kUnsupported;
constexpr ErrorCode kArgument = ErrorCode::kInvalidArgument;

// ---- Opening under watch -------------------------------------------------------------------------------------------

struct Verdict {
  bool ended = false;  // by itself, not by a signal
  bool accepted = false;
  ErrorCode code = ErrorCode::kInvalidData;
  std::string message;
  int64_t peak_bytes = 0;  // of memory, above what the process had before
  double seconds = 0;
};

int64_t status_bytes(const char* key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(key)) return std::stoll(line.substr(line.find(':') + 1)) * 1024;
  return 0;
}

// Runs in the child; its answer goes through the pipe as "code peak message", or "ok peak".
void answer(const std::string& path, int pipe) {
  std::ofstream("/proc/self/clear_refs") << "5";  // the peak counts from here
  const int64_t before = status_bytes("VmRSS");
  std::string text;
  {
    const auto checkpoint = open_checkpoint(path);
    const Result<void> checked = checkpoint ? (*checkpoint)->check({}) : checkpoint.error();
    const std::string code = checked ? "ok" : std::to_string(static_cast<int>(checked.error().code));
    text = code + ' ' + std::to_string(status_bytes("VmHWM") - before) + ' ' +
           (checked ? std::string() : checked.error().message);
  }
  for (size_t at = 0; at < text.size();) {
    const ssize_t done = ::write(pipe, text.data() + at, text.size() - at);
    if (done <= 0) break;
    at += static_cast<size_t>(done);
  }
}

Verdict judge(const std::string& path) {
  constexpr unsigned kSecondsToLive = 60;
  Verdict verdict;
  int ends[2];
  EXPECT_EQ(::pipe(ends), 0);
  const auto start = std::chrono::steady_clock::now();
  const pid_t child = ::fork();
  EXPECT_GE(child, 0);
  if (child == 0) {
    ::alarm(kSecondsToLive);
    ::close(ends[0]);
    answer(path, ends[1]);
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string text;
  char piece[4096];
  for (ssize_t got; (got = ::read(ends[0], piece, sizeof piece)) > 0;) text.append(piece, static_cast<size_t>(got));
  ::close(ends[0]);
  int status = 0;
  rusage used{};
  EXPECT_EQ(::wait4(child, &status, 0, &used), child);
  // The processor's time: other processes may keep this one waiting.
  const auto seconds = [](const timeval& time) { return static_cast<double>(time.tv_sec) + 1e-6 * time.tv_usec; };
  verdict.seconds = std::min(seconds(used.ru_utime) + seconds(used.ru_stime),
                             std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  verdict.ended = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  const size_t first = text.find(' '), second = text.find(' ', first + 1);
  if (!verdict.ended || second == std::string::npos) return verdict;
  verdict.accepted = text.starts_with("ok");
  if (!verdict.accepted) verdict.code = static_cast<ErrorCode>(std::stoi(text));
  verdict.peak_bytes = std::stoll(text.substr(first + 1));
  verdict.message = text.substr(second + 1);
  return verdict;
}

// 64 MiB, and what the files of a folder explain: a header is read whole.
int64_t memory_allowed(const std::string& folder) {
  constexpr int64_t kBase = 64 << 20, kLargestHeader = 100'000'000;
  int64_t bytes = 0;
  if (!std::filesystem::is_directory(folder)) return kBase;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
    if (std::filesystem::is_regular_file(entry.symlink_status()))
      bytes += std::min<int64_t>(static_cast<int64_t>(entry.file_size()), kLargestHeader);
  return kBase + bytes;
}

void expect_refused_within_bounds(const std::string& path, const std::string& folder,
                                  const ::testing::Matcher<ErrorCode>& code,
                                  const ::testing::Matcher<std::string>& words) {
  const Verdict verdict = judge(path);
  ASSERT_TRUE(verdict.ended) << "crashed or hung";
  ASSERT_FALSE(verdict.accepted) << "was read";
  EXPECT_THAT(verdict.code, code) << verdict.message;
  EXPECT_THAT(verdict.message, words);
  EXPECT_THAT(verdict.message, HasSubstr(folder));
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_LE(verdict.peak_bytes, memory_allowed(folder));
  EXPECT_LE(verdict.seconds, 5.0);
#endif
}

// ---- Models to be damaged ------------------------------------------------------------------------------------------

struct Model {
  std::string name;
  ModelParts parts;
  json config;

  void write(const std::string& folder) const {
    write_text(folder + "/model.safetensors", parts.file());
    write_text(folder + "/config.json", config.dump());
  }
};

Model fixture(const std::string& name) {
  const std::string folder = std::string(NYBBLE_SOURCE_DIR "/tests/data/") + name;
  return {name, *take_apart(read_text(folder + "/model.safetensors")), json::parse(read_text(folder + "/config.json"))};
}

// n = 16, k = 32 in two groups.
Model gptq() {
  std::vector<uint32_t> groups;
  for (uint32_t feature = 0; feature < 32; ++feature) groups.push_back(feature % 2);
  return {"gptq",
          {{{"l.qweight", "I32", {4, 16}, std::string(256, '\x5A')},
            {"l.qzeros", "I32", {2, 2}, std::string(16, '\x65')},
            {"l.scales", "F16", {2, 16}, std::string(64, '\x2C')},
            {"l.g_idx", "I32", {32}, i32(groups)}},
           ""},
          json::parse(R"({"quantization_config":{"quant_method":"gptq","bits":4,"group_size":16,"sym":false,
                          "desc_act":true,"checkpoint_format":"gptq_v2"}})")};
}

Model awq() {
  return {"awq",
          {{{"l.qweight", "I32", {32, 2}, std::string(256, '\x5A')},
            {"l.qzeros", "I32", {2, 2}, std::string(16, '\x65')},
            {"l.scales", "F16", {2, 16}, std::string(64, '\x2C')}},
           ""},
          json::parse(R"({"quantization_config":{"quant_method":"awq","bits":4,"group_size":16,"zero_point":true,
                          "version":"gemm"}})")};
}

// A model and the tensors that its first layer cannot do without.
struct Subject {
  Model model;
  std::string layer;
  std::vector<const char*> suffixes;
};

std::vector<Subject> subjects() {
  const std::string first = "layers.0.proj";
  return {
      {fixture("ct_group_asymmetric"),
       first,
       {".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape"}},
      {fixture("ct_channel_asymmetric"),
       first,
       {".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape"}},
      {fixture("ct_actorder_group"), first, {".weight_packed", ".weight_scale", ".weight_g_idx"}},
      {fixture("ct_nvfp4"), first, {".weight_packed", ".weight_scale", ".weight_global_scale"}},
      {fixture("ct_mxfp4"), first, {".weight_packed", ".weight_scale"}},
      {fixture("ct_experts"), "layers.0.experts.up_proj", {".weight_packed", ".weight_scale", ".weight_zero_point"}},
      {gptq(), "l", {".qweight", ".qzeros", ".scales", ".g_idx"}},
      {awq(), "l", {".qweight", ".qzeros", ".scales"}},
      {fixture("awq_gemv_g32"), first, {".qweight", ".qzeros", ".scales"}},
      {fixture("awq_gemv_fast_g32"), first, {".qweight", ".qzeros", ".scales"}},
      {fixture("awq_llm_awq"), first, {".qweight", ".scaled_zeros", ".scales"}},
      {fixture("autoround_gptq_asymmetric"), first, {".qweight", ".qzeros", ".scales"}},
      {fixture("autoround_awq"), first, {".qweight", ".qzeros", ".scales"}},
      {fixture("hqq_fp16"), first, {".W_q", ".scale", ".zero", ".shape", ".packing", ".nbits", ".axis"}},
      {fixture("torchao_plain"), first, {"._weight_qdata", "._weight_scale", "._weight_zero_point"}},
      {fixture("torchao_tiles"), first, {"._weight_qdata", "._weight_scale_and_zero"}},
      {fixture("bnb_nf4"),
       first,
       {".weight", ".weight.absmax", ".weight.quant_map", ".weight.quant_state.bitsandbytes__nf4"}},
      {fixture("bnb_nf4_nested"),
       first,
       {".weight", ".weight.absmax", ".weight.nested_absmax", ".weight.nested_quant_map"}},
      {fixture("modelopt_nvfp4"), first, {".weight", ".weight_scale", ".weight_scale_2"}},
      {fixture("gpt_oss_mxfp4"), "model.layers.0.mlp.experts.down_proj", {"_blocks", "_scales"}},
  };
}

// ---- Tensors -------------------------------------------------------------------------------------------------------

struct TensorDamage {
  const char* what;
  // False: it does not apply to such a tensor.
  std::function<bool(ModelParts& parts, size_t index)> apply;
};

size_t row_bytes(const TestTensor& tensor) {
  return tensor.shape.empty() || tensor.shape[0] == 0 ? 0 : tensor.bytes.size() / static_cast<size_t>(tensor.shape[0]);
}

bool set_last_number(TestTensor& tensor, uint32_t f32_bits, uint16_t f16_bits, uint16_t bf16_bits) {
  std::string bits;
  if (tensor.dtype == "F32") bits = bytes_of(std::vector{f32_bits});
  if (tensor.dtype == "F16") bits = bytes_of(std::vector{f16_bits});
  if (tensor.dtype == "BF16") bits = bytes_of(std::vector{bf16_bits});
  if (bits.empty() || tensor.bytes.size() < bits.size()) return false;
  tensor.bytes.replace(tensor.bytes.size() - bits.size(), bits.size(), bits);
  return true;
}

const TensorDamage kTensorDamages[] = {
    {"is missing",
     [](ModelParts& parts, size_t index) {
       parts.tensors.erase(parts.tensors.begin() + static_cast<std::ptrdiff_t>(index));
       return true;
     }},
    {"has a dimension more",
     [](ModelParts& parts, size_t index) {
       TestTensor& tensor = parts.tensors[index];
       tensor.shape.insert(tensor.shape.begin(), 2);
       tensor.bytes += tensor.bytes;
       return true;
     }},
    {"is of truth values",
     [](ModelParts& parts, size_t index) {
       TestTensor& tensor = parts.tensors[index];
       tensor.dtype = "BOOL";
       tensor.shape = {static_cast<int64_t>(tensor.bytes.size()), 1, 1, 1, 1};
       return true;
     }},
    {"has a row less",
     [](ModelParts& parts, size_t index) {
       TestTensor& tensor = parts.tensors[index];
       if (tensor.shape.empty() || tensor.shape[0] < 1) return false;
       tensor.bytes.resize(tensor.bytes.size() - row_bytes(tensor));
       --tensor.shape[0];
       return true;
     }},
    {"has a row more",
     [](ModelParts& parts, size_t index) {
       TestTensor& tensor = parts.tensors[index];
       if (tensor.shape.empty()) return false;
       tensor.bytes.append(row_bytes(tensor), '\1');
       ++tensor.shape[0];
       return true;
     }},
    {"is empty",
     [](ModelParts& parts, size_t index) {
       TestTensor& tensor = parts.tensors[index];
       if (tensor.shape.empty()) tensor.shape = {0};
       tensor.shape[0] = 0;
       tensor.bytes.clear();
       return true;
     }},
    {"claims 2^53 columns of nothing",
     [](ModelParts& parts, size_t index) {
       TestTensor& tensor = parts.tensors[index];
       tensor.shape = {0, int64_t{1} << 53};
       tensor.bytes.clear();
       return true;
     }},
    {"ends in a NaN",
     [](ModelParts& parts, size_t index) { return set_last_number(parts.tensors[index], 0x7FC00000, 0x7E00, 0x7FC0); }},
    {"ends in an infinity",
     [](ModelParts& parts, size_t index) { return set_last_number(parts.tensors[index], 0xFF800000, 0xFC00, 0xFF80); }},
};

// Damage that leaves another sound model: k = 31; one row of k less, so that the last group is a partial one; bytes
// that may be stored under any type.
bool is_harmless(const std::string& model, const std::string& suffix, const std::string& damage) {
  return (model == "gptq" && suffix == ".g_idx" && damage == "has a row less") ||
         ((model == "awq" || model.starts_with("autoround_")) && suffix == ".qweight" && damage == "has a row less") ||
         (model.starts_with("bnb_") && suffix == ".weight" && damage == "is of truth values");
}

TEST(HostileFiles, EveryTensorOfEveryFormatDamagedInEveryWay) {
  int files = 0;
  for (const Subject& subject : subjects()) {
    {
      const TempFolder folder;
      subject.model.write(folder.path());
      ASSERT_TRUE(judge(folder.path()).accepted) << subject.model.name << ": " << judge(folder.path()).message;
    }
    for (const char* suffix : subject.suffixes)
      for (const TensorDamage& damage : kTensorDamages) {
        const std::string name = subject.layer + suffix;
        SCOPED_TRACE(subject.model.name + ": " + name + ' ' + damage.what);
        if (is_harmless(subject.model.name, suffix, damage.what)) continue;
        Model model = subject.model;
        size_t index = 0;
        while (index < model.parts.tensors.size() && model.parts.tensors[index].name != name) ++index;
        ASSERT_LT(index, model.parts.tensors.size());
        if (!damage.apply(model.parts, index)) continue;
        const TempFolder folder;
        model.write(folder.path());
        ++files;
        expect_refused_within_bounds(folder.path(), folder.path(), AnyOf(kBad, kUnread), HasSubstr(subject.layer));
      }
  }
  EXPECT_GE(files, 250);
}

// Of two layers alike one has lost its codes: it must not be missing from a model that is sound otherwise.
TEST(HostileFiles, ALayerWithoutItsCodesDoesNotVanish) {
  for (const Subject& subject : subjects()) {
    SCOPED_TRACE(subject.model.name);
    Model model = subject.model;
    for (const TestTensor& tensor : subject.model.parts.tensors)
      if (tensor.name.starts_with(subject.layer)) {
        model.parts.tensors.push_back(tensor);
        model.parts.tensors.back().name = "another." + tensor.name;
      }
    if (!model.parts.metadata.empty()) {  // torchao's tensors are nothing without their entry
      json metadata = json::parse(model.parts.metadata);
      const std::string key = subject.layer + ".weight";
      if (metadata.contains(key)) metadata["another." + key] = metadata[key];
      model.parts.metadata = metadata.dump();
    }
    const TempFolder both, one;
    model.write(both.path());
    ASSERT_TRUE(judge(both.path()).accepted) << judge(both.path()).message;
    const std::string codes = subject.layer + subject.suffixes[0];
    ASSERT_EQ(std::erase_if(model.parts.tensors, [&](const TestTensor& tensor) { return tensor.name == codes; }), 1u);
    model.write(one.path());
    expect_refused_within_bounds(one.path(), one.path(), kBad, HasSubstr(" " + codes));
  }
}

// ---- Settings ------------------------------------------------------------------------------------------------------

struct BadSetting {
  const char* model;
  const char* at;  // JSON pointer from the object that holds the settings
  const char* value;
  ErrorCode code;
  const char* words;
};

const BadSetting kBadSettings[] = {
    {"gptq", "/bits", "3", kUnread, "bits is 3"},
    {"gptq", "/bits", "8", kUnread, "bits is 8"},
    {"gptq", "/bits", "\"4\"", kBad, "bits is"},
    {"gptq", "/bits", "4.5", kBad, "bits is"},
    {"gptq", "/bits", "null", kBad, "has no bits"},
    {"gptq", "/group_size", "0", kBad, "group_size is '0'"},
    {"gptq", "/group_size", "-2", kBad, "group_size is '-2'"},
    {"gptq", "/group_size", "16.0", kBad, "group_size is"},
    {"gptq", "/group_size", "\"16\"", kBad, "group_size is"},
    {"gptq", "/group_size", "true", kBad, "group_size is"},
    {"gptq", "/group_size", "9223372036854775808", kBad, "group_size is"},
    {"gptq", "/group_size", "-9223372036854775808", kBad, "group_size is"},
    {"gptq", "/group_size", "1e300", kBad, "group_size is"},
    {"gptq", "/group_size", "8", kBad, "'l.scales'"},
    {"gptq", "/group_size", "-1", kBad, "'l.scales'"},
    {"gptq", "/sym", "1", kBad, "sym must be true or false"},
    {"gptq", "/sym", "\"no\"", kBad, "sym must be true or false"},
    {"gptq", "/desc_act", "[]", kBad, "desc_act must be true or false"},
    {"gptq", "/checkpoint_format", "\"marlin\"", kUnread, "'marlin'"},
    {"gptq", "/checkpoint_format", "\"gptq_v3\"", kUnread, "'gptq_v3'"},
    {"gptq", "/is_marlin_format", "true", kUnread, "is_marlin_format"},
    {"gptq", "/pack_dtype", "\"int8\"", kUnread, "pack_dtype"},
    {"gptq", "/dynamic", "[]", kBad, "dynamic must be an object"},
    {"gptq", "/dynamic", R"({"-:l":{}})", kBad, "says that it is not quantized"},
    {"gptq", "/dynamic", R"({"+:l":3})", kBad, "must be an object"},
    {"gptq", "/dynamic", R"({"+:l":{"bits":8}})", kUnread, "bits is 8"},
    {"gptq", "/dynamic", R"({"+:l":{"group_size":0}})", kBad, "group_size is '0'"},
    {"gptq", "/dynamic", R"({"+:(":{}})", kUnread, "no regular expression"},
    {"gptq", "/dynamic", R"({"+:a{2,1}":{}})", kUnread, "no regular expression"},
    {"awq", "/bits", "8", kUnread, "bits is 8"},
    {"awq", "/bits", "null", kBad, "has no bits"},
    {"awq", "/bits", "{}", kBad, "bits is"},
    {"awq", "/group_size", "0", kBad, "group_size is '0'"},
    {"awq", "/group_size", "-7", kBad, "group_size is '-7'"},
    {"awq", "/group_size", "null", kBad, "has no group_size"},
    {"awq", "/group_size", "2147483648", kBad, "group_size is"},
    {"awq", "/group_size", "18446744073709551615", kBad, "group_size is"},
    {"awq", "/group_size", "5", kBad, "'l.scales'"},
    {"awq", "/zero_point", "\"yes\"", kBad, "zero_point must be true or false"},
    {"awq", "/zero_point", "0", kBad, "zero_point must be true or false"},
    {"awq", "/version", "\"marlin\"", kUnread, "'marlin'"},
    {"ct_group_asymmetric", "/format", "\"marlin-24\"", kUnread, "'marlin-24'"},
    {"ct_group_asymmetric", "/format", "\"int-quantized\"", kUnread, "'int-quantized'"},
    {"ct_group_asymmetric", "/format", "\"\"", kUnread, "format"},
    {"ct_group_asymmetric", "/format", "7", kUnread, "format"},
    {"ct_group_asymmetric", "/quantization_status", "\"frozen\"", kUnread, "quantization_status"},
    {"ct_group_asymmetric", "/quantization_status", "1", kUnread, "quantization_status"},
    {"ct_group_asymmetric", "/config_groups", "{}", kBad, "has no config_groups"},
    {"ct_group_asymmetric", "/config_groups", "[]", kBad, "has no config_groups"},
    {"ct_group_asymmetric", "/config_groups/group_0", "3", kBad, "must be an object"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights", "[]", kBad, "weights must be an object"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights/num_bits", "8", kUnread, "'8' bits"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights/num_bits", "\"4\"", kBad, "num_bits must be a whole"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights/num_bits", "null", kBad, "num_bits must be a whole"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights/type", "\"float\"", kUnread, "'float' of"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights/symmetric", "0", kBad, "symmetric must be true or false"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights/dynamic", "true", kBad, "dynamic must be false"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights/actorder", "\"sideways\"", kBad, "actorder"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights/actorder", "4", kBad, "actorder"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights/group_size", "0", kBad, "group_size is '0'"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights/group_size", "-16", kBad, "group_size is '-16'"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights/group_size", "1e9", kBad, "group_size is"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights/group_size", "9007199254740993", kBad, "group_size is"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights/group_size", "-1", kBad, "no positive group_size"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights/group_size", "32", kBad, "layers.0.proj"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights/strategy", "\"block\"", kUnread, "'block'"},
    {"ct_group_asymmetric", "/config_groups/group_0/weights/strategy", "\"channel\"", kBad, "group_size is 16"},
    {"ct_group_asymmetric", "/config_groups/group_0/input_activations", R"({"num_bits":8})", kUnread,
     "input_activations"},
    {"ct_group_asymmetric", "/config_groups/group_0/targets", "\"Linear\"", kBad, "must be an array of strings"},
    {"ct_group_asymmetric", "/config_groups/group_0/targets", "[1]", kBad, "must be an array of strings"},
    {"ct_group_asymmetric", "/config_groups/group_0/targets", R"(["re:["])", kUnread, "no regular expression"},
    {"ct_group_asymmetric", "/ignore", "{}", kBad, "must be an array of strings"},
    {"ct_group_asymmetric", "/ignore", R"(["re:a{1000}{1000}{1000}"])", kUnread, "no regular expression"},
    {"ct_group_asymmetric", "/transform_config", "7", kUnread, "transform_config"},
    {"ct_group_asymmetric", "/transform_config", R"({"config_groups":{"a":{"apply":[{"location":"input"}]}}})", kUnread,
     "applies to 'input'"},
    {"ct_group_asymmetric", "/transform_config", R"({"config_groups":[7]})", kUnread, "without \"apply\""},
    {"ct_group_asymmetric", "/sparsity_config", R"({"format":"sparse-bitmask"})", kUnread, "sparse-bitmask"},
    {"ct_nvfp4", "/config_groups/group_0/weights/group_size", "32", kBad, "groups of 16"},
    {"ct_nvfp4", "/config_groups/group_0/weights/symmetric", "false", kUnread, "4-bit floats with zero points"},
    {"ct_nvfp4", "/config_groups/group_0/weights/type", "\"int\"", kUnread, "'int' of"},
    {"ct_mxfp4", "/config_groups/group_0/weights/group_size", "16", kBad, "groups of 32"},
    {"ct_mxfp4", "/config_groups/group_0/weights/strategy", "\"tensor_group\"", kUnread, "'tensor_group'"},
    {"autoround_gptq_asymmetric", "/bits", "3", kUnread, "bits is 3"},
    {"autoround_gptq_asymmetric", "/bits", "[4]", kBad, "bits is"},
    {"autoround_gptq_asymmetric", "/group_size", "0", kBad, "group_size is '0'"},
    {"autoround_gptq_asymmetric", "/group_size", "8", kBad, "'layers.0.proj.scales'"},
    {"autoround_gptq_asymmetric", "/sym", "\"yes\"", kBad, "sym must be true or false"},
    {"autoround_gptq_asymmetric", "/data_type", "\"fp8\"", kUnread, "data_type is 'fp8'"},
    {"autoround_gptq_asymmetric", "/act_bits", "8", kUnread, "act_bits is '8'"},
    {"autoround_gptq_asymmetric", "/act_bits", "\"16\"", kUnread, "act_bits is"},
    {"autoround_gptq_asymmetric", "/packing_format", "\"auto_round:marlin\"", kUnread, "'auto_round:marlin'"},
    {"autoround_gptq_asymmetric", "/packing_format", "\"auto_round:llm_compressor\"", kUnread, "data_type is 'int'"},
    {"autoround_gptq_asymmetric", "/rotation_config", R"({"kind":"hadamard"})", kUnread, "rotation_config"},
    {"autoround_gptq_asymmetric", "/extra_config", "[]", kBad, "extra_config must be an object"},
    {"autoround_gptq_asymmetric", "/extra_config", R"({"x":4})", kBad, "must be an object"},
    {"autoround_gptq_asymmetric", "/extra_config", R"({"(":{"bits":4}})", kUnread, "no regular expression"},
    {"autoround_gptq_asymmetric", "/extra_config", R"({".*proj":{"bits":8}})", kUnread, "bits is 8"},
    {"autoround_gptq_asymmetric", "/extra_config", R"({".*proj":{"bits":16}})", kBad, "is not quantized"},
    {"autoround_gptq_asymmetric", "/block_name_to_quantize", "7", kBad, "must be names, or lists of names"},
    {"autoround_gptq_asymmetric", "/block_name_to_quantize", "[[1]]", kBad, "must be names, or lists of names"},
    {"modelopt_nvfp4", "/quant_algo", "\"FP8\"", kUnread, "quant_algo 'FP8'"},
    {"modelopt_nvfp4", "/quant_algo", "null", kUnread, "quant_algo ''"},
    {"modelopt_nvfp4", "/quant_algo", "[]", kUnread, "quant_algo ''"},
};

// The object of config.json in which the settings stand.
json& settings_of(Model& model) { return model.config["quantization_config"]; }

TEST(HostileFiles, EverySettingThatHasNoMeaningIsRefusedByName) {
  std::map<std::string, Model> models = {{"gptq", gptq()}, {"awq", awq()}};
  for (const char* name :
       {"ct_group_asymmetric", "ct_nvfp4", "ct_mxfp4", "autoround_gptq_asymmetric", "modelopt_nvfp4"})
    models[name] = fixture(name);
  for (const BadSetting& bad : kBadSettings) {
    SCOPED_TRACE(std::string(bad.model) + ": " + bad.at + " = " + bad.value);
    Model model = models.at(bad.model);
    settings_of(model)[json::json_pointer(bad.at)] = json::parse(bad.value);
    const TempFolder folder;
    model.write(folder.path());
    expect_refused_within_bounds(folder.path(), folder.path(), bad.code, HasSubstr(bad.words));
  }
}

// The model's first layer under many names, each as long as those of experts.
Model with_layers(const Model& model, const std::string& layer, int count) {
  Model many{model.name, {}, model.config};
  for (const TestTensor& tensor : model.parts.tensors)
    for (int i = 0; tensor.name.starts_with(layer + ".") && i < count; ++i) {
      many.parts.tensors.push_back(tensor);
      many.parts.tensors.back().name =
          fmt::format("model.layers.{}.mlp.experts.{}.down_proj", i / 64, i % 64) + tensor.name.substr(layer.size());
    }
  return many;
}

// One expression is bounded by itself; these are many over many layers, or one that looks ahead within looking ahead.
TEST(HostileFiles, NamesAndExpressionsHaveOneBoundTogether) {
  constexpr int kLayers = 2000;
  const Model gptq_layers = with_layers(gptq(), "l", kLayers), awq_layers = with_layers(awq(), "l", kLayers),
              ct_layers = with_layers(fixture("ct_group_symmetric"), "layers.0.proj", kLayers);
  Model autoround = gptq_layers;
  autoround.config = json::parse(R"({"quantization_config":{"quant_method":"auto-round","bits":4,"group_size":16,
                                     "sym":false,"packing_format":"auto_round:auto_gptq"}})");
  std::string ahead = "q";
  for (int i = 0; i < 20; ++i) ahead = "(?=.*" + ahead + ")";
  const auto list = [](int count, const std::string& text) {
    json words = json::array();
    for (int i = 0; i < count; ++i) words.push_back(text + std::to_string(i));
    return words;
  };
  const auto object = [](const json& keys, const json& value) {
    json members = json::object();
    for (const json& key : keys) members[key.get<std::string>()] = value;
    return members;
  };
  const json ct_group = ct_layers.config["quantization_config"]["config_groups"]["group_0"];
  const struct {
    const char* what;
    const Model& model;
    const char* member;
    json value;
  } cases[] = {
      {"GPTQ, many", gptq_layers, "dynamic", object(list(3000, "+:.*(a|b)+z"), json::object())},
      {"GPTQ, one", gptq_layers, "dynamic", object({ahead + ".*y"}, json::object())},
      {"GPTQ, large ones", gptq_layers, "dynamic", object(list(1000, "(?:ab){1000}"), json::object())},
      {"AutoRound, many", autoround, "extra_config", object(list(3000, ".*(a|b)+z"), {{"bits", 4}})},
      {"AutoRound, one", autoround, "extra_config", object({ahead + ".*y"}, {{"bits", 4}})},
      {"AutoRound, blocks", autoround, "block_name_to_quantize", list(40'000, "x")},
      {"AWQ", awq_layers, "modules_to_not_convert", list(40'000, "x")},
      {"compressed-tensors, ignore", ct_layers, "ignore", list(3000, "re:.*(a|b)+z")},
      {"compressed-tensors, one", ct_layers, "ignore", {"re:" + ahead + ".*y"}},
      {"compressed-tensors, groups", ct_layers, "config_groups", object(list(2000, "g"), ct_group)},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.what);
    Model model = c.model;
    const TempFolder sound, folder;
    model.write(sound.path());
    EXPECT_TRUE(judge(sound.path()).accepted) << judge(sound.path()).message;
    settings_of(model)[c.member] = c.value;
    model.write(folder.path());
    expect_refused_within_bounds(folder.path(), folder.path(), kUnread, HasSubstr("takes more than 50000000 steps"));
  }
}

TEST(HostileFiles, MethodsThatAreNotKnownOrNotThereAreRefused) {
  const std::pair<const char*, const char*> kMethods[] = {
      {R"({"quant_method":"exl2"})", "'exl2'"},
      {R"({"quant_method":"aqlm"})", "'aqlm'"},
      {R"({"quant_method":7})", "an unnamed method"},
      {R"({})", "an unnamed method"},
      {R"([])", "an unnamed method"},
      {R"("gptq")", "an unnamed method"},
      {R"({"quant_method":"gptq","bits":4})", "qweight"},
      {R"({"quant_method":"hqq"})", ".W_q"},
      {R"({"quant_method":"torchao"})", "_weight_qdata"},
      {R"({"quant_method":"bitsandbytes"})", "quant_state"},
      {R"({"quant_method":"mxfp4"})", "_blocks"},
  };
  for (const auto& [settings, words] : kMethods) {
    SCOPED_TRACE(settings);
    const TempFolder folder;
    write_text(folder / "model.safetensors", safetensors({{"a.weight", "F32", {1, 2}, f32({1, 2})}}));
    for (const char* key : {"quantization_config", "compression_config"}) {
      write_text(folder / "config.json", json{{key, json::parse(settings)}}.dump());
      expect_refused_within_bounds(folder.path(), folder.path(), AnyOf(kBad, kUnread), HasSubstr(words));
    }
    write_text(folder / "config.json", json{{"text_config", {{"quantization_config", json::parse(settings)}}}}.dump());
    expect_refused_within_bounds(folder.path(), folder.path(), AnyOf(kBad, kUnread), HasSubstr(words));
  }
}

// ---- Settings among the tensors ------------------------------------------------------------------------------------

TEST(HostileFiles, StatesOfBitsAndBytesThatLie) {
  const std::string name = "layers.0.proj.weight.quant_state.bitsandbytes__nf4";
  const std::pair<const char*, const char*> kStates[] = {
      {"", "is not valid JSON"},
      {"[]", "must be one object"},
      {"{", "is not valid JSON"},
      {R"({"blocksize":64})", "shape is 'null'"},
      {R"({"shape":[12,64]})", "blocksize is 'null'"},
      {R"({"shape":[12,64],"blocksize":0})", "blocksize is '0'"},
      {R"({"shape":[12,64],"blocksize":-64})", "blocksize is '-64'"},
      {R"({"shape":[12,64],"blocksize":64.0})", "blocksize is"},
      {R"({"shape":[12,64],"blocksize":9223372036854775808})", "blocksize is"},
      {R"({"shape":[12],"blocksize":64})", "shape is '[12]'"},
      {R"({"shape":[2,6,64],"blocksize":64})", "its weight has 3 dimensions"},
      {R"({"shape":[0,64],"blocksize":64})", "shape[0] is '0'"},
      {R"({"shape":[-12,-64],"blocksize":64})", "shape[0] is '-12'"},
      {R"({"shape":[4294967296,4294967296],"blocksize":64})", "shape[0] is"},
      {R"({"shape":[2147483647,2147483647],"blocksize":64})", "holds 384 bytes"},
      {R"({"shape":["12",64],"blocksize":64})", "shape[0] is"},
      {R"({"shape":[12,64],"blocksize":48})", "straddle rows"},
      {R"({"shape":[12,64],"blocksize":64,"blocksize":64})", "stands twice"},
      {R"({"shape":[[[[[[[[[[12]]]]]]]]]],"blocksize":64})", "nested deeper"},
  };
  for (const auto& [state, words] : kStates) {
    SCOPED_TRACE(state);
    Model model = fixture("bnb_nf4");
    for (TestTensor& tensor : model.parts.tensors)
      if (tensor.name == name) tensor = {name, "U8", {static_cast<int64_t>(std::string(state).size())}, state};
    const TempFolder folder;
    model.write(folder.path());
    expect_refused_within_bounds(folder.path(), folder.path(), AnyOf(kBad, kUnread), HasSubstr(words));
  }
}

TEST(HostileFiles, MetadataOfTorchaoThatLies) {
  const std::pair<const char*, const char*> kEntries[] = {
      {"", "is not valid JSON"},
      {"[]", "_type '' is not read"},
      {"null", "no shard's header says what it is"},
      {R"({"_type":"Int8Tensor"})", "8-bit integers"},
      {R"({"_type":"Int4Tensor"})", "has no object _data"},
      {R"({"_type":"Int4Tensor","_data":[]})", "has no object _data"},
      {R"({"_type":"Int4Tensor","_data":{}})", "shape is 'missing'"},
      {R"({"_type":"Int4Tensor","_data":{"shape":[6,64]}})", "block_size is 'missing'"},
      {R"({"_type":"Int4Tensor","_data":{"shape":[6,64],"block_size":[1,0]}})", "block_size is '[1,0]'"},
      {R"({"_type":"Int4Tensor","_data":{"shape":[6,64],"block_size":[2,32]}})", "only groups within a row"},
      {R"({"_type":"Int4Tensor","_data":{"shape":[6,64],"block_size":[1,-32]}})", "block_size is"},
      {R"({"_type":"Int4Tensor","_data":{"shape":[6,64],"block_size":[1,48]}})", "no multiple of 48"},
      {R"({"_type":"Int4Tensor","_data":{"shape":[6,64.5],"block_size":[1,32]}})", "shape is"},
      {R"({"_type":"Int4Tensor","_data":{"shape":[6,9223372036854775807],"block_size":[1,32]}})", "shape is"},
      {R"({"_type":"Int4Tensor","_data":{"shape":[2147483647,2147483646],"block_size":[1,2]}})", "_weight_qdata"},
      {R"({"_type":"Int4Tensor","_data":{"shape":[1,6,64],"block_size":[1,32]}})", "experts in one tensor"},
      {R"({"_type":"Int4TilePackedTo4dTensor","_data":{"shape":[6,64],"block_size":[1,32]}})", "scale_and_zero"},
  };
  for (const auto& [entry, words] : kEntries) {
    SCOPED_TRACE(entry);
    Model model = fixture("torchao_plain");
    json metadata = json::parse(model.parts.metadata);
    metadata["layers.0.proj.weight"] = entry;
    model.parts.metadata = metadata.dump();
    const TempFolder folder;
    model.write(folder.path());
    expect_refused_within_bounds(folder.path(), folder.path(), AnyOf(kBad, kUnread), HasSubstr(words));
  }
}

// ---- What is no file -----------------------------------------------------------------------------------------------

struct Impostor {
  const char* what;
  std::function<void(const std::string& path)> make;
  ErrorCode code;
  const char* words;
};

const Impostor kImpostors[] = {
    {"a named pipe", [](const std::string& path) { ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0); }, kArgument,
     "is a named pipe"},
    {"a folder", [](const std::string& path) { std::filesystem::create_directory(path); }, kArgument, "is a directory"},
    {"a socket",
     [](const std::string& path) {
       sockaddr_un address{};
       address.sun_family = AF_UNIX;
       ASSERT_LT(path.size(), sizeof address.sun_path);
       path.copy(address.sun_path, path.size());
       const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
       ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
       ::close(fd);
     },
     ErrorCode::kIo, "open failed"},
    {"a link to a device", [](const std::string& path) { std::filesystem::create_symlink("/dev/zero", path); }, kBad,
     "symbolic link that leaves its folder"},
    {"a link to the system's secrets",
     [](const std::string& path) { std::filesystem::create_symlink("../../../etc/shadow", path); }, kBad,
     "symbolic link that leaves its folder"},
    {"a link to itself",
     [](const std::string& path) { std::filesystem::create_symlink(std::filesystem::path(path).filename(), path); },
     ErrorCode::kIo, "symbolic link"},
    {"a link to nothing", [](const std::string& path) { std::filesystem::create_symlink("nothing", path); },
     ErrorCode::kIo, "symbolic link"},
    {"a link into a cache that is not there",
     [](const std::string& path) { std::filesystem::create_symlink("../../blobs/x", path); }, ErrorCode::kIo,
     "symbolic link"},
};

TEST(HostileFiles, WhatIsNoFileIsRefusedInEveryPlace) {
  for (const char* place : {"model.safetensors", "config.json", "model.safetensors.index.json", "a.safetensors"})
    for (const Impostor& impostor : kImpostors) {
      SCOPED_TRACE(std::string(place) + " is " + impostor.what);
      const TempFolder folder;
      const std::string name = place;
      if (name == "config.json")
        write_text(folder / "model.safetensors", safetensors({{"a.weight", "F32", {1, 2}, f32({1, 2})}}));
      if (name == "a.safetensors")
        write_text(folder / "model.safetensors.index.json", R"({"weight_map":{"a.weight":"a.safetensors"}})");
      impostor.make(folder / name);
      expect_refused_within_bounds(folder.path(), folder.path(), impostor.code, HasSubstr(impostor.words));
      expect_refused_within_bounds(folder.path(), folder.path(), impostor.code, HasSubstr(name));
    }
  for (const char* path : {"/dev/zero", "/dev/null", "/proc/self/mem", "/nowhere/at/all", ""}) {
    SCOPED_TRACE(path);
    expect_refused_within_bounds(path, path, AnyOf(kArgument, kBad, ErrorCode::kIo), HasSubstr(path));
  }
}

// ---- Sizes ---------------------------------------------------------------------------------------------------------

// `begin`, then nothing but zeros that take no room on the disk.
void write_sparse(const std::string& path, const std::string& begin, uint64_t size) {
  write_text(path, begin);
  std::filesystem::resize_file(path, size);
}

std::string length_field(uint64_t length) { return {reinterpret_cast<const char*>(&length), sizeof length}; }

struct BigFile {
  const char* what;
  const char* name;
  std::function<void(const std::string& path)> make;
  ErrorCode code;
  const char* words;
};

constexpr uint64_t kTera = uint64_t{1} << 40;

std::string repeated(const std::string& piece, size_t count, const char* between = "") {
  std::string text;
  text.reserve((piece.size() + std::string_view(between).size()) * count);
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) text += between;
    text += piece;
  }
  return text;
}

template <class T> std::string raw(T number) { return {reinterpret_cast<const char*>(&number), sizeof number}; }

// A GGUF header with one key of this value type and what follows it.
std::string gguf_header(uint64_t tensors, uint64_t keys, const std::string& rest) {
  return "GGUF" + raw<uint32_t>(3) + raw(tensors) + raw(keys) + rest;
}
std::string gguf_array(uint32_t type, uint64_t count) {
  return raw<uint64_t>(1) + "k" + raw<uint32_t>(9) + raw(type) + raw(count);
}

const BigFile kBigFiles[] = {
    {"a tera byte of zeros", "model.safetensors", [](const std::string& path) { write_sparse(path, "", kTera); }, kBad,
     "does not begin with '{'"},
    {"a header of a tera byte", "model.safetensors",
     [](const std::string& path) { write_sparse(path, length_field(kTera - 8) + "{", kTera); }, kBad, "at most"},
    {"a header of 100 MB that is one brace", "model.safetensors",
     [](const std::string& path) { write_sparse(path, length_field(100'000'000) + "{", kTera); }, kBad, "a NUL byte"},
    {"100 MB of spaces without an end", "model.safetensors",
     [](const std::string& path) { write_text(path, length_field(100'000'000) + "{" + std::string(99'999'999, ' ')); },
     kBad, "is not valid JSON"},
    {"100 MB of spaces after nothing", "model.safetensors",
     [](const std::string& path) { write_text(path, length_field(100'000'000) + std::string(99'999'998, ' ') + "{}"); },
     kBad, "does not begin with '{'"},
    {"one string of 100 MB", "model.safetensors",
     [](const std::string& path) {
       write_text(path, length_field(100'000'000) + "{\"" + std::string(99'999'998, 'n'));
     },
     kBad, "header, byte 9: a string, a number or a run of spaces has more than 4194304 bytes"},
    {"100 MB of spaces before the end", "model.safetensors",
     [](const std::string& path) {
       write_text(path, length_field(100'000'000) + "{" + std::string(99'999'998, ' ') + "}");
     },
     kBad, "a run of spaces has more than 4194304 bytes"},
    {"a name of 4 MB", "model.safetensors",
     [](const std::string& path) {
       const std::string header = "{\"" + std::string(4'000'000, 'n') + "\":{}}";
       write_text(path, length_field(header.size()) + header);
     },
     kBad, "at most 4096"},
    {"a shape of 50 million numbers", "model.safetensors",
     [](const std::string& path) {
       const std::string header = R"({"t":{"dtype":"U8","shape":[)" + repeated("1", 25'000'000, ",") + "]}}";
       write_text(path, length_field(header.size()) + header);
     },
     kBad, "more than 8 dimensions"},
    {"a number of four million digits", "model.safetensors",
     [](const std::string& path) {
       const std::string header = R"({"t":{"dtype":"U8","shape":[)" + std::string(4'000'000, '9') + "]}}";
       write_text(path, length_field(header.size()) + header);
     },
     kBad, "number overflow"},
    {"a number of ten million digits", "config.json",
     [](const std::string& path) { write_text(path, "{\"x\":" + std::string(10'000'000, '9') + "}"); }, kBad,
     "config.json, byte 5: a string, a number"},
    {"a tensor of a tera byte that is not there", "model.safetensors",
     [](const std::string& path) {
       const std::string header =
           R"({"a.weight":{"dtype":"U8","shape":[1099511627776,1],"data_offsets":[0,1099511627776]}})";
       write_text(path, length_field(header.size()) + header);
     },
     kBad, "it is cut off"},
    {"ten million metadata keys of one name", "model.safetensors",
     [](const std::string& path) {
       const std::string header = "{\"__metadata__\":{" + repeated(R"("a":"b")", 10'000'000, ",") + "}}";
       write_text(path, length_field(header.size()) + header);
     },
     kBad, "one key twice"},
    {"an index of 100 MB and a byte", "model.safetensors.index.json",
     [](const std::string& path) { write_sparse(path, "{", 100'000'001); }, kBad, "at most 100000000"},
    {"an index of zeros", "model.safetensors.index.json",
     [](const std::string& path) { write_sparse(path, "{", 100'000'000); }, kBad, "a NUL at byte 1"},
    {"an index of five million lists", "model.safetensors.index.json",
     [](const std::string& path) { write_text(path, "{\"weight_map\":[" + repeated("[]", 5'000'000, ",") + "]}"); },
     kBad, "JSON values"},
    {"an index of a million objects and more", "model.safetensors.index.json",
     [](const std::string& path) { write_text(path, "{\"x\":[" + repeated(R"({"":0})", 4'000'000, ",") + "]}"); }, kBad,
     "JSON values"},
    {"an index of 1,100,000 tensors", "model.safetensors.index.json",
     [](const std::string& path) {
       std::string map;
       for (int i = 0; i < 1'100'000; ++i) map += (i > 0 ? ",\"" : "\"") + std::to_string(i) + "\":\"a.safetensors\"";
       write_text(path, "{\"weight_map\":{" + map + "}}");
     },
     kBad, "more than"},
    {"an index of 5,000 shards", "model.safetensors.index.json",
     [](const std::string& path) {
       std::string map;
       for (int i = 0; i < 5'000; ++i)
         map += (i > 0 ? ",\"" : "\"") + std::to_string(i) + "\":\"" + std::to_string(i) + ".safetensors\"";
       write_text(path, "{\"weight_map\":{" + map + "}}");
     },
     kBad, "more than 4096 files"},
    {"a configuration of 16 MB and a byte", "config.json",
     [](const std::string& path) { write_sparse(path, "{", (16 << 20) + 1); }, kBad, "at most 16777216"},
    {"a configuration of lists", "config.json",
     [](const std::string& path) { write_text(path, "{\"x\":[" + repeated("[]", 5'500'000, ",") + "]}"); }, kBad,
     "JSON values"},
    {"a configuration of objects", "config.json",
     [](const std::string& path) { write_text(path, "{\"x\":[" + repeated(R"({"":0})", 2'300'000, ",") + "]}"); }, kBad,
     "JSON values"},
    {"eight million levels", "config.json",
     [](const std::string& path) { write_text(path, "{\"x\":" + std::string(8'000'000, '[')); }, kBad,
     "nested deeper than 64"},
    {"2^62 keys", "model.gguf",
     [](const std::string& path) { write_text(path, gguf_header(0, uint64_t{1} << 62, "")); }, kBad, "keys; at most"},
    {"2^63 tensors", "model.gguf",
     [](const std::string& path) { write_text(path, gguf_header(uint64_t{1} << 63, 0, "")); }, kBad,
     "tensors; at most"},
    {"65,536 keys in a tera byte of zeros", "model.gguf",
     [](const std::string& path) { write_sparse(path, gguf_header(0, 65'536, ""), kTera); }, kBad, "has 0 bytes"},
    {"2^61 strings in a tera byte", "model.gguf",
     [](const std::string& path) { write_sparse(path, gguf_header(0, 1, gguf_array(8, uint64_t{1} << 61)), kTera); },
     kBad, "claims 2305843009213693952 elements"},
    {"2^60 numbers of 8 bytes in a tera byte", "model.gguf",
     [](const std::string& path) { write_sparse(path, gguf_header(0, 1, gguf_array(10, uint64_t{1} << 60)), kTera); },
     kBad, "claims 1152921504606846976 elements"},
    {"a string of 2^63", "model.gguf",
     [](const std::string& path) {
       write_sparse(path, gguf_header(0, 1, raw<uint64_t>(1) + "k" + raw<uint32_t>(8) + raw(uint64_t{1} << 63)), kTera);
     },
     kBad, "the value of 'k'"},
    {"a string of 99 MB and a key without a name", "model.gguf",
     [](const std::string& path) {
       write_sparse(path, gguf_header(0, 2, raw<uint64_t>(1) + "k" + raw<uint32_t>(8) + raw(uint64_t{99'000'000})),
                    kTera);
     },
     kBad, "has 0 bytes"},
    {"12 million empty strings and a key without a name", "model.gguf",
     [](const std::string& path) { write_sparse(path, gguf_header(0, 2, gguf_array(8, 12'000'000)), kTera); }, kBad,
     "has 0 bytes"},
    {"dimensions whose product wraps to 32", "model.gguf",
     [](const std::string& path) {
       write_text(path, gguf_header(1, 0,
                                    raw<uint64_t>(1) + "t" + raw<uint32_t>(4) + raw(uint64_t{1} << 32) +
                                        raw(uint64_t{1} << 32) + raw(uint64_t{32}) + raw(uint64_t{1}) +
                                        raw<uint32_t>(2) + raw<uint64_t>(0)));
     },
     kBad, "'t'"},
    {"a tensor that begins at 2^63", "model.gguf",
     [](const std::string& path) {
       write_text(path, gguf_header(1, 0,
                                    raw<uint64_t>(1) + "t" + raw<uint32_t>(1) + raw(uint64_t{32}) + raw<uint32_t>(2) +
                                        raw(uint64_t{1} << 63)));
     },
     kBad, "'t'"},
};

TEST(HostileFiles, WhatClaimsMuchCostsLittle) {
  for (const BigFile& big : kBigFiles) {
    SCOPED_TRACE(std::string(big.name) + ": " + big.what);
    const TempFolder folder;
    if (std::string_view(big.name) == "config.json")
      write_text(folder / "model.safetensors", safetensors({{"a.weight", "F32", {1, 2}, f32({1, 2})}}));
    big.make(folder / big.name);
    expect_refused_within_bounds(folder.path(), folder.path(), big.code, HasSubstr(big.words));
  }
}

}  // namespace
}  // namespace nybble
