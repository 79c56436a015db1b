// translates turboprefill::error to the Python class that it names

#include "bindings.h"
#include "errors.h"

namespace turboprefill {

void bind_errors(py::module_ &) {
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) {
                std::rethrow_exception(p);
            }
        } catch (const error & e) {
            const py::object cls = py::module_::import("turboprefill.errors").attr(e.python_class);
            PyErr_SetString(cls.ptr(), e.what());
        }
    });
}

} // namespace turboprefill
