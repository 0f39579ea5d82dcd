// Times CUDA graphs within a duty cycle: what the bench of single layers and that of chains share.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "bench/duty.h"
#include "runtime/cuda_call.h"

namespace nybble::bench {

// Owns an object of the CUDA runtime; Destroy is the function that ends it.
template <auto Destroy> struct Destroyer {
  template <class T> void operator()(T* object) const { (void)Destroy(object); }
};
using Stream = std::unique_ptr<CUstream_st, Destroyer<cudaStreamDestroy>>;
using Event = std::unique_ptr<CUevent_st, Destroyer<cudaEventDestroy>>;
using GraphExec = std::unique_ptr<CUgraphExec_st, Destroyer<cudaGraphExecDestroy>>;

// A graph to be timed.
struct TimedGraph {
  GraphExec graph;
  int launches = 1;  // what one replay's time is divided by
  double ms = 0;     // about, of one replay
};

class GraphTimer {
 public:
  Result<void> open(const Device& device);
  cudaStream_t stream() const { return stream_.get(); }

  // What `enqueue` enqueues to stream(), as a graph.
  Result<GraphExec> capture(const std::function<Result<void>()>& enqueue);
  // Milliseconds of `times` replays, one after the other.
  Result<double> replay(const GraphExec& graph, int times);
  // The graphs take turns: time_in_turn.
  Result<std::vector<Timing>> time(const std::vector<TimedGraph>& graphs, Duty duty, int replays,
                                   double keep_within = 0);

 private:
  Result<Sample> sample(const TimedGraph& graph, int idle_ms, int times);

  Device device_;
  Stream stream_;
  Event begin_, end_;
  runtime::DeviceBuffer stamps_;
};

}  // namespace nybble::bench
