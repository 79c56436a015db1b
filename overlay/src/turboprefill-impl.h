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

// whether the scheduler groups nodes by device: recurrent models need it, for others it would be work for nothing
enum turboprefill_regrouping {
    TURBOPREFILL_REGROUP_UNTRIED,
    TURBOPREFILL_REGROUP_ON,
    TURBOPREFILL_REGROUP_USELESS,
};

struct llama_turboprefill {
    explicit llama_turboprefill(llama_context & ctx);
    ~llama_turboprefill();

    // what a decode returns; embeddings and what samplers on devices make stay empty, nobody keeps those
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

        // rows of hidden states of all tokens, and in which order they are
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
    uint64_t graph_bytes() const; // of the graphs of slots

    // turboprefill-capture.cpp
    void choose_ubatch();
    void restore_ubatch();
    bool process(const llama_ubatch & ubatch, llm_graph_type gtype, llama_memory_context_i * mctx, ggml_status & ret, llm_graph_result *& res);
    void submit();

    // turboprefill-wait.cpp
    void drain(turboprefill_cause cause);
    bool wait_results(int32_t * status);                          // false: nothing is in flight. status may be nullptr
    void wait_seq(llama_seq_id seq_id, turboprefill_cause cause); // below 0: all
    bool wait_state(llama_seq_id seq_id);                         // false: nothing is in flight
    bool has_moving_state() const;
    void keep_waits();
    turboprefill_wait_stats get_wait(turboprefill_cause cause) const;
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
    void    check_state() const; // throws if memory is not what was decoded, and nobody was told
    int32_t decode_begin();
    int32_t decode_end();
    int32_t synchronize();
    int32_t results();
    void    clear();

    // turboprefill-api.cpp
    void   trace_start();
    size_t trace_stop();

    bool enabled = turboprefill_env_enabled();

    double ubatch_overhead = 0; // of a ubatch, in tokens, if its size is ours to choose

    const std::shared_ptr<turboprefill_health> health = turboprefill_health_new(); // any thread may ask it

    bool reading = false; // state, behind the ubatches in flight: nobody need wait

    std::string reason; // why ubatches of the last decode took the standard path

    // whoever owes the memory some tokens, see turboprefill-draft.h
    llama_turboprefill_before_use before_use = nullptr;
    void * before_use_data = nullptr;
    void call_before_use(llama_seq_id seq_id, llama_pos pos) const { if (before_use) { before_use(before_use_data, seq_id, pos); } }

    // asked before each ubatch: true ends the decode
    llama_turboprefill_interrupt interrupt = nullptr;
    void * interrupt_data = nullptr;

    // who has something to do when this context would have to wait for a slot
    llama_turboprefill_between between = nullptr;
    void * between_data = nullptr;

    llama_turboprefill_stats stats = {};

    turboprefill_wait_stats waits[TURBOPREFILL_N_CAUSES] = {}; // of engines before this one

    std::vector<turboprefill_span> spans;

    turboprefill_engine * engine = nullptr;
    int64_t i_engine = 0; // engines before this one
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
    int64_t n_not_prompt    = 0; // ubatches of the standard path that generated or warmed up, since the last report
    std::string text;            // what report() returned last
    llama_turboprefill_stats stats_reported = {};
    turboprefill_wait_stats  waits_reported[TURBOPREFILL_N_CAUSES] = {};
    uint32_t n_ubatch       = 0; // the context's own while another is used, else 0
    uint64_t n_tokens_begun = 0; // decoded since nothing was in flight

    int64_t n_ubatches_decode = 0; // captured by the last decode

    std::vector<llama_turboprefill_read *> reads_held;
    std::vector<llama_turboprefill_rows *> rows_held;
    std::vector<ggml_backend_buffer_ptr>   spare_buffers; // that rows were held in
    llama_turboprefill_rows *              rows_used = nullptr; // what the context returns as results for now,
    int64_t                                i_rows_used = 0;     // from this token on

    ggml_status status_late = GGML_STATUS_SUCCESS; // of ubatches whose decode had returned

    // turboprefill-sched.cpp
    std::string why_no_backend() const;
    void try_regroup();
    void undo_regroup(bool pipeline_parallel);

    // turboprefill-capture.cpp
    const char *       why_not(const llama_ubatch & ubatch, llm_graph_type gtype, const llama_memory_context_i * mctx) const;
    void               count_standard(const llama_ubatch & ubatch, const char * why);
    llm_graph_result * capture(const llama_ubatch & ubatch, llm_graph_type gtype, llama_memory_context_i * mctx, ggml_status & ret);
    turboprefill_capture_status capture_graph(const llama_ubatch & ubatch, llm_graph_type gtype, llama_memory_context_i * mctx, llm_graph_result * res, bool may_plan, const char ** why);
    void               cancel();

