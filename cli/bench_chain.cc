// nybble bench --chain: the graph of a whole model's layers, and what each kind of layer takes of it.
#include "cli/bench_chain.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace nybble::cli {
namespace {

void report(const bench::ChainMeasurement& measured, bench::Duty duty, const Output& output) {
  output.text("{}, {}\n", bench::chain_text(measured.spec, measured.m), bench::duty_name(duty));
  output.text(
      "  {:.4f} ms a replay with overlapping launches ({:.1f} % spread), {:.4f} ms without; floor {:.4f} ms, "
      "{:.2f} of it reached\n",
      measured.overlapped.us / 1e3, measured.overlapped.spread * 100, measured.plain.us / 1e3, measured.floor_us / 1e3,
      measured.floor_us / measured.overlapped.us);
  output.text("  the same bits with overlap and without; rms of the last outputs {:.3f}\n", measured.check.rms);
  double sum = 0;
  for (const bench::Timing& timing : measured.layers) sum += timing.us;
  for (size_t j = 0; j < measured.layers.size(); ++j) {
    const bench::Shape& shape = measured.spec.layers[j];
    output.text("  {:>8} {:>14} {:>9} us among its own kind, {:>3.0f} %  {}\n", shape.name,
                fmt::format("{}x{}", shape.n, shape.k), human_us(measured.layers[j].us),
                100 * measured.layers[j].us / sum, measured.kernels[j]);
  }
  output.text("  all of these together {:.4f} ms\n", sum * measured.spec.blocks / 1e3);
  std::fflush(stdout);
}

}  // namespace

int run_chain(const ChainRequest& request, const Device& device, bench::ResultLog log, const Output& output) {
  if (const Result<void> fine = bench::check_chain(request.spec); !fine) return output.fail(fine.error());
  const Result<std::unique_ptr<bench::Chain>> opened = bench::open_chain(device);
  if (!opened) return output.fail(opened.error());
  bench::Chain& chain = **opened;
  bool loaded = false;
  int wrong = 0, kept = 0, left = 0;
  for (size_t i = 0; i < request.ms.size(); ++i) {
    const int64_t m = request.ms[i];
    const bench::Row question{.problem = bench::chain_text(request.spec, m),
                              .impl = "nybble",
                              .pdl = true,
                              .duty = bench::duty_name(request.duties[i])};
    if (log.has(question)) {
      ++kept;
      continue;
    }
    if (request.limit.over()) {
      ++left;
      continue;
    }
    if (!loaded) {
      const int64_t max_m = *std::max_element(request.ms.begin(), request.ms.end());
      if (const Result<void> done = chain.load(request.spec, max_m); !done) return output.fail(done.error());
      loaded = true;
    }
    bench::ChainOptions options = request.options;
    options.duty = request.duties[i];
    const Result<bench::ChainMeasurement> measured = chain.measure(m, options);
    if (!measured) return output.fail(measured.error());
    if (!measured->check.wrong.empty()) {
      fmt::print(stderr, "nybble: {}: {}; nothing was timed\n", question.problem, measured->check.wrong);
      ++wrong;
      continue;
    }
    report(*measured, options.duty, output);
    const Result<void> added =
        log.add({bench::row_of(*measured, true, options.duty), bench::row_of(*measured, false, options.duty)});
    if (!added) return output.fail(added.error());
  }
  if (kept > 0) output.text("{} chains were in {} already\n", kept, log.path());
  if (left > 0) output.text("{} chains are left: the time limit is over\n", left);
  if (const Result<void> written = log.write(); !written) return output.fail(written.error());
  return output.finish(bench::to_json(log.file()), wrong > 0 ? kCheckFailed : kOk);
}

}  // namespace nybble::cli
