#include "checkpoint/model_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json_text.h"
#include "checkpoint/model_building.h"
#include "support/temp_folder.h"

namespace nybble::checkpoint {
namespace {

using ::testing::HasSubstr;
using namespace nybble::testing;

const TestTensor kA = {"a.weight", "F32", {1, 2}, f32({1, 2})};
const TestTensor kB = {"b.weight", "F32", {1, 1}, f32({3})};

constexpr char kShard1[] = "model-00001-of-00002.safetensors", kShard2[] = "model-00002-of-00002.safetensors";

std::string index_json(const std::string& map, const std::string& metadata = R"({"total_size":12})") {
  return "{\"metadata\":" + metadata + ",\"weight_map\":" + map + "}";
}
std::string fine_map() { return std::string(R"({"a.weight":")") + kShard1 + R"(","b.weight":")" + kShard2 + "\"}"; }

void write_sharded(const TempFolder& folder, const std::string& index = index_json(fine_map())) {
  write_text(folder / kShard1, safetensors({kA}));
  write_text(folder / kShard2, safetensors({kB}));
  write_text(folder / ModelFiles::kIndexFile, index);
}

TEST(ModelFiles, OpensAFileAFolderAndShards) {
  const TempFolder single, lone, sharded;
  write_text(single / "model.safetensors", safetensors({kA, kB}));
  write_text(lone / "other_name.safetensors", safetensors({kA, kB}));
  write_text(lone / "config.json", R"({"model_type":"bert"})");
  write_sharded(sharded);
  for (const std::string& path :
       {single.path(), single / "model.safetensors", lone.path(), lone.path() + "/", sharded.path()}) {
    const auto model = ModelFiles::open(path);
    ASSERT_TRUE(model) << model.error().message;
    ASSERT_EQ((*model)->tensors().size(), 2u);
    const TensorRef b = (*model)->find("b.weight");
    ASSERT_TRUE(b);
    EXPECT_EQ(*b.read_all(), *(*model)->find("b.weight").read_all());
    float value = 0;
    ASSERT_TRUE(b.read(0, std::as_writable_bytes(std::span(&value, 1))));
    EXPECT_EQ(value, 3);
    EXPECT_FALSE((*model)->find("c.weight"));
    EXPECT_EQ((*model)->has_config(), path.starts_with(lone.path()));
  }
  const auto model = ModelFiles::open(sharded.path());
  EXPECT_EQ((*model)->shard_name((*model)->find("b.weight")), kShard2);
}

// As the hub's cache lays a model out.
TEST(ModelFiles, OpensASnapshotOfLinks) {
  const TempFolder folder;
  const std::string snapshot = folder / "snapshots/abc";
  std::filesystem::create_directories(snapshot);
  const std::pair<const char*, std::string> files[] = {{kShard1, safetensors({kA})},
                                                       {kShard2, safetensors({kB})},
                                                       {ModelFiles::kIndexFile, index_json(fine_map())},
                                                       {"config.json", "{}"}};
  for (const auto& [name, text] : files) {
    write_text(folder / ("blobs/" + std::string(name) + "0123"), text);
    std::filesystem::create_symlink("../../blobs/" + std::string(name) + "0123", snapshot + '/' + name);
  }
  const auto model = ModelFiles::open(snapshot);
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ((*model)->tensors().size(), 2u);
  EXPECT_TRUE((*model)->has_config());

  std::filesystem::remove(snapshot + '/' + kShard1);
  std::filesystem::create_symlink(folder / ("blobs/" + std::string(kShard1) + "0123"), snapshot + '/' + kShard1);
  const auto outside = ModelFiles::open(snapshot);
  ASSERT_FALSE(outside);
  EXPECT_THAT(outside.error().message, HasSubstr("symbolic link that leaves its folder"));
}

TEST(ModelFiles, TakesTotalsThatArePrintedAsFloatsOrMissing) {
  for (const char* metadata : {R"({"total_size":12.0})", R"({"total_size":12,"total_parameters":3})", "{}", "null"}) {
    const TempFolder folder;
    write_sharded(folder, index_json(fine_map(), metadata));
    const auto model = ModelFiles::open(folder.path());
    EXPECT_TRUE(model) << metadata << ": " << model.error().message;
  }
}

TEST(ModelFiles, RefusesHostileIndices) {
  const auto with_file = [](const std::string& file) {
    return index_json(R"({"a.weight":)" + file + R"(,"b.weight":")" + kShard2 + "\"}");
  };
  const struct {
    const char* what;
    std::string index;
    const char* words;
  } cases[] = {
      {"empty", "", "is not valid JSON"},
      {"no object", "[]", "must be one object"},
      {"no map", "{}", "has no weight_map object"},
      {"a map that is a list", index_json("[]"), "has no weight_map object"},
      {"an empty map", index_json("{}"), "weight_map is empty"},
      {"a NUL and more", index_json(fine_map()) + std::string("\0{}", 3), "a NUL at byte"},
      {"two documents", index_json(fine_map()) + "{}", "is not valid JSON"},
      {"a climbing path", with_file(R"("../secret.safetensors")"), "only plain file names within the folder"},
      {"an absolute path", with_file(R"("/etc/passwd")"), "only plain file names within the folder"},
      {"a path into a subfolder", with_file(R"("sub/x.safetensors")"), "only plain file names"},
      {"the folder itself", with_file(R"(".")"), "only plain file names"},
      {"an empty name", with_file(R"("")"), "only plain file names"},
      {"a NUL in a name", with_file(R"("a\u0000.safetensors")"), "only plain file names"},
      {"a newline in a name", with_file(R"("a\n.safetensors")"), "only plain file names"},
      {"another kind of file", with_file(R"("model.bin")"), "only .safetensors files are read"},
      {"a file that is a number", with_file("1"), "the file of 'a.weight' is no string"},
      {"a file that is null", with_file("null"), "is no string"},
      {"a shard that is missing", with_file(R"("model-00003.safetensors")"), "open failed: No such file"},
      {"a tensor in the wrong shard", with_file('"' + std::string(kShard2) + '"'),
       "tensor 'a.weight' should be in model-00002-of-00002.safetensors, but is not there"},
      {"a tensor that is nowhere",
       index_json(R"({"a.weight":")" + std::string(kShard1) + R"(","x":")" + kShard1 + R"(","b.weight":")" + kShard2 +
                  "\"}"),
       "tensor 'x' should be in"},
      {"a tensor unlisted", index_json(R"({"a.weight":")" + std::string(kShard1) + R"(","z":")" + kShard2 + "\"}"),
       "tensor 'z' should be in"},
      {"a tensor twice in the map",
       index_json(R"({"a.weight":")" + std::string(kShard1) + R"(","a.weight":")" + kShard2 + "\"}"),
       "the key 'a.weight' stands twice"},
      {"two maps", R"({"weight_map":{},"weight_map":{}})", "the key 'weight_map' stands twice"},
      {"a control character in a name", index_json(R"({"a\u0007":")" + std::string(kShard1) + "\"}"),
       "holds a control character"},
      {"a long name", index_json("{\"" + std::string(5000, 'n') + "\":\"" + kShard1 + "\"}"),
       "has 5000 bytes; at most 4096"},
      {"deep nesting", "{\"x\":" + std::string(100, '[') + std::string(100, ']') + "}", "nested deeper than 8 levels"},
      {"a total too small", index_json(fine_map(), R"({"total_size":11})"),
       "total_size is 11, but the tensors have 12 bytes"},
      {"a total too large", index_json(fine_map(), R"({"total_size":9007199254740992})"),
       "but the tensors have 12 bytes"},
      {"a fractional total", index_json(fine_map(), R"({"total_size":12.5})"), "must be a whole number"},
      {"a negative total", index_json(fine_map(), R"({"total_size":-12})"), "must be a whole number"},
      {"a huge total", index_json(fine_map(), R"({"total_size":1e300})"), "must be a whole number"},
      {"a total that is a string", index_json(fine_map(), R"({"total_size":"12"})"), "must be a whole number"},
      {"metadata that is a list", index_json(fine_map(), "[]"), "metadata must be an object"},
  };
  for (const auto& hostile : cases) {
    const TempFolder folder;
    write_sharded(folder, hostile.index);
    const auto model = ModelFiles::open(folder.path());
    ASSERT_FALSE(model) << hostile.what;
    EXPECT_THAT(model.error().message, HasSubstr(hostile.words)) << hostile.what;
    EXPECT_THAT(model.error().message, HasSubstr(folder.path())) << hostile.what;
    EXPECT_NE(model.error().code, ErrorCode::kUnsupported) << hostile.what;
  }
}

