// the abort callback: a Python callable that llama.cpp asks while it computes

#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <exception>

namespace turboprefill {

namespace py = pybind11;

struct abort_state {
    PyObject *           callback = nullptr; // written with the GIL and the context's lock held
    std::exception_ptr   error;              // raised by the callback, written with the GIL held
    std::atomic<int64_t> interval_us = 0;
    std::atomic<int64_t> next_us     = 0;     // llama.cpp asks before each node: most calls must cost nothing
    std::atomic<bool>    stop        = false; // sticky until the next decode
    int64_t              signals_us  = 0;     // when signals are looked at again: the GIL is somebody else's most of the time

    void set(const py::object & fn, double interval_s); // GIL held
    void begin();
    void rethrow();   // GIL held or not; throws what the callback raised
    void forget();    // takes the GIL

    bool ask();         // from any thread, without the GIL
    bool interrupted(); // between ubatches, on the thread that decodes, without the GIL: did a signal's handler raise?

    static bool on_abort(void * data) { return ((abort_state *) data)->ask(); }
    static bool on_interrupt(void * data) { return ((abort_state *) data)->interrupted(); }
};

// true while the calling thread runs an abort callback, or a signal's handler between ubatches: using a context there would wait for itself
bool in_abort_callback();

} // namespace turboprefill
