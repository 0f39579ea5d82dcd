#include "base/file.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <random>

#include "support/failing_calls.h"
#include "support/temp_folder.h"

namespace nybble::base {
namespace {

using testing::FailingCall;
using testing::Fault;
using testing::files_in;
using ::testing::HasSubstr;
using testing::read_text;
using testing::TempFolder;
using testing::write_text;
using Names = std::set<std::string>;

TEST(File, ReadsAnyRangeAndRefusesWhatIsNotThere) {
  const TempFolder folder;
  write_text(folder / "a", "0123456789");
  const Result<File> file = File::open(folder / "a");
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->size(), 10u);
  char bytes[4];
  ASSERT_TRUE(file->read_at(6, std::as_writable_bytes(std::span(bytes))));
  EXPECT_EQ(std::string_view(bytes, 4), "6789");
  for (const uint64_t offset : {uint64_t{7}, uint64_t{11}, UINT64_MAX, UINT64_MAX - 3}) {
    const Result<void> read = file->read_at(offset, std::as_writable_bytes(std::span(bytes)));
    ASSERT_FALSE(read) << offset;
    EXPECT_EQ(read.error().code, ErrorCode::kInvalidData);
    EXPECT_THAT(read.error().message, HasSubstr("the file has 10"));
  }
}

TEST(File, NamesWhatItCannotOpen) {
  const TempFolder folder;
  const Result<File> missing = File::open(folder / "missing");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kIo);
  EXPECT_THAT(missing.error().message, HasSubstr("missing: open failed: No such file"));

  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(File::open(folder / "pipe").error().message,
              HasSubstr("is a named pipe"));  // and does not wait for a writer
  EXPECT_THAT(File::open(folder.path()).error().message, HasSubstr("is a directory"));
  EXPECT_THAT(File::open("/dev/null").error().message, HasSubstr("is a device"));
}

TEST(File, SaysWhenItShrank) {
  const TempFolder folder;
  write_text(folder / "a", "0123456789");
  const Result<File> file = File::open(folder / "a");
  ASSERT_EQ(::truncate((folder / "a").c_str(), 3), 0);
  char bytes[10];
  const Result<void> read = file->read_at(0, std::as_writable_bytes(std::span(bytes)));
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, ErrorCode::kIo);
  EXPECT_THAT(read.error().message, HasSubstr("ends at byte 3, but had 10 bytes"));
}

