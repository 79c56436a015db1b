// TurboPrefill in llama_context: the object behind the hooks and the API (private to libllama)

#pragma once

#include "turboprefill-env.h"
#include "turboprefill-ubatch.h"
#include "turboprefill.h"

#include "ggml-turboprefill.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-memory.h"

#include <string>
#include <vector>

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

    bool uses(const llama_memory_i * memory) const { return ctx.memory.get() == memory; }

    // turboprefill-sched.cpp
    void sched_begin();
    void sched_new();
    void sched_end();
    void drop_parts();
    void set_enabled(bool value);

    // turboprefill-capture.cpp
    void choose_ubatch();
    void restore_ubatch();
    bool process(const llama_ubatch & ubatch, llm_graph_type gtype, llama_memory_context_i * mctx, ggml_status & ret, llm_graph_result *& res);
    void submit();

    // turboprefill-faults.cpp
    int32_t decode_begin();
    int32_t decode_end();
    int32_t synchronize();
    void    drain();
    void    clear();

    // turboprefill-api.cpp
    void   trace_start();
    size_t trace_stop();

    bool enabled = turboprefill_env_enabled();

    double ubatch_overhead = 0; // of a ubatch, in tokens, if its size is ours to choose

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

    // turboprefill-sched.cpp
    void try_regroup();
    void undo_regroup(bool pipeline_parallel);

    // turboprefill-capture.cpp
    const char *       why_not(const llama_ubatch & ubatch, llm_graph_type gtype, const llama_memory_context_i * mctx) const;
    void               count_standard(const llama_ubatch & ubatch, const char * why);
    llm_graph_result * capture(const llama_ubatch & ubatch, llm_graph_type gtype, llama_memory_context_i * mctx, ggml_status & ret);
    void               cancel();

    // turboprefill-faults.cpp
    ggml_status recover();
    bool        has_window(llama_seq_id seq_id, llama_pos pos) const;
    void        spoil_outputs();
    void        note_late(ggml_status status);
    ggml_status take_late();

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
