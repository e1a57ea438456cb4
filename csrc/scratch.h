// Memory of a thread, aligned as vectors are. It stays with the thread: fresh pages would cost a small call more than
// what it computes.
//
// Takes a number of bytes. Gives memory that holds until the thread asks for the same kind again. Refuses nothing, and
// throws std::bad_alloc where there is no memory.

#pragma once
#include <cstdlib>
#include <memory>
#include <new>

namespace {

// What it is for: the powers of a row or a tile that wait for their sum, or rows that are laid down.
enum Scratch { OF_POWERS, OF_ROWS };
using Bytes = std::unique_ptr<void, decltype(&std::free)>;

inline Bytes aligned_bytes(size_t bytes) {
    Bytes memory(std::aligned_alloc(64, (bytes + 63) / 64 * 64), &std::free);
    if (!memory) throw std::bad_alloc();
    return memory;
}

template <Scratch KIND> void* scratch(size_t bytes) {
    thread_local Bytes memory(nullptr, &std::free);
    thread_local size_t size = 0;
    if (bytes > size) {
        memory.reset(), size = 0;
        memory = aligned_bytes(bytes), size = bytes;
    }
    return memory.get();
}

}  // namespace
