// The C interface that Python calls through ctypes.
#pragma once
#include <cstdint>

namespace modernbert {
// Rows are summed per block of this size; Python allocates one partial sum per block.
constexpr int64_t ROWS_PER_BLOCK = 64;
}  // namespace modernbert

#define EXPORT extern "C" __attribute__((visibility("default")))
