#include "workers.h"

#include <algorithm>

namespace llama {

Workers::Workers(int num_threads) {
  const int count = num_threads > 0 ? num_threads : std::max(1u, std::thread::hardware_concurrency());
  for (int i = 1; i < count; ++i) threads_.emplace_back([this] { work(); });
}

Workers::~Workers() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Workers::run(int64_t items, const std::function<void(int64_t)>& body) {
  if (threads_.empty() || items <= 1) {
    for (int64_t item = 0; item < items; ++item) body(item);
    return;
  }
  {
    std::lock_guard lock(mutex_);
    body_ = &body;
    items_ = items;
    next_ = 0;
    active_ = static_cast<int>(threads_.size());
    ++generation_;
  }
  wake_.notify_all();
  for (int64_t item; (item = next_.fetch_add(1)) < items;) body(item);
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return active_ == 0; });
}

void Workers::work() {
  uint64_t seen = 0;
  for (;;) {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
    if (stop_) return;
    seen = generation_;
    const auto& body = *body_;
    const int64_t items = items_;
    lock.unlock();
    for (int64_t item; (item = next_.fetch_add(1)) < items;) body(item);
    lock.lock();
    if (--active_ == 0) done_.notify_one();
  }
}

}  // namespace llama
