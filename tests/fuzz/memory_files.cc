#include "fuzz/memory_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstring>
#include <string_view>
#include <vector>

namespace nybble::fuzz {
namespace {

struct MemoryFile {
  std::string name;
  std::span<const uint8_t> bytes;
};
std::vector<MemoryFile> files;

// Descriptors far above what a process may open: the folder's, then one for each file.
constexpr int kFolderDescriptor = 1 << 30;
constexpr int kFirstFile = kFolderDescriptor + 1;

bool is_ours(int fd) { return fd >= kFolderDescriptor; }

int find_file(std::string_view name) {
  for (size_t i = 0; i < files.size(); ++i)
    if (files[i].name == name) return static_cast<int>(i);
  return -1;
}

// What `path`, as seen from `directory`, names: "" the folder itself, otherwise a name in it; false: none of it is
// here.
bool name_here(int directory, const char* path, std::string_view& name) {
  if (directory == kFolderDescriptor) {
    name = std::string_view(path) == "." ? "" : path;
    return true;
  }
  std::string_view text = path;
  if (directory != AT_FDCWD || !text.starts_with(kFolder)) return false;
  text.remove_prefix(std::strlen(kFolder));
  if (!text.empty() && text[0] != '/') return false;
  name = text.empty() ? text : text.substr(1);
  return true;
}

int fail(int error) {
  errno = error;
  return -1;
}

int describe(std::string_view name, struct stat* status) {
  std::memset(status, 0, sizeof *status);
  if (name.empty()) {
    status->st_mode = S_IFDIR | 0700;
    return 0;
  }
  const int index = find_file(name);
  if (index < 0) return fail(ENOENT);
  status->st_mode = S_IFREG | 0600;
  status->st_size = static_cast<off_t>(files[static_cast<size_t>(index)].bytes.size());
  status->st_ino = static_cast<ino_t>(index + 1);
  return 0;
}

// The folder's stream; only one is read at a time.
struct Listing {
  size_t next = 0;
  dirent entry{};
} listing;

}  // namespace

void set_memory_files(const std::map<std::string, std::span<const uint8_t>>& named) {
  files.clear();
  for (const auto& [name, bytes] : named) files.push_back({name, bytes});
}

}  // namespace nybble::fuzz

// The linker's --wrap sends calls of NAME to __wrap_NAME and calls of __real_NAME to the system's.
using namespace nybble::fuzz;
extern "C" {
int __real_openat(int directory, const char* path, int flags, ...);
int __real_close(int fd);
int __real_stat(const char* path, struct stat* status);
int __real_fstat(int fd, struct stat* status);
int __real_fstatat(int directory, const char* path, struct stat* status, int flags);
ssize_t __real_pread(int fd, void* out, size_t count, off_t offset);
DIR* __real_fdopendir(int fd);
dirent* __real_readdir(DIR* stream);
int __real_closedir(DIR* stream);

int __wrap_openat(int directory, const char* path, int flags, ...) {
  std::string_view name;
  if (name_here(directory, path, name)) {
    if (name.empty()) return kFolderDescriptor;
    const int index = find_file(name);
    if (index < 0) return fail(ENOENT);
    return (flags & O_DIRECTORY) != 0 ? fail(ENOTDIR) : kFirstFile + index;
  }
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = va_arg(arguments, mode_t);
  va_end(arguments);
  return __real_openat(directory, path, flags, mode);
}

int __wrap_close(int fd) { return is_ours(fd) ? 0 : __real_close(fd); }

int __wrap_stat(const char* path, struct stat* status) {
  std::string_view name;
  return name_here(AT_FDCWD, path, name) ? describe(name, status) : __real_stat(path, status);
}

int __wrap_fstat(int fd, struct stat* status) {
  if (!is_ours(fd)) return __real_fstat(fd, status);
  return describe(fd == kFolderDescriptor ? "" : files[static_cast<size_t>(fd - kFirstFile)].name, status);
}

int __wrap_fstatat(int directory, const char* path, struct stat* status, int flags) {
  std::string_view name;
  return name_here(directory, path, name) ? describe(name, status) : __real_fstatat(directory, path, status, flags);
}

ssize_t __wrap_pread(int fd, void* out, size_t count, off_t offset) {
  if (!is_ours(fd)) return __real_pread(fd, out, count, offset);
  const std::span<const uint8_t> bytes = files[static_cast<size_t>(fd - kFirstFile)].bytes;
  if (static_cast<size_t>(offset) >= bytes.size()) return 0;
  count = std::min(count, bytes.size() - static_cast<size_t>(offset));
  std::memcpy(out, bytes.data() + offset, count);
  return static_cast<ssize_t>(count);
}

DIR* __wrap_fdopendir(int fd) {
  if (!is_ours(fd)) return __real_fdopendir(fd);
  listing = {};
  return reinterpret_cast<DIR*>(&listing);
}

dirent* __wrap_readdir(DIR* stream) {
  if (stream != reinterpret_cast<DIR*>(&listing)) return __real_readdir(stream);
  if (listing.next == files.size()) return nullptr;
  const std::string& name = files[listing.next++].name;
  std::strncpy(listing.entry.d_name, name.c_str(), sizeof listing.entry.d_name - 1);
  return &listing.entry;
}

int __wrap_closedir(DIR* stream) { return stream == reinterpret_cast<DIR*>(&listing) ? 0 : __real_closedir(stream); }

// One processor: the library's own threads would only wait for each other on inputs of a few bytes.
int __wrap_sched_getaffinity(pid_t, size_t size, cpu_set_t* set) {
  std::memset(set, 0, size);
  CPU_SET(0, set);
  return 0;
}
}
