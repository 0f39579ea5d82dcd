// What libFuzzer calls. One program for all targets: `nybble_fuzz --target=NAME [libFuzzer's options] CORPUS...`.
// `nybble_fuzz --write-seeds=FOLDER --data=tests/data` writes the first corpora, `--list` says which targets there are.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "fuzz/mutate.h"
#include "fuzz/seeds.h"
#include "fuzz/targets.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

const nybble::fuzz::Target* chosen = nullptr;

void mutate_blindly(std::string& bytes, size_t max_bytes) {
  const size_t before = bytes.size();
  bytes.resize(std::max(before, max_bytes));
  bytes.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(bytes.data()), before, bytes.size()));
}

[[noreturn]] void fail(const std::string& words) {
  std::fprintf(stderr, "nybble_fuzz: %s\n", words.c_str());
  std::exit(2);
}

}  // namespace

extern "C" const char* __asan_default_options() {
  // Small inputs make small objects; a deep quarantine would only spoil the caches.
  return "quarantine_size_mb=8:malloc_context_size=8:detect_leaks=1";
}

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  std::string seeds, data, target;
  for (int i = 1; i < *argc; ++i) {
    const std::string_view argument = (*argv)[i];
    for (const auto& [option, to] :
         {std::pair{std::string_view("--target="), &target}, {"--write-seeds=", &seeds}, {"--data=", &data}})
      if (argument.starts_with(option)) *to = argument.substr(option.size());
    if (argument == "--list") {
      for (const nybble::fuzz::Target& each : nybble::fuzz::targets()) std::puts(each.name.c_str());
      std::exit(0);
    }
  }
  if (!seeds.empty()) {
    if (data.empty()) fail("--write-seeds needs --data=tests/data");
    std::printf("%d seeds\n", nybble::fuzz::write_seeds(data, seeds));
    std::exit(0);
  }
  chosen = nybble::fuzz::find_target(target);
  if (chosen == nullptr) fail("--target=NAME is needed; --list says which there are");
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  chosen->run(*chosen, {bytes, size});
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* bytes, size_t size, size_t max_size, unsigned seed) {
  std::string input(reinterpret_cast<const char*>(bytes), size);
  nybble::fuzz::Mutator(seed, mutate_blindly).apply(chosen->kind, input, max_size);
  if (input.size() > max_size) input.resize(max_size);
  std::memcpy(bytes, input.data(), input.size());
  return input.size();
}
