// The verbs; each is one file. See main.cc for the list.
#pragma once

#include "cli/output.h"

namespace nybble::cli {

Run add_quantize(CLI::App& app, Output& output);
Run add_convert(CLI::App& app, Output& output);
Run add_shard(CLI::App& app, Output& output);
Run add_inspect(CLI::App& app, Output& output);
Run add_verify(CLI::App& app, Output& output);
Run add_bench(CLI::App& app, Output& output);
Run add_tune(CLI::App& app, Output& output);
Run add_kernels(CLI::App& app, Output& output);
Run add_doctor(CLI::App& app, Output& output);
Run add_demo(CLI::App& app, Output& output);

}  // namespace nybble::cli
