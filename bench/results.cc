// The JSON of result files, schema 1.
#include "bench/results.h"

#include <cuda_runtime_api.h>
#include <fmt/chrono.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <tuple>

#include "base/error.h"
#include "base/file.h"
#include "bench/build_info.h"
#include "bench/duty.h"
#include "runtime/machine.h"

namespace nybble::bench {
namespace {

constexpr int kSchema = 1;
constexpr uint64_t kLargestFile = uint64_t{64} << 20;

template <class T> Json or_null(const std::optional<T>& value) { return value ? Json(*value) : Json(nullptr); }

std::optional<double> rounded_or_none(const std::optional<double>& value) {
  return value ? std::optional(rounded(*value)) : std::nullopt;
}

template <class T> std::optional<T> optional_of(const Json& json, const char* key) {
  return json.contains(key) && !json.at(key).is_null() ? std::optional(json.at(key).get<T>()) : std::nullopt;
}

Row row_from(const Json& json) {
  Row row;
  row.problem = json.at("problem");
  row.impl = json.at("impl");
  row.m = json.at("m");
  row.n = optional_of<int64_t>(json, "n");
  row.k = optional_of<int64_t>(json, "k");
  row.act = json.at("act");
  row.group_size = optional_of<int>(json, "group_size");
  row.zero_point = optional_of<std::string>(json, "zero_point");
  row.kernel = optional_of<std::string>(json, "kernel");
  row.pdl = optional_of<bool>(json, "pdl");
  row.duty = json.at("duty");
  row.us = json.at("us");
  row.floor_us = optional_of<double>(json, "floor_us");
  row.dense_us = optional_of<double>(json, "dense_us");
  row.spread = json.at("spread");
  row.sm_mhz = optional_of<double>(json, "sm_mhz");
  return row;
}

std::string cuda_version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

}  // namespace

double rounded(double value) { return std::round(value * 1e4) / 1e4; }

std::string Row::key() const {
  return fmt::format("{} | {} | {} | {}", problem, impl, duty, pdl ? (*pdl ? "pdl" : "no pdl") : "");
}

std::vector<Row> rows_of(const Measurement& measurement, Duty duty, const std::string& dense_impl) {
  const Problem& problem = measurement.problem;
  Row ours;
  ours.problem = to_string(problem);
  ours.impl = "nybble";
  ours.m = problem.m, ours.n = problem.n, ours.k = problem.k;
  ours.act = dtype_name(problem.act_dtype);
  ours.group_size = problem.weight.group_size;
  ours.zero_point = zero_kind_name(problem.weight.zero_kind);
  ours.kernel = measurement.kernel;
  ours.pdl = measurement.pdl;
  ours.duty = duty_name(duty);
  ours.us = measurement.ours.us;
  if (measurement.floor_us > 0) ours.floor_us = measurement.floor_us;
  ours.spread = measurement.ours.spread;
  ours.sm_mhz = measurement.ours.sm_mhz;
  if (!measurement.dense) return {ours};
  ours.dense_us = measurement.dense->us;
  Row dense = ours;
  dense.impl = dense_impl;
  dense.group_size.reset(), dense.zero_point.reset(), dense.kernel.reset(), dense.pdl.reset();
  dense.us = measurement.dense->us;
  dense.spread = measurement.dense->spread;
  dense.sm_mhz = measurement.dense->sm_mhz;
  return {ours, dense};
}

Row row_of(const ChainMeasurement& measurement, bool pdl, Duty duty) {
  Row row;
  row.problem = chain_text(measurement.spec, measurement.m);
  row.impl = "nybble";
  row.m = measurement.m;
  row.act = dtype_name(measurement.spec.act_dtype);
  row.group_size = measurement.spec.format.group_size;
  row.zero_point = zero_kind_name(measurement.spec.format.zero_kind);
  row.kernel = fmt::format("{}", fmt::join(measurement.kernels, ", "));
  row.pdl = pdl;
  row.duty = duty_name(duty);
  const Timing& timing = pdl ? measurement.overlapped : measurement.plain;
  row.us = timing.us;
  row.floor_us = measurement.floor_us;
  row.spread = timing.spread;
  row.sm_mhz = timing.sm_mhz;
  return row;
}

RunInfo describe_run(const Device& device, const std::string& command) {
  RunInfo run;
  run.machine = device.kind == DeviceKind::kCuda ? "gpu" : "cpu";
  run.name = device.kind == DeviceKind::kCuda ? device.name : runtime::cpu_model();
  if (device.kind == DeviceKind::kCuda) {
    int driver = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess)
      run.driver = runtime::driver_release().value_or(cuda_version_text(driver));
    run.cuda = cuda_version_text(CUDART_VERSION);
  }
  run.commit = kCommit;
  run.date =
      fmt::format("{:%FT%TZ}", fmt::gmtime(std::chrono::system_clock::to_time_t(std::chrono::system_clock::now())));
  run.command = command;
  return run;
}

Json to_json(const RunInfo& run) {
  Json json = {{"gpu", nullptr}};
  json[run.machine] = run.name;
  json["driver"] = or_null(run.driver);
  json["cuda"] = or_null(run.cuda);
  json["commit"] = run.commit;
  json["date"] = run.date;
  json["command"] = run.command;
  return json;
}

