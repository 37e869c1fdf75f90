// Scratch memory of one thread, reused between tasks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace modernbert {

// A bump allocator: `alloc` returns cache-line-aligned buffers until the next `reset`.
class ScratchArena {
  public:
    void reset(size_t bytes) {
        if (memory.size() < bytes + 64) memory.resize(bytes + 64);
        next = (char*)((uintptr_t(memory.data()) + 63) / 64 * 64);
    }
    template <class T>
    T* alloc(size_t number) {
        T* piece = (T*)next;
        next += (number * sizeof(T) + 63) / 64 * 64;
        return piece;
    }

  private:
    std::vector<char> memory;
    char* next;
};

}  // namespace modernbert
