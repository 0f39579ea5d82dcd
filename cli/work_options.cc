// From options to work.
#include "cli/work_options.h"

#include "bench/duty.h"
#include "cli/options.h"

namespace nybble::cli {
namespace {

constexpr char kUsualModel[] = "llama3-8b";

}  // namespace

void WorkOptions::add_to(CLI::App& verb) {
  verb.add_option(
      "--model", model,
      fmt::format("Layer shapes of a model (default {}): {}", kUsualModel, fmt::join(bench::model_names(), ", ")));
  verb.add_option("--shape", shape, "Shapes as output x input features: 28672x4096,8192x8192");
  verb.add_option("--set", set, "A file of shapes and token counts, such as bench/shapes.txt");
  verb.add_option("--m", m, "Token counts: 1,16,4096");
  verb.add_option("--act", act, "bf16 or fp16, of activations, outputs and scales")
      ->check(CLI::IsMember({"bf16", "fp16"}))
      ->capture_default_str();
  verb.add_option("--group", group, "Input features per scale, or col")->capture_default_str();
  verb.add_option("--zero-point", zero_point, "none, int, float or offset")
      ->check(CLI::IsMember({"none", "int", "float", "offset"}))
      ->capture_default_str();
  verb.add_option(
          "--duty", duty,
          "idle10 (10 ms idle before each replay of about 4 ms), burst (100 ms idle), sustained (replays of 400 ms "
          "back to back), or auto: idle10 below 256 tokens, else burst")
      ->check(CLI::IsMember({"auto", "idle10", "burst", "sustained"}))
      ->capture_default_str();
  verb.add_option("--replays", replays, "Timed replays of each kind; 0: 15, 9 or 5 by duty")
      ->check(CLI::Range(0, 10000))
      ->capture_default_str();
  verb.add_flag("--no-pdl", no_pdl, "Launch without overlapping the predecessor's end");
  verb.add_option("--time-limit", time_limit, "Seconds after which no further problem is begun; --resume goes on")
      ->type_name("SECONDS")
      ->check(CLI::PositiveNumber);
}

std::string WorkOptions::shapes_name() const {
  if (!shape.empty()) return shape;
  return model.empty() ? kUsualModel : model;
}

Result<bench::Work> WorkOptions::work(DeviceKind device) const {
  bench::Work work;
  if (!set.empty()) {
    Result<bench::ShapeSet> known = bench::read_shape_set(set);
    if (!known) return known.error();
    work.shapes = std::move(known->shapes);
    work.ms = std::move(known->ms);
  }
  if (!shape.empty()) {
    const Result<std::vector<bench::Shape>> shapes = bench::parse_shapes(shape);
    if (!shapes) return shapes.error();
    work.shapes.insert(work.shapes.end(), shapes->begin(), shapes->end());
  }
  if (!model.empty() || work.shapes.empty()) {
    const Result<std::vector<bench::Shape>> shapes = bench::model_shapes(model.empty() ? kUsualModel : model);
    if (!shapes) return shapes.error();
    work.shapes.insert(work.shapes.end(), shapes->begin(), shapes->end());
  }
  if (!m.empty() || work.ms.empty()) {
    const char* const usual = device == DeviceKind::kCuda ? "1,16,64,256,1024,4096" : "1,16,128";
    Result<std::vector<int64_t>> ms = bench::parse_ms(m.empty() ? usual : m);
    if (!ms) return ms.error();
    work.ms = std::move(*ms);
  }
  const Result<int> group_size = parse_group(group);
  if (!group_size) return group_size.error();
  work.act = work.out = *parse_dtype(act);
  work.format = {.scale_dtype = work.act, .zero_kind = *parse_zero_kind(zero_point), .group_size = *group_size};
  return work;
}

bench::Duty WorkOptions::duty_for(int64_t tokens) const {
  return duty == "auto" ? bench::usual_duty(tokens) : *bench::parse_duty(duty);
}

}  // namespace nybble::cli
