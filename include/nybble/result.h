// Errors and results. Part of base: knows nothing of matrices.
//
// Three kinds of fault, three treatments: the caller's fault and the world's fault come back as Result/Error with words
// that say what to do; our own fault aborts (base/check.h).
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>

#pragma GCC visibility push(default)
namespace nybble {

enum class ErrorCode {
  kInvalidArgument,   // the request is wrong: a shape, a pointer, an option
  kUnsupported,       // the request is well formed, but nothing here can do it; the message says what can be done
  kInvalidData,       // a file or weight breaks its format's rules
  kIo,                // the operating system refused: path, call and errno text are in the message
  kCuda,              // a CUDA call failed: call and error name are in the message
  kOutOfMemory,       // host or device memory
  kWorkspaceTooSmall  // LaunchArgs::workspace_bytes is below Plan::workspace_bytes()
};

// The code's short name, e.g. "invalid_argument"; the same in the CLI's JSON and the C API.
const char* error_code_name(ErrorCode code);

struct Error {
  ErrorCode code;
  std::string message;
};

// Nothing, as a value: Result<void> holds it.
struct Void {};

// Either a value or an Error. `if (!result) return result.error();` is the usual way to pass an error on.
template <class T> class [[nodiscard]] Result {
 public:
  using Value = std::conditional_t<std::is_void_v<T>, Void, T>;

  Result() requires std::is_void_v<T> : state_(Void{}) {}
  Result(Value value) : state_(std::move(value)) {}                          // NOLINT(google-explicit-constructor)
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  // The value; the caller has checked ok(). std::get throws std::bad_variant_access otherwise.
  Value& value() & { return std::get<0>(state_); }
  const Value& value() const& { return std::get<0>(state_); }
  Value&& value() && { return std::get<0>(std::move(state_)); }
  Value& operator*() & { return value(); }
  const Value& operator*() const& { return value(); }
  Value* operator->() { return &value(); }
  const Value* operator->() const { return &value(); }

  const Error& error() const { return std::get<1>(state_); }

 private:
  std::variant<Value, Error> state_;
};

}  // namespace nybble
#pragma GCC visibility pop
