// one function per file of bindings; module.cpp calls them in order

#pragma once

#include <pybind11/pybind11.h>

namespace turboprefill {

namespace py = pybind11;

void bind_errors (py::module_ & m);
void bind_log    (py::module_ & m);
void bind_backend(py::module_ & m);
void bind_params (py::module_ & m);
void bind_model  (py::module_ & m);
void bind_context(py::module_ & m);

} // namespace turboprefill
