// TurboPrefill's switch, counters and timeline; llama.cpp's own timings

#include "context.h"

#include "turboprefill.h"

#include <pybind11/stl.h>

#include <vector>

namespace turboprefill {

namespace {

struct stage {
    std::string device, transport;
    int64_t     n_ubatches;
    uint64_t    n_bytes_in;
};

struct wait {
    std::string cause;
    int64_t     n, t_us;
};

struct stats {
    llama_turboprefill_stats counters;
    std::vector<wait>        waits;
    std::vector<stage>       stages;
    std::string              reason;
};

struct span {
    std::string device;
    int32_t     stage, ubatch;
    bool        pipelined;
    int64_t     t_start_us, t_end_us;
};

std::string text(const char * s) {
    return s ? s : "";
}

stats get_stats(context & self) {
    context::use u(self);
    stats out;
    out.counters = llama_turboprefill_get_stats(*u);
    out.reason   = text(llama_turboprefill_reason(*u));
    for (int32_t i = 0; i < llama_turboprefill_n_stages(*u); ++i) {
        llama_turboprefill_stage s = {};
        if (llama_turboprefill_get_stage(*u, i, &s)) {
            out.stages.push_back({ text(s.device), text(s.transport), s.n_ubatches, s.n_bytes_in });
        }
    }
    for (int32_t i = 0; i < llama_turboprefill_n_waits(); ++i) {
        llama_turboprefill_wait w = {};
        if (llama_turboprefill_get_wait(*u, i, &w)) {
            out.waits.push_back({ text(w.cause), w.n, w.t_us });
        }
    }
    return out;
}

std::vector<span> trace_stop(context & self) {
    context::use u(self);
    std::vector<llama_turboprefill_span> raw(llama_turboprefill_trace_stop(*u));
    raw.resize(llama_turboprefill_trace_read(*u, raw.data(), raw.size()));
    std::vector<span> out;
    for (const auto & s : raw) {
        out.push_back({ text(s.device), s.stage, s.ubatch, s.pipelined, s.t_start_us, s.t_end_us });
    }
    u.native->abort.rethrow();
    return out;
}

template <typename T> auto counter(T llama_turboprefill_stats::* field) {
    return [field](const stats & self) { return self.counters.*field; };
}

} // namespace

void bind_stats(py::module_ & m, py::class_<context> & cls) {
    py::class_<stage>(m, "Stage")
        .def_readonly("device",     &stage::device)
        .def_readonly("transport",  &stage::transport)
        .def_readonly("n_ubatches", &stage::n_ubatches)
        .def_readonly("n_bytes_in", &stage::n_bytes_in);

    py::class_<wait>(m, "Wait")
        .def_readonly("cause", &wait::cause)
        .def_readonly("n",     &wait::n)
        .def_readonly("t_us",  &wait::t_us);

    using c = llama_turboprefill_stats;
    py::class_<stats>(m, "Stats")
        .def_property_readonly("n_ubatches_pipelined", counter(&c::n_ubatches_pipelined))
        .def_property_readonly("n_ubatches_standard",  counter(&c::n_ubatches_standard))
        .def_property_readonly("n_tokens_pipelined",   counter(&c::n_tokens_pipelined))
        .def_property_readonly("n_tokens_standard",    counter(&c::n_tokens_standard))
        .def_property_readonly("n_faults",             counter(&c::n_faults))
        .def_property_readonly("t_capture_us",         counter(&c::t_capture_us))
        .def_property_readonly("t_slot_wait_us",       counter(&c::t_slot_wait_us))
        .def_property_readonly("n_bytes_moved",        counter(&c::n_bytes_moved))
        .def_property_readonly("mem_host",             counter(&c::mem_host))
        .def_property_readonly("mem_device",           counter(&c::mem_device))
        .def_property_readonly("n_slots",              counter(&c::n_slots))
        .def_readonly("stages", &stats::stages)
        .def_readonly("waits",  &stats::waits)
        .def_readonly("reason", &stats::reason);

    py::class_<span>(m, "Span")
        .def_readonly("device",     &span::device)
        .def_readonly("stage",      &span::stage)
        .def_readonly("ubatch",     &span::ubatch)
        .def_readonly("pipelined",  &span::pipelined)
        .def_readonly("t_start_us", &span::t_start_us)
        .def_readonly("t_end_us",   &span::t_end_us);

    py::class_<llama_perf_context_data>(m, "Perf")
        .def_readonly("t_load_ms",   &llama_perf_context_data::t_load_ms)
        .def_readonly("t_p_eval_ms", &llama_perf_context_data::t_p_eval_ms)
        .def_readonly("t_eval_ms",   &llama_perf_context_data::t_eval_ms)
        .def_readonly("n_p_eval",    &llama_perf_context_data::n_p_eval)
        .def_readonly("n_eval",      &llama_perf_context_data::n_eval)
        .def_readonly("n_reused",    &llama_perf_context_data::n_reused);

    cls.def("stats", &get_stats)
        .def("reset_stats", [](context & self) { context::use u(self); llama_turboprefill_reset_stats(*u); })
        .def("trace_start", [](context & self) { context::use u(self); llama_turboprefill_trace_start(*u); })
        .def("trace_stop", &trace_stop)
        .def("perf",       [](context & self) { context::use u(self); return llama_perf_context(*u); })
        .def("reset_perf", [](context & self) { context::use u(self); llama_perf_context_reset(*u); })
        .def_property("turboprefill",
            [](context & self) { context::use u(self); return llama_turboprefill_enabled(*u); },
            [](context & self, bool enabled) { context::use u(self); llama_turboprefill_set_enabled(*u, enabled); });
}

} // namespace turboprefill
