// TurboPrefill: which ubatches are pipelined; capture and submission
//
// process() captures a ubatch, the caller requests its results, submit() hands it over to the workers.

#include "turboprefill-compat.h"
#include "turboprefill-mask.h"

#include "llama-impl.h"
#include "llama-model.h"

// for the batch that is about to be cut into ubatches
void llama_turboprefill::choose_ubatch() {
    if (!enabled || !engine || ubatch_overhead <= 0 || ctx.cparams.cb_eval || !ctx.cparams.causal_attn || ctx.cparams.embeddings) {
        return;
    }
    // generation, or tokens that a draft model proposed. and snapshots of recurrent states need a minimum size
    if (ctx.balloc->get_n_outputs() == ctx.balloc->get_n_tokens() || compat::has_snapshots(ctx.cparams)) {
        return;
    }
    if (ggml_turboprefill_idle(engine)) {
        n_tokens_begun = 0;
    }
    // a prompt in several calls fills the pipeline only once
    n_tokens_begun += ctx.balloc->get_n_tokens();

    n_ubatch = ctx.cparams.n_ubatch;
    ctx.cparams.n_ubatch = llama_turboprefill_choose_ubatch(n_tokens_begun, n_devices, n_ubatch, ubatch_overhead);
}

void llama_turboprefill::restore_ubatch() {
    if (n_ubatch != 0) {
        ctx.cparams.n_ubatch = n_ubatch;
        n_ubatch = 0;
    }
}

const char * llama_turboprefill::why_not(const llama_ubatch & ubatch, llm_graph_type gtype, const llama_memory_context_i * mctx) const {
    if (!engine) {
        return why_no_engine.c_str();
    }
    if (!mctx || (gtype != LLM_GRAPH_TYPE_DEFAULT && gtype != LLM_GRAPH_TYPE_DECODER)) {
        return "the graph is not a decoder's";
    }
    if (ctx.cparams.cb_eval) {
        return "an evaluation callback is set";
    }
    // a full ubatch without outputs is part of a longer prompt, even if the rest comes with the next call
    const bool more_to_come = ubatch.n_tokens > 1 && ubatch.n_tokens == ctx.cparams.n_ubatch && ctx.n_outputs == 0;
    // with sequences of different lengths, even a short batch has several ubatches. one token per sequence is generation
    const uint32_t n_tokens_all = ctx.balloc->get_n_tokens();
    const bool generation = ubatch.n_tokens > 1 && ubatch.n_seqs_unq == ubatch.n_tokens;
    const bool several = !generation && (n_tokens_all > ctx.cparams.n_ubatch || (n_tokens_all > ubatch.n_tokens && ubatch.n_seq_tokens > 1));
    if (!several && !more_to_come && ggml_turboprefill_idle(engine)) {
        return "the batch is a single ubatch and nothing is in flight";
    }
    return nullptr;
}

void llama_turboprefill::count_standard(const llama_ubatch & ubatch, const char * why) {
    reason = why;
    n_not_prompt += ubatch.n_tokens == ubatch.n_seqs_unq || ctx.cparams.warmup;
    stats.n_ubatches_standard++;
    stats.n_tokens_standard += ubatch.n_tokens;
}

// builds the graph and takes it out of the scheduler
ggml_turboprefill_capture_status llama_turboprefill::capture_graph(const llama_ubatch & ubatch, llm_graph_type gtype, llama_memory_context_i * mctx, llm_graph_result * res, bool may_plan, const char ** why) {
    res->reset();
    ggml_backend_sched_set_eval_callback(ctx.sched.get(), ctx.cparams.cb_eval, ctx.cparams.cb_eval_user_data);

    auto * gf = ctx.model.build_graph(ctx.graph_params(res, ubatch, mctx, gtype));
    if (!gf) {
        LLAMA_LOG_ERROR("%s: failed to initialize graph\n", __func__);
        cancel();
        return GGML_TURBOPREFILL_CAPTURE_ALLOC_FAILED;
    }
    return ggml_turboprefill_capture_graph(engine, slot, gf, may_plan, why);
}

