#include "turboprefill-context.h"
#include "turboprefill-env.h"
#include "turboprefill-ubatch.h"
#include "turboprefill.h"

#include "ggml-turboprefill.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-kv-cache-iswa.h"
#include "llama-memory.h"
#include "llama-model.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <map>
#include <mutex>
#include <set>
#include <string>

//
// environment
//

// TURBOPREFILL_SLOTS, TURBOPREFILL_HOST_MB, TURBOPREFILL_TRANSPORT
static turboprefill_params turboprefill_default_params() {
    turboprefill_params params;

    params.n_slots = atoi(turboprefill_getenv("TURBOPREFILL_SLOTS").c_str());

    const long long host_mb = atoll(turboprefill_getenv("TURBOPREFILL_HOST_MB").c_str());
    if (host_mb > 0) {
        params.max_host_bytes = (size_t) host_mb*1024*1024;
    }

    const std::string transport = turboprefill_getenv("TURBOPREFILL_TRANSPORT");
    if (transport == "peer") {
        params.transport = TURBOPREFILL_TRANSPORT_PEER;
    } else if (transport == "staged") {
        params.transport = TURBOPREFILL_TRANSPORT_STAGED;
    } else if (!transport.empty() && transport != "auto") {
        LLAMA_LOG_WARN("%s: TURBOPREFILL_TRANSPORT=%s is not one of auto, peer, staged: using auto\n", __func__, transport.c_str());
    }
    return params;
}

// TURBOPREFILL_UBATCH: what a ubatch costs in tokens if its size is ours to choose, 0 if it is not
static double turboprefill_default_ubatch_overhead() {
    const std::string value = turboprefill_getenv("TURBOPREFILL_UBATCH");
    if (value == "auto") {
        return TURBOPREFILL_UBATCH_OVERHEAD;
    }
    if (value.compare(0, 5, "auto:") == 0 && atof(value.c_str() + 5) > 0) {
        return atof(value.c_str() + 5);
    }
    if (!(value.empty() || value == "off" || value == "0")) {
        LLAMA_LOG_WARN("%s: TURBOPREFILL_UBATCH=%s is not auto, auto:TOKENS or off: using off\n", __func__, value.c_str());
    }
    return 0;
}

//
// llama_turboprefill
//

// a ubatch in flight
struct llama_turboprefill_entry {
    llm_graph_result_ptr res;
    llama_ubatch         ubatch = {};   // keeps the data it points to
    int64_t              i_ubatch = -1; // its number in the engine, -1: none
};

// whether the scheduler groups nodes by device: recurrent models need it, for others it would be work for nothing
enum turboprefill_regrouping {
    TURBOPREFILL_REGROUP_UNTRIED,
    TURBOPREFILL_REGROUP_ON,
    TURBOPREFILL_REGROUP_USELESS,
};

struct llama_turboprefill {
    explicit llama_turboprefill(llama_context & ctx);
    ~llama_turboprefill();

    static llama_turboprefill * get(const llama_context & ctx); // nullptr if there is none
    static llama_turboprefill & make(     llama_context & ctx);

    void sched_begin();
    void sched_new();
    void sched_end();
    void drop_parts();

    int32_t decode_begin();
    void    choose_ubatch();
    void    restore_ubatch();
    bool    process(const llama_ubatch & ubatch, llm_graph_type gtype, llama_memory_context_i * mctx, ggml_status & ret, llm_graph_result *& res);
    void    submit();
    int32_t decode_end();
    int32_t synchronize();
    void    drain();
    void    clear();

    bool uses(const llama_memory_i * memory) const { return ctx.memory.get() == memory; }

    void set_enabled(bool value);

    void   trace_start();
    size_t trace_stop();

    bool enabled = turboprefill_env_enabled();

    double ubatch_overhead = turboprefill_default_ubatch_overhead();

    std::string reason; // why ubatches of the last decode took the standard path

    llama_turboprefill_stats stats = {};

    mutable std::vector<turboprefill_stage_stats> stages; // kept for the strings that get_stage() returns

    std::vector<turboprefill_span> spans;

    turboprefill_engine * engine = nullptr;
    turboprefill_parts  * parts  = nullptr; // of the engine before, until there is another one

private:
    llama_context & ctx;

