// A hand-built model on disk, and what opening and checking it says.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "checkpoint/model_building.h"
#include "nybble/checkpoint.h"
#include "support/temp_folder.h"

namespace nybble::testing {

using Tensors = std::vector<TestTensor>;

// A folder with model.safetensors and, unless it is empty, config.json; open for as long as it lives.
class TestModel {
 public:
  explicit TestModel(const Tensors& tensors, const std::string& config = "", const std::string& metadata = "") {
    write_text(folder_ / "model.safetensors", safetensors(tensors, metadata));
    if (!config.empty()) write_text(folder_ / "config.json", config);
  }

  std::string path() const { return folder_.path(); }
  Result<std::unique_ptr<Checkpoint>> open() const { return open_checkpoint(folder_.path()); }
  // What check() of the opened model says, or opening it.
  Result<void> check() const {
    const auto checkpoint = open();
    return checkpoint ? (*checkpoint)->check({}) : checkpoint.error();
  }
  Result<QuantizedWeight> read(const std::string& layer) const {
    const auto checkpoint = open();
    return checkpoint ? (*checkpoint)->read_quantized(layer) : checkpoint.error();
  }

 private:
  TempFolder folder_;
};

// The error has this code and these words and names the model's folder.
inline void expect_refused(const TestModel& model, ErrorCode code, const std::string& words, const std::string& what) {
  const Result<void> checked = model.check();
  ASSERT_FALSE(checked) << what << ": " << words;
  EXPECT_THAT(checked.error().message, ::testing::HasSubstr(words)) << what;
  EXPECT_THAT(checked.error().message, ::testing::HasSubstr(model.path())) << what;
  EXPECT_EQ(checked.error().code, code) << what << ": " << checked.error().message;
}

// Layer "l" of a model whose stored zero points are all the symmetric one: it says so, warns of nothing, and lists
// none.
inline Result<QuantizedWeight> read_as_symmetric(const TestModel& model) {
  const auto checkpoint = model.open();
  if (!checkpoint) return checkpoint.error();
  EXPECT_EQ((*checkpoint)->layers()[0].format.zero_kind, ZeroKind::kNone);
  EXPECT_THAT((*checkpoint)->convention(), ::testing::HasSubstr("say 8, the symmetric one"));
  EXPECT_THAT((*checkpoint)->warnings(), ::testing::IsEmpty());
  EXPECT_TRUE((*checkpoint)->check({}));
  return (*checkpoint)->read_quantized("l");
}

// `tensors` with one replaced by name, or added, or left out.
inline Tensors with(Tensors tensors, const TestTensor& replacement) {
  for (TestTensor& tensor : tensors)
    if (tensor.name == replacement.name) return tensor = replacement, tensors;
  tensors.push_back(replacement);
  return tensors;
}
inline Tensors without(Tensors tensors, const std::string& name) {
  std::erase_if(tensors, [&](const TestTensor& tensor) { return tensor.name == name; });
  return tensors;
}

}  // namespace nybble::testing
