#include "abort.h"

#include "llama.h"

#include <utility>

namespace turboprefill {

namespace {

thread_local bool in_callback = false;

const int64_t signal_interval_us = 20000;

bool interpreter_finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsFinalizing();
#else
    return _Py_IsFinalizing();
#endif
}

} // namespace

bool in_abort_callback() {
    return in_callback;
}

void abort_state::set(const py::object & fn, double interval_s) {
    PyObject * old = callback;
    callback = fn.is_none() ? nullptr : fn.inc_ref().ptr();
    interval_us = (int64_t) (1e6*interval_s);
    Py_XDECREF(old);
}

void abort_state::begin() {
    next_us = 0;
    stop    = false;
}

bool abort_state::ask() {
    if (stop) {
        return true;
    }
    const int64_t now = llama_time_us();
    if (now < next_us || interpreter_finalizing()) {
        return false;
    }

    py::gil_scoped_acquire gil;
    if (!callback || stop) {
        return stop;
    }
    in_callback = true;
    try {
        const py::object result = py::reinterpret_borrow<py::object>(callback)();
        const int truth = PyObject_IsTrue(result.ptr());
        if (truth < 0) {
            throw py::error_already_set();
        }
        stop = truth != 0;
    } catch (py::error_already_set &) {
        error = std::current_exception();
        stop  = true;
    }
    in_callback = false;
    next_us = llama_time_us() + interval_us;
    return stop;
}

bool abort_state::interrupted() {
    const int64_t now = llama_time_us();
    if (now < signals_us || interpreter_finalizing()) {
        return false;
    }
    py::gil_scoped_acquire gil;
    signals_us = now + signal_interval_us;
    // signal handlers run here, on the thread that uses the context
    in_callback = true;
    if (!error && PyErr_CheckSignals() != 0) {
        error = std::make_exception_ptr(py::error_already_set());
    }
    in_callback = false;
    return error != nullptr;
}

void abort_state::rethrow() {
    py::gil_scoped_acquire gil;
    if (error) {
        std::rethrow_exception(std::exchange(error, nullptr));
    }
}

void abort_state::forget() {
    if (!callback && !error) {
        return;
    }
    py::gil_scoped_acquire gil;
    Py_CLEAR(callback);
    error = nullptr;
}

} // namespace turboprefill
