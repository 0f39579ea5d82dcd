# fmt, compiled once into an archive of our own: as part of every file that includes it, it costs two seconds each; there
# is no libfmt.a to rely on, while libnybble needs nothing at run time but the C and C++ runtimes. The archive names
# parts of fmt that differ between its versions, hence the trial; where it fails, every file compiles fmt for itself.
find_package(fmt REQUIRED)
get_target_property(fmt_include_dirs fmt::fmt-header-only INTERFACE_INCLUDE_DIRECTORIES)
if(NOT DEFINED NYBBLE_FMT_ONCE)  # once a build folder
  try_compile(NYBBLE_FMT_ONCE
    SOURCES ${CMAKE_CURRENT_LIST_DIR}/fmt.cc
    SOURCE_FROM_CONTENT use.cc [[
#include <fmt/chrono.h>
#include <fmt/format.h>
int main(int count, char** words) {
  fmt::print(stderr, "{} {:>8.3f} {}\n", words[0], 0.5f * count, 1.5 * count);
  fmt::print("{:L} {:%F} {}\n", count, fmt::gmtime(0), fmt::ptr(words));
  return static_cast<int>(fmt::format(fmt::runtime(words[0]), count).size());
}
]]
    CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${fmt_include_dirs}" CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON)
endif()
if(NYBBLE_FMT_ONCE)
  add_library(nybble_fmt STATIC ${CMAKE_CURRENT_LIST_DIR}/fmt.cc)
  target_include_directories(nybble_fmt SYSTEM PUBLIC ${fmt_include_dirs})
  target_link_libraries(nybble_fmt PRIVATE nybble_options)
else()
  message(STATUS "fmt ${fmt_VERSION} is compiled into every file that uses it: cmake/fmt.cc does not fit this version")
  add_library(nybble_fmt INTERFACE)
  target_link_libraries(nybble_fmt INTERFACE fmt::fmt-header-only)
endif()
