// Choosing whom to time, timing them, and the JSON of it.
#include "bench/tuning.h"

#include <algorithm>
#include <filesystem>
#include <numeric>

#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "bench/random_data.h"
#include "dispatch/tuning_data.h"

namespace nybble::bench {
namespace {

constexpr int kSchema = 1;
constexpr uint64_t kLargestFile = uint64_t{64} << 20;

// Why there is nothing to try: no kernel fits, or none of those asked for.
std::string refusal(const Problem& problem, const Device& device, const KernelChoice& choice) {
  const Result<Plan> plan = make_plan(problem, device);
  if (!plan) return plan.error().message;
  return fmt::format("no kernel for '{}' on {} has a name with '{}' in it; `nybble kernels --why` lists those that fit",
                     to_string(problem), device.name, choice.names ? choice.names->text() : "");
}

// Null: all kernels had their chance.
Json kernels_text(const std::string& kernels) { return kernels.empty() ? Json(nullptr) : Json(kernels); }

}  // namespace

TuningFile::TuningFile(const RunInfo& run, const Device& device, const std::string& kernels)
    : head_({{"schema", kSchema}, {"kind", "tuning table"}}) {
  head_.update(to_json(run));
  if (device.kind == DeviceKind::kCpu)
    head_["threads"] = device.num_threads > 0 ? device.num_threads : base::default_threads();
  head_["duty_cycles"] = duty_cycles();
  head_["kernels"] = kernels_text(kernels);
}

Result<TuningFile> TuningFile::extend(const std::string& path, const RunInfo& run, const Device& device,
                                      const std::string& kernels) {
  TuningFile file(run, device, kernels);
  if (!std::filesystem::exists(path)) return file;
  const Result<base::File> opened = base::File::open(path);
  if (!opened) return opened.error();
  const Result<std::string> text = base::read_file(*opened, kLargestFile);
  if (!text) return text.error();
  const Result<TuningTable> table = parse_tuning_table(*text, path);  // checks every row
  if (!table) return table.error();
  if (!table->made_for(device))
    return invalid_argument(
        "{} was measured on '{}' or with another number of threads; this is '{}': give --resume another file", path,
        table->device(), tuned_device_name(device));
  try {
    Json json = Json::parse(*text);
    if (Result<void> same = check_same_run(path, run_from(json), run); !same) return same.error();
    if (json.at("kernels") != kernels_text(kernels))
      return invalid_argument(
          "{} was measured with kernels {}, this run is to try {}; rows of both must not stand in one file: give "
          "--resume another one",
          path, json.at("kernels").is_null() ? "of all names" : json.at("kernels").dump(),
          kernels.empty() ? "all" : kernels_text(kernels).dump());
    file.rows_ = std::move(json.at("rows"));
    json.erase("rows");
    file.head_ = std::move(json);
    for (const Json& row : file.rows_) file.problems_.insert(row.at("problem"));
  } catch (const Json::exception& error) {
    return invalid_data("{} is no tuning table: {}", path, error.what());
  }
  return file;
}

void TuningFile::add(const Problem& problem, Duty duty, const std::vector<Measurement>& measured,
                     const std::vector<double>& estimates_us) {
  std::vector<size_t> order(measured.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::erase_if(order, [&](size_t i) { return !measured[i].wrong.empty(); });
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return measured[a].ours.us < measured[b].ours.us; });
  Json kernels = Json::array();
  for (const size_t i : order)
    kernels.push_back({{"kernel", measured[i].kernel},
                       {"us", rounded(measured[i].ours.us)},
                       {"estimate_us", rounded(estimates_us[i])},
                       {"spread", rounded(measured[i].ours.spread)}});
  const std::string text = to_string(problem);
  problems_.insert(text);
  rows_.push_back({{"problem", text}, {"duty", duty_name(duty)}, {"kernels", std::move(kernels)}});
}

Result<void> TuningFile::write(const std::string& path) const {
  Json file = head_;
  file["rows"] = rows_;
  return write_json(std::move(file), path);
}

Candidates candidates(const Problem& problem, const Device& device, const KernelChoice& choice) {
  std::vector<KernelVerdict> fitting = explain_kernels(problem, device, {.table = TuningTable()});
  base::MatchBudget budget;
  std::erase_if(fitting, [&](const KernelVerdict& verdict) {
    return !verdict.fits || (choice.names && !choice.names->found_in(verdict.kernel, budget));
  });
  std::stable_sort(fitting.begin(), fitting.end(),
                   [](const KernelVerdict& a, const KernelVerdict& b) { return a.estimated_us < b.estimated_us; });
  if (choice.top > 0 && fitting.size() > static_cast<size_t>(choice.top)) fitting.resize(choice.top);
  if (choice.within > 0 && !fitting.empty())
    std::erase_if(fitting, [limit = choice.within * fitting[0].estimated_us](const KernelVerdict& verdict) {
      return verdict.estimated_us > limit;
    });
  Candidates chosen;
  for (const KernelVerdict& verdict : fitting) {
    chosen.kernels.push_back(verdict.kernel);
    chosen.estimates_us.push_back(verdict.estimated_us);
  }
  return chosen;
}

Result<TuneReport> tune(Bench& bench, const Work& work, const TuneOptions& options, TuningFile& file,
                        const std::function<Result<void>(int64_t)>& done) {
  TuneReport report;
  const int64_t max_m = *std::max_element(work.ms.begin(), work.ms.end());
  int64_t count = 0;
  for (const Shape& shape : work.shapes) {
    bool loaded = false;
    for (const int64_t m : work.ms) {
      const Problem problem = work.problem(shape, m);
      const Candidates tried = candidates(problem, bench.device(), options.choice);
      if (file.has(problem)) {
        ++report.kept;
      } else if (options.limit.over()) {
        ++report.left;
      } else if (tried.kernels.empty()) {
        report.refused.push_back(refusal(problem, bench.device(), options.choice));
      } else {
        if (!loaded) {
          const Result<void> load = bench.load(random_weight(shape.n, shape.k, work.format, 1), work.act, max_m);
          if (!load) return load.error();
          loaded = true;
        }
        MeasureOptions measure = options.measure;
        measure.duty = options.duty.value_or(usual_duty(m));
        const Result<std::vector<Measurement>> measured = bench.measure_each(m, tried.kernels, measure);
        if (!measured) return measured.error();
        for (const Measurement& one : *measured)
          if (!one.wrong.empty())
            report.wrong.push_back(fmt::format("{} for '{}': {}", one.kernel, to_string(problem), one.wrong));
        file.add(problem, measure.duty, *measured, tried.estimates_us);
        ++report.measured;
      }
      if (Result<void> fine = done(++count); !fine) return fine.error();
    }
  }
  return report;
}

}  // namespace nybble::bench
