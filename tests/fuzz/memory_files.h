// A folder whose files lie in memory, seen by the library's own file layer: the program is linked with --wrap for the
// system calls of base/file.cc, and what asks for this folder is answered here. Tens of thousands of models a second
// are opened so without touching a disk, and everything above the system calls is the code that ships.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace nybble::fuzz {

inline constexpr char kFolder[] = "/nybble-fuzz";

// The files that kFolder holds from now on, by their plain names; the bytes must outlive the accesses.
void set_memory_files(const std::map<std::string, std::span<const uint8_t>>& files);

// The path of one of them.
inline std::string memory_path(const std::string& name) { return std::string(kFolder) + '/' + name; }

}  // namespace nybble::fuzz
