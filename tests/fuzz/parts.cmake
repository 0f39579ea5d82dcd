# What the fuzzer and the replay of its findings have in common: the targets, and the linker options by which the
# library's file layer sees files in memory (memory_files.h).
set(NYBBLE_FUZZ_PARTS folder_image.cc memory_files.cc mutate.cc seeds.cc targets.cc)
list(TRANSFORM NYBBLE_FUZZ_PARTS PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
set(NYBBLE_FUZZ_LINK_OPTIONS "")
foreach(call openat close stat fstat fstatat pread fdopendir readdir closedir sched_getaffinity)
  list(APPEND NYBBLE_FUZZ_LINK_OPTIONS -Wl,--wrap=${call})
endforeach()
