// Memory of one thread, kept from task to task.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace modernbert {

// `cut` hands out a piece, whole lines of the cache.
class Room {
  public:
    void begin(size_t bytes) {
        if (memory.size() < bytes + 64) memory.resize(bytes + 64);
        next = (char*)((uintptr_t(memory.data()) + 63) / 64 * 64);
    }
    template <class T>
    T* cut(size_t number) {
        T* piece = (T*)next;
        next += (number * sizeof(T) + 63) / 64 * 64;
        return piece;
    }

  private:
    std::vector<char> memory;
    char* next;
};

}  // namespace modernbert
