#include "cli/convert_flags.h"

#include <map>

namespace nybble::cli {
namespace {

const std::map<std::string, ModelTarget> kTargets = {{"dense", ModelTarget::kDense},
                                                     {"compressed-tensors", ModelTarget::kCompressedTensors},
                                                     {"gptq", ModelTarget::kGptq},
                                                     {"awq", ModelTarget::kAwq}};

}  // namespace

void ConvertFlags::add_to(CLI::App& verb, const std::vector<std::string>& more) {
  std::vector<std::string> targets = more;
  for (const auto& [name, target] : kTargets) targets.push_back(name);
  verb.add_option("--to", to, "The format of the layers that are 4-bit in the input")
      ->check(CLI::IsMember(targets))
      ->capture_default_str();
  verb.add_option("--dtype", dtype, "Type of layers that become dense: fp32, bf16 or fp16")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  verb.add_option("--scale-dtype", scale_dtype,
                  "Round scales to this type: fp16, bf16 or fp32; default: as read for compressed-tensors, else fp16 "
                  "where it holds every scale exactly")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
  verb.add_option("--include", options.include,
                  "Convert the layers whose name this regular expression is found in; may be given several times")
      ->type_name("REGEX");
  verb.add_option("--exclude", options.exclude, "Make these dense; may be given several times")->type_name("REGEX");
  verb.add_option("--shard-size", options.shard_bytes,
                  "Begin a new file before this many bytes of tensors (5GB, 500MB); default: the input's files")
      ->transform(CLI::AsSizeValue(true));
  verb.add_flag("--resume", options.resume, "Keep the files that an interrupted run finished");
  verb.add_flag("--force", options.force, "Write into a folder that is not empty");
}

Result<ConvertOptions> ConvertFlags::parse() const {
  ConvertOptions parsed = options;
  if (const auto target = kTargets.find(to); target != kTargets.end()) parsed.target = target->second;
  const Result<DType> dense = parse_dtype(dtype);
  if (!dense) return dense.error();
  parsed.dense_dtype = *dense;
  if (scale_dtype.empty()) return parsed;
  const Result<DType> scale = parse_dtype(scale_dtype);
  if (!scale) return scale.error();
  parsed.scale_dtype = *scale;
  return parsed;
}

}  // namespace nybble::cli
