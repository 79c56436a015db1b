#include "log.h"

#include "bindings.h"

#include "llama.h"

#include <pybind11/stl.h>

#include <deque>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace turboprefill {

namespace {

constexpr size_t LOG_MAX_LINES = 8192; // about 1 MB; the oldest lines are dropped first

using log_line = std::pair<int, std::string>; // ggml_log_level, text without the line break

struct log_queue {
    std::mutex           mutex;
    std::deque<log_line> lines;
    size_t               n_dropped = 0;

    void push(int level, std::string text) {
        std::lock_guard<std::mutex> lock(mutex);
        if (lines.size() == LOG_MAX_LINES) {
            lines.pop_front();
            n_dropped++;
        }
        lines.emplace_back(level, std::move(text));
    }
};

// never destroyed: backend threads may log after static destructors have run
log_queue & queue() {
    static log_queue * q = new log_queue;
    return *q;
}

// a line may arrive in pieces, and several threads may log at once
struct partial_line {
    int         level = GGML_LOG_LEVEL_INFO;
    std::string text;
};

void on_log(ggml_log_level level, const char * text, void *) {
    static thread_local partial_line partial;
    if (level != GGML_LOG_LEVEL_CONT) {
        partial.level = level;
    }
    for (const char * p = text; *p; ++p) {
        if (*p != '\n') {
            partial.text += *p;
        } else if (!partial.text.empty()) {
            queue().push(partial.level, std::exchange(partial.text, {}));
        }
    }
}

py::tuple drain() {
    std::deque<log_line> lines;
    size_t n_dropped = 0;
    {
        std::lock_guard<std::mutex> lock(queue().mutex);
        lines.swap(queue().lines);
        std::swap(n_dropped, queue().n_dropped);
    }
    py::list out;
    for (const auto & [level, text] : lines) {
        // model metadata may hold any bytes
        PyObject * str = PyUnicode_DecodeUTF8(text.data(), (Py_ssize_t) text.size(), "replace");
        if (!str) {
            throw py::error_already_set();
        }
        out.append(py::make_tuple(level, py::reinterpret_steal<py::str>(str)));
    }
    return py::make_tuple(out, n_dropped);
}

} // namespace

void log_install() {
    static std::once_flag once;
    std::call_once(once, [] { llama_log_set(on_log, nullptr); });
}

void log_error(const std::string & text) {
    on_log(GGML_LOG_LEVEL_ERROR, (text + "\n").c_str(), nullptr);
}

void bind_log(py::module_ & m) {
    m.def("drain_log", &drain,
        "Take the lines that llama.cpp logged since the last call: ([(level, text), ...], number of lines lost).");
    m.def("log_message", [](int level, const std::string & text) {
        on_log((ggml_log_level) level, text.c_str(), nullptr);
    }, py::arg("level"), py::arg("text"), py::call_guard<py::gil_scoped_release>(),
        "Log as llama.cpp would (for tests).");
}

} // namespace turboprefill
