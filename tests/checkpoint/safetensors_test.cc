#include "checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>

#include "checkpoint/model_building.h"
#include "checkpoint/safetensors_writer.h"
#include "support/temp_folder.h"

namespace nybble::checkpoint {
namespace {

using ::testing::HasSubstr;
using namespace nybble::testing;

Result<SafetensorsFile> open_path(const std::string& path) {
  Result<base::File> file = base::File::open(path);
  if (!file) return file.error();
  return SafetensorsFile::open(std::move(*file));
}

Result<SafetensorsFile> open_bytes(const TempFolder& folder, std::string_view bytes) {
  write_text(folder / "x.safetensors", bytes);
  return open_path(folder / "x.safetensors");
}

std::string read_tensor(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo* tensor = file.find(name);
  EXPECT_NE(tensor, nullptr) << name;
  std::string bytes(tensor->size_bytes(), '\0');
  EXPECT_TRUE(file.read(*tensor, 0, std::as_writable_bytes(std::span(bytes))));
  return bytes;
}

TEST(Safetensors, ReadsAFileWrittenByHand) {
  const TempFolder folder;
  const Result<SafetensorsFile> file =
      open_bytes(folder, container(R"({"__metadata__":{"format":"pt","who":"caf\u00e9\n"},)"
                                   R"("b":{"dtype":"F16","shape":[1,3],"data_offsets":[2,8]},)"
                                   R"("a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                   R"("scalar":{"data_offsets":[8,16],"shape":[],"dtype":"I64"},)"
                                   R"("empty":{"dtype":"F32","shape":[3,0,2],"data_offsets":[8,8]}}   )",
                                   std::string("\x01\x02"
                                               "abcdef"
                                               "\xff\xff\xff\xff\xff\xff\xff\x7f",
                                               16)));
  ASSERT_TRUE(file) << file.error().message;
  ASSERT_EQ(file->tensors().size(), 4u);
  EXPECT_EQ(read_tensor(*file, "a"), "\x01\x02");
  EXPECT_EQ(read_tensor(*file, "b"), "abcdef");
  EXPECT_EQ(read_tensor(*file, "scalar"), i64({INT64_MAX}));
  EXPECT_EQ(read_tensor(*file, "empty"), "");
  EXPECT_EQ(file->find("b")->shape, (std::vector<int64_t>{1, 3}));
  EXPECT_EQ(file->find("c"), nullptr);
  EXPECT_EQ(file->metadata().at("who"), "caf\xc3\xa9\n");
}

TEST(Safetensors, KnowsEveryElementType) {
  const TempFolder folder;
  for (const auto& [name, bits] :
       {std::pair("BOOL", 8), {"U8", 8},      {"I8", 8},      {"I16", 16},    {"U16", 16},    {"I32", 32},
        {"U32", 32},          {"I64", 64},    {"U64", 64},    {"F16", 16},    {"BF16", 16},   {"F32", 32},
        {"F64", 64},          {"C64", 64},    {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
        {"F8_E5M2FNUZ", 8},   {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4}}) {
    const Result<SafetensorsFile> file = open_bytes(folder, safetensors({{"t", name, {2, 4}, std::string(bits, 'x')}}));
    ASSERT_TRUE(file) << file.error().message;
    EXPECT_STREQ(tensor_type_name(file->find("t")->type), name);
    EXPECT_EQ(tensor_type_bits(file->find("t")->type), bits);
  }
}

struct Hostile {
  const char* what;
  std::string file;
  const char* words;
};

std::string header_only(std::string_view header, size_t data_bytes = 0) {
  return container(header, std::string(data_bytes, 'x'));
}

std::string one(const std::string& entry, size_t data_bytes = 4) {
  return header_only("{\"t\":{" + entry + "}}", data_bytes);
}

std::string length_only(uint64_t length, std::string_view rest) {
  return std::string(reinterpret_cast<const char*>(&length), 8) + std::string(rest);
}

std::vector<Hostile> hostile_files() {
  const std::string fine = R"("dtype":"F32","shape":[1],"data_offsets":[0,4])";
  const auto offsets = [](const char* text) {
    return one(R"("dtype":"F32","shape":[1],"data_offsets":)" + std::string(text));
  };
  const auto shape = [](const char* text, size_t bytes = 4) {
    return one(R"("dtype":"F32","data_offsets":[0,4],"shape":)" + std::string(text), bytes);
  };
  const auto two = [](const char* a, const char* b, size_t bytes) {
    return header_only(std::string(R"({"a":{"dtype":"U8",)") + a + R"(},"b":{"dtype":"U8",)" + b + "}}", bytes);
  };
  return {
      {"an empty file", "", "has 0 bytes; a safetensors file begins with 8 bytes"},
      {"half a length", "\x02", "has 1 bytes"},
      {"a length alone", length_only(2, ""), "gives the header 2 bytes, but only 0 follow"},
      {"a length past the end", length_only(100, "{}"),
       "gives the header 100 bytes, but only 2 follow: the file is cut off"},
      {"a length past the limit", length_only(100'000'001, "{}"), "100000001 bytes; at most 100000000 are allowed"},
      {"a length of 2^64 - 1", length_only(UINT64_MAX, "{}"), "18446744073709551615 bytes; at most"},
      {"a length of 2^64 - 8", length_only(UINT64_MAX - 7, "{}"), "at most 100000000"},
      {"a length of zero", length_only(0, ""), "does not begin with '{'"},
      {"another container", "GGUF\x03" + std::string(100, '\0'), "or this is no safetensors file"},
      {"a zip archive (.bin)", "PK\x03\x04\x14\0\0\0" + std::string(100, 'x'), "at most 100000000 are allowed"},
      {"a leading space", header_only(" {}"), "byte 8: does not begin with '{'"},
      {"a byte order mark", header_only("\xef\xbb\xbf{}"), "does not begin with '{'"},
      {"an array", header_only("[]"), "does not begin with '{'"},
      {"an open object", header_only("{"), "is not valid JSON"},
      {"two documents", header_only("{}{}"), "is not valid JSON"},
      {"NUL padding", header_only(std::string("{}\0\0", 4)), "is not valid JSON"},
      {"a comment", header_only("{}//"), "is not valid JSON"},
      {"broken UTF-8", header_only("{\"\xff\":{}}"), "ill-formed UTF-8"},
      {"a lone surrogate", header_only(R"({"\ud800":{}})"), "surrogate"},
      {"a control character in the JSON", header_only("{\"a\n\":{}}"), "control character"},
      {"an entry that is a string", header_only(R"({"t":"F32"})"), "the entry 't' is a string; it must be an object"},
      {"an entry that is null", header_only(R"({"t":null})"), "the entry 't' is null"},
      {"an entry that is a list", header_only(R"({"t":[]})"), "the entry 't' is an array"},
      {"an entry that is a number", header_only(R"({"t":1})"), "the entry 't' is a number"},
      {"deep nesting", header_only("{\"t\":{\"shape\":" + std::string(1000, '[') + std::string(1000, ']') + "}}"),
       "shape holds an array; it must be an array of whole numbers"},
      {"deep nesting in an unknown key", header_only(R"({"t":{"x":[[[[[[[[[[]]]]]]]]]]}})"), "unknown key 'x'"},
      {"an unknown key", one(fine + R"(,"extra":1)"), "tensor 't': has the unknown key 'extra'"},
      {"no dtype", one(R"("shape":[1],"data_offsets":[0,4])"), "tensor 't': has no dtype"},
      {"no shape", one(R"("dtype":"F32","data_offsets":[0,4])"), "tensor 't': has no shape"},
      {"no offsets", one(R"("dtype":"F32","shape":[1])"), "tensor 't': has no data_offsets"},
      {"dtype twice", one(R"("dtype":"F32",)" + fine), "tensor 't': has dtype twice"},
      {"shape twice", one(fine + R"(,"shape":[1])"), "has shape twice"},
      {"offsets twice", one(fine + R"(,"data_offsets":[0,4])"), "has data_offsets twice"},
      {"an unknown dtype", one(R"("dtype":"Q4_0","shape":[1],"data_offsets":[0,4])"), "dtype 'Q4_0' is unknown"},
      {"a dtype in lower case", one(R"("dtype":"f32","shape":[1],"data_offsets":[0,4])"), "dtype 'f32' is unknown"},
      {"a dtype that is a number", one(R"("dtype":7,"shape":[1],"data_offsets":[0,4])"), "dtype is a number"},
      {"a dtype that is a list", one(R"("dtype":["F32"],"shape":[1],"data_offsets":[0,4])"), "dtype is an array"},
      {"a shape that is a string", shape("\"1\""), "shape is a string"},
      {"a shape that is an object", shape("{}"), "shape is an object"},
      {"a dimension that is a string", shape("[\"1\"]"), "shape holds a string"},
      {"a dimension that is null", shape("[null]"), "shape holds null"},
      {"a dimension that is true", shape("[true]"), "shape holds a truth value"},
      {"a negative dimension", shape("[-1]"), "shape is negative"},
      {"a dimension of minus zero", shape("[-0]"), "shape is negative"},
      {"a float dimension", shape("[1.0]"), "shape holds '1.0'; only whole numbers"},
      {"an exponent", shape("[1e0]"), "shape holds '1e0'"},
      {"a dimension past 2^53", shape("[9007199254740993]"), "shape holds 9007199254740993, more than 2^53"},
      {"a dimension past 2^64", shape("[18446744073709551616]"), "only whole numbers up to 2^53"},
      {"nine dimensions", shape("[1,1,1,1,1,1,1,1,1]"), "shape has more than 8 dimensions"},
      {"an overflowing product", shape("[4294967296,4294967296,4294967296]"), "overflows 64 bits"},
      {"a product that wraps to the right size", shape("[4611686018427387904,4,1]"), "more than 2^53"},
      {"a wrapping product of small numbers", shape("[2147483648,2147483648,4]"), "overflows 64 bits"},
      {"an overflow hidden by a zero", shape("[4294967296,4294967296,4294967296,0]"), "overflows 64 bits"},
      {"a negative offset", offsets("[-4,0]"), "data_offsets is negative"},
      {"a float offset", offsets("[0.0,4.0]"), "data_offsets holds '0.0'"},
      {"one offset", offsets("[4]"), "data_offsets has 1 numbers; there must be two"},
      {"three offsets", offsets("[0,4,4]"), "data_offsets has more than two numbers"},
      {"no offset at all", offsets("[]"), "data_offsets has 0 numbers"},
      {"offsets that are a number", offsets("4"), "data_offsets is a number"},
      {"offsets that run backwards", offsets("[4,0]"), "data_offsets run backwards, from 4 to 0"},
      {"a nested offset", offsets("[[0,4]]"), "data_offsets holds an array"},
      {"an offset past 2^53", offsets("[0,9007199254740993]"), "more than 2^53"},
      {"data that is missing", one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])"), "it is cut off"},
      {"a range far past the end",
       one(R"("dtype":"U8","shape":[9007199254740992],"data_offsets":[0,9007199254740992])"), "it is cut off"},
      {"a size that is too small", one(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"),
       "needs 8 bytes, but data_offsets span 4"},
      {"a size that is too large", one(R"("dtype":"F16","shape":[1],"data_offsets":[0,4])"),
       "needs 2 bytes, but data_offsets span 4"},
      {"half a byte", one(R"("dtype":"F4","shape":[3],"data_offsets":[0,1])", 1), "no whole number of bytes"},
      {"6-bit numbers that fill no byte", one(R"("dtype":"F6_E2M3","shape":[2],"data_offsets":[0,1])", 1),
       "no whole number of bytes"},
      {"trailing bytes", one(fine, 5), "trailing bytes belong to nothing"},
      {"data without tensors", header_only("{}", 1), "the tensors end at byte 10, but the file goes on to byte 11"},
      {"a hole", two(R"("shape":[1],"data_offsets":[0,1])", R"("shape":[1],"data_offsets":[2,3])", 3),
       "tensor 'b': begins at data byte 2, which leaves a hole from byte 1"},
      {"a hole at the start", two(R"("shape":[1],"data_offsets":[1,2])", R"("shape":[1],"data_offsets":[2,3])", 3),
       "tensor 'a': begins at data byte 1, which leaves a hole from byte 0"},
      {"an overlap", two(R"("shape":[2],"data_offsets":[0,2])", R"("shape":[2],"data_offsets":[1,3])", 3),
       "tensor 'b': begins at data byte 1, inside tensor 'a', which ends at 2"},
      {"the same bytes twice", two(R"("shape":[2],"data_offsets":[0,2])", R"("shape":[2],"data_offsets":[0,2])", 2),
       "inside tensor 'a'"},
      {"a zero-size tensor inside another",
       two(R"("shape":[2],"data_offsets":[0,2])", R"("shape":[0],"data_offsets":[1,1])", 2), "inside tensor 'a'"},
      {"a name twice", header_only("{\"t\":{" + fine + "},\"t\":{" + fine + "}}", 4),
       "tensor 't' stands twice in the header"},
      {"a name twice with two ranges",
       header_only(
           R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"t":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
           4),
       "header, byte 64: tensor 't' stands twice"},
      {"a name twice, once escaped", header_only("{\"t\":{" + fine + "},\"\\u0074\":{" + fine + "}}", 4),
       "stands twice"},
      {"a name of 4097 bytes", header_only("{\"" + std::string(4097, 'n') + "\":{" + fine + "}}", 4),
       "has 4097 bytes; at most 4096"},
      {"an empty name", header_only("{\"\":{" + fine + "}}", 4), "a tensor's name is empty"},
      {"a NUL in a name", header_only("{\"a\\u0000b\":{" + fine + "}}", 4), "holds a control character: 'a\\x00b'"},
      {"an escape sequence in a name", header_only("{\"\\u001b[31m\":{" + fine + "}}", 4),
       "holds a control character: '\\x1b[31m'"},
      {"a DEL in a name", header_only("{\"\x7f\":{" + fine + "}}", 4), "holds a control character"},
      {"metadata that is a list", header_only(R"({"__metadata__":[]})"), "the entry '__metadata__' is an array"},
      {"metadata of numbers", header_only(R"({"__metadata__":{"a":1}})"),
       "in __metadata__ is a number; it must be a string"},
      {"nested metadata", header_only(R"({"__metadata__":{"a":{}}})"), "in __metadata__ is an object"},
      {"null metadata", header_only(R"({"__metadata__":{"a":null}})"), "in __metadata__ is null"},
      {"a metadata key twice", header_only(R"({"__metadata__":{"a":"1","a":"2"}})"), "__metadata__ has one key twice"},
      {"metadata twice", header_only(R"({"__metadata__":{},"__metadata__":{}})"), "__metadata__ stands twice"},
      {"a control character in a metadata key", header_only(R"({"__metadata__":{"a\u0007":"1"}})"),
       "holds a control character"},
  };
}

TEST(Safetensors, RefusesEveryLieInItsOwnWords) {
  const TempFolder folder;
  const std::vector<Hostile> files = hostile_files();
  EXPECT_GE(files.size(), 60u);
  for (const Hostile& hostile : files) {
    const Result<SafetensorsFile> file = open_bytes(folder, hostile.file);
    ASSERT_FALSE(file) << hostile.what;
    EXPECT_EQ(file.error().code, ErrorCode::kInvalidData) << hostile.what;
    EXPECT_THAT(file.error().message, HasSubstr(hostile.words)) << hostile.what;
    EXPECT_THAT(file.error().message, HasSubstr(folder / "x.safetensors")) << hostile.what;
  }
}

TEST(Safetensors, RefusesAMillionAndOneTensors) {
  const TempFolder folder;
  std::string header = "{";
  for (int i = 0; i <= 1'000'000; ++i)
    header += (i == 0 ? "\"" : ",\"") + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  header += "}";
  const std::string file = container(header, "");
  header = {};
  write_text(folder / "x.safetensors", file);
  rusage before{}, after{};
  ::getrusage(RUSAGE_SELF, &before);
  const auto start = std::chrono::steady_clock::now();
  const Result<SafetensorsFile> opened = open_path(folder / "x.safetensors");
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  ::getrusage(RUSAGE_SELF, &after);
  ASSERT_FALSE(opened);
  EXPECT_THAT(opened.error().message, HasSubstr("lists more than 1000000 tensors"));
  RecordProperty("seconds_per_10MB", std::to_string(seconds * 1e7 / static_cast<double>(file.size())));
  // 64 MiB and four times the header; ru_maxrss counts KiB and holds this test's own copies already.
  EXPECT_LE((after.ru_maxrss - before.ru_maxrss) * 1024.0, (64 << 20) + 4.0 * static_cast<double>(file.size()));
}

TEST(Safetensors, NoticesTruncationAtEveryByte) {
  const TempFolder folder;
  std::vector<TestTensor> tensors = {{"a.weight", "F32", {20, 30}, std::string(2400, 'a')},
                                     {"a.bias", "BF16", {20}, std::string(40, 'b')},
                                     {"none", "I64", {0}, ""}};
  const std::string whole = safetensors(tensors, R"({"format":"pt"})");
  ASSERT_TRUE(open_bytes(folder, whole));
  for (size_t size = whole.size(); size-- > 0;) {  // every byte of the data and of the header
    ASSERT_EQ(::truncate((folder / "x.safetensors").c_str(), static_cast<off_t>(size)), 0);
    const Result<SafetensorsFile> file = open_path(folder / "x.safetensors");
    ASSERT_FALSE(file) << "cut at byte " << size;
    EXPECT_EQ(file.error().code, ErrorCode::kInvalidData) << "cut at byte " << size;
  }
  for (const size_t extra : {1, 8, 4096}) EXPECT_FALSE(open_bytes(folder, whole + std::string(extra, '\0'))) << extra;
}

// Whatever one byte of the header turns into, the reader neither crashes nor reads outside the file; sanitizers watch.
TEST(Safetensors, SurvivesEveryByteFlipInTheHeader) {
  const TempFolder folder;
  const std::string whole = safetensors({{"a", "F32", {2, 2}, std::string(16, 'a')}, {"b", "F4", {8}, "bbbb"}});
  int accepted = 0;
  for (size_t at = 0; at + 20 < whole.size(); ++at)
    for (const int flip : {0x01, 0x02, 0x10, 0x80}) {
      std::string changed = whole;
      changed[at] = static_cast<char>(changed[at] ^ flip);
      const Result<SafetensorsFile> file = open_bytes(folder, changed);
      if (!file) {
        EXPECT_EQ(file.error().code, ErrorCode::kInvalidData);
        continue;
      }
      ++accepted;  // a name or a type of the same size
      for (const TensorInfo& tensor : file->tensors())
        EXPECT_EQ(read_tensor(*file, tensor.name).size(), tensor.size_bytes());
    }
  EXPECT_GT(accepted, 0);
}

TEST(SafetensorsWriter, WritesTheseBytes) {
  const TempFolder folder;
  const std::vector<TensorEntry> entries = {{"big", TensorType::kI64, {1}},
                                            {"caf\xc3\xa9\"", TensorType::kBf16, {2, 1}}};
  const Metadata metadata = {{"format", "pt"}};
  Result<SafetensorsWriter> writer = SafetensorsWriter::create(folder / "x.safetensors", entries, 12, metadata);
  ASSERT_TRUE(writer) << writer.error().message;
  const std::string data = i64({-2}) + u16({0x3F80, 0x4000});
  ASSERT_TRUE(writer->write(std::as_bytes(std::span(data).first(3))));
  ASSERT_TRUE(writer->write(std::as_bytes(std::span(data).subspan(3))));
  const Result<uint64_t> size = writer->finish(entries, metadata);
  ASSERT_TRUE(size) << size.error().message;

  std::string header = R"({"__metadata__":{"format":"pt"},"big":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},)"
                       "\"caf\xc3\xa9\\\"\":"
                       R"({"dtype":"BF16","shape":[2,1],"data_offsets":[8,12]}})";
  header.resize((header.size() + 3 + 7) / 8 * 8, ' ');  // room for "12" in place of the offsets 0, 8 and 8
  EXPECT_EQ(read_text(folder / "x.safetensors"), container(header, data));
  EXPECT_EQ(*size, 8 + header.size() + data.size());
  const Result<SafetensorsFile> file = open_path(folder / "x.safetensors");
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->metadata(), metadata);
  EXPECT_EQ(read_tensor(*file, "big"), i64({-2}));
}

TEST(SafetensorsWriter, LeavesNothingUnlessFinished) {
  const TempFolder folder;
  {
    Result<SafetensorsWriter> writer = SafetensorsWriter::create(folder / "x", std::vector<TensorEntry>{}, 0, {});
    ASSERT_TRUE(writer);
    ASSERT_TRUE(writer->write(std::as_bytes(std::span("abc"))));
  }
  EXPECT_TRUE(files_in(folder.path()).empty());
}

}  // namespace
}  // namespace nybble::checkpoint
