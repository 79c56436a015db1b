// operations on a context's memory (KV cache or recurrent state)
//
// Where llama.cpp would end the process (positions that cannot be shifted, partial copies between streams), the
// arguments are refused instead.

#include "context.h"
#include "errors.h"

#include <algorithm>
#include <climits>

namespace turboprefill {

namespace {

struct memory_use : context::use {
    explicit memory_use(context & self) : context::use(self), mem(llama_get_memory(native->ctx)) {
        if (!mem) {
            throw invalid_input("this model has no memory (KV cache); its batches do not depend on each other");
        }
    }

    void check_seq(const char * name, llama_seq_id seq_id) const {
        const auto n = (int64_t) llama_n_seq_max(native->ctx);
        if (seq_id < 0 || seq_id >= n) {
            throw invalid_input(std::string(name) + " is " + std::to_string(seq_id) + "; expected 0 to " +
                std::to_string(n - 1) + " (n_seq_max is " + std::to_string(n) + ")");
        }
    }

    llama_memory_t mem;
};

void memory_clear(context & self, bool data) {
    memory_use u(self);
    if (data) {
        llama_synchronize(*u); // a backend may write the zeros while it still computes with the memory
    }
    llama_memory_clear(u.mem, data);
}

bool memory_seq_rm(context & self, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    memory_use u(self);
    u.check_seq("seq_id", seq_id);
    return llama_memory_seq_rm(u.mem, seq_id, p0, p1);
}

void memory_seq_cp(context & self, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) {
    memory_use u(self);
    u.check_seq("src", src);
    u.check_seq("dst", dst);
    if (src == dst) {
        return;
    }
    if (!self.unified()) {
        if (p0 > 0 || (p1 >= 0 && p1 <= llama_memory_seq_pos_max(u.mem, src))) {
            throw invalid_input("seq_cp of positions " + std::to_string(p0) + " to " + std::to_string(p1) +
                ": only whole sequences can be copied here; create the context with kv_unified=True for parts");
        }
        p0 = p1 = -1;
    }
    llama_memory_seq_cp(u.mem, src, dst, p0, p1);
}

void memory_seq_keep(context & self, llama_seq_id seq_id) {
    memory_use u(self);
    u.check_seq("seq_id", seq_id);
    llama_memory_seq_keep(u.mem, seq_id);
    // llama.cpp only looks at the stream of seq_id, but other streams hold sequences, too
    for (llama_seq_id s = 0; s < (llama_seq_id) llama_n_seq_max(*u); ++s) {
        if (s != seq_id) {
            llama_memory_seq_rm(u.mem, s, -1, -1);
        }
    }
}

void memory_seq_add(context & self, llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos delta) {
    memory_use u(self);
    u.check_seq("seq_id", seq_id);
    if (delta == 0) {
        return;
    }
    if (!llama_memory_can_shift(u.mem)) {
        throw invalid_input("this model's memory cannot be shifted; remove positions and decode again instead");
    }
    const int64_t first = std::max<int64_t>({ p0, 0, llama_memory_seq_pos_min(u.mem, seq_id) });
    const int64_t last  = llama_memory_seq_pos_max(u.mem, seq_id);
    if (first > last) {
        return;
    }
    if (first + delta < 0 || last + delta >= INT32_MAX) {
        throw invalid_input("adding " + std::to_string(delta) + " to positions " + std::to_string(first) + " to " +
            std::to_string(last) + " leaves the range of positions");
    }
    llama_memory_seq_add(u.mem, seq_id, p0, p1, delta);
}

llama_pos memory_seq_pos_min(context & self, llama_seq_id seq_id) {
    memory_use u(self);
    u.check_seq("seq_id", seq_id);
    return llama_memory_seq_pos_min(u.mem, seq_id);
}

llama_pos memory_seq_pos_max(context & self, llama_seq_id seq_id) {
    memory_use u(self);
    u.check_seq("seq_id", seq_id);
    return llama_memory_seq_pos_max(u.mem, seq_id);
}

bool memory_can_shift(context & self) {
    memory_use u(self);
    return llama_memory_can_shift(u.mem);
}

} // namespace

void bind_memory(py::class_<context> & cls) {
    cls.def("memory_clear", &memory_clear, py::arg("data"))
        .def("memory_seq_rm", &memory_seq_rm, py::arg("seq_id"), py::arg("p0"), py::arg("p1"))
        .def("memory_seq_cp", &memory_seq_cp, py::arg("src"), py::arg("dst"), py::arg("p0"), py::arg("p1"))
        .def("memory_seq_keep", &memory_seq_keep, py::arg("seq_id"))
        .def("memory_seq_add", &memory_seq_add, py::arg("seq_id"), py::arg("p0"), py::arg("p1"), py::arg("delta"))
        .def("memory_seq_pos_min", &memory_seq_pos_min, py::arg("seq_id"))
        .def("memory_seq_pos_max", &memory_seq_pos_max, py::arg("seq_id"))
        .def("memory_can_shift", &memory_can_shift);
}

} // namespace turboprefill