llm_graph_result * llama_turboprefill::capture(const llama_ubatch & ubatch, llm_graph_type gtype, llama_memory_context_i * mctx, ggml_status & ret) {
    auto & entry = entries[ggml_turboprefill_slot_index(slot)];

    auto * res = entry.res.get();
    entry.ubatch   = ubatch;
    entry.i_ubatch = ggml_turboprefill_slot_ubatch(slot);

    compat::forget_graph(ctx);

    ggml_turboprefill_capture_begin(engine, slot);

    const char * why = nullptr;
    ggml_turboprefill_capture_status status = capture_graph(ubatch, gtype, mctx, res, /*.may_plan =*/ false, &why);
    for (int i = 0; status == GGML_TURBOPREFILL_CAPTURE_NO_PLAN; ++i) {
        const bool guessed = plan_kind_of(ubatch, gtype, i);
        status = capture_graph(ubatch, gtype, mctx, res, /*.may_plan =*/ !guessed, &why);
    }

    switch (status) {
        case GGML_TURBOPREFILL_CAPTURE_OK:
            {
                const llama_turboprefill_masks masks;
                res->set_inputs(&ubatch);

                n_ubatches_decode++;
                stats.n_ubatches_pipelined++;
                stats.n_tokens_pipelined += ubatch.n_tokens;
                ret = GGML_STATUS_SUCCESS;
                return res;
            }
        case GGML_TURBOPREFILL_CAPTURE_NO_PLAN:
        case GGML_TURBOPREFILL_CAPTURE_ALLOC_FAILED:
            {
                LLAMA_LOG_ERROR("%s: failed to allocate graph\n", __func__);
                entry.i_ubatch = -1;
                slot = nullptr;
                ret  = GGML_STATUS_ALLOC_FAILED;
                return nullptr;
            }
        case GGML_TURBOPREFILL_CAPTURE_NOT_ELIGIBLE:
            break;
    }

    // the scheduler has allocated the graph: continue like upstream, after a drain, as ubatches in flight use its buffers
    entry.i_ubatch = -1;
    slot = nullptr;
    count_standard(ubatch, why);
    drain(GGML_TURBOPREFILL_CAUSE_GRAPH);
    if (status_late != GGML_STATUS_SUCCESS) {
        ret = take_late(); // the tokens before these are missing
        return nullptr;
    }

    res->set_inputs(&ubatch);
    ret = ctx.graph_compute(res->get_gf(), ubatch.n_tokens > 1);
    return ret == GGML_STATUS_SUCCESS ? res : nullptr;
}

// gives up the current slot: its graph could not be built
void llama_turboprefill::cancel() {
    if (!slot) {
        return;
    }
    ggml_turboprefill_cancel(engine, slot);
    entries[ggml_turboprefill_slot_index(slot)].i_ubatch = -1;
    slot = nullptr;
}

bool llama_turboprefill::process(const llama_ubatch & ubatch, llm_graph_type gtype, llama_memory_context_i * mctx, ggml_status & ret, llm_graph_result *& res) {
    submit();
    call_between();

    if (status_late != GGML_STATUS_SUCCESS) {
        // a device failed after this decode had begun: the tokens before these are missing
        if (engine) {
            ggml_turboprefill_drain(engine, GGML_TURBOPREFILL_CAUSE_FAULT);
        }
        ret = take_late();
        res = nullptr;
        return true;
    }
    if (interrupt && interrupt(interrupt_data)) {
        drain(GGML_TURBOPREFILL_CAUSE_ABORT); // upstream then removes this ubatch's positions from memory
        ret = status_late != GGML_STATUS_SUCCESS ? take_late() : GGML_STATUS_ABORTED;
        res = nullptr;
        return true;
    }
    if (!enabled) {
        return false;
    }
    if (const char * why = why_not(ubatch, gtype, mctx)) {
        count_standard(ubatch, why);
        return false;
    }

    res  = nullptr;
    slot = ggml_turboprefill_acquire(engine);
    if (!slot) {
        note_late(recover());
        ret = take_late();
        return true;
    }

    const int64_t t_start_us = ggml_time_us();

    if (!mctx->apply()) {
        LLAMA_LOG_ERROR("%s: failed to apply memory context\n", __func__);
        ggml_turboprefill_cancel(engine, slot);
        slot = nullptr;
        ret  = GGML_STATUS_FAILED;
        ggml_turboprefill_drain(engine, GGML_TURBOPREFILL_CAUSE_FAULT);
        return true;
    }

    try {
        res = capture(ubatch, gtype, mctx, ret);
    } catch (...) {
        cancel();
        ggml_turboprefill_drain(engine, GGML_TURBOPREFILL_CAUSE_FAULT);
        throw;
    }
    if (!res) {
        // upstream's error path returns from llama_decode: nothing may be running then, not even the abort callback
        ggml_turboprefill_drain(engine, GGML_TURBOPREFILL_CAUSE_FAULT);
    }

    stats.t_capture_us += ggml_time_us() - t_start_us;
    return true;
}

void llama_turboprefill::submit() {
    if (!slot) {
        return;
    }
    const bool batched = entries[ggml_turboprefill_slot_index(slot)].ubatch.n_tokens > 1;

    const int         n_threads  = batched ? ctx.cparams.n_threads_batch : ctx.cparams.n_threads;
    ggml_threadpool_t threadpool = batched ? ctx.threadpool_batch        : ctx.threadpool;

    // llama_context::graph_compute() sets these for all backends at once; here, each worker sets its own
    ggml_turboprefill_submit(engine, slot, [this, n_threads, threadpool](ggml_backend_t backend) {
        if (backend == ctx.backend_cpu) {
            auto * reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
            auto * set_threadpool_fn = (void (*)(ggml_backend_t, ggml_threadpool_t)) ggml_backend_reg_get_proc_address(reg, "ggml_backend_cpu_set_threadpool");
            if (set_threadpool_fn) {
                set_threadpool_fn(backend, threadpool);
            }
        }
        for (const auto & set_n_threads_fn : ctx.set_n_threads_fns) {
            if (set_n_threads_fn.first == backend) {
                set_n_threads_fn.second(backend, n_threads);
            }
        }
    });
    slot = nullptr;
}