TEST(File, SurvivesShortAndInterruptedReads) {
  const TempFolder folder;
  std::string text(100'000, 'x');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 7);
  write_text(folder / "a", text);
  for (const Fault fault : {Fault::kShort, Fault::kInterrupted}) {
    const FailingCall failing(fault == Fault::kShort ? 1 : 2, fault);
    const Result<File> file = File::open(folder / "a");
    ASSERT_TRUE(file) << file.error().message;
    for (int i = 0; i < 3; ++i) {
      const Result<std::string> read = read_file(*file, text.size());
      ASSERT_TRUE(read) << read.error().message;
      EXPECT_EQ(*read, text);
    }
    EXPECT_TRUE(failing.fired());
  }
  EXPECT_THAT(read_file(*File::open(folder / "a"), 99'999).error().message, HasSubstr("has 100000 bytes"));
}

TEST(Directory, OpensPlainNamesOnly) {
  const TempFolder folder;
  write_text(folder / "in/a", "inside");
  write_text(folder / "secret", "outside");
  const Result<Directory> directory = Directory::open(folder / "in");
  ASSERT_TRUE(directory);
  EXPECT_TRUE(directory->open_file("a"));
  for (const std::string name : {"../secret", "", ".", "..", "/etc/passwd", "x/../a", "./a", "a\n"}) {
    const Result<File> file = directory->open_file(name);
    ASSERT_FALSE(file) << name;
    EXPECT_EQ(file.error().code, ErrorCode::kInvalidData) << name;
  }
  EXPECT_FALSE(directory->open_file(std::string("a\0b", 3)));
  EXPECT_FALSE(directory->open_file(std::string(256, 'a')));
}

// The rule: within the folder, or into the model hub's cache, in one step, to a regular file.
TEST(Directory, FollowsOnlyLinksThatStay) {
  const TempFolder folder;
  const std::string snapshot = folder / "model/snapshots/abc";
  std::filesystem::create_directories(snapshot);
  write_text(folder / "model/blobs/0123", "blob");
  write_text(folder / "secret", "outside");
  write_text(snapshot + "/real", "real");
  std::filesystem::create_directory(snapshot + "/subfolder");
  const auto link = [&](const char* name, const std::string& target) {
    std::filesystem::create_symlink(target, snapshot + '/' + name);
  };
  link("hub", "../../blobs/0123");
  link("sibling", "real");
  link("absolute", folder / "secret");
  link("up", "../../../secret");
  link("through_blobs", "../../blobs/../../secret");
  link("dangling", "nowhere");
  link("chain", "sibling");
  link("folder", "subfolder");
  link("loop", "loop");
  const Result<Directory> directory = Directory::open(snapshot);
  ASSERT_TRUE(directory);
  for (const auto& [name, text] : {std::pair("hub", "blob"), std::pair("sibling", "real")}) {
    const Result<File> file = directory->open_file(name);
    ASSERT_TRUE(file) << file.error().message;
    EXPECT_EQ(*read_file(*file, 100), text);
  }
  for (const char* name : {"absolute", "up", "through_blobs"})
    EXPECT_THAT(directory->open_file(name).error().message, HasSubstr("symbolic link that leaves its folder")) << name;
  for (const char* name : {"dangling", "chain", "folder", "loop"}) EXPECT_FALSE(directory->open_file(name)) << name;
  EXPECT_FALSE(directory->open_directory("folder"));
  EXPECT_TRUE(directory->open_directory("subfolder"));

  // A "blobs" that is itself a link leads anywhere.
  std::filesystem::rename(folder / "model/blobs", folder / "elsewhere");
  std::filesystem::create_symlink(folder / "elsewhere", folder / "model/blobs");
  EXPECT_FALSE(directory->open_file("hub"));
}

TEST(Directory, ListsAndLocks) {
  const TempFolder folder;
  write_text(folder / "b", "");
  write_text(folder / "a", "");
  std::filesystem::create_directory(folder / "c");
  std::filesystem::create_symlink("a", folder / "d");
  const Result<Directory> directory = Directory::open(folder.path()), again = Directory::open(folder.path());
  std::string listing;
  for (int i = 0; i < 2; ++i) {  // twice: a listing leaves no read position behind
    const auto entries = directory->list();
    for (const DirectoryEntry& entry : *entries) listing += entry.name + std::to_string(static_cast<int>(entry.kind));
  }
  EXPECT_EQ(listing, "a0b0c1d2a0b0c1d2");
  EXPECT_TRUE(directory->same_directory(*again));
  EXPECT_TRUE(*directory->try_lock());
  EXPECT_FALSE(*again->try_lock());
  EXPECT_TRUE(directory->remove_file("a"));
  EXPECT_TRUE(directory->remove_file("a"));  // gone already
  EXPECT_FALSE(directory->has("a"));
}

TEST(AtomicFile, AppearsWholeOnCommit) {
  const TempFolder folder;
  write_text(folder / "a", "old");
  {
    Result<AtomicFile> file = AtomicFile::create(folder / "a");
    ASSERT_TRUE(file) << file.error().message;
    ASSERT_TRUE(file->write("????"));
    ASSERT_TRUE(file->write("tail"));
    const std::string head = "head";
    ASSERT_TRUE(file->rewrite(0, std::as_bytes(std::span(head))));
    EXPECT_EQ(file->size(), 8u);
    EXPECT_EQ(read_text(folder / "a"), "old");
    ASSERT_TRUE(file->commit());
    EXPECT_EQ(read_text(folder / "a"), "headtail");
  }
  EXPECT_EQ(files_in(folder.path()), Names{"a"});
}

TEST(AtomicFile, LeavesNothingWithoutCommit) {
  const TempFolder folder;
  write_text(folder / "a", "old");
  {
    Result<AtomicFile> file = AtomicFile::create(folder / "a");
    ASSERT_TRUE(file->write("new"));
    AtomicFile moved = std::move(*file);
    EXPECT_EQ(files_in(folder.path()).size(), 2u);
  }
  EXPECT_EQ(read_text(folder / "a"), "old");
  EXPECT_EQ(files_in(folder.path()), Names{"a"});
}

TEST(AtomicFile, ReplacesALinkInsteadOfFollowingIt) {
  const TempFolder folder;
  write_text(folder / "target", "target");
  std::filesystem::create_symlink("target", folder / "a");
  ASSERT_TRUE(write_file(folder / "a", "new"));
  EXPECT_EQ(read_text(folder / "target"), "target");
  EXPECT_FALSE(std::filesystem::is_symlink(folder / "a"));
  EXPECT_EQ(read_text(folder / "a"), "new");
}

TEST(AtomicFile, RefusesImpossibleNames) {
  const TempFolder folder;
  EXPECT_EQ(AtomicFile::create(folder / "").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(AtomicFile::create(folder / "..").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(AtomicFile::create(folder / "no/such/folder").error().code, ErrorCode::kIo);
  std::filesystem::create_directory(folder / "folder");
  EXPECT_EQ(write_file(folder / "folder", "x").error().code, ErrorCode::kIo);
  EXPECT_TRUE(write_file(folder / std::string(255, 'n'), "x"));  // the temporary name is shortened to fit
  EXPECT_EQ(files_in(folder.path()), Names{std::string(255, 'n')});
}

// Every call in turn fails, in either way: the file is the old one or the new one, and nothing lies about.
TEST(AtomicFile, LeavesOldOrNewWhicheverCallFails) {
  for (const int error : {ENOSPC, EIO}) {
    int failures = 0;
    for (int nth = 1;; ++nth) {
      SCOPED_TRACE(fmt::format("{}, call {}", std::strerror(error), nth));
      const TempFolder folder;
      write_text(folder / "a", "old");
      const FailingCall failing(nth, Fault::kError, error);
      const Result<void> written = write_file(folder / "a", "new content");
      if (!failing.fired()) {
        ASSERT_TRUE(written) << written.error().message;
        break;
      }
      ++failures;
      ASSERT_FALSE(written);
      EXPECT_EQ(written.error().code, ErrorCode::kIo);
      EXPECT_THAT(written.error().message, HasSubstr(std::strerror(error)));
      EXPECT_EQ(files_in(folder.path()), Names{"a"});
      const std::string text = read_text(folder / "a");
      EXPECT_TRUE(text == "old" || text == "new content") << text;
    }
    EXPECT_EQ(failures, 6);  // open folder, create, write, fsync, rename, fsync folder
  }
}

TEST(AtomicFile, SurvivesShortAndInterruptedWrites) {
  const TempFolder folder;
  const std::string text(100'000, 'x');
  for (const Fault fault : {Fault::kShort, Fault::kInterrupted}) {
    const FailingCall failing(fault == Fault::kShort ? 1 : 2, fault);
    const Result<void> written = write_file(folder / "a", text);
    EXPECT_TRUE(written) << written.error().message;
    EXPECT_EQ(read_text(folder / "a"), text);
    ASSERT_TRUE(write_file(folder / "a", "old"));
    EXPECT_TRUE(failing.fired());
  }
}

TEST(AtomicFile, LeavesTheOldFileWhenTheDiskIsFull) {
  const TempFolder folder;
  write_text(folder / "a", "old");
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 100'000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Result<void> written = write_file(folder / "a", std::string(1 << 20, 'x'));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, ErrorCode::kIo);
  EXPECT_THAT(written.error().message, HasSubstr("write at byte 100000 failed: File too large"));
  EXPECT_EQ(read_text(folder / "a"), "old");
  EXPECT_EQ(files_in(folder.path()), Names{"a"});
}

// A child overwrites a file again and again, each time with other content; whenever it is killed, one whole content is
// there.
TEST(AtomicFile, IsWholeWheneverTheWriterIsKilled) {
  constexpr int kPoints = 500;
  constexpr size_t kPieces = 16, kPieceBytes = 32 << 10;
  const TempFolder folder;
  ASSERT_TRUE(write_file(folder / "a", std::string(kPieces * kPieceBytes, 'a')));
  std::mt19937 random(7);
  Names contents;
  for (int point = 0; point < kPoints; ++point) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (char letter = static_cast<char>('a' + point % 26);;
           letter = static_cast<char>(letter == 'z' ? 'a' : letter + 1)) {
        Result<AtomicFile> file = AtomicFile::create(folder / "a");
        const std::string piece(kPieceBytes, letter);
        for (size_t i = 0; i < kPieces; ++i)
          if (!file->write(piece)) ::_exit(1);
        if (!file->commit()) ::_exit(1);
      }
    }
    ::usleep(std::uniform_int_distribution<useconds_t>(0, 8000)(random));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child stopped by itself";
    const std::string text = read_text(folder / "a");
    ASSERT_EQ(text.size(), kPieces * kPieceBytes) << "point " << point;
    ASSERT_EQ(text.find_first_not_of(text[0]), std::string::npos) << "point " << point;
    contents.insert(text.substr(0, 1));
  }
  EXPECT_GT(contents.size(), 1u) << "the kills came before any write: nothing was tested";
  // What killed writers leave behind carries the mark by which the next writer finds it.
  for (const std::string& name : files_in(folder.path()))
    EXPECT_TRUE(name == "a" || name.find(AtomicFile::kTemporaryMark) != std::string::npos) << name;
}

}  // namespace
}  // namespace nybble::base
