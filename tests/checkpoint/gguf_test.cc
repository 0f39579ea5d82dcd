// Fixtures made by ggml's own Python library (tests/data/make_gguf.py), and a corpus of broken files made by hand.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "checkpoint/gguf_file.h"
#include "checkpoint/model_building.h"
#include "checkpoint/model_files.h"
#include "nybble/checkpoint.h"
#include "nybble/gguf.h"
#include "support/temp_folder.h"

namespace nybble {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using namespace nybble::testing;

std::string data(const std::string& name) { return std::string(NYBBLE_SOURCE_DIR "/tests/data/") + name; }

// ---- Against the library -------------------------------------------------------------------------------------------

class GgufFixture : public ::testing::TestWithParam<const char*> {};

TEST_P(GgufFixture, ReadsWhatTheLibraryReads) {
  const std::string folder = data(GetParam());
  const auto checkpoint = open_checkpoint(folder + "/model.gguf");
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ((*checkpoint)->format(), "gguf");
  EXPECT_THAT((*checkpoint)->convention(), HasSubstr("GGUF version 3, architecture 'llama'"));
  EXPECT_THAT((*checkpoint)->warnings(), IsEmpty());
  const Result<void> checked = (*checkpoint)->check({});
  EXPECT_TRUE(checked) << checked.error().message;
  const auto expected = checkpoint::ModelFiles::open(folder + "/expected.safetensors");
  ASSERT_TRUE(expected) << expected.error().message;
  ASSERT_EQ((*checkpoint)->layers().size(), 2u);
  size_t quantized = 0;
  for (const LayerInfo& layer : (*checkpoint)->layers()) {
    const std::vector<std::byte> values = *(*expected)->find(layer.name + ".weight").read_all();
    EXPECT_EQ(layer.file, "model.gguf");
    if (!layer.quantized) {
      const auto weight = (*checkpoint)->read_dense(layer.name);
      ASSERT_TRUE(weight) << weight.error().message;
      std::vector<float> widened;
      for (size_t i = 0; i < weight->values.size(); ++i) widened.push_back(weight->values.at(i));
      EXPECT_EQ(FloatArray::from_floats(DType::kFp32, widened).bytes, values) << layer.name;
      EXPECT_EQ(weight->values.dtype, layer.dense_dtype);
      EXPECT_EQ(weight->bias.size(), layer.name == "blk.0.attn_q" ? 24u : 0u);
      continue;
    }
    ++quantized;
    const auto weight = (*checkpoint)->read_quantized(layer.name);
    ASSERT_TRUE(weight) << weight.error().message;
    EXPECT_EQ(weight->format(), layer.format);
    EXPECT_EQ(weight->group_size, 32);
    const auto codes = (*expected)->find(layer.name + ".codes").read_all();
    EXPECT_EQ(std::memcmp(weight->codes.data(), codes->data(), codes->size()), 0) << layer.name;
    EXPECT_EQ(weight->scales.dtype, DType::kFp16);
    EXPECT_EQ(weight->scales.bytes, *(*expected)->find(layer.name + ".scales").read_all()) << layer.name;
    const checkpoint::TensorRef offsets = (*expected)->find(layer.name + ".offsets");
    EXPECT_EQ(weight->zero_kind, offsets ? ZeroKind::kOffset : ZeroKind::kNone);
    if (offsets) {
      EXPECT_EQ(weight->float_zeros.bytes, *offsets.read_all()) << layer.name;
    }
    EXPECT_EQ(FloatArray::from_floats(DType::kFp32, dequantize(*weight)).bytes, values) << layer.name;
    EXPECT_EQ(weight->bias.size(), layer.name == "blk.0.attn_q" ? 24u : 0u);
  }
  const std::vector<OtherTensor> others = (*checkpoint)->other_tensors();
  EXPECT_EQ(others.size(), 4 - quantized);  // two layers, a bias and a norm
  for (const OtherTensor& other : others) {
    const auto bytes = (*checkpoint)->read_other_tensor(other.name);
    ASSERT_TRUE(bytes) << bytes.error().message;
    if (other.dtype == "F32") {
      EXPECT_EQ(*bytes, *(*expected)->find(other.name).read_all()) << other.name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Gguf, GgufFixture,
                         ::testing::Values("gguf_q4_0", "gguf_q4_1", "gguf_dense", "gguf_q8_0", "gguf_mixed"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Gguf, TypesThatAreNotReadAreRefusedByNameAndTheOthersAreRead) {
  const auto checkpoint = open_checkpoint(data("gguf_refused/model.gguf"));
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_THAT((*checkpoint)->warnings(), ElementsAre(HasSubstr("1 tensors of type Q5_0 cannot be read, "
                                                               "'blk.0.attn_q.weight' the first")));
  const auto refused = (*checkpoint)->read_dense("blk.0.attn_q");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(refused.error().message, HasSubstr("tensor 'blk.0.attn_q.weight': is Q5_0; of ggml's types Q4_0"));
  EXPECT_EQ((*checkpoint)->read_other_tensor("blk.0.attn_q.weight").error().code, ErrorCode::kUnsupported);
  EXPECT_EQ((*checkpoint)->check({}).error().code, ErrorCode::kUnsupported);
  EXPECT_TRUE((*checkpoint)->read_quantized("blk.0.ffn_down"));
}

TEST(Gguf, WrongQuestionsAreAnsweredWithTheRightOne) {
  const auto checkpoint = open_checkpoint(data("gguf_mixed/model.gguf"));
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_THAT((*checkpoint)->read_dense("blk.0.attn_q").error().message, HasSubstr("read it with read_quantized()"));
  EXPECT_THAT((*checkpoint)->read_quantized("blk.0.ffn_down").error().message, HasSubstr("read it with read_dense()"));
  EXPECT_THAT((*checkpoint)->read_dense("blk.0.attn_norm").error().message, HasSubstr("has no linear layer"));
  EXPECT_THAT((*checkpoint)->read_other_tensor("blk.0.attn_q.weight").error().message,
              HasSubstr("part of a quantized weight"));
  EXPECT_THAT((*checkpoint)->read_other_tensor("nothing").error().message, HasSubstr("no tensor of it"));
}

TEST(Gguf, MetadataByType) {
  const auto metadata = GgufMetadata::read(data("gguf_q4_0/model.gguf"));
  ASSERT_TRUE(metadata) << metadata.error().message;
  EXPECT_THAT(metadata->keys(), Contains("general.architecture"));
  EXPECT_EQ(*metadata->text("general.name"), "fixture gguf_q4_0");
  EXPECT_EQ(*metadata->integer("llama.block_count"), 1);
  EXPECT_EQ(*metadata->boolean("test.yes"), true);
  EXPECT_EQ(*metadata->integer("test.u8"), 255);
  EXPECT_EQ(*metadata->integer("test.i8"), -128);
  EXPECT_EQ(*metadata->integer("test.u16"), 65535);
  EXPECT_EQ(*metadata->integer("test.i16"), -32768);
  EXPECT_EQ(*metadata->integer("test.i32"), INT32_MIN);
  EXPECT_EQ(*metadata->integer("test.i64"), INT64_MIN);
  EXPECT_THAT(metadata->integer("test.u64").error().message, HasSubstr("18446744073709551615, beyond 2^63"));
  EXPECT_EQ(*metadata->number("test.u64"), 0x1p64);
  EXPECT_EQ(*metadata->number("test.f64"), 1.0 / 3);
  EXPECT_EQ(*metadata->number("llama.attention.layer_norm_rms_epsilon"), static_cast<double>(1e-5f));
  EXPECT_THAT(*metadata->texts("test.texts"), ElementsAre("", "a", "\xC4\xA0t", "caf\xC3\xA9"));
  EXPECT_THAT(*metadata->integers("test.integers"), ElementsAre(3, -1, 7));
  EXPECT_THAT(*metadata->numbers("test.floats"), ElementsAre(0.5, -2.0));
  EXPECT_TRUE(metadata->has("test.i8"));
  EXPECT_FALSE(metadata->has("test.none"));
  EXPECT_THAT(metadata->text("test.none").error().message, HasSubstr("has no key 'test.none'; a string is needed"));
  EXPECT_THAT(metadata->text("test.texts").error().message, HasSubstr("is an array of 4 strings; a string is needed"));
  EXPECT_THAT(metadata->integers("test.i8").error().message, HasSubstr("is an i8; an array of integers is needed"));
  EXPECT_THAT(metadata->integer("test.yes").error().message, HasSubstr("is a bool; an integer is needed"));
  EXPECT_EQ(metadata->integer("test.f64").error().code, ErrorCode::kInvalidData);
}

TEST(Gguf, OpensAFolderWithOneFile) {
  const TempFolder folder;
  write_text(folder / "a.gguf", read_text(data("gguf_q4_0/model.gguf")));
  write_text(folder / "README.md", "words");
  const auto checkpoint = open_checkpoint(folder.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ((*checkpoint)->layers()[0].file, "a.gguf");
  EXPECT_TRUE(GgufMetadata::read(folder.path()));
  write_text(folder / "b.gguf", "");
  EXPECT_THAT(open_checkpoint(folder.path()).error().message, HasSubstr("holds 2 .gguf files, 'a.gguf' among them"));
  EXPECT_EQ(open_checkpoint(folder / "none.gguf").error().code, ErrorCode::kIo);
}

// ---- Files made by hand --------------------------------------------------------------------------------------------

template <class T> std::string raw(T number) { return {reinterpret_cast<const char*>(&number), sizeof number}; }
std::string text(std::string_view words) { return raw<uint64_t>(words.size()).append(words); }

// A file in the making: what a test does not change is a sound file with a Q4_0 layer of 2 x 32 and a norm of 3.
struct Parts {
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::vector<std::string> keys = {text("general.architecture") + raw<uint32_t>(8) + text("llama")};
  std::vector<std::string> tensors;
  std::string data;
  uint64_t more_keys = 0, more_tensors = 0;  // claimed, not there
  uint64_t alignment = 32;

  static std::string row(std::string_view name, const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset) {
    std::string row = text(name) + raw<uint32_t>(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) row += raw(dim);
    return row + raw(type) + raw(offset);
  }
  static std::string block(uint16_t scale) {
    std::string block = raw(scale);
    for (int i = 0; i < 16; ++i) block += static_cast<char>(i | (15 - i) << 4);
    return block;
  }
  Parts() {
    tensors = {row("a.weight", {32, 2}, 2, 0), row("norm.weight", {3}, 0, 64)};
    data = block(0x3C00) + block(0xC000);  // 1 and -2
    data.resize(64);
    data += f32({1, 2, 3});
    data.resize(96);
  }
  std::string file() const {
    std::string file =
        magic + raw(version) + raw<uint64_t>(tensors.size() + more_tensors) + raw<uint64_t>(keys.size() + more_keys);
    for (const std::string& key : keys) file += key;
    for (const std::string& tensor : tensors) file += tensor;
    file.resize((file.size() + alignment - 1) / alignment * alignment);
    return file + data;
  }
};

TEST(GgufByHand, ASoundFileIsRead) {
  const TempFolder folder;
  for (const uint32_t version : {2u, 3u}) {
    Parts parts;
    parts.version = version;
    write_text(folder / "m.gguf", parts.file());
    const auto checkpoint = open_checkpoint(folder / "m.gguf");
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    const auto weight = (*checkpoint)->read_quantized("a");
    ASSERT_TRUE(weight) << weight.error().message;
    for (int i = 0; i < 32; ++i) EXPECT_EQ(weight->codes[i], i < 16 ? i : 31 - i);
    const std::vector<float> values = dequantize(*weight);
    EXPECT_EQ(values[0], -8.0f);
    EXPECT_EQ(values[32 + 15], -2.0f * 7);
    EXPECT_EQ(*(*checkpoint)->read_other_tensor("norm.weight"),
              FloatArray::from_floats(DType::kFp32, {{1, 2, 3}}).bytes);
  }
}

struct BrokenFile {
  const char* name;
  std::function<void(Parts&)> damage;
  const char* message;
  ErrorCode code = ErrorCode::kInvalidData;
};

std::string u32_key(std::string_view key, uint32_t value) { return text(key) + raw<uint32_t>(4) + raw(value); }

const BrokenFile kBrokenFiles[] = {
    {"magic", [](Parts& p) { p.magic = "GGML"; }, "begins with 'GGML' instead of 'GGUF'"},
    {"version_1", [](Parts& p) { p.version = 1; }, "is GGUF version 1; versions 2 and 3", ErrorCode::kUnsupported},
    {"version_4", [](Parts& p) { p.version = 4; }, "is GGUF version 4", ErrorCode::kUnsupported},
    {"big_endian", [](Parts& p) { p.version = 0x03000000; }, "big-endian", ErrorCode::kUnsupported},
    {"keys_claimed", [](Parts& p) { p.more_keys = 1'000'000'000; }, "claims 1000000001 keys"},
    {"keys_claimed_past_2_64", [](Parts& p) { p.more_keys = UINT64_MAX - 1; }, "keys; at most 65536"},
    {"tensors_claimed", [](Parts& p) { p.more_tensors = 1ull << 40; }, "tensors; at most 262144"},
    {"one_tensor_more", [](Parts& p) { p.more_tensors = 1; }, ""},
    {"one_key_more", [](Parts& p) { p.more_keys = 1; }, ""},
    {"key_twice", [](Parts& p) { p.keys.push_back(p.keys[0]); }, "the key 'general.architecture' is there twice"},
    {"key_without_name", [](Parts& p) { p.keys.push_back(u32_key("", 1)); }, "has 0 bytes; 1 to 4096"},
    {"key_of_5000", [](Parts& p) { p.keys.push_back(u32_key(std::string(5000, 'k'), 1)); }, "has 5000 bytes"},
    {"key_with_newline", [](Parts& p) { p.keys.push_back(u32_key("a\nb", 1)); }, "holds a control character"},
    {"key_length_huge", [](Parts& p) { p.keys.push_back(raw<uint64_t>(UINT64_MAX) + "abcdefghijkl"); }, "1 to 4096"},
    {"value_type_13", [](Parts& p) { p.keys.push_back(text("k") + raw<uint32_t>(13) + "........"); },
     "unknown type 13"},
    {"value_type_huge", [](Parts& p) { p.keys.push_back(text("k") + raw<uint32_t>(UINT32_MAX) + "........"); },
     "unknown type 4294967295"},
    {"bool_of_2", [](Parts& p) { p.keys.push_back(text("k") + raw<uint32_t>(7) + "\x02........"); }, "is a bool of 2"},
    {"array_of_arrays",
     [](Parts& p) { p.keys.push_back(text("k") + raw<uint32_t>(9) + raw<uint32_t>(9) + raw<uint64_t>(0)); },
     "is an array of arrays"},
    {"array_of_unknown",
     [](Parts& p) { p.keys.push_back(text("k") + raw<uint32_t>(9) + raw<uint32_t>(77) + raw<uint64_t>(0)); },
     "unknown type 77"},
    {"array_count_huge",
     [](Parts& p) { p.keys.push_back(text("k") + raw<uint32_t>(9) + raw<uint32_t>(4) + raw<uint64_t>(1ull << 62)); },
     "claims 4611686018427387904 elements"},
    {"array_of_strings_count_huge",
     [](Parts& p) { p.keys.push_back(text("k") + raw<uint32_t>(9) + raw<uint32_t>(8) + raw<uint64_t>(1ull << 61)); },
     "claims 2305843009213693952 elements"},
    {"string_length_huge",
     [](Parts& p) { p.keys.push_back(text("k") + raw<uint32_t>(8) + raw<uint64_t>(UINT64_MAX - 7)); },
     "the file ends inside the value of 'k'"},
    {"alignment_zero", [](Parts& p) { p.keys.push_back(u32_key("general.alignment", 0)); }, "general.alignment is 0"},
    {"alignment_33", [](Parts& p) { p.keys.push_back(u32_key("general.alignment", 33)); }, "general.alignment is 33"},
    {"alignment_huge", [](Parts& p) { p.keys.push_back(u32_key("general.alignment", 1u << 31)); },
     "powers of two up to 1048576"},
    {"alignment_of_text", [](Parts& p) { p.keys.push_back(text("general.alignment") + raw<uint32_t>(8) + text("32")); },
     "general.alignment is a string; a u32"},
    {"alignment_not_kept", [](Parts& p) { p.keys.push_back(u32_key("general.alignment", 128)); }, ""},
    {"tensor_twice", [](Parts& p) { p.tensors[1] = Parts::row("a.weight", {3}, 0, 64); },
     "the tensor 'a.weight' is there twice"},
    {"tensor_without_name",
     [](Parts& p) {
       p.tensors[0] = Parts::row("", {32, 2}, 2, 0);
     },
     "has 0 bytes"},
    {"tensor_with_control",
     [](Parts& p) {
       p.tensors[0] = Parts::row("a\x1b[", {32, 2}, 2, 0);
     },
     "control character"},
    {"rank_0", [](Parts& p) { p.tensors[1] = Parts::row("n", {}, 0, 64); }, "has 0 dimensions; 1 to 4"},
    {"rank_5",
     [](Parts& p) {
       p.tensors[1] = Parts::row("n", {1, 1, 1, 1, 3}, 0, 64);
     },
     "has 5 dimensions"},
    {"dimension_0",
     [](Parts& p) {
       p.tensors[1] = Parts::row("n", {3, 0}, 0, 64);
     },
     "has a dimension of 0"},
    {"product_overflows",
     [](Parts& p) {
       p.tensors[1] = Parts::row("n", {1ull << 32, 1ull << 32}, 0, 64);
     },
     "more than 2^53 elements"},
    {"product_wraps_to_small",
     [](Parts& p) {
       p.tensors[1] = Parts::row("n", {1ull << 33, 1ull << 31, 3}, 0, 64);
     },
     "more than 2^53 elements"},
    {"dimension_negative", [](Parts& p) { p.tensors[1] = Parts::row("n", {UINT64_MAX}, 0, 64); }, "more than 2^53"},
    {"type_4",
     [](Parts& p) {
       p.tensors[0] = Parts::row("a.weight", {32, 2}, 4, 0);
     },
     "the unknown ggml type 4"},
    {"type_9",
     [](Parts& p) {
       p.tensors[0] = Parts::row("a.weight", {32, 2}, 9, 0);
     },
     "the unknown ggml type 9"},
    {"type_huge",
     [](Parts& p) {
       p.tensors[0] = Parts::row("a.weight", {32, 2}, UINT32_MAX, 0);
     },
     "unknown ggml type"},
    {"rows_no_blocks",
     [](Parts& p) {
       p.tensors[0] = Parts::row("a.weight", {16, 4}, 2, 0);
     },
     "has rows of 16 elements, but Q4_0 comes in blocks of 32"},
    {"offset_unaligned", [](Parts& p) { p.tensors[1] = Parts::row("n", {3}, 0, 68); },
     "no multiple of the alignment 32"},
    {"offset_past_end", [](Parts& p) { p.tensors[1] = Parts::row("n", {3}, 0, 96); }, "but the file holds 96 bytes"},
    {"offset_wraps", [](Parts& p) { p.tensors[1] = Parts::row("n", {16}, 0, UINT64_MAX - 31); }, "was cut short"},
    {"too_long", [](Parts& p) { p.tensors[1] = Parts::row("n", {9}, 0, 64); }, "needs 36 bytes from offset 64 on"},
    {"overlap", [](Parts& p) { p.tensors[1] = Parts::row("n", {3}, 0, 32); }, "inside tensor 'a.weight'"},
    {"same_place", [](Parts& p) { p.tensors[1] = Parts::row("n", {3}, 0, 0); }, "inside tensor 'a.weight'"},
    {"hole",
     [](Parts& p) {
       p.tensors[1] = Parts::row("n", {3}, 0, 96);
       p.data.resize(128);
     },
     "bytes that belong to no tensor"},
    {"bytes_behind", [](Parts& p) { p.data += std::string(32, 'x'); }, "32 bytes follow the last tensor's"},
    {"split", [](Parts& p) { p.keys.push_back(u32_key("split.count", 3)); }, "is one of 3 pieces of a model",
     ErrorCode::kUnsupported},
};

TEST(GgufByHand, BrokenFilesAreRefusedWithTheRightWords) {
  const TempFolder folder;
  for (const BrokenFile& broken : kBrokenFiles) {
    SCOPED_TRACE(broken.name);
    Parts parts;
    broken.damage(parts);
    write_text(folder / "m.gguf", parts.file());
    const auto checkpoint = open_checkpoint(folder / "m.gguf");
    if (checkpoint) {
      ADD_FAILURE() << "was opened";
      continue;
    }
    EXPECT_EQ(checkpoint.error().code, broken.code) << checkpoint.error().message;
    EXPECT_THAT(checkpoint.error().message, HasSubstr(broken.message));
    EXPECT_THAT(checkpoint.error().message, HasSubstr("m.gguf"));
  }
}

TEST(GgufByHand, ACutAtEveryByteIsSeen) {
  const TempFolder folder;
  const std::string whole = Parts().file();
  for (size_t size = 0; size < whole.size(); ++size) {
    write_text(folder / "m.gguf", whole.substr(0, size));
    const auto checkpoint = open_checkpoint(folder / "m.gguf");
    // The last tensor's padding says nothing: 64 + 12 bytes of data are the model.
    EXPECT_EQ(checkpoint.ok(), size >= whole.size() - 20) << size;
  }
}

TEST(Gguf, ACutAtEveryByteOfTheHeaderAndAThousandBehindItIsSeen) {
  const TempFolder folder;
  const std::string path = folder / "m.gguf", whole = read_text(data("gguf_mixed/model.gguf"));
  write_text(path, whole);
  uint64_t begin = whole.size(), end = 0;  // of the tensors' data; what lies behind is padding and says nothing
  {
    const auto file = checkpoint::GgufFile::open(path);
    ASSERT_TRUE(file) << file.error().message;
    for (const checkpoint::GgufTensor& tensor : (*file)->tensors()) {
      begin = std::min(begin, (*file)->file_offset(tensor));
      end = std::max(end, (*file)->file_offset(tensor) + tensor.size_bytes);
    }
  }
  ASSERT_GE(end - begin, 1000u);
  for (uint64_t size = end; size-- > 0;) {
    std::filesystem::resize_file(path, size);
    const auto checkpoint = open_checkpoint(path);
    ASSERT_FALSE(checkpoint) << "cut at byte " << size;
    ASSERT_EQ(checkpoint.error().code, ErrorCode::kInvalidData) << "cut at byte " << size;
  }
}

TEST(GgufByHand, NumbersThatAreNoneAreRefused) {
  const TempFolder folder;
  const auto opened_with = [&](const std::function<void(Parts&)>& change) {
    Parts parts;
    change(parts);
    write_text(folder / "m.gguf", parts.file());
    auto checkpoint = open_checkpoint(folder / "m.gguf");
    EXPECT_TRUE(checkpoint) << checkpoint.error().message;
    return std::move(*checkpoint);
  };
  auto checkpoint = opened_with([](Parts& p) { p.data.replace(18, 2, raw<uint16_t>(0x7E00)); });
  EXPECT_THAT(checkpoint->read_quantized("a").error().message, HasSubstr("m.gguf"));
  EXPECT_EQ(checkpoint->check({}).error().code, ErrorCode::kInvalidData);

  checkpoint = opened_with([](Parts& p) { p.data.replace(64, 4, raw(std::numeric_limits<float>::infinity())); });
  EXPECT_THAT(checkpoint->check({}).error().message, HasSubstr("tensor 'norm.weight': element 0 of shape [3] is inf"));

  checkpoint = opened_with([](Parts& p) {
    p.tensors[0] = Parts::row("a.weight", {32, 1}, 8, 0);
    p.data.replace(0, 2, raw<uint16_t>(0xFC00));
  });
  EXPECT_THAT(checkpoint->read_dense("a").error().message, HasSubstr("the scale of block 0"));

  checkpoint = opened_with([](Parts& p) { p.tensors[1] = Parts::row("a.bias", {3}, 0, 64); });
  EXPECT_THAT(checkpoint->read_quantized("a").error().message,
              HasSubstr("'a.bias': has shape [3]; the layer's 2 output features need [2]"));
  checkpoint = opened_with([](Parts& p) { p.tensors[1] = Parts::row("a.bias", {2}, 26, 64); });
  EXPECT_THAT(checkpoint->read_quantized("a").error().message, HasSubstr("is I32; a bias is F32, F16 or BF16"));

  // A layer that is not quantized: check() passed what read_dense() refuses.
  checkpoint = opened_with([](Parts& p) {
    p.tensors = {Parts::row("a.weight", {32, 1}, 8, 0), Parts::row("a.bias", {3}, 0, 64)};
  });
  const Result<void> checked = checkpoint->check({});
  ASSERT_FALSE(checked);
  EXPECT_THAT(checked.error().message, HasSubstr("'a.bias': has shape [3]; the layer's 1 output features need [1]"));
  EXPECT_EQ(checkpoint->read_dense("a").error().message, checked.error().message);
}

TEST(GgufByHand, BlocksThatAreNoLayerAreReadAsNumbers) {
  const TempFolder folder;
  Parts parts;
  parts.tensors[0] = Parts::row("experts.weight", {32, 1, 2}, 2, 0);  // 3-D
  write_text(folder / "m.gguf", parts.file());
  const auto checkpoint = open_checkpoint(folder / "m.gguf");
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_THAT((*checkpoint)->layers(), IsEmpty());
  const std::vector<OtherTensor> others = (*checkpoint)->other_tensors();
  ASSERT_EQ(others.size(), 2u);
  EXPECT_EQ(others[0].dtype, "F32");
  EXPECT_THAT(others[0].shape, ElementsAre(2, 1, 32));
  const auto bytes = (*checkpoint)->read_other_tensor("experts.weight");
  ASSERT_TRUE(bytes) << bytes.error().message;
  float values[64];
  ASSERT_EQ(bytes->size(), sizeof values);
  std::memcpy(values, bytes->data(), sizeof values);
  EXPECT_EQ(values[15], 7.0f);
  EXPECT_EQ(values[32], 16.0f);
}

// A header that claims much and holds little must not cost memory: arrays are only made as large as the file allows.
TEST(GgufByHand, AnArrayOfManyEmptyStringsCostsLittle) {
  const TempFolder folder;
  Parts parts;
  constexpr uint64_t kCount = 200'000;
  std::string key = text("k") + raw<uint32_t>(9) + raw<uint32_t>(8) + raw<uint64_t>(kCount);
  key.resize(key.size() + kCount * 8);
  parts.keys.push_back(key);
  write_text(folder / "m.gguf", parts.file());
  const auto file = checkpoint::GgufFile::open(folder / "m.gguf");
  ASSERT_TRUE(file) << file.error().message;
  const checkpoint::GgufValue* value = (*file)->find_value("k");
  ASSERT_NE(value, nullptr);
  EXPECT_EQ(value->ends.capacity(), kCount);
  EXPECT_EQ(value->bytes.capacity(), 0u);
}

}  // namespace
}  // namespace nybble
