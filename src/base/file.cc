#include "base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "base/check.h"
#include "base/error.h"

namespace nybble::base {
namespace {

// One call moves at most this much: the kernel's own limit is just below 2 GiB.
constexpr size_t kMaxCallBytes = 1u << 30;

Error system_error(std::string_view call, std::string_view path, int error) {
  return io_error("{}: {} failed: {} (errno {})", path, call, std::strerror(error), error);
}

std::string join(const std::string& directory, std::string_view name) {
  return directory.ends_with('/') ? directory + std::string(name) : directory + '/' + std::string(name);
}

// openat that starts again when a signal interrupts it.
int open_retrying(int directory, const char* name, int flags, mode_t mode = 0) {
  int fd;
  do fd = ::openat(directory, name, flags | O_CLOEXEC, mode);
  while (fd < 0 && errno == EINTR);
  return fd;
}

Result<void> sync_retrying(int fd, std::string_view path) {
  int status;
  do status = ::fsync(fd);
  while (status != 0 && errno == EINTR);
  if (status != 0) return system_error("fsync", path, errno);
  return {};
}

const char* kind_of_file(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a named pipe";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  return "not a regular file";
}

// O_NONBLOCK: opening a named pipe must come back to be refused, not wait for a writer.
constexpr int kReadFlags = O_RDONLY | O_NONBLOCK | O_NOCTTY;

// "../../blobs" of a link "../../blobs/NAME", and NAME. Empty: the link is none of the model hub's cache.
std::pair<std::string, std::string> hub_cache_target(const std::string& link) {
  constexpr int kMaxUp = 8;
  size_t at = 0;
  int up = 0;
  while (link.compare(at, 3, "../") == 0) at += 3, ++up;
  if (up < 2 || up > kMaxUp || link.compare(at, 6, "blobs/") != 0) return {};
  const std::string name = link.substr(at + 6);
  if (!is_plain_name(name)) return {};
  return {link.substr(0, at + 5), name};
}

}  // namespace

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) ::close(fd_);
}

int FileDescriptor::close() { return ::close(std::exchange(fd_, -1)); }

bool is_plain_name(std::string_view name) {
  if (name.empty() || name.size() > 255 || name == "." || name == "..") return false;
  return std::all_of(name.begin(), name.end(), [](char c) { return c != '/' && c != 127 && (c < 0 || c >= 32); });
}

Result<File> File::adopt(FileDescriptor fd, std::string path) {
  struct stat status;
  if (::fstat(fd.get(), &status) != 0) return system_error("fstat", path, errno);
  if (!S_ISREG(status.st_mode))
    return invalid_argument("{}: is {}; a regular file is needed", path, kind_of_file(status.st_mode));
  File file;
  file.fd_ = std::move(fd);
  file.path_ = std::move(path);
  file.size_ = static_cast<uint64_t>(status.st_size);
  file.device_ = status.st_dev;
  file.inode_ = status.st_ino;
  return file;
}

Result<File> File::open(const std::string& path) {
  FileDescriptor fd(open_retrying(AT_FDCWD, path.c_str(), kReadFlags));
  if (fd.get() < 0) return system_error("open", path, errno);
  return adopt(std::move(fd), path);
}

Result<void> File::read_at(uint64_t offset, std::span<std::byte> out) const {
  if (offset > size_ || out.size() > size_ - offset)
    return invalid_data("{}: bytes {} to {} are wanted, but the file has {}", path_, offset, offset + out.size(),
                        size_);
  while (!out.empty()) {
    const ssize_t got = ::pread(fd_.get(), out.data(), std::min(out.size(), kMaxCallBytes), static_cast<off_t>(offset));
    if (got < 0) {
      if (errno == EINTR) continue;
      return io_error("{}: read at byte {} failed: {} (errno {})", path_, offset, std::strerror(errno), errno);
    }
    if (got == 0)
      return io_error("{}: ends at byte {}, but had {} bytes when it was opened: something cut it meanwhile", path_,
                      offset, size_);
    offset += static_cast<uint64_t>(got);
    out = out.subspan(static_cast<size_t>(got));
  }
  return {};
}

Result<Directory> Directory::adopt(FileDescriptor fd, std::string path) {
  struct stat status;
  if (::fstat(fd.get(), &status) != 0) return system_error("fstat", path, errno);
  Directory directory;
  directory.fd_ = std::move(fd);
  directory.path_ = std::move(path);
  directory.device_ = status.st_dev;
  directory.inode_ = status.st_ino;
  return directory;
}

