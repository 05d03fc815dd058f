// The door for ctypes: launches a kernel of this library on the host's machine.
#include <wgmma_tiles.cuh>

#include "machine.hpp"

// One tensor the kernels may touch.
struct Tensor { const char* data; long long bytes; int writable; };

// Null, or what went wrong. A kernel takes a Problem, or, where `mapped`, a MappedProblem.
extern "C" const char* launch(void* kernel, const void* problem, int mapped, const Tensor* tensors, int count,
                              int blocks_x, int blocks_y, int threads, int shared_bytes, unsigned seed) {
    static std::string message;
    machine::ranges.clear();
    for (int i = 0; i < count; i++)
        machine::ranges.push_back({tensors[i].data, tensors[i].data + tensors[i].bytes, tensors[i].writable != 0});
    const auto entry = [=] {
        if (mapped) reinterpret_cast<void (*)(MappedProblem)>(kernel)(*static_cast<const MappedProblem*>(problem));
        else reinterpret_cast<void (*)(Problem)>(kernel)(*static_cast<const Problem*>(problem));
    };
    message = machine::run({entry, blocks_x, blocks_y, threads, shared_bytes, seed});
    return message.empty() ? nullptr : message.c_str();
}
