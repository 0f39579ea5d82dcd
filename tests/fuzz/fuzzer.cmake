# The preset `fuzz`: one program, nybble_fuzz, with libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer. It is a
# build of its own, because all code is compiled by clang and counted, and needs no CUDA. Linked so that it runs on a
# machine without clang.
if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  message(FATAL_ERROR "The fuzzer needs clang, which has libFuzzer; CMAKE_CXX_COMPILER is ${CMAKE_CXX_COMPILER}. "
                      "scripts/setup.sh installs clang++; choose it by the preset `fuzz`.")
endif()
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(Eigen3 3.4 REQUIRED NO_MODULE)
include(${PROJECT_SOURCE_DIR}/cmake/pcre2.cmake)

include(${CMAKE_CURRENT_LIST_DIR}/parts.cmake)
# The readers, without what writes models.
file(GLOB sources CONFIGURE_DEPENDS src/base/*.cc src/weight/*.cc src/checkpoint/*.cc src/pack/*.cc)
list(FILTER sources EXCLUDE REGEX "/checkpoint/(.*writer|write_.*|target.*|convert|split|model_folder|compressed_shard)[.]cc$")
add_executable(nybble_fuzz ${sources} ${NYBBLE_FUZZ_PARTS} tests/fuzz/fuzz_main.cc tests/fuzz/no_kernels.cc
  src/calibration/statistics_file.cc src/quantize/calibration_check.cc src/dispatch/tuning_data.cc
  src/dispatch/tuning_table.cc src/runtime/machine.cc)
target_include_directories(nybble_fuzz PRIVATE include src tests)
target_compile_options(nybble_fuzz PRIVATE -O2 -g1 -fno-omit-frame-pointer -ffp-contract=off
  -fsanitize=address,undefined,float-cast-overflow,fuzzer-no-link -fno-sanitize-recover=all -fno-sanitize=vptr
  -fsanitize-coverage-allowlist=${CMAKE_CURRENT_LIST_DIR}/coverage_allowlist.txt)
target_link_options(nybble_fuzz PRIVATE -fsanitize=address,undefined,fuzzer -static-libstdc++ -static-libgcc
  ${NYBBLE_FUZZ_LINK_OPTIONS})
target_precompile_headers(nybble_fuzz PRIVATE <nlohmann/json.hpp> <fmt/format.h> <fmt/ranges.h> <map> <string> <vector>
  <algorithm>)
target_link_libraries(nybble_fuzz PRIVATE Threads::Threads fmt::fmt-header-only Eigen3::Eigen
  pcre2_archive)
