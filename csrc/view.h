// Tensors as they come from Python: a borrowed DLTensor, by DLPack's C exchange API where the tensor's type offers one.
//
// Takes any object with __dlpack__ and the name of the argument that it is. Gives its pointer, shape, strides and dtype
// for the call that it is made for. A tensor whose memory does not hold its numbers, because torch has put off changing
// their signs or writing zeros, is written out first. Refuses tensors that are not in this machine's memory, unless it
// is only to LOOK at them, and such memory where it is to WRITE. Of what was made for a call, which is FRESH, only the
// device is asked for.

#pragma once
#include <nanobind/nanobind.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace nb = nanobind;

namespace dlpack {
struct Device {
    int32_t type, id;
};
struct DataType {
    uint8_t code, bits;
    uint16_t lanes;
    bool operator!=(const DataType& other) const { return code != other.code || bits != other.bits; }
};
struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};
struct Managed {
    Tensor tensor;
    void* context;
    void (*deleter)(Managed*);
};
struct ExchangeAPI {
    uint32_t major, minor;
    void *previous, *allocate, *managed_from_object, *object_from_managed;
    int (*view)(void* object, Tensor* to);
};
enum Code { INT = 0, UINT = 1, FLOAT = 2, BFLOAT = 4 };
constexpr int32_t CPU = 1;
}  // namespace dlpack

// The types of plain tensors, and torch.Tensor.is_neg; Python hands them over at import. Never destroyed.
struct __attribute__((visibility("hidden"))) TensorTypes {
    PyTypeObject *tensor = nullptr, *parameter = nullptr;
    nb::object is_neg;

    bool plain(nb::handle x) const { return Py_TYPE(x.ptr()) == tensor || Py_TYPE(x.ptr()) == parameter; }
};
inline TensorTypes& types() {
    static TensorTypes* one = new TensorTypes;
    return *one;
}

// Borrowed: it lives no longer than the call it was made for.
class __attribute__((visibility("hidden"))) View : public dlpack::Tensor {
  public:
    enum Use { READ, WRITE, LOOK, FRESH };
    const char* name;

    View(nb::handle tensor, const char* name_, Use use = READ) : name(name_) {
        look(tensor);
        if (use != LOOK) see_to(tensor, use);
    }

    // Make what was only looked at fit for another use.
    void see_to(nb::handle tensor, Use use = READ) {
        if (device.type != dlpack::CPU) refuse("must be on the CPU, where the native kernels run");
        if (use == FRESH) return;
        const bool floating = dtype.code == dlpack::FLOAT || dtype.code == dlpack::BFLOAT;
        const bool negative = floating && is_neg(tensor), zero = !negative && !data && numel() > 0 && is_zero(tensor);
        if (use == WRITE && (negative || zero)) refuse("must not be a conjugate's view or a tensor of zeros to come");
        if (negative || zero) {
            written_out_ = tensor.attr("detach")().attr(negative ? "resolve_neg" : "clone")();
            look(written_out_);
        }
        if (!data && numel() > 0) refuse("has no memory, as a meta or fake tensor has none: nothing can be computed");
    }

    bool on_cpu() const { return device.type == dlpack::CPU && (data || numel() == 0); }
    void* pointer() const { return static_cast<char*>(data) + byte_offset; }
    int64_t numel() const {
        int64_t n = 1;
        for (int32_t d = 0; d < ndim; d++) n *= shape[d];
        return n;
    }
    std::string text() const {
        std::string to = "(";
        for (int32_t d = 0; d < ndim; d++) to += (d ? ", " : "") + std::to_string(shape[d]);
        return to + (ndim == 1 ? ",)" : ")");
    }
    [[noreturn]] void refuse(const std::string& rule) const {
        throw std::invalid_argument(std::string(name) + " " + rule);
    }

  private:
    void look(nb::handle tensor) {
        if (const dlpack::ExchangeAPI* api = exchange(tensor)) {
            if (api->view(tensor.ptr(), this) != 0) {
                nb::python_error why;
                nb::raise_from(why, PyExc_ValueError, "%s has no memory to be read, as a meta tensor has none", name);
            }
        } else {
            if (!nb::hasattr(tensor, "__dlpack__") || !nb::hasattr(tensor, "detach"))
                throw nb::type_error((std::string(name) + " must be a torch.Tensor").c_str());
            keep_ = tensor.attr("detach")().attr("__dlpack__")();
            void* managed = PyCapsule_GetPointer(keep_.ptr(), "dltensor");
            if (!managed) throw nb::python_error();
            static_cast<dlpack::Tensor&>(*this) = *static_cast<dlpack::Tensor*>(managed);
        }
        if (dtype.lanes != 1 || (ndim > 0 && !strides)) refuse("must be a torch.Tensor with strides");
    }
    static bool is_neg(nb::handle tensor) { return types().is_neg && nb::cast<bool>(types().is_neg(tensor)); }
    static bool is_zero(nb::handle tensor) { return nb::cast<bool>(tensor.attr("_is_zerotensor")()); }

    static const dlpack::ExchangeAPI* exchange(nb::handle tensor) {
        static PyTypeObject* first = nullptr;  // torch.Tensor as a rule; kept, so that no other type gets its address
        static const dlpack::ExchangeAPI* first_api = nullptr;
        PyTypeObject* type = Py_TYPE(tensor.ptr());
        if (type == first) return first_api;
        nb::object capsule = nb::getattr(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__", nb::none());
        if (capsule.is_none()) return nullptr;
        auto* api = static_cast<const dlpack::ExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        if (!api) throw nb::python_error();
        if (api->major != 1) return nullptr;
        if (!first) Py_INCREF(reinterpret_cast<PyObject*>(type)), first = type, first_api = api;
        return api;
    }

    nb::object keep_, written_out_;
};
