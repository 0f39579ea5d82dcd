// What every verb shares: exit codes, text or JSON on stdout, errors on stderr.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "nybble/result.h"

namespace nybble::cli {

using Json = nlohmann::ordered_json;  // keys stay in the order they are written

enum Exit : int {
  kOk = 0,
  kCheckFailed = 1,  // a weight, a result or a file's content is not what it should be
  kBadRequest = 2,   // the command cannot be carried out as given
  kWorldFailed = 3,  // file, disk or GPU failed
};

// For a verb that does a job. Broken data is a file that failed; a verb whose job is to check it says kCheckFailed
// instead.
Exit exit_for(const Error& error);
Exit exit_for_check(const Error& error);

class Output {
 public:
  // Adds --json to a verb. With it, finish() and fail() print one JSON document, and text() nothing.
  void add_json_flag(CLI::App& verb);
  bool json() const { return json_; }
  void set_json(bool json) { json_ = json; }

  template <class... Args> void text(fmt::format_string<Args...> format, Args&&... args) const {
    if (!json_) fmt::print(format, std::forward<Args>(args)...);
  }

  // A verb's last words: the document, where one is wanted.
  int finish(const Json& document, Exit code) const;
  // An error, always on stderr; with --json as a document, too.
  int fail(const Error& error, Exit code) const;
  int fail(const Error& error) const { return fail(error, exit_for(error)); }

 private:
  bool json_ = false;
};

// Columns padded to their widest cell; those named in `left` to the left, numbers to the right.
class Table {
 public:
  Table(std::vector<std::string> header, std::vector<size_t> left) : left_(std::move(left)) { add(std::move(header)); }
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string text() const;

 private:
  std::vector<size_t> left_;
  std::vector<std::vector<std::string>> rows_;
};

std::string human_bytes(double bytes);  // "1.2 MB", in powers of 1000 as disks count
std::string human_us(double us);        // three digits that matter: "3.28", "1216"

using Run = std::function<int()>;

// One verb of the command. Adds its options to `app`; what it returns runs it.
struct Verb {
  const char* name;
  const char* summary;
  Run (*add)(CLI::App& app, Output& output);
};

// The command line as the user would type it, for results that name their command.
void set_command_line(int argc, const char* const* argv);
const std::string& command_line();

}  // namespace nybble::cli
