// TurboPrefill in llama_context: the object behind the hooks and the API (private to libllama)

#pragma once

#include "turboprefill-env.h"
#include "turboprefill-ubatch.h"
#include "turboprefill.h"

#include "ggml-turboprefill.h"

#include "ggml-cpp.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-memory.h"
#include "llama-model.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

// a ubatch in flight
struct llama_turboprefill_entry {
    llm_graph_result_ptr res;
    llama_ubatch         ubatch = {};   // keeps the data it points to
    int64_t              i_ubatch = -1; // its number in the engine, -1: none
};

// whether the scheduler groups nodes by device: recurrent models need it, for others it would be wasted work
enum llama_turboprefill_regrouping {
    LLAMA_TURBOPREFILL_REGROUP_UNTRIED,
    LLAMA_TURBOPREFILL_REGROUP_ON,
    LLAMA_TURBOPREFILL_REGROUP_USELESS,
};

struct llama_turboprefill {
    explicit llama_turboprefill(llama_context & ctx);
    ~llama_turboprefill();

    struct compat; // turboprefill-compat.h

    // results of a decode; embeddings and results of backend samplers are never held, and stay empty
    struct kept_results {
        struct view {
            float * data = nullptr;
            size_t  size = 0;
        };
        view                                  logits;
        uint32_t                              n_outputs = 0;
        std::vector<int32_t>                  output_ids;
        std::vector<llama_context::swap_info> output_swaps;
        view                                  embd;
        llama_context::sampling_info          sampling;

        // hidden states of all tokens, and their order
        view                 nextn;
        std::vector<view>    layer_inp;
        std::vector<int32_t> batch_idxs;
    };

    static llama_turboprefill * get(const llama_context & ctx); // nullptr if there is none
    static llama_turboprefill & make(     llama_context & ctx);

    bool uses(const llama_memory_i * memory) const { return ctx.memory.get() == memory; }

    // turboprefill-sched.cpp
    void sched_begin();
    void sched_new();
    void sched_end();
    void drop_parts();
    void set_enabled(bool value);
    uint64_t graph_bytes() const; // host memory of the slots' graphs

    // turboprefill-capture.cpp
    void choose_ubatch();
    void restore_ubatch();
    bool process(const llama_ubatch & ubatch, llm_graph_type gtype, llama_memory_context_i * mctx, ggml_status & ret, llm_graph_result *& res);
    void submit();

    // turboprefill-wait.cpp
    void drain(ggml_turboprefill_cause cause);
    bool wait_results(int32_t * status);                          // false: nothing is left in flight. status may be nullptr
    void wait_seq(llama_seq_id seq_id, ggml_turboprefill_cause cause); // below 0: all
    bool wait_state(llama_seq_id seq_id);                         // false: nothing is in flight
    bool has_moving_state() const;
    void keep_waits();
    ggml_turboprefill_wait_stats get_wait(ggml_turboprefill_cause cause) const;
    const char * report();
    void reset_stats();

    // turboprefill-checkpoint.cpp
    struct llama_turboprefill_read * read_state(llama_seq_id seq_id, llama_state_seq_flags flags);
    void read_finish(llama_turboprefill_read & read);

    // turboprefill-rows.cpp
    struct llama_turboprefill_rows * hold_rows();
    struct llama_turboprefill_rows * hold_logits();
    llama_turboprefill_rows_state rows_state(const llama_turboprefill_rows & rows) const;
    bool use_rows (llama_turboprefill_rows & rows, int64_t i_first); // false: a device failed
    void unuse_rows();
    void free_rows(llama_turboprefill_rows & rows);

    // turboprefill-faults.cpp
    void    check_state() const; // throws if memory lacks what was decoded, and no call has reported it
    int32_t decode_begin();
    int32_t decode_end();
    int32_t synchronize();
    void    clear();

    // turboprefill-api.cpp
    void   trace_start();
    size_t trace_stop();

    bool enabled = llama_turboprefill_env_enabled();

    double ubatch_overhead = 0; // fixed cost per ubatch, in token equivalents; 0: the ubatch size is not chosen here

    const std::shared_ptr<ggml_turboprefill_health> health = ggml_turboprefill_health_new(); // any thread may ask it

    bool reading = false; // a read of state is being queued behind the ubatches in flight: don't wait for them

    const char * why_disabled = nullptr; // although it was to be enabled

    std::string reason; // why ubatches of the last decode took the standard path

    // called before the memory is used, to compute deferred batches first: see turboprefill-draft.h
    llama_turboprefill_before_use before_use = nullptr;
    void * before_use_data = nullptr;
    void call_before_use(llama_seq_id seq_id, llama_pos pos) const { if (before_use) { before_use(before_use_data, seq_id, pos); } }

