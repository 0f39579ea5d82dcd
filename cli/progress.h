// A bar with the time to go, on stderr, where a person looks at it; nothing in a pipe or a log.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

namespace nybble::cli {

class Progress {
 public:
  explicit Progress(std::string what);
  ~Progress();  // clears the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(int64_t done, int64_t total);
  void clear();  // for a line of output; the next update draws the bar again
  // For a function that reports its progress to a callback.
  std::function<void(int64_t, int64_t)> callback() {
    return [this](int64_t done, int64_t total) { update(done, total); };
  }

 private:
  using Clock = std::chrono::steady_clock;

  std::string what_;
  bool shown_ = false;
  bool visible_;
  Clock::time_point begin_, drawn_;
};

}  // namespace nybble::cli