    turboprefill_trace * trace = nullptr;

    // why the scheduler's graphs can't be pipelined
    std::string why_no_engine;

    turboprefill_regrouping regroup = TURBOPREFILL_REGROUP_UNTRIED;
    bool regrouping = false; // inside of try_regroup()

    std::vector<llama_turboprefill_entry> entries; // [n_slots]

    turboprefill_slot * slot = nullptr; // captured, its results not yet asked for

    uint32_t n_devices      = 0; // that the pipeline has
    uint32_t n_ubatch       = 0; // the context's own while another is used, else 0
    uint64_t n_tokens_begun = 0; // decoded since nothing was in flight

    ggml_status status_late = GGML_STATUS_SUCCESS; // of ubatches whose decode had returned

    const char * why_not(const llama_ubatch & ubatch, llm_graph_type gtype, const llama_memory_context_i * mctx) const;

    llm_graph_result * capture(const llama_ubatch & ubatch, llm_graph_type gtype, llama_memory_context_i * mctx, ggml_status & ret);

    void        try_regroup();
    void        undo_regroup(bool pipeline_parallel);
    void        cancel();
    void        note_late(ggml_status status);
    void        spoil_outputs();
    ggml_status take_late();
    void        count_standard(const llama_ubatch & ubatch, const char * why);
    ggml_status recover();
    bool        has_window(llama_seq_id seq_id, llama_pos pos) const;

    // what differs between the versions of llama.cpp that this builds with

    // graphs of the standard path must not be reused after the scheduler was used for something else:
    // upstream keeps two graph results since September 2026, one before
    template <typename T> static auto forget_graph(T & ctx, int)  -> decltype(ctx.gf_res_prev_active = nullptr, void()) { ctx.gf_res_prev_active = nullptr; }
    template <typename T> static auto forget_graph(T & ctx, long) -> decltype(ctx.gf_res_prev->reset(),         void()) { ctx.gf_res_prev->reset(); }

    // hidden states for multi-token prediction
    template <typename T> static auto hidden_rows(const T & ctx, int)  -> decltype(ctx.embd_nextn) { return ctx.embd_nextn; }
    template <typename T> static auto hidden_rows(const T & ctx, long) -> decltype(ctx.embd)       { return ctx.embd; }

    // snapshots of recurrent states, since June 2026
    template <typename T> static auto has_snapshots(const T & cparams, int)  -> decltype(cparams.n_rs_seq > 0) { return cparams.n_rs_seq > 0; }
    template <typename T> static bool has_snapshots(const T & /*cparams*/, long) { return false; }
};

// contexts whose memory may be used by ubatches in flight
// never destroyed: a context may be freed by another static's destructor
static std::mutex                     & g_turboprefill_mutex = *new std::mutex;
static std::set<llama_turboprefill *> & g_turboprefill_all   = *new std::set<llama_turboprefill *>;

llama_turboprefill::llama_turboprefill(llama_context & ctx) : ctx(ctx) {
    std::lock_guard<std::mutex> lock(g_turboprefill_mutex);
    g_turboprefill_all.insert(this);
}