    // called before each ubatch: true ends the decode
    llama_turboprefill_interrupt interrupt = nullptr;
    void * interrupt_data = nullptr;

    // called when this context would have to wait for a slot
    llama_turboprefill_between between = nullptr;
    void * between_data = nullptr;

    llama_turboprefill_stats stats = {};

    ggml_turboprefill_wait_stats waits[GGML_TURBOPREFILL_N_CAUSES] = {}; // of earlier engines

    std::vector<ggml_turboprefill_span> spans;

    ggml_turboprefill_engine * engine = nullptr;
    int64_t i_engine = 0; // number of earlier engines
    ggml_turboprefill_parts  * parts  = nullptr; // of the previous engine, until there is a new one

private:
    llama_context & ctx;

    ggml_turboprefill_trace * trace = nullptr;

    // why the scheduler's graphs can't be pipelined
    std::string why_no_engine;

    llama_turboprefill_regrouping regroup = LLAMA_TURBOPREFILL_REGROUP_UNTRIED;
    bool regrouping = false; // inside try_regroup()

    std::vector<llama_turboprefill_entry> entries; // [n_slots]

    ggml_turboprefill_slot * slot = nullptr; // captured, not yet submitted

    uint32_t n_devices      = 0; // in the pipeline
    int64_t n_not_prompt    = 0; // standard-path ubatches that were generation or warmup, since the last report
    std::string text;            // what report() returned last
    llama_turboprefill_stats stats_reported = {};
    ggml_turboprefill_wait_stats  waits_reported[GGML_TURBOPREFILL_N_CAUSES] = {};
    uint32_t n_ubatch       = 0; // the context's own while another size is in use, else 0
    uint64_t n_tokens_begun = 0; // tokens decoded since nothing was in flight

    int64_t n_ubatches_decode = 0; // captured by the last decode

    std::vector<llama_turboprefill_read *> reads_held;
    std::vector<llama_turboprefill_rows *> rows_held;
    std::vector<ggml_backend_buffer_ptr>   spare_buffers; // output buffers of rows that were freed
    llama_turboprefill_rows *              rows_used = nullptr; // what the context currently returns as results,
    int64_t                                i_rows_used = 0;     // from this token on

    ggml_status status_late = GGML_STATUS_SUCCESS; // of ubatches whose decode had already returned

    // turboprefill-sched.cpp
    std::string why_no_backend() const;
    void try_regroup();
    void undo_regroup(bool pipeline_parallel);

    // turboprefill-capture.cpp
    const char *       why_not(const llama_ubatch & ubatch, llm_graph_type gtype, const llama_memory_context_i * mctx) const;
    void               count_standard(const llama_ubatch & ubatch, const char * why);
    llm_graph_result * capture(const llama_ubatch & ubatch, llm_graph_type gtype, llama_memory_context_i * mctx, ggml_status & ret);
    ggml_turboprefill_capture_status capture_graph(const llama_ubatch & ubatch, llm_graph_type gtype, llama_memory_context_i * mctx, llm_graph_result * res, bool may_plan, const char ** why);
    void               cancel();

    // turboprefill-plan.cpp
    bool     plan_known_kinds();
    bool     plan_kind_of(const llama_ubatch & ubatch, llm_graph_type gtype, int i);
    bool     plan_worst_case(uint32_t n_tokens, bool has_outputs, const llama_ubatch * like, llm_graph_type gtype);
    uint32_t n_tokens_max() const;
    uint32_t n_tokens_few() const;

    // turboprefill-wait.cpp
    void wait(int64_t i_ubatch, ggml_turboprefill_cause cause);

    // turboprefill-rows.cpp
    bool in_flight(const llama_turboprefill_rows & rows) const;
    ggml_backend_buffer_ptr spare_buffer(size_t size);
    llama_turboprefill_rows * hold();
    void call_between();
    void fail_rows(int64_t i_ubatch);

    // turboprefill-checkpoint.cpp
    void fail_reads(int64_t i_ubatch);

    // turboprefill-faults.cpp
    ggml_status recover();
    bool        has_window(llama_seq_id seq_id, llama_pos pos) const;
    void        spoil_outputs();
    void        note_late(ggml_status status);
    ggml_status take_late();
    int32_t     take_late_code(); // as llama_decode() returns it

    // exchange_results() swaps the context's results with these; exchange_others() does so with results that are never held,
    // while these are in use
    void exchange_results(kept_results & other) const;
    void exchange_others (kept_results & other) const;
    template <typename A, typename B> static void exchange(A & a, B & b) {
        std::swap(a.data, b.data);
        std::swap(a.size, b.size);
    }
};
