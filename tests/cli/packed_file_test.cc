// inspect and verify on packed files, which no verb writes yet: made here by the library.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "bench/random_data.h"
#include "nybble/pack.h"

namespace nybble {
namespace {

int exit_code(const std::string& verb, const std::filesystem::path& path) {
  const std::string command = std::string(NYBBLE_COMMAND) + " " + verb + " '" + path.string() + "' > /dev/null 2>&1";
  return WEXITSTATUS(std::system(command.c_str()));
}

class PackedFile : public testing::Test {
 protected:
  PackedFile() : path_(std::filesystem::path(testing::TempDir()) / ("nybble-packed-" + std::to_string(getpid()))) {
    const Result<PackedWeight> packed =
        pack(bench::random_weight(96, 300, {.zero_kind = ZeroKind::kInt, .group_size = 64}, 1));
    EXPECT_TRUE(packed && save_packed(*packed, path_.string()));
  }
  ~PackedFile() override { std::filesystem::remove(path_); }

  std::filesystem::path path_;
};

TEST_F(PackedFile, IsInspectedAndVerified) {
  EXPECT_EQ(exit_code("inspect", path_), 0);
  EXPECT_EQ(exit_code("verify", path_), 0);
}

TEST_F(PackedFile, OneFlippedBitIsFound) {
  {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(1000);
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(1000);
    file.put(byte);
  }
  EXPECT_EQ(exit_code("inspect", path_), 1);
  EXPECT_EQ(exit_code("verify", path_), 1);
}

}  // namespace
}  // namespace nybble