Result<Directory> Directory::open(const std::string& path) {
  FileDescriptor fd(open_retrying(AT_FDCWD, path.c_str(), O_RDONLY | O_DIRECTORY));
  if (fd.get() < 0) return system_error("open directory", path, errno);
  return adopt(std::move(fd), path);
}

Result<std::vector<DirectoryEntry>> Directory::list() const {
  // A descriptor of its own: fdopendir takes over the one it gets, and the read position is shared between copies.
  const int fd = open_retrying(fd_.get(), ".", O_RDONLY | O_DIRECTORY);
  if (fd < 0) return system_error("open directory", path_, errno);
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(fd), ::closedir);
  if (!stream) {
    const int error = errno;
    ::close(fd);
    return system_error("fdopendir", path_, error);
  }
  std::vector<DirectoryEntry> entries;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(stream.get());
    if (entry == nullptr) {
      if (errno != 0) return system_error("readdir", path_, errno);
      break;
    }
    const std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    struct stat status;
    if (::fstatat(fd_.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
      if (errno == ENOENT) continue;  // gone since readdir saw it
      return system_error("stat", join(path_, name), errno);
    }
    entries.push_back({name, S_ISREG(status.st_mode)   ? EntryKind::kFile
                             : S_ISDIR(status.st_mode) ? EntryKind::kDirectory
                             : S_ISLNK(status.st_mode) ? EntryKind::kLink
                                                       : EntryKind::kOther});
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return entries;
}

