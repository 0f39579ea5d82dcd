// The command `nybble`: finds the verb and runs it.
#include <algorithm>
#include <new>
#include <string_view>

#include "base/error.h"
#include "bench/build_info.h"
#include "cli/verbs.h"

namespace nybble::cli {
namespace {

constexpr Verb kVerbs[] = {
    {"quantize", "Quantize a model's linear layers to 4 bits and write a compressed-tensors checkpoint", add_quantize},
    {"convert", "Write a 4-bit model in another format, or as plain weights", add_convert},
    {"shard", "Split a model among the ranks of tensor parallelism", add_shard},
    {"inspect", "Say what a checkpoint or packed file holds, and check all of it", add_inspect},
    {"verify", "Run every quantized layer and compare it with the reference", add_verify},
    {"bench", "Measure kernels against the dense product and the physical limit", add_bench},
    {"tune", "Measure which kernel is quickest, and write the table that plans can be made by", add_tune},
    {"kernels", "List the kernels, or say why each can or cannot do a problem", add_kernels},
    {"doctor", "Say what this machine has and what will run on it", add_doctor},
    {"demo", "Quantize a model, write it, read it back and run every layer", add_demo},
};

constexpr char kExitCodes[] =
    "Exit codes: 0 fine; 1 a check failed; 2 the request was wrong; 3 file, disk or GPU failed.\n"
    "`nybble VERB --help` tells a verb's options and shows an example.";

int run(int argc, const char* const* argv) {
  set_command_line(argc, argv);
  Output output;
  CLI::App app("4-bit linear layers: quantize, inspect, verify and measure them.", "nybble");
  app.set_version_flag("--version", fmt::format("nybble {} ({})", bench::kVersion, bench::kCommit));
  app.require_subcommand(1);
  app.footer(kExitCodes);
  std::vector<std::pair<CLI::App*, Run>> runs;
  for (const Verb& verb : kVerbs) {
    CLI::App* const sub = app.add_subcommand(verb.name, verb.summary);
    runs.emplace_back(sub, verb.add(*sub, output));
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {  // --help or --version
    return app.exit(asked);
  } catch (const CLI::ParseError& error) {
    if (argc < 2) return output.fail(invalid_argument("a verb is needed; `nybble --help` lists them"));
    const auto chosen = app.get_subcommands();
    output.set_json(std::find(argv, argv + argc, std::string_view("--json")) !=
                    argv + argc);  // parsing may not have come so far
    return output.fail(
        invalid_argument("{}; try `nybble {}--help`", error.what(), chosen.empty() ? "" : chosen[0]->get_name() + " "));
  }
  for (const auto& [sub, verb] : runs)
    if (sub->parsed()) return verb();
  return kBadRequest;  // require_subcommand has refused this already
}

}  // namespace
}  // namespace nybble::cli

int main(int argc, char** argv) {
  try {
    return nybble::cli::run(argc, argv);
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "nybble: out of memory; use fewer --threads, a smaller --m or a machine with more\n");
  } catch (const std::exception& error) {
    fmt::print(stderr, "nybble: {}\n", error.what());
  }
  return nybble::cli::kWorldFailed;
}
