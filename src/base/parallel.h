// Fork-join over a range of items, on threads that live as long as the process.
#pragma once

#include <cstdint>
#include <functional>

namespace nybble::base {

// The threads that num_threads = 0 stands for: the cores this process may use.
int default_threads();

// Calls body(item) once for every item in [0, count), on up to num_threads threads (0: default_threads()), the caller's
// included. Items are handed out in order; the result must not depend on which thread ran which item. body must not
// throw. Nested calls run on the calling thread.
void parallel_for(int64_t count, int num_threads, const std::function<void(int64_t)>& body);

}  // namespace nybble::base
