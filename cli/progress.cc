// Draws over its own line with a carriage return.
#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

namespace nybble::cli {
namespace {

constexpr int kBarWidth = 30;
constexpr std::chrono::milliseconds kRedraw{100};

std::string clock_text(double seconds) {
  const long whole = std::lround(seconds);
  return whole < 3600 ? fmt::format("{}:{:02}", whole / 60, whole % 60)
                      : fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

}  // namespace

Progress::Progress(std::string what)
    : what_(std::move(what)), visible_(isatty(STDERR_FILENO) == 1), begin_(Clock::now()) {}

Progress::~Progress() { clear(); }

void Progress::clear() {
  if (!shown_) return;
  fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
  shown_ = false;
}

void Progress::update(int64_t done, int64_t total) {
  if (!visible_ || total <= 0) return;
  const Clock::time_point now = Clock::now();
  if (shown_ && now - drawn_ < kRedraw && done < total) return;
  drawn_ = now;
  shown_ = true;
  const double share = std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
  const double elapsed = std::chrono::duration<double>(now - begin_).count();
  const int filled = static_cast<int>(share * kBarWidth);
  const std::string left = share > 0 ? clock_text(elapsed / share - elapsed) + " left" : "";
  fmt::print(stderr, "\r{} [{}{}] {:3.0f} %  {}\x1b[K", what_, std::string(filled, '#'),
             std::string(kBarWidth - filled, '.'), share * 100, left);
  std::fflush(stderr);
}

}  // namespace nybble::cli
