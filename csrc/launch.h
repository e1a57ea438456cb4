// Which kernels run, and on how many threads.
//
// Takes a number of tiles and a function that works on tiles [begin, end). Gives them to torch's own threads, whose
// parallel_for is handed over at import, or without it to this one. Refuses an instruction set that this build or this
// processor does not have.

#pragma once
#include <nanobind/nanobind.h>

#include <algorithm>
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
    parallel_for(0, tiles, grain, range, &work);
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

void bind_launch(nb::module_& m) {
    using nb::literals::operator""_a;
    m.def("isa", [] { return kernels->name; }, "Name the instruction set in use.");
    m.def("isas", &isa_names, "List the instruction sets that this build and this processor have, the best last.");
    m.def("use_isa", [](const char* name) { use_isa(name); }, "name"_a, "Use the kernels of another instruction set.");
    m.def(
        "use_threads_of", [](uintptr_t address) { parallel_for = reinterpret_cast<ParallelFor>(address); },
        "Share the work by this function, torch_parallel_for; without it one thread does all."
    );
}

}  // namespace
