// TurboPrefill: what happens to memory and results when a device fails, and which call reports it
//
// A fault may be found after its decode has returned. It is kept until a call has reported it or the memory was cleared.

#include "turboprefill-compat.h"

#include "llama-impl.h"
#include "llama-kv-cache-iswa.h"
#include "llama-model.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <stdexcept>

// after a fault: removes from memory what was not computed
ggml_status llama_turboprefill::recover() {
    if (!engine) {
        return GGML_STATUS_SUCCESS;
    }
    const ggml_turboprefill_failure failure = ggml_turboprefill_get_failure(engine);
    if (failure.status == GGML_STATUS_SUCCESS) {
        return GGML_STATUS_SUCCESS;
    }

    ggml_turboprefill_drain(engine, GGML_TURBOPREFILL_CAUSE_FAULT);

    // read again: an earlier ubatch may have failed after a later one
    const ggml_turboprefill_failure first = ggml_turboprefill_get_failure(engine);

    fail_rows(first.ubatch);
    fail_reads(first.ubatch);

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
        // recurrent states can't be removed position by position, and a sliding window may have moved on
        if (compat::has_snapshots(ctx.cparams) || !ctx.memory->seq_rm(seq_id, pos, -1) || !has_window(seq_id, pos)) {
            LLAMA_LOG_WARN("%s: removing the whole sequence %d\n", __func__, seq_id);
            ctx.memory->seq_rm(seq_id, -1, -1);
        }
    }

    ggml_turboprefill_clear_failure(engine);
    stats.n_faults++;
    return first.status;
}

// whether the memory still has everything that the token at pos attends to: a window that has moved on reuses cells, not in
// order of their positions
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

static int32_t llama_turboprefill_decode_code(ggml_status status) {
    switch (status) {
        case GGML_STATUS_SUCCESS:      return  0;
        case GGML_STATUS_ABORTED:      return  2;
        case GGML_STATUS_ALLOC_FAILED: return -2;
        case GGML_STATUS_FAILED:       return -3;
    }
    return -3;
}

// the caller is about to read results that were never computed: nothing in the buffer may pass for them
void llama_turboprefill::spoil_outputs() {
    auto *        used   = rows_used; // of an earlier decode
    const int64_t i_used = i_rows_used;
    unuse_rows();
    const float nan = std::numeric_limits<float>::quiet_NaN();
    // when output_reserve() drains to replace this buffer, it has already set the sizes of the larger one
    const auto fill = [&](const auto & view) {
        if (view.data && ctx.buf_output) {
            const auto * begin = (const float *) ggml_backend_buffer_get_base(ctx.buf_output.get());
            const size_t room  = ggml_backend_buffer_get_size(ctx.buf_output.get())/sizeof(float) - (view.data - begin);
            std::fill_n(view.data, std::min(view.size, room), nan);
        }
    };
    fill(ctx.logits);
    fill(ctx.embd);
    fill(compat::hidden_rows(ctx));
    compat::for_layer_inputs(ctx, fill);
    fill(ctx.sampling.logits);
    fill(ctx.sampling.probs);
    for (const auto & tokens : { ctx.sampling.sampled, ctx.sampling.candidates }) {
        if (tokens.data && ctx.buf_output) {
            std::fill_n(tokens.data, tokens.size, LLAMA_TOKEN_NULL);
        }
    }
    for (auto & [seq_id, embd] : ctx.embd_seq) {
        GGML_UNUSED(seq_id);
        std::fill(embd.begin(), embd.end(), nan);
    }
    if (used) {
        use_rows(*used, i_used);
    }
}

int32_t llama_turboprefill::synchronize() {
    ctx.synchronize();
    return take_late_code();
}

// kept for the next call that can report it
void llama_turboprefill::note_late(ggml_status status) {
    if (status_late == GGML_STATUS_SUCCESS) {
        status_late = status;
    }
}

// the memory is being cleared: earlier failures no longer matter
void llama_turboprefill::clear() {
    drain(GGML_TURBOPREFILL_CAUSE_MEMORY);
    take_late();
}

// After an unreported failure, some sequence, or a copy of it, lacks tokens whose llama_decode() has returned success. Its
// state must not pass for complete until a call has reported the failure.
void llama_turboprefill::check_state() const {
    if (status_late != GGML_STATUS_SUCCESS) {
        throw std::runtime_error("a device failed to compute what was decoded; llama_decode() or "
                "llama_turboprefill_synchronize() returns the code");
    }
}

ggml_status llama_turboprefill::take_late() {
    const ggml_status status = status_late;
    status_late = GGML_STATUS_SUCCESS;
    return status;
}

int32_t llama_turboprefill::take_late_code() {
    return llama_turboprefill_decode_code(take_late());
}

int32_t llama_turboprefill::decode_begin() {
    reason.clear();
    unuse_rows();
    n_ubatches_decode = 0;

    note_late(recover());
    const ggml_status status = take_late();
    if (status != GGML_STATUS_SUCCESS) {
        LLAMA_LOG_ERROR("%s: ubatches of an earlier decode failed with status %d; nothing was computed in this one\n", __func__, status);
    }
    return llama_turboprefill_decode_code(status);
}

int32_t llama_turboprefill::decode_end() {
    if (!engine) {
        return 0;
    }
    // the abort callback is called while the CPU computes, and the caller expects its verdict from this very call
    if (ctx.abort_callback) {
        ggml_turboprefill_drain_host(engine);
    }
    note_late(recover());
    return take_late_code();
}
