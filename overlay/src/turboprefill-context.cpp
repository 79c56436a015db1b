#include "turboprefill-context.h"
#include "turboprefill-impl.h"

#include "llama-kv-cache-iswa.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <set>

// contexts whose memory ubatches in flight may use
// never destroyed: another static's destructor may free a context
static std::mutex                     & g_turboprefill_mutex = *new std::mutex;
static std::set<llama_turboprefill *> & g_turboprefill_all   = *new std::set<llama_turboprefill *>;

llama_turboprefill::llama_turboprefill(llama_context & ctx) : ctx(ctx) {
    ubatch_overhead = llama_turboprefill_default_ubatch_overhead(ctx.get_model());
    std::lock_guard<std::mutex> lock(g_turboprefill_mutex);
    g_turboprefill_all.insert(this);
}

llama_turboprefill::~llama_turboprefill() {
    {
        std::lock_guard<std::mutex> lock(g_turboprefill_mutex);
        g_turboprefill_all.erase(this);
    }
    ggml_turboprefill_engine_free(engine);
    ggml_turboprefill_parts_free(parts);
    if (trace) {
        ggml_turboprefill_sched_set_trace(ctx.sched.get(), nullptr);
        ggml_turboprefill_trace_free(trace);
    }
}

llama_turboprefill * llama_turboprefill::get(const llama_context & ctx) {
    return ctx.turboprefill.get();
}

llama_turboprefill & llama_turboprefill::make(llama_context & ctx) {
    if (!ctx.turboprefill) {
        ctx.turboprefill = std::make_shared<llama_turboprefill>(ctx);
    }
    return *ctx.turboprefill;
}

//
// hooks
//

void llama_turboprefill_sched_begin(llama_context & ctx) {
    llama_turboprefill::make(ctx).sched_begin();
}

void llama_turboprefill_sched_new(llama_context & ctx) {
    llama_turboprefill::make(ctx).sched_new();
}

void llama_turboprefill_sched_end(llama_context & ctx) {
    llama_turboprefill::make(ctx).sched_end();
    llama_turboprefill::make(ctx).drop_parts();
}

int32_t llama_turboprefill_decode_begin(llama_context & ctx) {
    return llama_turboprefill::make(ctx).decode_begin();
}

bool llama_turboprefill_process(llama_context & ctx, const llama_ubatch & ubatch, int gtype, llama_memory_context_i * mctx, ggml_status & ret, llm_graph_result *& res) {
    return llama_turboprefill::make(ctx).process(ubatch, (llm_graph_type) gtype, mctx, ret, res);
}

llama_turboprefill_ubatch_choice::llama_turboprefill_ubatch_choice(llama_context & ctx) : ctx(ctx) {
    llama_turboprefill::make(ctx).choose_ubatch();
}

llama_turboprefill_ubatch_choice::~llama_turboprefill_ubatch_choice() {
    llama_turboprefill_restore_ubatch(ctx);
}

void llama_turboprefill_restore_ubatch(llama_context & ctx) {
    if (auto * tp = llama_turboprefill::get(ctx)) {
        tp->restore_ubatch();
    }
}

void llama_turboprefill_submit(llama_context & ctx) {
    llama_turboprefill::make(ctx).submit();
}

int32_t llama_turboprefill_decode_end(llama_context & ctx) {
    return llama_turboprefill::make(ctx).decode_end();
}

void llama_turboprefill_before_setting(llama_context & ctx) {
    if (auto * tp = llama_turboprefill::get(ctx)) {
        tp->drain(GGML_TURBOPREFILL_CAUSE_SETTING);
    }
}

void llama_turboprefill_before_synchronize(llama_context & ctx) {
    if (auto * tp = llama_turboprefill::get(ctx)) {
        tp->drain(GGML_TURBOPREFILL_CAUSE_SYNCHRONIZE);
    }
}

bool llama_turboprefill_wait_state(llama_context & ctx, llama_seq_id seq_id) {
    auto * tp = llama_turboprefill::get(ctx);
    if (!tp) {
        return false;
    }
    tp->call_before_use(seq_id, 0);
    return tp->wait_state(seq_id);
}

void llama_turboprefill_before_write(llama_context & ctx, llama_seq_id seq_id) {
    llama_turboprefill_wait_state(ctx, seq_id);
    if (auto * tp = llama_turboprefill::get(ctx)) {
        tp->check_state();
    }
}

void llama_turboprefill_before_state(llama_context & ctx) {
    if (auto * tp = llama_turboprefill::get(ctx)) {
        tp->call_before_use(-1, 0);
    }
}

void llama_context::synchronize_results() {
    if (!llama_turboprefill_synchronize_results(this, nullptr)) {
        synchronize();
    }
}

static llama_turboprefill * llama_turboprefill_of_memory(const llama_memory_i * memory) {
    std::lock_guard<std::mutex> lock(g_turboprefill_mutex);
    for (auto * tp : g_turboprefill_all) {
        if (tp->uses(memory)) {
            return tp;
        }
    }
    return nullptr;
}

void llama_turboprefill_wait_memory(llama_memory_i * memory, llama_seq_id seq_id) {
    if (auto * tp = llama_turboprefill_of_memory(memory)) {
        tp->call_before_use(-1, 0);
        tp->wait_seq(seq_id, GGML_TURBOPREFILL_CAUSE_MEMORY);
    }
}

// Memories that only mark cells as free: on each device, the next writer of a cell comes after its last reader. Others, such
// as DeepSeek V4's, clear device memory.
static bool llama_turboprefill_removes_on_host(const llama_memory_i * memory) {
    return dynamic_cast<const llama_kv_cache         *>(memory) || dynamic_cast<const llama_kv_cache_iswa      *>(memory) ||
           dynamic_cast<const llama_memory_recurrent *>(memory) || dynamic_cast<const llama_memory_hybrid      *>(memory) ||
           dynamic_cast<const llama_memory_hybrid_iswa *>(memory);
}

// deferred tokens must not get cells that this frees: if it frees any, everything deferred is computed first. most calls
// come before a batch and free none
void llama_turboprefill_before_remove(llama_memory_i * memory, llama_seq_id seq_id, llama_pos p0) {
    auto * tp = llama_turboprefill_of_memory(memory);
    if (!tp) {
        return;
    }
    const bool removes = seq_id < 0 || memory->seq_pos_max(seq_id) >= std::max(p0, 0);
    if (removes && !llama_turboprefill_removes_on_host(memory)) {
        tp->drain(GGML_TURBOPREFILL_CAUSE_MEMORY);
    }
    tp->call_before_use(removes ? -1 : seq_id, removes ? 0 : std::max(p0, 0));
}

void llama_turboprefill_clear_memory(llama_memory_i * memory) {
    if (auto * tp = llama_turboprefill_of_memory(memory)) {
        tp->call_before_use(-1, 0);
        tp->clear();
    }
}
