// TurboPrefill: the public C API of include/turboprefill.h

#include "turboprefill-impl.h"

#include "llama-impl.h"

#include <algorithm>
#include <exception>

void llama_turboprefill_set_auto_ubatch(llama_context * ctx, float overhead) {
    llama_turboprefill::make(*ctx).ubatch_overhead = overhead < 0 ? llama_turboprefill_guess_ubatch_overhead(ctx->get_model()) : overhead;
}

bool llama_turboprefill_set_enabled(llama_context * ctx, bool enabled) {
    try {
        llama_turboprefill::make(*ctx).set_enabled(enabled);
        return true;
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
        return false;
    }
}

bool llama_turboprefill_enabled(const llama_context * ctx) {
    const auto * tp = llama_turboprefill::get(*ctx);
    return tp ? tp->enabled : llama_turboprefill_env_enabled();
}

int32_t llama_turboprefill_synchronize(llama_context * ctx) {
    return llama_turboprefill::make(*ctx).synchronize();
}

bool llama_turboprefill_synchronize_results(llama_context * ctx, int32_t * status) {
    auto * tp = llama_turboprefill::get(*ctx);
    return tp && tp->wait_results(status);
}

void llama_turboprefill_set_interrupt(llama_context * ctx, llama_turboprefill_interrupt callback, void * data) {
    auto & tp = llama_turboprefill::make(*ctx);
    tp.interrupt      = callback;
    tp.interrupt_data = data;
}

int64_t llama_turboprefill_stuck_us(const llama_context * ctx, char * text, size_t n) {
    std::string what;
    const auto * tp = ctx ? llama_turboprefill::get(*ctx) : nullptr;
    const int64_t t_us = tp || !ctx ? ggml_turboprefill_stuck_us(tp ? tp->health.get() : nullptr, what) : 0;
    if (n > 0) {
        text[what.copy(text, n - 1)] = 0;
    }
    return t_us;
}

const char * llama_turboprefill_report(llama_context * ctx) {
    return llama_turboprefill::make(*ctx).report();
}

const char * llama_turboprefill_reason(const llama_context * ctx) {
    const auto * tp = llama_turboprefill::get(*ctx);
    if (tp && !tp->enabled && tp->why_disabled) {
        return tp->why_disabled;
    }
    if (!tp || !tp->enabled) {
        return "TurboPrefill is disabled";
    }
    return tp->reason.c_str();
}

llama_turboprefill_stats llama_turboprefill_get_stats(const llama_context * ctx) {
    const auto * tp = llama_turboprefill::get(*ctx);
    if (!tp) {
        return {};
    }
    llama_turboprefill_stats stats = tp->stats;
    if (tp->engine) {
        const ggml_turboprefill_engine_stats engine = ggml_turboprefill_get_stats(tp->engine);
        stats.t_slot_wait_us = engine.waits[GGML_TURBOPREFILL_CAUSE_SLOT].t_us;
        stats.n_bytes_moved  = engine.n_bytes_moved;
        stats.mem_host       = engine.mem_host + tp->graph_bytes();
        stats.mem_device     = engine.mem_device;
        stats.n_slots        = engine.n_slots;
        stats.n_stages       = ggml_turboprefill_get_stages(tp->engine).size();
    }
    return stats;
}

void llama_turboprefill_reset_stats(llama_context * ctx) {
    if (auto * tp = llama_turboprefill::get(*ctx)) {
        tp->reset_stats();
    }
}

int32_t llama_turboprefill_n_waits(void) {
    return GGML_TURBOPREFILL_N_CAUSES;
}

bool llama_turboprefill_get_wait(const llama_context * ctx, int32_t i, llama_turboprefill_wait * wait) {
    if (i < 0 || i >= GGML_TURBOPREFILL_N_CAUSES) {
        return false;
    }
    const auto cause = (ggml_turboprefill_cause) i;
    const auto * tp = llama_turboprefill::get(*ctx);
    const ggml_turboprefill_wait_stats stats = tp ? tp->get_wait(cause) : ggml_turboprefill_wait_stats {};
    *wait = { ggml_turboprefill_cause_name(cause), stats.n, stats.t_us };
    return true;
}

int32_t llama_turboprefill_n_stages(const llama_context * ctx) {
    return llama_turboprefill_get_stats(ctx).n_stages;
}

bool llama_turboprefill_get_stage(const llama_context * ctx, int32_t i, llama_turboprefill_stage * stage) {
    const auto * tp = llama_turboprefill::get(*ctx);
    if (!tp || !tp->engine) {
        return false;
    }
    const auto stages = ggml_turboprefill_get_stages(tp->engine);
    if (i < 0 || (size_t) i >= stages.size()) {
        return false;
    }
    const auto & from = stages[i];
    *stage = { from.device, from.transport, from.n_ubatches, from.n_bytes_in };
    return true;
}

//
// timeline
//

void llama_turboprefill::trace_start() {
    drain(GGML_TURBOPREFILL_CAUSE_SETTING);
    if (trace) {
        ggml_turboprefill_sched_set_trace(ctx.sched.get(), nullptr);
        ggml_turboprefill_trace_free(trace);
    }
    spans.clear();
    trace = ggml_turboprefill_trace_new();
    if (ctx.sched) {
        ggml_turboprefill_sched_set_trace(ctx.sched.get(), trace);
    }
}

size_t llama_turboprefill::trace_stop() {
    if (trace) {
        ctx.synchronize();
        ggml_turboprefill_sched_set_trace(ctx.sched.get(), nullptr);
        spans = ggml_turboprefill_trace_spans(trace);
        ggml_turboprefill_trace_free(trace);
        trace = nullptr;
    }
    return spans.size();
}

void llama_turboprefill_trace_start(llama_context * ctx) {
    llama_turboprefill::make(*ctx).trace_start();
}

size_t llama_turboprefill_trace_stop(llama_context * ctx) {
    return llama_turboprefill::make(*ctx).trace_stop();
}

size_t llama_turboprefill_trace_read(const llama_context * ctx, llama_turboprefill_span * spans, size_t n) {
    const auto * tp = llama_turboprefill::get(*ctx);
    if (!tp) {
        return 0;
    }
    n = std::min(n, tp->spans.size());
    for (size_t i = 0; i < n; ++i) {
        const auto & from = tp->spans[i];
        spans[i] = {
            ggml_backend_dev_name(ggml_backend_get_device(from.backend)),
            from.stage, from.ubatch, from.pipelined, from.t_start_us, from.t_end_us,
        };
    }
    return n;
}