    // turboprefill-plan.cpp
    bool     plan_known_kinds();
    bool     plan_kind_of(const llama_ubatch & ubatch, llm_graph_type gtype, int i);
    bool     plan_worst_case(uint32_t n_tokens, bool has_outputs, const llama_ubatch * like, llm_graph_type gtype);
    uint32_t n_tokens_max() const;
    uint32_t n_tokens_few() const;

    // turboprefill-wait.cpp
    void wait(int64_t i_ubatch, turboprefill_cause cause);

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

    // what differs between the versions of llama.cpp that this builds with

    // graphs of the standard path must not be reused after the scheduler was used for something else:
    // upstream keeps two graph results since September 2026, one before
    template <typename T> static auto forget_graph(T & ctx, int)  -> decltype(ctx.gf_res_prev_active = nullptr, void()) { ctx.gf_res_prev_active = nullptr; }
    template <typename T> static auto forget_graph(T & ctx, long) -> decltype(ctx.gf_res_prev->reset(),         void()) { ctx.gf_res_prev->reset(); }

    // inputs of layers, for draft models that read them
    template <typename T, typename F> static auto for_layer_inputs(const T & ctx, const F & f, int) -> decltype(ctx.embd_layer_inp, void()) {
        for (const auto & view : ctx.embd_layer_inp) {
            f(view);
        }
    }
    template <typename T, typename F> static void for_layer_inputs(const T & /*ctx*/, const F & /*f*/, long) {}

    // hidden states for multi-token prediction
    template <typename T> static auto hidden_rows(const T & ctx, int)  -> decltype(ctx.embd_nextn) { return ctx.embd_nextn; }
    template <typename T> static auto hidden_rows(const T & ctx, long) -> decltype(ctx.embd)       { return ctx.embd; }

    // whether a decode makes hidden rows of all tokens
    template <typename T> static auto has_hidden_rows(const T & ctx, int) -> decltype(ctx.embd_nextn, ctx.embd_batch_idxs, bool()) { return ctx.embd_nextn.data && !ctx.cparams.embeddings_nextn_masked; }
    template <typename T> static bool has_hidden_rows(const T & /*ctx*/, long) { return false; }

    // the results of a context and those given here change places; and while those are used, what nobody keeps
    void exchange_results(kept_results & other) const;
    void exchange_others (kept_results & other) const;
    template <typename A, typename B> static void exchange(A & a, B & b) {
        std::swap(a.data, b.data);
        std::swap(a.size, b.size);
    }
    template <typename T> static auto exchange_hidden_rows(T & ctx, kept_results & other, int) -> decltype(ctx.embd_nextn, ctx.embd_layer_inp, ctx.embd_batch_idxs, void()) {
        exchange(ctx.embd_nextn, other.nextn);
        other.layer_inp.resize(ctx.embd_layer_inp.size());
        for (size_t i = 0; i < other.layer_inp.size(); ++i) {
            exchange(ctx.embd_layer_inp[i], other.layer_inp[i]);
        }
        ctx.embd_batch_idxs.swap(other.batch_idxs);
    }
    template <typename T> static void exchange_hidden_rows(T & /*ctx*/, kept_results & /*other*/, long) {}

    template <typename T> static auto shift_rows(T & ctx, int64_t n_tokens, int) -> decltype(ctx.embd_nextn, ctx.embd_layer_inp, void()) {
        const auto shift = [&](auto & view, int64_t n_embd) {
            if (view.data) {
                view.data += n_tokens*n_embd;
                view.size -= n_tokens*n_embd;
            }
        };
        shift(ctx.embd_nextn, ctx.model.hparams.n_embd_out());
        for (auto & layer : ctx.embd_layer_inp) {
            shift(layer, ctx.model.hparams.n_embd);
        }
    }
    template <typename T> static void shift_rows(T & /*ctx*/, int64_t /*n_tokens*/, long) {}

    // contexts of draft models build other graphs, since June 2026
    template <typename T> static auto is_default_type(const T & cparams, int)  -> decltype((int) cparams.ctx_type == 0) { return (int) cparams.ctx_type == 0; }
    template <typename T> static bool is_default_type(const T & /*cparams*/, long) { return true; }

    // rows of results that a ubatch can have
    template <typename T> static auto n_outputs_max(const T & cparams, int)  -> decltype(cparams.n_outputs_max) { return cparams.n_outputs_max; }
    template <typename T> static uint32_t n_outputs_max(const T & cparams, long) { return cparams.n_ubatch; }

    // rows that a sequence with a sampler can have, since August 2026
    template <typename T> static auto n_outputs_max_per_seq(const T & cparams, int)  -> decltype(cparams.n_outputs_max_per_seq) { return cparams.n_outputs_max_per_seq; }
    template <typename T> static uint32_t n_outputs_max_per_seq(const T & /*cparams*/, long) { return 1; }

    // snapshots of recurrent states, since June 2026
    template <typename T> static auto has_snapshots(const T & cparams, int)  -> decltype(cparams.n_rs_seq > 0) { return cparams.n_rs_seq > 0; }
    template <typename T> static bool has_snapshots(const T & /*cparams*/, long) { return false; }
};
