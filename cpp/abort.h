// the abort callback, a Python callable that llama.cpp calls while it computes, and signals between ubatches

#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <exception>

namespace turboprefill {

namespace py = pybind11;

struct abort_state {
    PyObject *           callback = nullptr; // written with the GIL and the context's lock held
    std::exception_ptr   error;              // raised by the callback or a signal handler, written with the GIL held
    std::atomic<int64_t> interval_us = 0;
    std::atomic<int64_t> next_us     = 0;     // when to call it again: llama.cpp asks before each node, mostly for free
    std::atomic<bool>    stop        = false; // sticky until the next decode
    int64_t              signals_us  = 0;     // when to check for signals again: another thread may hold the GIL for long

    void set(const py::object & fn, double interval_s); // GIL held
    void begin();
    void rethrow();   // GIL held or not; throws what the callback or a signal handler raised
    void forget();    // takes the GIL

    bool ask();         // from any thread, without the GIL
    bool interrupted(); // between ubatches, on the thread that decodes, without the GIL: whether a signal handler raised

    static bool on_abort(void * data) { return ((abort_state *) data)->ask(); }
    static bool on_interrupt(void * data) { return ((abort_state *) data)->interrupted(); }
};

// true while the calling thread runs an abort callback, or a signal handler between ubatches: if it used the context there,
// it would wait for itself
bool in_abort_callback();

} // namespace turboprefill
