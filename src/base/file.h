// Files: reads that are checked against the real size, and writes that appear whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nybble/result.h"

namespace nybble::base {

// An open descriptor that closes itself.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileDescriptor();

  int get() const { return fd_; }
  // Closes and reports the operating system's verdict: 0 or -1 with errno, as close().
  int close();

 private:
  int fd_ = -1;
};

class Directory;

// A regular file open for reading. Reads are positional (pread), so threads may share one. Not mapped: a file that
// shrinks under a mapping would be a SIGBUS, here it is an error.
class File {
 public:
  // `path` comes from the user, so symbolic links are followed; anything but a regular file is refused.
  static Result<File> open(const std::string& path);

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }  // as of open()

  // Fills `out` with the bytes from `offset` on, all of them or an error. A range beyond size() is kInvalidData.
  Result<void> read_at(uint64_t offset, std::span<std::byte> out) const;

  // Whether both are the same file on disk, under whatever names.
  bool same_file(const File& other) const { return device_ == other.device_ && inode_ == other.inode_; }

 private:
  friend class Directory;
  static Result<File> adopt(FileDescriptor fd, std::string path);

  FileDescriptor fd_;
  std::string path_;
  uint64_t size_ = 0;
  uint64_t device_ = 0, inode_ = 0;
};

enum class EntryKind : uint8_t { kFile, kDirectory, kLink, kOther };

struct DirectoryEntry {
  std::string name;
  EntryKind kind;
};

// A directory held by its handle: what is opened through it stays inside it, even if someone renames things meanwhile.
class Directory {
 public:
  static Result<Directory> open(const std::string& path);

  const std::string& path() const { return path_; }

  // Sorted by name, without "." and "..".
  Result<std::vector<DirectoryEntry>> list() const;
  bool has(const std::string& name) const;

  // `name` is a plain base name that may come from a hostile file. A symbolic link is followed only to a regular file
  // of this same directory or to a blob of the model hub's cache (the link reads ../../blobs/NAME, with any number of
  // "../" up to 8): everything else could smuggle a foreign file into what is read, copied and published.
  Result<File> open_file(const std::string& name) const;
  // A subdirectory; never through a symbolic link.
  Result<Directory> open_directory(const std::string& name) const;

  bool same_directory(const Directory& other) const { return device_ == other.device_ && inode_ == other.inode_; }

  // Takes an exclusive lock that ends with this object; false: someone else holds it.
  Result<bool> try_lock() const;
  // Deletes a file if it is there. sync() makes that durable.
  Result<void> remove_file(const std::string& name) const;
  // Deletes the temporary files that killed AtomicFiles left.
  Result<void> remove_temporaries() const;
  Result<void> sync() const;

 private:
  static Result<Directory> adopt(FileDescriptor fd, std::string path);

  FileDescriptor fd_;
  std::string path_;
  uint64_t device_ = 0, inode_ = 0;
};

// A name that stays in its directory: not empty, at most 255 bytes, no '/', no control character, neither "." nor "..".
bool is_plain_name(std::string_view name);

// A file being written. Nothing exists under `path` until commit(): the bytes go to a temporary file beside it, which
// commit() makes durable (fsync), renames over `path` (a symbolic link there is replaced, not followed) and whose
// directory it makes durable as well. Without commit() the temporary file is removed and what was at `path` is
// untouched.
class AtomicFile {
 public:
  static Result<AtomicFile> create(const std::string& path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&& other) noexcept;
  ~AtomicFile();

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }  // bytes written so far

  Result<void> write(std::span<const std::byte> bytes);  // appends
  Result<void> write(std::string_view text) { return write(std::as_bytes(std::span(text.data(), text.size()))); }
  // Overwrites bytes that were written before: for a header that is known last.
  Result<void> rewrite(uint64_t offset, std::span<const std::byte> bytes);
  Result<void> commit();

  // The temporary files of a writer that was killed are recognized by this in their name.
  static constexpr std::string_view kTemporaryMark = ".nybble-tmp.";

 private:
  AtomicFile() = default;
  void discard();
  Result<void> write_at(uint64_t offset, std::span<const std::byte> bytes);

  FileDescriptor directory_, fd_;
  std::string path_, name_, temporary_;  // temporary_ is empty once there is nothing to remove
  uint64_t size_ = 0;
};

Result<void> write_file(const std::string& path, std::string_view text);  // atomically

// The whole of a file that should be small; larger than max_bytes is kInvalidData.
Result<std::string> read_file(const File& file, uint64_t max_bytes);

}  // namespace nybble::base
