// Replays between events, with a pause before and the SMs' clocks read at both ends.
#include "bench/graph_timer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>

#include "bench/device_probe.h"

namespace nybble::bench {

Result<void> GraphTimer::open(const Device& device) {
  device_ = device;
  NYBBLE_CUDA(cudaSetDevice(device_.ordinal));
  cudaStream_t stream;
  NYBBLE_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  stream_.reset(stream);
  for (Event* event : {&begin_, &end_}) {
    cudaEvent_t created;
    NYBBLE_CUDA(cudaEventCreate(&created));
    event->reset(created);
  }
  return stamps_.reserve(2 * device_.num_sms * sizeof(ClockStamp));
}

Result<GraphExec> GraphTimer::capture(const std::function<Result<void>()>& enqueue) {
  NYBBLE_CUDA(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
  const Result<void> enqueued = enqueue();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream_.get(), &graph);
  const std::unique_ptr<CUgraph_st, Destroyer<cudaGraphDestroy>> owner(graph);
  if (!enqueued) return enqueued.error();
  if (ended != cudaSuccess) return runtime::cuda_failure(ended, "cudaStreamEndCapture");
  cudaGraphExec_t exec;
  NYBBLE_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  return GraphExec(exec);
}

Result<double> GraphTimer::replay(const GraphExec& graph, int times) {
  NYBBLE_CUDA(cudaEventRecord(begin_.get(), stream_.get()));
  for (int i = 0; i < times; ++i) NYBBLE_CUDA(cudaGraphLaunch(graph.get(), stream_.get()));
  NYBBLE_CUDA(cudaEventRecord(end_.get(), stream_.get()));
  NYBBLE_CUDA(cudaStreamSynchronize(stream_.get()));
  float ms = 0;
  NYBBLE_CUDA(cudaEventElapsedTime(&ms, begin_.get(), end_.get()));
  return static_cast<double>(ms);
}

Result<Sample> GraphTimer::sample(const TimedGraph& graph, int idle_ms, int times) {
  ClockStamp* const before = stamps_.as<ClockStamp>();
  ClockStamp* const after = before + device_.num_sms;
  NYBBLE_CUDA(cudaMemsetAsync(before, 0, stamps_.size_bytes(), stream_.get()));
  NYBBLE_CUDA(cudaStreamSynchronize(stream_.get()));
  std::this_thread::sleep_for(std::chrono::milliseconds(idle_ms));
  NYBBLE_CUDA(stamp_clocks(before, device_.num_sms, stream_.get()));
  const Result<double> ms = replay(graph.graph, times);
  if (!ms) return ms.error();
  NYBBLE_CUDA(stamp_clocks(after, device_.num_sms, stream_.get()));
  std::vector<ClockStamp> stamps(2 * device_.num_sms);
  NYBBLE_CUDA(cudaMemcpyAsync(stamps.data(), before, stamps_.size_bytes(), cudaMemcpyDeviceToHost, stream_.get()));
  NYBBLE_CUDA(cudaStreamSynchronize(stream_.get()));
  std::vector<double> mhz;
  for (int sm = 0; sm < device_.num_sms; ++sm) {
    const ClockStamp &first = stamps[sm], &last = stamps[device_.num_sms + sm];
    if (first.nanoseconds > 0 && last.nanoseconds > first.nanoseconds)
      mhz.push_back(1e3 * static_cast<double>(last.cycles - first.cycles) /
                    static_cast<double>(last.nanoseconds - first.nanoseconds));
  }
  if (mhz.empty()) return cuda_error("the clock stamps before and after a replay share no SM");
  return Sample{*ms * 1e3 / (static_cast<double>(times) * graph.launches), quantile(mhz, 0.5)};
}

Result<std::vector<Timing>> GraphTimer::time(const std::vector<TimedGraph>& graphs, Duty duty, int replays,
                                             double keep_within) {
  const DutyCycle cycle = duty_cycle(duty);
  return time_in_turn(graphs.size(), duty, replays, keep_within, [&](size_t i) {
    const int times = std::max(1, static_cast<int>(std::lround(cycle.replay_ms / graphs[i].ms)));
    return sample(graphs[i], cycle.idle_ms, times);
  });
}

}  // namespace nybble::bench