RunInfo run_from(const Json& json) {
  RunInfo run;
  run.machine = json.at("gpu").is_null() ? "cpu" : "gpu";
  run.name = json.at(run.machine);
  run.driver = optional_of<std::string>(json, "driver");
  run.cuda = optional_of<std::string>(json, "cuda");
  run.commit = json.at("commit");
  run.date = json.at("date");
  run.command = json.at("command");
  return run;
}

Result<void> check_same_run(const std::string& path, const RunInfo& before, const RunInfo& now) {
  for (const auto& [what, then, here] : {std::tuple{"device", before.name, now.name},
                                         std::tuple{"driver", before.driver.value_or(""), now.driver.value_or("")},
                                         std::tuple{"commit", before.commit, now.commit}})
    if (then != here)
      return invalid_argument(
          "{} was measured with {} '{}', this is '{}'; rows of both must not stand in one file: give "
          "--resume another one",
          path, what, then, here);
  return {};
}

Json duty_cycles() {
  Json cycles;
  for (const Duty duty : {Duty::kIdle10, Duty::kBurst, Duty::kSustained}) {
    const DutyCycle cycle = duty_cycle(duty);
    cycles[duty_name(duty)] = {{"idle_ms", cycle.idle_ms}, {"replay_ms", cycle.replay_ms}, {"replays", cycle.replays}};
  }
  return cycles;
}

Result<void> write_json(Json file, const std::string& path) {
  const Json rows = std::move(file["rows"]);
  file.erase("rows");
  std::string text = file.dump(1);
  text.resize(text.rfind('\n'));
  text += ",\n \"rows\": [";
  for (size_t i = 0; i < rows.size(); ++i) text += fmt::format("{}\n  {}", i > 0 ? "," : "", rows[i].dump());
  text += "\n ]\n}\n";
  return base::write_file(path, text);
}

Json to_json(const Row& row) {
  return {{"problem", row.problem},
          {"impl", row.impl},
          {"m", row.m},
          {"n", or_null(row.n)},
          {"k", or_null(row.k)},
          {"act", row.act},
          {"format", row.group_size ? Json("int4") : Json(nullptr)},
          {"group_size", or_null(row.group_size)},
          {"zero_point", or_null(row.zero_point)},
          {"kernel", or_null(row.kernel)},
          {"pdl", or_null(row.pdl)},
          {"duty", row.duty},
          {"us", rounded(row.us)},
          {"floor_us", or_null(rounded_or_none(row.floor_us))},
          {"dense_us", or_null(rounded_or_none(row.dense_us))},
          {"spread", rounded(row.spread)},
          {"sm_mhz", or_null(rounded_or_none(row.sm_mhz))}};
}

Json to_json(const ResultFile& file) {
  Json json = {{"schema", kSchema}};
  json.update(to_json(file.run));
  json["floor"] = file.run.machine == "gpu" ? Json{{"tb_s", kFloorTbS}, {"tflop_s", kFloorTflopS}} : Json(nullptr);
  json["duty_cycles"] = duty_cycles();
  json["rows"] = Json::array();
  for (const Row& row : file.rows) json["rows"].push_back(to_json(row));
  return json;
}

Result<void> write_results(const ResultFile& file, const std::string& path) { return write_json(to_json(file), path); }

Result<ResultFile> read_results(const std::string& path) {
  const Result<base::File> opened = base::File::open(path);
  if (!opened) return opened.error();
  const Result<std::string> text = base::read_file(*opened, kLargestFile);
  if (!text) return text.error();
  try {
    const Json json = Json::parse(*text);
    if (json.at("schema") != kSchema)
      return invalid_data("{} has schema {}; this build reads schema {}", path, json.at("schema").dump(), kSchema);
    ResultFile file{.run = run_from(json)};
    for (const Json& row : json.at("rows")) file.rows.push_back(row_from(row));
    return file;
  } catch (const Json::exception& error) {
    return invalid_data("{} is no bench result: {}", path, error.what());
  }
}

Result<ResultLog> ResultLog::open(RunInfo run, const std::string& json_path, const std::string& resume_path) {
  ResultLog log;
  log.file_.run = std::move(run);
  log.path_ = resume_path.empty() ? json_path : resume_path;
  if (resume_path.empty() || !std::filesystem::exists(resume_path)) return log;
  Result<ResultFile> earlier = read_results(resume_path);
  if (!earlier) return earlier.error();
  if (Result<void> same = check_same_run(resume_path, earlier->run, log.file_.run); !same) return same.error();
  log.file_ = std::move(*earlier);
  for (const Row& row : log.file_.rows) log.known_.insert(row.key());
  return log;
}

Result<void> ResultLog::add(std::vector<Row> rows) {
  for (Row& row : rows) {
    known_.insert(row.key());
    file_.rows.push_back(std::move(row));
  }
  return write();
}

Result<void> ResultLog::write() const { return path_.empty() ? Result<void>() : write_results(file_, path_); }

}  // namespace nybble::bench
