// nybble kernels: the registry, and why each row can or cannot do a problem.
#include "cli/options.h"
#include "cli/verbs.h"
#include "nybble/gemm.h"
#include "registry/registry.h"

namespace nybble::cli {
namespace {

constexpr char kExample[] =
    "Example:\n"
    "  nybble kernels --why \"m16 n4096 k4096 bf16 g128\"\n"
    "A problem is m (tokens), n (output features), k (input features), the activations' type and the group size, or "
    "col for\n"
    "one scale per output feature. Further words: out=fp32, sfp16 (scales), zp, fzp, offset, order, wide, bias, "
    "residual,\n"
    "unaligned. Without a GPU, rows are judged for an H200. `estimate` is the cost model's; `expected`, by which the "
    "kernel is "
    "chosen,\n"
    "is the time measured on this very problem, or the estimate corrected by the measurements around it; what costs "
    "the\n"
    "launches around it more than that counts for more (counted_us of --json).";

struct Options {
  std::string why, device = "auto";
  TableOption table;
};

Result<Device> device_for(const std::string& text) {
  if (text == "cpu") return Device::cpu();
  if (text == "h200") return Device::h200();
  Result<Device> device = Device::cuda();
  if (!device && text == "auto") return Device::h200();
  return device;
}

const char* numerics_text(Numerics numerics) {
  return numerics == Numerics::kRoundedWeight ? "weight rounded once" : "weight exact";
}

// What a table holds, and what of it cannot be used; null where there is none.
Json report_table(const TuningTable& table, const Output& output) {
  if (table.empty()) return nullptr;
  const std::vector<std::string> unknown = table.unknown_kernels();
  output.text("the table has {} problems measured on {}\n", table.num_problems(), table.device());
  if (!unknown.empty())
    output.text("{} of its kernels are not in this library, so their times are ignored: {}\n", unknown.size(),
                fmt::join(unknown, ", "));
  return {{"device", table.device()}, {"problems", table.num_problems()}, {"unknown_kernels", unknown}};
}

int list_all(const std::optional<TuningTable>& given, const Output& output) {
  Table table({"kernel", "runs on", "sums"}, {0, 1, 2});
  Json document = {{"ok", true}, {"kernels", Json::array()}};
  for (const KernelEntry& entry : registry()) {
    const char* const device = entry.device == DeviceKind::kCuda ? "cuda" : "cpu";
    table.add({entry.name, device, numerics_text(entry.numerics)});
    document["kernels"].push_back(
        {{"name", entry.name}, {"device", device}, {"numerics", numerics_text(entry.numerics)}});
  }
  output.text("{}{} kernels; `nybble kernels --why PROBLEM` says which can do a problem\n", table.text(),
              registry().size());
  if (given) document["table"] = report_table(*given, output);
  return output.finish(document, kOk);
}

int explain(const Problem& problem, const Device& device, const std::optional<TuningTable>& given,
            const Output& output) {
  const PlanOptions options{.table = given};
  const Result<Plan> plan = make_plan(problem, device, options);
  if (!plan && plan.error().code == ErrorCode::kInvalidArgument) return output.fail(plan.error());
  Table table({"kernel", "", "estimate", "expected", "measured", "why"}, {0, 1, 5});
  Json rows = Json::array();
  size_t fits = 0;
  const auto us = [](bool known, double value) { return known && value > 0 ? human_us(value) + " us" : ""; };
  for (const KernelVerdict& verdict : explain_kernels(problem, device, options)) {
    const bool chosen = plan.ok() && plan->kernel() == verdict.kernel;
    table.add({verdict.kernel,
               chosen         ? "chosen"
               : verdict.fits ? "fits"
                              : "no",
               us(verdict.fits, verdict.estimated_us), us(verdict.fits, verdict.expected_us),
               us(verdict.measured_us.has_value(), verdict.measured_us.value_or(0)),
               chosen ? plan->why() : verdict.reason});
    fits += verdict.fits ? 1 : 0;
    rows.push_back({{"kernel", verdict.kernel},
                    {"fits", verdict.fits},
                    {"chosen", chosen},
                    {"reason", verdict.reason},
                    {"estimated_us", verdict.fits ? Json(verdict.estimated_us) : Json(nullptr)},
                    {"expected_us", verdict.fits ? Json(verdict.expected_us) : Json(nullptr)},
                    {"counted_us", verdict.fits ? Json(verdict.counted_us) : Json(nullptr)},
                    {"measured_us", verdict.measured_us ? Json(*verdict.measured_us) : Json(nullptr)}});
  }
  output.text("'{}' on {}\n\n{}\n{}\n", to_string(problem), device.name, table.text(),
              plan.ok() ? to_string(*plan) : plan.error().message);
  const Json used = report_table(given ? *given : shipped_tuning_table(device), output);
  return output.finish({{"ok", true},
                        {"problem", to_string(problem)},
                        {"device", device.name},
                        {"chosen", plan.ok() ? Json(plan->kernel()) : Json(nullptr)},
                        {"why", plan.ok() ? plan->why() : plan.error().message},
                        {"workspace_bytes", plan.ok() ? Json(plan->workspace_bytes()) : Json(nullptr)},
                        {"fitting", fits},
                        {"table", used},
                        {"kernels", rows}},
                       kOk);
}

int run(const Options& options, const Output& output) {
  const Result<std::optional<TuningTable>> table = options.table.load();
  if (!table) return output.fail(table.error());
  if (options.why.empty()) return list_all(*table, output);
  const Result<Problem> problem = parse_problem(options.why);
  if (!problem) return output.fail(problem.error());
  const Result<Device> device = device_for(options.device);
  if (!device) return output.fail(device.error(), kWorldFailed);
  return explain(*problem, *device, *table, output);
}

}  // namespace

Run add_kernels(CLI::App& app, Output& output) {
  auto options = std::make_shared<Options>();
  app.add_option("--why", options->why, "Judge every kernel for this problem")->type_name("PROBLEM");
  app.add_option("--device", options->device,
                 "cuda, cpu, h200 (needs none), or auto: the GPU, or an H200 where there is none")
      ->check(CLI::IsMember({"auto", "cuda", "cpu", "h200"}))
      ->capture_default_str();
  options->table.add_to(app);
  output.add_json_flag(app);
  app.footer(kExample);
  return [options, &output] { return run(*options, output); };
}

}  // namespace nybble::cli
