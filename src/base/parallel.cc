#include "base/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace nybble::base {
namespace {

constexpr int kMaxThreads = 1024;

thread_local bool inside_parallel_for = false;

struct Job {
  std::atomic<int64_t> next{0};
  int64_t count = 0;
  const std::function<void(int64_t)>* body = nullptr;

  void run() {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < count;) (*body)(item);
  }
};

// Workers sleep between jobs. One job at a time: a second caller waits its turn on `callers`.
class Pool {
 public:
  static Pool& instance() {
    static Pool* pool = new Pool;  // never destroyed: workers may outlive static destructors
    return *pool;
  }

  void run(Job& job, int helpers) {
    std::lock_guard one_job(callers_);
    {
      std::lock_guard lock(mutex_);
      hire(helpers);
      job_ = &job;
      wanted_ = std::min(helpers, workers_);
      active_ = 0;
      ++generation_;
    }
    wake_.notify_all();
    job.run();
    std::unique_lock lock(mutex_);
    wanted_ = 0;  // late risers find nothing to do
    idle_.wait(lock, [this] { return active_ == 0; });
    job_ = nullptr;
  }

 private:
  // Where the system gives no more threads, fewer do the work.
  void hire(int helpers) {
    try {
      for (; workers_ < helpers; ++workers_) std::thread([this] { work(); }).detach();
    } catch (const std::system_error&) {
    }
  }

  void work() {
    inside_parallel_for = true;
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen && wanted_ > 0; });
      seen = generation_;
      --wanted_;
      ++active_;
      Job* job = job_;
      lock.unlock();
      job->run();
      lock.lock();
      if (--active_ == 0) idle_.notify_one();
    }
  }

  std::mutex callers_, mutex_;
  std::condition_variable wake_, idle_;
  Job* job_ = nullptr;
  int workers_ = 0, wanted_ = 0, active_ = 0;
  uint64_t generation_ = 0;
};

}  // namespace

int default_threads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

void parallel_for(int64_t count, int num_threads, const std::function<void(int64_t)>& body) {
  if (count <= 0) return;
  const int64_t threads = std::min<int64_t>({count, num_threads > 0 ? num_threads : default_threads(), kMaxThreads});
  Job job;
  job.count = count;
  job.body = &body;
  if (threads <= 1 || inside_parallel_for) {
    job.run();
    return;
  }
  inside_parallel_for = true;
  Pool::instance().run(job, static_cast<int>(threads) - 1);
  inside_parallel_for = false;
}

}  // namespace nybble::base
