// The Python module crossent._native: its functions, by what they compute.
//
// A function takes tensors by DLPack (view.h), reads their strides (layout.h) and shares the tiles among threads
// (launch.h). What it writes to are tensors that Python made. It checks that its arguments fit together
// (bind_checks.h), so that no call reads or writes beside their memory.

#include "bind_attach.h"
#include "bind_binary.h"
#include "bind_memory.h"
#include "bind_product.h"
#include "bind_softmax.h"

NB_MODULE(_native, m) {
    m.doc() = "The CPU kernels of crossent.";
    bind_softmax(m);
    bind_binary(m);
    bind_attach(m);
    bind_product(m);
    bind_memory(m);
    bind_launch(m);
}
