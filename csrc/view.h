// Tensors as they come from Python: a borrowed DLTensor, by DLPack's C exchange API where the tensor's type offers one.
//
// Takes any object with __dlpack__. Gives its pointer, shape, strides and dtype for the call that it is made for.
// Refuses tensors that are not in this machine's memory, unless asked to look at ANY.

#pragma once
#include <nanobind/nanobind.h>

#include <cstdint>
#include <stdexcept>

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

// Borrowed: it lives no longer than the call it was made for.
class __attribute__((visibility("hidden"))) View : public dlpack::Tensor {
  public:
    enum Check { COMPUTABLE, ANY };

    explicit View(nb::handle tensor, Check check = COMPUTABLE) {
        if (const dlpack::ExchangeAPI* api = exchange(tensor)) {
            if (api->view(tensor.ptr(), this) != 0) throw nb::python_error();
        } else {
            keep_ = tensor.attr("detach")().attr("__dlpack__")();
            void* managed = PyCapsule_GetPointer(keep_.ptr(), "dltensor");
            if (!managed) throw nb::python_error();
            static_cast<dlpack::Tensor&>(*this) = *static_cast<dlpack::Tensor*>(managed);
        }
        if (check == ANY) return;
        if (device.type != dlpack::CPU) throw std::invalid_argument("the native kernels take CPU tensors only");
        if (!data && numel() > 0)
            throw std::invalid_argument(
                "a tensor without memory, such as a meta or fake one, has nothing to compute with"
            );
    }

    bool on_cpu() const { return device.type == dlpack::CPU && (data || numel() == 0); }
    void* pointer() const { return static_cast<char*>(data) + byte_offset; }
    int64_t numel() const {
        int64_t n = 1;
        for (int32_t d = 0; d < ndim; d++) n *= shape[d];
        return n;
    }

  private:
    static const dlpack::ExchangeAPI* exchange(nb::handle tensor) {
        static PyTypeObject* first = nullptr;  // torch.Tensor, which never goes away
        static const dlpack::ExchangeAPI* first_api = nullptr;
        PyTypeObject* type = Py_TYPE(tensor.ptr());
        if (type == first) return first_api;
        nb::object capsule = nb::getattr(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__", nb::none());
        if (capsule.is_none()) return nullptr;
        auto* api = static_cast<const dlpack::ExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        if (!api) throw nb::python_error();
        if (api->major != 1) return nullptr;
        if (!first) first = type, first_api = api;
        return api;
    }

    nb::object keep_;
};
