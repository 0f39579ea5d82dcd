// Loaded into the command with LD_PRELOAD: the nth system call that touches a file below one folder fails, or the
// process dies at it as by kill -9. So tests/cli/faults_test.py asks what is on disk after each. Set by environment:
//   NYBBLE_FAULT_ROOT  the folder; without it nothing is counted
//   NYBBLE_FAULT_LOG   gets a line "CALL PATH" for every call counted
//   NYBBLE_FAULT_NTH   which call, from 1; without it none fails
//   NYBBLE_FAULT       an errno, or kill-before, kill-after, or kill-within: half of the bytes of a write get there
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

namespace {

enum class Fault { kNone, kError, kKillBefore, kKillAfter, kKillWithin };

struct Settings {
  std::string root;
  int log = -1;
  long nth = 0;
  Fault fault = Fault::kNone;
  int error = 0;
};

template <class Function> Function* next(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

const char* text_of(const char* variable) {
  const char* text = std::getenv(variable);
  return text != nullptr ? text : "";
}

Settings read_settings() {
  Settings settings{.root = text_of("NYBBLE_FAULT_ROOT"), .nth = std::atol(text_of("NYBBLE_FAULT_NTH"))};
  const std::string_view fault = text_of("NYBBLE_FAULT");
  if (fault == "kill-before") settings.fault = Fault::kKillBefore;
  if (fault == "kill-after") settings.fault = Fault::kKillAfter;
  if (fault == "kill-within") settings.fault = Fault::kKillWithin;
  settings.error = std::atoi(text_of("NYBBLE_FAULT"));
  if (settings.error != 0) settings.fault = Fault::kError;
  if (const char* log = std::getenv("NYBBLE_FAULT_LOG"))
    settings.log = next<int(const char*, int, ...)>("open")(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  return settings;
}

const Settings& settings() {
  static const Settings settings = read_settings();
  return settings;
}

std::string path_of(int fd) {
  if (fd == AT_FDCWD) return {};
  char link[64], path[4096];
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = ::readlink(link, path, sizeof path);
  return length < 0 ? std::string() : std::string(path, static_cast<size_t>(length));
}

std::string path_of(int directory, const char* name) {
  return name[0] == '/' || directory == AT_FDCWD ? name : path_of(directory) + '/' + name;
}

// What a call does: as usual, or with an error, or as the last thing before the process dies.
enum class Verdict { kAsUsual, kFail, kDieBefore, kDieAfter, kDieWithin };

Verdict judge(const char* call, const std::string& path) {
  static std::atomic<long> seen{0};
  const Settings& set = settings();
  if (set.root.empty() || !path.starts_with(set.root)) return Verdict::kAsUsual;
  if (set.log >= 0) {
    const std::string line = std::string(call) + ' ' + path + '\n';
    if (next<ssize_t(int, const void*, size_t)>("write")(set.log, line.data(), line.size()) < 0) std::abort();
  }
  if (++seen != set.nth) return Verdict::kAsUsual;
  switch (set.fault) {
    case Fault::kNone:
      return Verdict::kAsUsual;
    case Fault::kError:
      return Verdict::kFail;
    case Fault::kKillBefore:
      return Verdict::kDieBefore;
    case Fault::kKillAfter:
      return Verdict::kDieAfter;
    case Fault::kKillWithin:
      return Verdict::kDieWithin;
  }
  return Verdict::kAsUsual;
}

[[noreturn]] void die() {
  ::kill(::getpid(), SIGKILL);
  for (;;) ::pause();
}

// `run` makes the real call. A close that fails has closed all the same, as Linux does it.
template <class Run> auto guarded(const char* call, const std::string& path, const Run& run) -> decltype(run()) {
  const Verdict verdict = judge(call, path);
  if (verdict == Verdict::kDieBefore) die();
  if (verdict == Verdict::kFail) {
    if (std::string_view(call) == "close") run();
    errno = settings().error;
    return -1;
  }
  const auto result = run();
  if (verdict != Verdict::kAsUsual) die();
  return result;
}

template <class Run> ssize_t guarded_write(const char* call, int fd, size_t bytes, const Run& run) {
  const Verdict verdict = judge(call, path_of(fd));
  if (verdict == Verdict::kDieBefore) die();
  if (verdict == Verdict::kFail) {
    errno = settings().error;
    return -1;
  }
  const ssize_t result = run(verdict == Verdict::kDieWithin ? bytes / 2 : bytes);
  if (verdict != Verdict::kAsUsual) die();
  return result;
}

}  // namespace

extern "C" {
int openat(int directory, const char* name, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  return guarded("openat", path_of(directory, name),
                 [&] { return next<int(int, const char*, int, ...)>("openat")(directory, name, flags, mode); });
}
int open(const char* name, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  return guarded("open", name, [&] { return next<int(const char*, int, ...)>("open")(name, flags, mode); });
}
ssize_t pread(int fd, void* buffer, size_t bytes, off_t offset) {
  return guarded("pread", path_of(fd),
                 [&] { return next<ssize_t(int, void*, size_t, off_t)>("pread")(fd, buffer, bytes, offset); });
}
ssize_t write(int fd, const void* buffer, size_t bytes) {
  return guarded_write("write", fd, bytes,
                       [&](size_t part) { return next<ssize_t(int, const void*, size_t)>("write")(fd, buffer, part); });
}
ssize_t pwrite(int fd, const void* buffer, size_t bytes, off_t offset) {
  return guarded_write("pwrite", fd, bytes, [&](size_t part) {
    return next<ssize_t(int, const void*, size_t, off_t)>("pwrite")(fd, buffer, part, offset);
  });
}
int fsync(int fd) {
  return guarded("fsync", path_of(fd), [&] { return next<int(int)>("fsync")(fd); });
}
int ftruncate(int fd, off_t length) noexcept {
  return guarded("ftruncate", path_of(fd), [&] { return next<int(int, off_t)>("ftruncate")(fd, length); });
}
int close(int fd) {
  return guarded("close", path_of(fd), [&] { return next<int(int)>("close")(fd); });
}
int mkdir(const char* name, mode_t mode) noexcept {
  return guarded("mkdir", name, [&] { return next<int(const char*, mode_t)>("mkdir")(name, mode); });
}
int flock(int fd, int operation) noexcept {
  return guarded("flock", path_of(fd), [&] { return next<int(int, int)>("flock")(fd, operation); });
}
int renameat(int from_directory, const char* from, int to_directory, const char* to) noexcept {
  return guarded("renameat", path_of(to_directory, to), [&] {
    return next<int(int, const char*, int, const char*)>("renameat")(from_directory, from, to_directory, to);
  });
}
int unlinkat(int directory, const char* name, int flags) noexcept {
  return guarded("unlinkat", path_of(directory, name),
                 [&] { return next<int(int, const char*, int)>("unlinkat")(directory, name, flags); });
}
}
