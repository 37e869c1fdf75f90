// What Python calls by name, through a plain C interface.
#pragma once
#include <cstdint>

namespace modernbert {
// Rows of a block whose sum is made by itself; Python makes room for a sum a block.
constexpr int64_t ROWS_AT_A_TIME = 64;
}  // namespace modernbert

#define EXPORT extern "C" __attribute__((visibility("default")))
