// Which kernels run, and on how many threads.
//
// Takes a number of tiles and a function that works on tiles [begin, end). Gives them to torch's own threads, whose
// parallel_for is handed over at import, or without it to this one. Refuses an instruction set that this build or this
// processor does not have.

#pragma once
#include <dlfcn.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <new>
#include <string>

#include "dispatch.h"

namespace nb = nanobind;

namespace {

using Range = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Range, void* context);

ParallelFor parallel_for = nullptr;
const Kernels* kernels = available_kernels().back();

constexpr int64_t SERIAL = 1 << 15;  // below this many elements the work does not pay for a second thread

template <class F> void share(int64_t tiles, int64_t elements, F&& work) {
    if (!parallel_for || elements < SERIAL || tiles < 2) return work(0, tiles);
    nb::gil_scoped_release release;
    const int64_t grain = std::max<int64_t>(1, tiles * (SERIAL / 2) / elements);
    const Range range = [](int64_t begin, int64_t end, void* f) { (*static_cast<F*>(f))(begin, end); };
    // std::bad_alloc is the only exception that the work can throw, and torch turns it into a return code.
    if (parallel_for(0, tiles, grain, range, &work)) throw std::bad_alloc();
}

nb::list isa_names() {
    nb::list names;
    for (const Kernels* each : available_kernels()) names.append(each->name);
    return names;
}

void use_isa(const std::string& name) {
    std::string names;
    for (const Kernels* each : available_kernels()) {
        if (name == each->name) return void(kernels = each);
        names += std::string(names.empty() ? "" : ", ") + each->name;
    }
    throw nb::value_error(("this processor and build offer the instruction sets " + names + ", not " + name).c_str());
}

// A library is not loaded here: only that of torch itself, which is there already, has the function.
bool use_threads_of(const std::string& library) {
    void* loaded = dlopen(library.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (!loaded) return false;
    void* function = dlsym(loaded, "torch_parallel_for");
    dlclose(loaded);
    if (function) parallel_for = reinterpret_cast<ParallelFor>(function);
    return function;
}

void bind_launch(nb::module_& m) {
    using nb::literals::operator""_a;
    m.def("isa", [] { return kernels->name; }, "Name the instruction set in use.");
    m.def("isas", &isa_names, "List the instruction sets that this build and this processor have, the best last.");
    m.def("use_isa", &use_isa, "name"_a, "Use the kernels of another instruction set.");
    m.def(
        "use_threads_of", &use_threads_of, "library"_a,
        "Share the work by the torch_parallel_for of a library that is loaded; without one a single thread does all."
    );
}

}  // namespace