TEST(ModelFiles, RefusesFoldersThatCanBeReadInTwoWays) {
  {
    const TempFolder folder;
    write_sharded(folder);
    write_text(folder / "model.safetensors", safetensors({kA}));
    EXPECT_THAT(ModelFiles::open(folder.path()).error().message, HasSubstr("holds both"));
  }
  {
    const TempFolder folder;  // a tensor in two shards
    write_sharded(folder);
    write_text(folder / kShard2, safetensors({kB, kA}));
    EXPECT_THAT(ModelFiles::open(folder.path()).error().message, HasSubstr("is in this file, but"));
  }
  {
    const TempFolder folder;
    write_sharded(folder);
    std::filesystem::remove(folder / ModelFiles::kIndexFile);
    EXPECT_THAT(ModelFiles::open(folder.path()).error().message, HasSubstr("holds 2 .safetensors files, but no"));
  }
  {
    const TempFolder folder;
    write_text(folder / "tokenizer.json", "{}");
    EXPECT_THAT(ModelFiles::open(folder.path()).error().message, HasSubstr("holds no .safetensors file"));
    EXPECT_THAT(ModelFiles::open(folder / "tokenizer.json").error().message, HasSubstr("neither a folder nor"));
    EXPECT_EQ(ModelFiles::open(folder / "nothing").error().code, ErrorCode::kIo);
  }
}

