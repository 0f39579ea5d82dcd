// System calls that fail on demand, for tests that ask what is left on disk then. The definitions below take the place
// of libc's in the program that includes this file, so exactly one source of a test program may.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>

namespace nybble::testing {

enum class Fault { kError, kShort, kInterrupted };

// While one lives, the nth intercepted call (counted from 1) fails once with `error`; or, for kShort, moves half of its
// bytes; or, for kInterrupted, is interrupted by a signal once (EINTR). kShort and kInterrupted: every nth call.
class FailingCall {
 public:
  FailingCall(int nth, Fault fault, int error = EIO) : nth_(nth), fault_(fault), error_(error) { active_ = this; }
  ~FailingCall() { active_ = nullptr; }
  FailingCall(const FailingCall&) = delete;
  FailingCall& operator=(const FailingCall&) = delete;

  bool fired() const { return fired_; }

  // What the call at hand shall do: 0: as usual; otherwise an errno. `bytes` may be made smaller.
  static int decide(size_t* bytes, bool interruptible) {
    if (active_ == nullptr) return 0;
    FailingCall& call = *active_;
    if (call.fault_ == Fault::kInterrupted && !interruptible) return 0;
    ++call.seen_;
    switch (call.fault_) {
      case Fault::kError:
        if (call.seen_ != call.nth_) return 0;
        call.fired_ = true;
        return call.error_;
      case Fault::kShort:
        if (bytes != nullptr && *bytes > 1 && call.seen_ % call.nth_ == 0) {
          *bytes = (*bytes + 1) / 2;
          call.fired_ = true;
        }
        return 0;
      case Fault::kInterrupted:
        if (call.seen_ % call.nth_ != 0) return 0;
        call.fired_ = true;
        return EINTR;
    }
    return 0;
  }

 private:
  static inline FailingCall* active_ = nullptr;
  int nth_;
  Fault fault_;
  int error_;
  int seen_ = 0;
  bool fired_ = false;
};

inline bool fails(size_t* bytes = nullptr, bool interruptible = true) {
  const int error = FailingCall::decide(bytes, interruptible);
  if (error != 0) errno = error;
  return error != 0;
}

}  // namespace nybble::testing

extern "C" {
int openat(int directory, const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  if (nybble::testing::fails()) return -1;
  return static_cast<int>(::syscall(SYS_openat, directory, path, flags, mode));
}
ssize_t pread(int fd, void* buffer, size_t bytes, off_t offset) {
  if (nybble::testing::fails(&bytes)) return -1;
  return ::syscall(SYS_pread64, fd, buffer, bytes, offset);
}
ssize_t pwrite(int fd, const void* buffer, size_t bytes, off_t offset) {
  if (nybble::testing::fails(&bytes)) return -1;
  return ::syscall(SYS_pwrite64, fd, buffer, bytes, offset);
}
int fsync(int fd) {
  if (nybble::testing::fails()) return -1;
  return static_cast<int>(::syscall(SYS_fsync, fd));
}
int renameat(int from_directory, const char* from, int to_directory, const char* to) noexcept {
  if (nybble::testing::fails(nullptr, false)) return -1;  // Linux never interrupts it
  return static_cast<int>(::syscall(SYS_renameat2, from_directory, from, to_directory, to, 0));
}
}
