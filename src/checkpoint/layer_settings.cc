#include "checkpoint/layer_settings.h"

#include <algorithm>

#include "base/error.h"
#include "base/json_text.h"

namespace nybble::checkpoint {
namespace {

Result<void> read_flag(const nlohmann::json& object, const char* key, const std::string& subject,
                       std::optional<bool>& to) {
  const nlohmann::json* value = find_member(object, {key});
  if (value == nullptr) return {};
  if (!value->is_boolean()) return invalid_data("{}: {} must be true or false", subject, key);
  to = value->get<bool>();
  return {};
}

}  // namespace

Result<void> read_layer_settings(const nlohmann::json& object, const std::string& subject, LayerSettings& to) {
  if (const nlohmann::json* bits = find_member(object, {"bits", "w_bit", "wbits"})) {
    constexpr double kMaxBits = 32;
    if (!bits->is_number_integer() || bits->get<double>() < 1 || bits->get<double>() > kMaxBits)
      return invalid_data("{}: bits is {}; it must be a whole number from 1 to {}", subject,
                          base::printable(bits->dump()), kMaxBits);
    to.bits = bits->get<int64_t>();
  }
  if (const nlohmann::json* size = find_member(object, {"group_size", "q_group_size"})) {
    constexpr int64_t kMaxGroup = 1 << 24;
    if (!size->is_number_integer() || size->get<double>() < -1 || size->get<double>() > kMaxGroup || *size == 0)
      return invalid_data("{}: group_size is {}; it must be -1 or 1 to {}", subject, base::printable(size->dump()),
                          kMaxGroup);
    to.group_size = size->get<int64_t>();
  }
  std::optional<bool> zero_point;
  if (Result<void> read = read_flag(object, "zero_point", subject, zero_point); !read) return read;
  if (zero_point) to.symmetric = !*zero_point;
  if (Result<void> read = read_flag(object, "sym", subject, to.symmetric); !read) return read;
  return read_flag(object, "desc_act", subject, to.act_order);
}

const LayerException* ModelSettings::exception_of(const std::string& layer, base::MatchBudget& budget) const {
  if (const auto named = by_name.find(layer); named != by_name.end()) return &named->second;
  const auto found = std::find_if(by_pattern.begin(), by_pattern.end(), [&](const PatternException& candidate) {
    return candidate.anywhere ? candidate.pattern.found_in(layer, budget)
                              : candidate.pattern.matches_start(layer, budget);
  });
  return found == by_pattern.end() ? nullptr : &found->exception;
}

Result<LayerSettings> ModelSettings::of(const std::string& layer, base::MatchBudget& budget) const {
  const LayerException* exception = exception_of(layer, budget);
  if (Result<void> fine = budget.check(fmt::format("{}: {}", subject, member)); !fine) return fine.error();
  if (exception != nullptr && exception->excluded)
    return invalid_data("{}: layer {} is stored in 4 bits, but {} {} says that it is not quantized", subject,
                        base::printable(layer), member, base::printable(exception->key));
  const LayerSettings& settings = exception == nullptr ? common : exception->settings;
  if (settings.bits.value_or(4) != 4)
    return unsupported("{}: layer {}: bits is {}; only 4 is read. {}", subject, base::printable(layer), *settings.bits,
                       way_out);
  return settings;
}

}  // namespace nybble::checkpoint