TEST(ModelFiles, RefusesPicklesByNameWithTheWayOut) {
  for (const char* name : {"pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"}) {
    const TempFolder folder;
    write_text(folder / name, "PK");
    for (const std::string& path : {folder.path(), folder / name}) {
      const auto model = ModelFiles::open(path);
      ASSERT_FALSE(model);
      EXPECT_EQ(model.error().code, ErrorCode::kUnsupported);
      EXPECT_THAT(model.error().message, HasSubstr(name));
      EXPECT_THAT(model.error().message, HasSubstr("save it as safetensors"));
    }
    write_sharded(folder);  // beside safetensors they say nothing
    EXPECT_TRUE(ModelFiles::open(folder.path()));
  }
}

TEST(ModelFiles, RefusesATruncatedShard) {
  const TempFolder folder;
  write_sharded(folder);
  const std::string whole = safetensors({kA});
  for (const size_t size : {whole.size() - 1, whole.size() - 8, size_t{9}, size_t{0}}) {
    write_text(folder / kShard1, whole.substr(0, size));
    const auto model = ModelFiles::open(folder.path());
    ASSERT_FALSE(model);
    EXPECT_THAT(model.error().message, HasSubstr(kShard1));
  }
}

TEST(ModelFiles, RefusesHostileConfigurations) {
  for (const auto& [config, words] :
       {std::pair<std::string, const char*>{"", "is not valid JSON"},
        {"[]", "must be one object"},
        {"{\"a\":NaN}", "is not valid JSON"},
        {R"({"a":1,"a":2})", "the key 'a' stands twice"},
        {R"({"x":{"a":1,"a":2}})", "the key 'a' stands twice"},
        {"{\"x\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}", "nested deeper than 64"},
        {std::string((16 << 20) + 1, ' '), "such a file has at most 16777216"}}) {
    const TempFolder folder;
    write_text(folder / "model.safetensors", safetensors({kA}));
    write_text(folder / "config.json", config);
    const auto model = ModelFiles::open(folder.path());
    ASSERT_FALSE(model) << words;
    EXPECT_EQ(model.error().code, ErrorCode::kInvalidData);
    EXPECT_THAT(model.error().message, HasSubstr(words));
  }
  // Siblings of one depth may share keys.
  EXPECT_TRUE(base::parse_json(R"({"a":{"k":1},"b":{"k":2},"c":[{"k":1},{"k":1}]})", "x", {}));
}

}  // namespace
}  // namespace nybble::checkpoint