llama_turboprefill::~llama_turboprefill() {
    {
        std::lock_guard<std::mutex> lock(g_turboprefill_mutex);
        g_turboprefill_all.erase(this);
    }
    turboprefill_engine_free(engine);
    turboprefill_parts_free(parts);
    if (trace) {
        turboprefill_sched_set_trace(ctx.sched.get(), nullptr);
        turboprefill_trace_free(trace);
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

void llama_turboprefill::sched_begin() {
    if (engine) {
        drain();
        turboprefill_parts_free(parts);
        parts  = turboprefill_engine_dismantle(engine);
        engine = nullptr;
        entries.clear();
    }
    if (trace && ctx.sched) {
        turboprefill_sched_set_trace(ctx.sched.get(), nullptr);
    }
}

void llama_turboprefill::sched_new() {
    turboprefill_sched_set_regroup(ctx.sched.get(), enabled && regroup == TURBOPREFILL_REGROUP_ON);
}

void llama_turboprefill::sched_end() {
    turboprefill_sched_set_trace(ctx.sched.get(), trace);

    if (!enabled || ctx.model.hparams.no_alloc) {
        return;
    }

    if (engine) {
        return; // a reservation inside of this one made it
    }

    why_no_engine.clear();
    if (ctx.model.split_mode() != LLAMA_SPLIT_MODE_LAYER) {
        why_no_engine = "the split mode is not layer";
    } else if (const char * why = turboprefill_why_not(ctx.sched.get())) {
        why_no_engine = why;
        if (regroup == TURBOPREFILL_REGROUP_UNTRIED && turboprefill_repeats_devices(ctx.sched.get())) {
            try_regroup();
            return;
        }
    } else {
        try {
            turboprefill_parts * old = parts;
            parts  = nullptr;
            engine = turboprefill_engine_new(ctx.sched.get(), ctx.get_gf_res_reserve()->get_gf(), turboprefill_default_params(), old);
        } catch (const std::exception & err) {
            LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
        }
        if (!engine) {
            why_no_engine = "no memory or threads for the pipeline";
        }
    }

    if (!engine && regroup == TURBOPREFILL_REGROUP_ON) {
        if (!regrouping) {
            undo_regroup(ctx.cparams.pipeline_parallel);
        }
        return;
    }

    if (engine) {
        entries.resize(turboprefill_get_stats(engine).n_slots);
        n_devices = turboprefill_n_devices(ctx.sched.get());
        LLAMA_LOG_INFO("%s: TurboPrefill: prefill is pipelined, %d slots\n", __func__, (int) entries.size());
    } else {
        LLAMA_LOG_WARN("%s: TurboPrefill: standard path: %s\n", __func__, why_no_engine.c_str());
    }
}

// there is no engine that could take them over
void llama_turboprefill::drop_parts() {
    if (!engine && !regrouping) {
        turboprefill_parts_free(parts);
        parts = nullptr;
    }
}

// buffers are planned for an order of nodes: another order needs another reservation, inside of the one that just ended
void llama_turboprefill::try_regroup() {
    const bool pipeline_parallel = ctx.cparams.pipeline_parallel;

    regroup    = TURBOPREFILL_REGROUP_ON;
    regrouping = true;
    try {
        ctx.sched_need_reserve = true;
        ctx.sched_reserve();
    } catch (const std::exception & err) {
        LLAMA_LOG_WARN("%s: %s\n", __func__, err.what());
    }
    regrouping = false;

    if (!engine || ctx.cparams.pipeline_parallel != pipeline_parallel) {
        undo_regroup(pipeline_parallel);
    }
}

// it did not help: back to upstream's order
void llama_turboprefill::undo_regroup(bool pipeline_parallel) {
    regroup = TURBOPREFILL_REGROUP_USELESS;
    ctx.cparams.pipeline_parallel = pipeline_parallel;
    ctx.sched_need_reserve = true;
    try {
        ctx.sched_reserve();
    } catch (...) {
        ctx.sched_need_reserve = true;
        throw;
    }
}

void llama_turboprefill::set_enabled(bool value) {
    drain();
    if (enabled == value) {
        return;
    }
    enabled = value;
    // the engine takes its sizes from the worst-case graph, which is known only while it is reserved.
    // without the engine, graphs have upstream's order of nodes again
    const bool reserve = enabled ? !engine : regroup == TURBOPREFILL_REGROUP_ON;
    if (!reserve || !ctx.sched) {
        return;
    }
    try {
        ctx.sched_need_reserve = true;
        ctx.sched_reserve();
    } catch (...) {
        // as before this call; the next decode reserves again, and says so if it can't
        enabled = !value;
        ctx.sched_need_reserve = true;
        throw;
    }
}

// devices that failed: forget what they did not compute
ggml_status llama_turboprefill::recover() {
    if (!engine) {
        return GGML_STATUS_SUCCESS;
    }
    const turboprefill_failure failure = turboprefill_get_failure(engine);
    if (failure.status == GGML_STATUS_SUCCESS) {
        return GGML_STATUS_SUCCESS;
    }

    turboprefill_drain(engine);

    // a later ubatch may have failed first, and an earlier one after that
    const turboprefill_failure first = turboprefill_get_failure(engine);

    std::map<llama_seq_id, llama_pos> pos_min;
    for (const auto & entry : entries) {
        const llama_ubatch & ubatch = entry.ubatch;
        if (entry.i_ubatch < first.ubatch) {
            continue;
        }
        for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
            for (int32_t s = 0; s < ubatch.n_seq_id[i]; ++s) {
                auto it = pos_min.emplace(ubatch.seq_id[i][s], ubatch.pos[i]).first;
                it->second = std::min(it->second, ubatch.pos[i]);
            }
        }
    }

    for (const auto & [seq_id, pos] : pos_min) {
        LLAMA_LOG_WARN("%s: removing memory module entries for seq_id = %d, pos = [%d, +inf)\n", __func__, seq_id, pos);
        // the states of a recurrent model can't be taken back one by one, and a sliding window may have moved on
        if (has_snapshots(ctx.cparams, 0) || !ctx.memory->seq_rm(seq_id, pos, -1) || !has_window(seq_id, pos)) {
            LLAMA_LOG_WARN("%s: removing the whole sequence %d\n", __func__, seq_id);
            ctx.memory->seq_rm(seq_id, -1, -1);
        }
    }

    turboprefill_clear_failure(engine);
    return first.status;
}

// true if the memory still has what the token at pos needs to see: a window that has moved on gives its cells away, and
// not in the order of their positions
bool llama_turboprefill::has_window(llama_seq_id seq_id, llama_pos pos) const {
    const auto n_swa = (llama_pos) ctx.model.hparams.n_swa;
    if (n_swa == 0 || pos == 0) {
        return true;
    }
    const auto * caches = dynamic_cast<const llama_kv_cache_iswa *>(ctx.memory.get());
    const auto * cache  = caches ? caches->get_swa() : dynamic_cast<const llama_kv_cache *>(ctx.memory.get());
    if (cache == nullptr) {
        return false;
    }
    const auto & cells = cache->v_cells[cache->seq_to_stream[seq_id]];

    const llama_pos begin = std::max(0, pos - n_swa + 1);
    std::set<llama_pos> seen;
    for (uint32_t i = 0; i < cells.size(); ++i) {
        if (!cells.is_empty(i) && cells.seq_has(i, seq_id) && cells.pos_get(i) >= begin && cells.pos_get(i) < pos) {
            seen.insert(cells.pos_get(i));
        }
    }
    return (llama_pos) seen.size() == pos - begin;
}

static int32_t turboprefill_decode_code(ggml_status status) {
    switch (status) {
        case GGML_STATUS_SUCCESS:      return  0;
        case GGML_STATUS_ABORTED:      return  2;
        case GGML_STATUS_ALLOC_FAILED: return -2;
        case GGML_STATUS_FAILED:       return -3;
    }
    return -3;
}

void llama_turboprefill::drain() {
    if (!engine) {
        return;
    }
    submit();
    turboprefill_drain(engine);
    const ggml_status status = recover();
    if (status != GGML_STATUS_SUCCESS) {
        spoil_outputs();
        note_late(status);
    }
}

// the caller is about to read results that were never made: nothing there may be taken for them
void llama_turboprefill::spoil_outputs() {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    // output_reserve() has noted the sizes of a larger buffer when it drains to replace this one
    const auto fill = [&](const auto & view) {
        if (view.data && ctx.buf_output) {
            const auto * begin = (const float *) ggml_backend_buffer_get_base(ctx.buf_output.get());
            const size_t room  = ggml_backend_buffer_get_size(ctx.buf_output.get())/sizeof(float) - (view.data - begin);
            std::fill_n(view.data, std::min(view.size, room), nan);
        }
    };
    fill(ctx.logits);
    fill(ctx.embd);
    fill(hidden_rows(ctx, 0));
    fill(ctx.sampling.logits);
    fill(ctx.sampling.probs);
    for (auto & [seq_id, embd] : ctx.embd_seq) {
        GGML_UNUSED(seq_id);
        std::fill(embd.begin(), embd.end(), nan);
    }
}

int32_t llama_turboprefill::synchronize() {
    ctx.synchronize();
    return turboprefill_decode_code(take_late());
}

// stays for the next decode to report, which is the first call that can
void llama_turboprefill::note_late(ggml_status status) {
    if (status_late == GGML_STATUS_SUCCESS) {
        status_late = status;
    }
}

// the memory was cleared: what failed before does not matter any more
void llama_turboprefill::clear() {
    drain();
    status_late = GGML_STATUS_SUCCESS;
}

ggml_status llama_turboprefill::take_late() {
    const ggml_status status = status_late;
    status_late = GGML_STATUS_SUCCESS;
    return status;
}

int32_t llama_turboprefill::decode_begin() {
    reason.clear();

    note_late(recover());
    const ggml_status status = take_late();
    if (status != GGML_STATUS_SUCCESS) {
        LLAMA_LOG_ERROR("%s: ubatches of an earlier decode failed with status %d; nothing of this one was computed\n", __func__, status);
    }
    return turboprefill_decode_code(status);
}

// for the batch that is about to be cut into ubatches
void llama_turboprefill::choose_ubatch() {
    if (!enabled || !engine || ubatch_overhead <= 0 || ctx.cparams.cb_eval || !ctx.cparams.causal_attn || ctx.cparams.embeddings) {
        return;
    }
    // generation, or what a draft model has proposed; and snapshots of recurrent states bound the size from below
    if (ctx.balloc->get_n_outputs() == ctx.balloc->get_n_tokens() || has_snapshots(ctx.cparams, 0)) {
        return;
    }
    if (turboprefill_idle(engine)) {
        n_tokens_begun = 0;
    }
    // a prompt in several calls keeps the pipeline filled between them: that is paid for once
    n_tokens_begun += ctx.balloc->get_n_tokens();

    n_ubatch = ctx.cparams.n_ubatch;
    ctx.cparams.n_ubatch = turboprefill_choose_ubatch(n_tokens_begun, n_devices, n_ubatch, ubatch_overhead);
}

void llama_turboprefill::restore_ubatch() {
    if (n_ubatch != 0) {
        ctx.cparams.n_ubatch = n_ubatch;
        n_ubatch = 0;
    }
}

int32_t llama_turboprefill::decode_end() {
    if (!engine) {
        return 0;
    }
    // the abort callback is asked by the CPU: the caller expects its verdict from this very call
    if (ctx.abort_callback) {
        turboprefill_drain_host(engine);
    }
    note_late(recover());
    return turboprefill_decode_code(take_late());
}

const char * llama_turboprefill::why_not(const llama_ubatch & ubatch, llm_graph_type gtype, const llama_memory_context_i * mctx) const {
    if (!engine) {
        return why_no_engine.c_str();
    }
    if (!mctx || (gtype != LLM_GRAPH_TYPE_DEFAULT && gtype != LLM_GRAPH_TYPE_DECODER)) {
        return "the graph is not that of a decoder";
    }
    if (ctx.cparams.cb_eval) {
        return "an evaluation callback is set";
    }
    // a full ubatch without outputs is a piece of a longer prompt, even if the rest comes with the next call
    const bool more_to_come = ubatch.n_tokens > 1 && ubatch.n_tokens == ctx.cparams.n_ubatch && ctx.n_outputs == 0;
    // sequences of different lengths make several ubatches of a short batch. one token of each sequence is generation
    const uint32_t n_tokens_all = ctx.balloc->get_n_tokens();
    const bool generation = ubatch.n_tokens > 1 && ubatch.n_seqs_unq == ubatch.n_tokens;
    const bool several = !generation && (n_tokens_all > ctx.cparams.n_ubatch || (n_tokens_all > ubatch.n_tokens && ubatch.n_seq_tokens > 1));
    if (!several && !more_to_come && turboprefill_idle(engine)) {
        return "the batch is a single ubatch and nothing is in flight";
    }
    return nullptr;
}

void llama_turboprefill::count_standard(const llama_ubatch & ubatch, const char * why) {
    reason = why;
    stats.n_ubatches_standard++;
    stats.n_tokens_standard += ubatch.n_tokens;
}

llm_graph_result * llama_turboprefill::capture(const llama_ubatch & ubatch, llm_graph_type gtype, llama_memory_context_i * mctx, ggml_status & ret) {
    auto * sched = ctx.sched.get();
    auto & entry = entries[turboprefill_slot_index(slot)];

    if (!entry.res) {
        entry.res.reset(new llm_graph_result(ctx.get_gf_res_reserve()->get_max_nodes()));
    }
    auto * res = entry.res.get();
    entry.ubatch   = ubatch;
    entry.i_ubatch = turboprefill_slot_ubatch(slot);

    forget_graph(ctx, 0);

    turboprefill_capture_begin(engine, slot);

    res->reset();
    ggml_backend_sched_set_eval_callback(sched, ctx.cparams.cb_eval, ctx.cparams.cb_eval_user_data);

    auto * gf = ctx.model.build_graph(ctx.graph_params(res, ubatch, mctx, gtype));
    if (!gf) {
        LLAMA_LOG_ERROR("%s: failed to initialize graph\n", __func__);
        cancel();
        ret  = GGML_STATUS_FAILED;
        return nullptr;
    }

    const char * why = nullptr;
    switch (turboprefill_capture_graph(engine, slot, gf, &why)) {
        case TURBOPREFILL_CAPTURE_OK:
            {
                res->set_inputs(&ubatch);

                stats.n_ubatches_pipelined++;
                stats.n_tokens_pipelined += ubatch.n_tokens;
                ret = GGML_STATUS_SUCCESS;
                return res;
            }
        case TURBOPREFILL_CAPTURE_ALLOC_FAILED:
            {
                LLAMA_LOG_ERROR("%s: failed to allocate graph\n", __func__);
                entry.i_ubatch = -1;
                slot = nullptr;
                ret  = GGML_STATUS_ALLOC_FAILED;
                return nullptr;
            }
        case TURBOPREFILL_CAPTURE_NOT_ELIGIBLE:
            break;
    }

    // the scheduler has the graph allocated: go on as upstream does. its buffers are those of the ubatches in flight
    entry.i_ubatch = -1;
    slot = nullptr;
    count_standard(ubatch, why);
    drain();
    if (status_late != GGML_STATUS_SUCCESS) {
        ret = take_late(); // the tokens before these are gone
        return nullptr;
    }

    res->set_inputs(&ubatch);
    ret = ctx.graph_compute(res->get_gf(), ubatch.n_tokens > 1);
    return ret == GGML_STATUS_SUCCESS ? res : nullptr;
}

// the graph of the current slot could not be built
void llama_turboprefill::cancel() {
    if (!slot) {
        return;
    }
    turboprefill_cancel(engine, slot);
    entries[turboprefill_slot_index(slot)].i_ubatch = -1;
    slot = nullptr;
}

bool llama_turboprefill::process(const llama_ubatch & ubatch, llm_graph_type gtype, llama_memory_context_i * mctx, ggml_status & ret, llm_graph_result *& res) {
    submit();

    if (status_late != GGML_STATUS_SUCCESS) {
        // a device failed after this decode had begun: the tokens before these are gone
        if (engine) {
            turboprefill_drain(engine);
        }
        ret = take_late();
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
    slot = turboprefill_acquire(engine);
    if (!slot) {
        ret = recover();
        return true;
    }

    const int64_t t_start_us = ggml_time_us();

    if (!mctx->apply()) {
        LLAMA_LOG_ERROR("%s: failed to apply memory context\n", __func__);
        turboprefill_cancel(engine, slot);
        slot = nullptr;
        ret  = GGML_STATUS_FAILED;
        turboprefill_drain(engine);
        return true;
    }

    try {
        res = capture(ubatch, gtype, mctx, ret);
    } catch (...) {
        cancel();
        throw;
    }
    if (!res) {
        // upstream's error path returns from llama_decode: nothing may run on, not even the abort callback
        turboprefill_drain(engine);
    }

    stats.t_capture_us += ggml_time_us() - t_start_us;
    return true;
}

void llama_turboprefill::submit() {
    if (!slot) {
        return;
    }
    const bool batched = entries[turboprefill_slot_index(slot)].ubatch.n_tokens > 1;

    const int         n_threads  = batched ? ctx.cparams.n_threads_batch : ctx.cparams.n_threads;
    ggml_threadpool_t threadpool = batched ? ctx.threadpool_batch        : ctx.threadpool;

    // what llama_context::graph_compute() does for all backends at once: here each is set by the thread that uses it
    turboprefill_submit(engine, slot, [this, n_threads, threadpool](ggml_backend_t backend) {
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

void llama_turboprefill::trace_start() {
    drain();
    if (trace) {
        turboprefill_sched_set_trace(ctx.sched.get(), nullptr);
        turboprefill_trace_free(trace);
    }
    spans.clear();
    trace = turboprefill_trace_new();
    if (ctx.sched) {
        turboprefill_sched_set_trace(ctx.sched.get(), trace);
    }
}

size_t llama_turboprefill::trace_stop() {
    if (trace) {
        ctx.synchronize();
        turboprefill_sched_set_trace(ctx.sched.get(), nullptr);
        spans = turboprefill_trace_spans(trace);
        turboprefill_trace_free(trace);
        trace = nullptr;
    }
    return spans.size();
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

void llama_turboprefill_drain(llama_context & ctx) {
    if (auto * tp = llama_turboprefill::get(ctx)) {
        tp->drain();
    }
}

static llama_turboprefill * turboprefill_of_memory(const llama_memory_i * memory) {
    std::lock_guard<std::mutex> lock(g_turboprefill_mutex);
    for (auto * tp : g_turboprefill_all) {
        if (tp->uses(memory)) {
            return tp;
        }
    }
    return nullptr;
}

void llama_turboprefill_drain_memory(llama_memory_i * memory) {
    if (auto * tp = turboprefill_of_memory(memory)) {
        tp->drain();
    }
}

void llama_turboprefill_clear_memory(llama_memory_i * memory) {
    if (auto * tp = turboprefill_of_memory(memory)) {
        tp->clear();
    }
}

//
// API
//

void llama_turboprefill_set_auto_ubatch(llama_context * ctx, float overhead) {
    llama_turboprefill::make(*ctx).ubatch_overhead = overhead;
}

void llama_turboprefill_set_enabled(llama_context * ctx, bool enabled) {
    try {
        llama_turboprefill::make(*ctx).set_enabled(enabled);
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
    }
}

bool llama_turboprefill_enabled(const llama_context * ctx) {
    const auto * tp = llama_turboprefill::get(*ctx);
    return tp ? tp->enabled : turboprefill_env_enabled();
}

int32_t llama_turboprefill_synchronize(llama_context * ctx) {
    return llama_turboprefill::make(*ctx).synchronize();
}

const char * llama_turboprefill_reason(const llama_context * ctx) {
    const auto * tp = llama_turboprefill::get(*ctx);
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
        const turboprefill_engine_stats engine = turboprefill_get_stats(tp->engine);
        stats.t_slot_wait_us = engine.t_slot_wait_us;
        stats.n_bytes_moved  = engine.n_bytes_moved;
        stats.mem_host       = engine.mem_host;
        stats.mem_device     = engine.mem_device;
        stats.n_slots        = engine.n_slots;
        stats.n_stages       = turboprefill_get_stages(tp->engine).size();
    }
    return stats;
}

void llama_turboprefill_reset_stats(llama_context * ctx) {
    if (auto * tp = llama_turboprefill::get(*ctx)) {
        tp->stats = {};
        if (tp->engine) {
            turboprefill_reset_stats(tp->engine);
        }
    }
}

int32_t llama_turboprefill_n_stages(const llama_context * ctx) {
    return llama_turboprefill_get_stats(ctx).n_stages;
}

bool llama_turboprefill_get_stage(const llama_context * ctx, int32_t i, llama_turboprefill_stage * stage) {
    const auto * tp = llama_turboprefill::get(*ctx);
    if (!tp || !tp->engine) {
        return false;
    }
    tp->stages = turboprefill_get_stages(tp->engine);
    if (i < 0 || (size_t) i >= tp->stages.size()) {
        return false;
    }
    const auto & from = tp->stages[i];
    *stage = { from.device, from.transport, from.n_ubatches, from.n_bytes_in };
    return true;
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
