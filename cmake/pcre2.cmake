# PCRE2 as an archive: libnybble needs nothing at run time but the C and C++ runtimes.
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED libpcre2-8)
find_library(PCRE2_ARCHIVE NAMES libpcre2-8.a HINTS ${PCRE2_LIBDIR} REQUIRED)
add_library(pcre2_archive STATIC IMPORTED GLOBAL)
set_target_properties(pcre2_archive PROPERTIES IMPORTED_LOCATION "${PCRE2_ARCHIVE}"
  INTERFACE_INCLUDE_DIRECTORIES "${PCRE2_INCLUDE_DIRS}")
