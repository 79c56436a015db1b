// TurboPrefill: who waits for which ubatches in flight, and how that is counted
//
// A result waits for the ubatch that computes it, an operation on a sequence for the ubatches of that sequence. Whatever
// changes the devices or their memory waits for everything.

#include "turboprefill-impl.h"

#include "llama-arch.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <iterator>

void llama_turboprefill::drain(ggml_turboprefill_cause cause) {
    if (!engine) {
        return;
    }
    submit();
    ggml_turboprefill_drain(engine, cause);
    // results from before the fault stay readable
    const bool spoilt = ggml_turboprefill_get_failure(engine).ubatch <= ggml_turboprefill_last_result(engine);
    const ggml_status status = recover();
    if (status != GGML_STATUS_SUCCESS) {
        if (spoilt) {
            spoil_outputs();
        }
        note_late(status);
    }
}

// waits for a ubatch and all before it. those behind it continue, unless one of these has failed
void llama_turboprefill::wait(int64_t i_ubatch, ggml_turboprefill_cause cause) {
    if (!engine) {
        return;
    }
    submit();
    ggml_turboprefill_wait(engine, i_ubatch, cause);

    const ggml_turboprefill_failure failure = ggml_turboprefill_get_failure(engine);
    if (failure.status != GGML_STATUS_SUCCESS && failure.ubatch <= i_ubatch) {
        drain(cause);
    }
}

// the engine does not count ubatches of the standard path: one only runs while nothing else is in flight
bool llama_turboprefill::wait_results(int32_t * status) {
    if (rows_used) {
        return true;
    }
    submit();
    if (engine && !ggml_turboprefill_idle(engine)) {
        wait(ggml_turboprefill_last_result(engine), GGML_TURBOPREFILL_CAUSE_RESULT);
    }
    if (status) {
        *status = take_late_code();
    }
    return engine && !ggml_turboprefill_idle(engine); // else synchronize, without anything left to wait for: upstream counts tokens there
}

void llama_turboprefill::wait_seq(llama_seq_id seq_id, ggml_turboprefill_cause cause) {
    if (!engine || ggml_turboprefill_idle(engine)) {
        drain(cause); // waits for nothing, but there may be a fault to handle
        return;
    }
    int64_t last = -1;
    for (const auto & entry : entries) {
        const llama_ubatch & ubatch = entry.ubatch;
        const bool has_seq = seq_id < 0 || std::find(ubatch.seq_id_unq, ubatch.seq_id_unq + ubatch.n_seqs_unq, seq_id) != ubatch.seq_id_unq + ubatch.n_seqs_unq;
        if (entry.i_ubatch >= 0 && has_seq) {
            last = std::max(last, entry.i_ubatch);
        }
    }
    wait(last, cause);
}

// waits for the state of a sequence, below 0: of all
bool llama_turboprefill::wait_state(llama_seq_id seq_id) {
    if (reading) {
        return false;
    }
    if (!engine || ggml_turboprefill_idle(engine)) {
        drain(GGML_TURBOPREFILL_CAUSE_STATE); // waits for nothing, but there may be a fault to handle
        return false;
    }
    wait_seq(has_moving_state() ? -1 : seq_id, GGML_TURBOPREFILL_CAUSE_STATE);
    return true;
}

// a ubatch in flight may move recurrent states, including those of sequences that it does not contain
bool llama_turboprefill::has_moving_state() const {
    return llm_arch_is_recurrent(ctx.model.arch) || llm_arch_is_hybrid(ctx.model.arch);
}

//
// counts
//

ggml_turboprefill_wait_stats llama_turboprefill::get_wait(ggml_turboprefill_cause cause) const {
    ggml_turboprefill_wait_stats wait = waits[cause];
    if (engine) {
        const ggml_turboprefill_wait_stats more = ggml_turboprefill_get_stats(engine).waits[cause];
        wait.n    += more.n;
        wait.t_us += more.t_us;
    }
    return wait;
}

// the engine is about to be freed: keep its counts
void llama_turboprefill::keep_waits() {
    for (int i = 0; i < GGML_TURBOPREFILL_N_CAUSES; ++i) {
        waits[i] = get_wait((ggml_turboprefill_cause) i);
    }
}

void llama_turboprefill::reset_stats() {
    stats = stats_reported = {};
    n_not_prompt = 0;
    std::fill(std::begin(waits),          std::end(waits),          ggml_turboprefill_wait_stats {});
    std::fill(std::begin(waits_reported), std::end(waits_reported), ggml_turboprefill_wait_stats {});
    if (engine) {
        ggml_turboprefill_reset_stats(engine);
    }
}

// the work since the last report, for a log
const char * llama_turboprefill::report() {
    const int64_t n_pipelined = stats.n_ubatches_pipelined - stats_reported.n_ubatches_pipelined;
    const int64_t n_standard  = stats.n_ubatches_standard  - stats_reported.n_ubatches_standard - n_not_prompt;

    std::string res = n_pipelined == 0 ? "standard path" : format("pipelined over %u devices", n_devices);
    res += format(": %lld of %lld ubatches", (long long) n_pipelined, (long long) (n_pipelined + n_standard));
    if (n_standard > 0 && !reason.empty()) {
        res += format(" (%s)", reason.c_str());
    }

    std::string list;
    for (int i = 0; i < GGML_TURBOPREFILL_N_CAUSES; ++i) {
        const ggml_turboprefill_wait_stats wait = get_wait((ggml_turboprefill_cause) i);
        const int64_t n    = wait.n    - waits_reported[i].n;
        const int64_t t_us = wait.t_us - waits_reported[i].t_us;
        if (n > 0 && i != GGML_TURBOPREFILL_CAUSE_SLOT) {
            list += format("%s%lld %s (%.1f ms)", list.empty() ? "" : ", ", (long long) n, ggml_turboprefill_cause_name((ggml_turboprefill_cause) i), t_us/1e3);
        }
        waits_reported[i] = wait;
    }
    stats_reported = stats;
    n_not_prompt   = 0;

    text = res + ", waits: " + (list.empty() ? "none" : list);
    return text.c_str();
}
