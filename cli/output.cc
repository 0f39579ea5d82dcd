// Exit codes, documents, tables.
#include "cli/output.h"

#include <algorithm>
#include <cmath>

namespace nybble::cli {
namespace {

std::string& stored_command_line() {
  static std::string line;
  return line;
}

bool needs_quotes(const std::string& word) {
  return word.empty() || word.find_first_of(" \t\"'$&|;<>()*?[]#~\\") != std::string::npos;
}

}  // namespace

Exit exit_for(const Error& error) {
  switch (error.code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kUnsupported:
    case ErrorCode::kWorkspaceTooSmall:
      return kBadRequest;
    case ErrorCode::kInvalidData:
    case ErrorCode::kIo:
    case ErrorCode::kCuda:
    case ErrorCode::kOutOfMemory:
      return kWorldFailed;
  }
  return kWorldFailed;
}

Exit exit_for_check(const Error& error) {
  return error.code == ErrorCode::kInvalidData ? kCheckFailed : exit_for(error);
}

void Output::add_json_flag(CLI::App& verb) {
  verb.add_flag("--json", json_, "Print one JSON document on stdout and nothing else there");
}

int Output::finish(const Json& document, Exit code) const {
  // A name from a file may hold bytes that are no UTF-8; they are replaced, not a reason to fail.
  if (json_) fmt::print("{}\n", document.dump(2, ' ', false, Json::error_handler_t::replace));
  return code;
}

int Output::fail(const Error& error, Exit code) const {
  fmt::print(stderr, "nybble: {}\n", error.message);
  return finish({{"ok", false}, {"error", {{"code", error_code_name(error.code)}, {"message", error.message}}}}, code);
}

std::string Table::text() const {
  std::vector<size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const bool left = std::find(left_.begin(), left_.end(), i) != left_.end();
      line += fmt::format(fmt::runtime(left ? "{:<{}}" : "{:>{}}"), row[i], widths[i]);
      if (i + 1 < row.size()) line += "  ";
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string human_bytes(double bytes) {
  const char* const units[] = {"B", "kB", "MB", "GB", "TB"};
  size_t unit = 0;
  for (; bytes >= 999.5 && unit + 1 < std::size(units); ++unit) bytes /= 1000;
  return unit == 0 ? fmt::format("{:.0f} B", bytes)
                   : fmt::format("{:.{}f} {}", bytes, bytes < 99.95 ? 1 : 0, units[unit]);
}

std::string human_us(double us) { return fmt::format("{:.{}f}", us, us < 9.995 ? 2 : us < 99.95 ? 1 : 0); }

void set_command_line(int argc, const char* const* argv) {
  std::string& line = stored_command_line();
  line = "nybble";
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    line += needs_quotes(word) ? fmt::format(" \"{}\"", word) : " " + word;
  }
}

const std::string& command_line() { return stored_command_line(); }

}  // namespace nybble::cli