bool Directory::has(const std::string& name) const {
  struct stat status;
  return ::fstatat(fd_.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0;
}

Result<File> Directory::open_file(const std::string& name) const {
  if (!is_plain_name(name))
    return invalid_data("{}: a file name in it must be a plain name that stays in the folder", path_);
  const std::string path = join(path_, name);
  FileDescriptor fd(open_retrying(fd_.get(), name.c_str(), kReadFlags | O_NOFOLLOW));
  if (fd.get() >= 0) return File::adopt(std::move(fd), path);
  if (errno != ELOOP) return system_error("open", path, errno);

  char text[4096];
  const ssize_t length = ::readlinkat(fd_.get(), name.c_str(), text, sizeof text);
  if (length < 0) return system_error("readlink", path, errno);
  const std::string link(text, static_cast<size_t>(length));
  const auto [blobs, blob] = hub_cache_target(link);
  FileDescriptor target;
  if (is_plain_name(link)) {
    target = FileDescriptor(open_retrying(fd_.get(), link.c_str(), kReadFlags | O_NOFOLLOW));
  } else if (!blob.empty()) {
    const FileDescriptor folder(open_retrying(fd_.get(), blobs.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
    if (folder.get() < 0) return system_error("open the folder that the symbolic link names", path, errno);
    target = FileDescriptor(open_retrying(folder.get(), blob.c_str(), kReadFlags | O_NOFOLLOW));
  } else {
    return invalid_data(
        "{}: is a symbolic link that leaves its folder; followed are links within the folder and to "
        "../../blobs/NAME of the model hub's cache. Copy the file here instead",
        path);
  }
  if (target.get() < 0) return system_error("open the target of the symbolic link", path, errno);
  return File::adopt(std::move(target), path);
}

Result<Directory> Directory::open_directory(const std::string& name) const {
  if (!is_plain_name(name)) return invalid_data("{}: a folder name in it must be a plain name", path_);
  const std::string path = join(path_, name);
  FileDescriptor fd(open_retrying(fd_.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
  if (fd.get() < 0) return system_error("open directory", path, errno);
  return adopt(std::move(fd), path);
}

Result<bool> Directory::try_lock() const {
  int status;
  do status = ::flock(fd_.get(), LOCK_EX | LOCK_NB);
  while (status != 0 && errno == EINTR);
  if (status == 0) return true;
  if (errno == EWOULDBLOCK) return false;
  return system_error("flock", path_, errno);
}

Result<void> Directory::remove_file(const std::string& name) const {
  NYBBLE_CHECK(is_plain_name(name), "only names within the folder are removed");
  if (::unlinkat(fd_.get(), name.c_str(), 0) != 0 && errno != ENOENT)
    return system_error("unlink", join(path_, name), errno);
  return {};
}

Result<void> Directory::remove_temporaries() const {
  const Result<std::vector<DirectoryEntry>> entries = list();
  if (!entries) return entries.error();
  for (const DirectoryEntry& entry : *entries) {
    if (entry.kind != EntryKind::kFile || !entry.name.starts_with('.')) continue;
    if (entry.name.find(AtomicFile::kTemporaryMark) == std::string::npos) continue;
    if (Result<void> removed = remove_file(entry.name); !removed) return removed;
  }
  return {};
}

Result<void> Directory::sync() const { return sync_retrying(fd_.get(), path_); }

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : directory_(std::move(other.directory_)),
      fd_(std::move(other.fd_)),
      path_(std::move(other.path_)),
      name_(std::move(other.name_)),
      temporary_(std::exchange(other.temporary_, {})),
      size_(other.size_) {}

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  if (this == &other) return *this;
  discard();
  directory_ = std::move(other.directory_);
  fd_ = std::move(other.fd_);
  path_ = std::move(other.path_);
  name_ = std::move(other.name_);
  temporary_ = std::exchange(other.temporary_, {});
  size_ = other.size_;
  return *this;
}

AtomicFile::~AtomicFile() { discard(); }

void AtomicFile::discard() {
  if (!temporary_.empty()) ::unlinkat(directory_.get(), temporary_.c_str(), 0);
  temporary_.clear();
}

Result<AtomicFile> AtomicFile::create(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  AtomicFile file;
  file.path_ = path;
  file.name_ = slash == std::string::npos ? path : path.substr(slash + 1);
  if (!is_plain_name(file.name_)) return invalid_argument("'{}' names no file to write", path);
  file.directory_ = FileDescriptor(open_retrying(AT_FDCWD, folder.c_str(), O_RDONLY | O_DIRECTORY));
  if (file.directory_.get() < 0) return system_error("open directory", folder, errno);

  // The process id and a counter keep writers apart; O_EXCL decides, whoever else uses such a name.
  static std::atomic<unsigned> counter{0};
  constexpr int kAttempts = 100;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const std::string suffix = fmt::format("{}{}.{}", kTemporaryMark, ::getpid(), counter.fetch_add(1));
    const std::string temporary = '.' + file.name_.substr(0, 254 - suffix.size()) + suffix;
    file.fd_ = FileDescriptor(
        open_retrying(file.directory_.get(), temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0666));
    if (file.fd_.get() >= 0) {
      file.temporary_ = temporary;
      return file;
    }
    if (errno != EEXIST) break;
  }
  return system_error("create a temporary file beside it", path, errno);
}

Result<void> AtomicFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  NYBBLE_CHECK(fd_.get() >= 0, "an AtomicFile is written between create() and commit()");
  while (!bytes.empty()) {
    const ssize_t done =
        ::pwrite(fd_.get(), bytes.data(), std::min(bytes.size(), kMaxCallBytes), static_cast<off_t>(offset));
    if (done < 0) {
      if (errno == EINTR) continue;
      return io_error("{}: write at byte {} failed: {} (errno {}); the file was left as it was", path_, offset,
                      std::strerror(errno), errno);
    }
    if (done == 0) return io_error("{}: write at byte {} makes no progress", path_, offset);
    offset += static_cast<uint64_t>(done);
    bytes = bytes.subspan(static_cast<size_t>(done));
  }
  return {};
}

Result<void> AtomicFile::write(std::span<const std::byte> bytes) {
  if (Result<void> written = write_at(size_, bytes); !written) return written;
  size_ += bytes.size();
  return {};
}

Result<void> AtomicFile::rewrite(uint64_t offset, std::span<const std::byte> bytes) {
  NYBBLE_CHECK(offset <= size_ && bytes.size() <= size_ - offset, "rewrite() stays within what was written");
  return write_at(offset, bytes);
}

Result<void> AtomicFile::commit() {
  NYBBLE_CHECK(!temporary_.empty(), "an AtomicFile is committed once");
  if (Result<void> synced = sync_retrying(fd_.get(), path_); !synced) return synced;
  if (fd_.close() != 0) return system_error("close", path_, errno);
  if (::renameat(directory_.get(), temporary_.c_str(), directory_.get(), name_.c_str()) != 0)
    return system_error("rename", path_, errno);
  temporary_.clear();
  return sync_retrying(directory_.get(), path_);
}

Result<void> write_file(const std::string& path, std::string_view text) {
  Result<AtomicFile> file = AtomicFile::create(path);
  if (!file) return file.error();
  if (Result<void> written = file->write(text); !written) return written;
  return file->commit();
}

Result<std::string> read_file(const File& file, uint64_t max_bytes) {
  if (file.size() > max_bytes)
    return invalid_data("{}: has {} bytes; such a file has at most {}", file.path(), file.size(), max_bytes);
  std::string text(file.size(), '\0');
  if (Result<void> read = file.read_at(0, std::as_writable_bytes(std::span(text.data(), text.size()))); !read)
    return read.error();
  return text;
}

}  // namespace nybble::base
