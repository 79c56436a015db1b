// TurboPrefill: held rows: results that are read after later decodes, see turboprefill-draft.h and turboprefill-server.h
//
// Nothing is copied: the rows stay in the buffer that the devices write to, and the context continues with another one.

#include "turboprefill-compat.h"

#include <algorithm>

// of one decode, until the reader is done
struct llama_turboprefill_rows {
    std::weak_ptr<llama_turboprefill> owner; // expired: it drained before it was destroyed

    ggml_backend_buffer_ptr          buffer;
    llama_turboprefill::kept_results results;

    int64_t i_engine   = 0; // a later engine started with nothing in flight
    int64_t i_ubatch   = 0; // the last ubatch that computes some of them
    int64_t n_ubatches = 0;
    bool    failed     = false;
};

// rows of an earlier engine have arrived: it drained before it was freed
bool llama_turboprefill::in_flight(const llama_turboprefill_rows & rows) const {
    return engine && rows.i_engine == i_engine;
}

llama_turboprefill_rows * llama_turboprefill::hold_rows() {
    return ctx.n_outputs == 0 && compat::has_hidden_rows(ctx) ? hold() : nullptr;
}

llama_turboprefill_rows * llama_turboprefill::hold_logits() {
    const bool others = ctx.cparams.embeddings || compat::has_hidden_rows(ctx) || !ctx.sampling.samplers.empty();
    return ctx.n_outputs > 0 && !others ? hold() : nullptr;
}

llama_turboprefill_rows * llama_turboprefill::hold() {
    if (!engine || rows_used) {
        return nullptr;
    }
    submit();
    if (ggml_turboprefill_idle(engine)) {
        return nullptr;
    }
    auto * rows = new llama_turboprefill_rows;
    rows->results.output_ids.assign(ctx.output_ids.size(), -1);
    rows->owner      = ctx.turboprefill;
    rows->i_engine   = i_engine;
    rows->i_ubatch   = ggml_turboprefill_last_result(engine);
    rows->n_ubatches = n_ubatches_decode;
    rows_held.push_back(rows);

    // the context has no results until its next decode
    exchange_results(rows->results);
    rows->buffer            = std::move(ctx.buf_output);
    ctx.embd                = {nullptr, 0};
    ctx.sampling.logits     = {nullptr, 0};
    ctx.sampling.sampled    = {nullptr, 0};
    ctx.sampling.probs      = {nullptr, 0};
    ctx.sampling.candidates = {nullptr, 0};
    ctx.buf_output = spare_buffer(ggml_backend_buffer_get_size(rows->buffer.get()));
    return rows;
}

void llama_turboprefill::exchange_results(kept_results & other) const {
    exchange(ctx.logits, other.logits);
    std::swap(ctx.n_outputs, other.n_outputs);
    ctx.output_ids  .swap(other.output_ids);
    ctx.output_swaps.swap(other.output_swaps);
    compat::exchange_hidden_rows(ctx, other);
}

void llama_turboprefill::exchange_others(kept_results & other) const {
    exchange(ctx.embd, other.embd);
    std::swap(ctx.sampling, other.sampling);
    ctx.sampling.token_ids_full_vocab.swap(other.sampling.token_ids_full_vocab); // depends on the vocabulary only: stays
}

// nullptr if there is none of that size: a smaller one would have to be replaced, which waits for everything
ggml_backend_buffer_ptr llama_turboprefill::spare_buffer(size_t size) {
    ggml_backend_buffer_ptr res;
    while (!res && !spare_buffers.empty()) {
        if (ggml_backend_buffer_get_size(spare_buffers.back().get()) >= size) {
            res = std::move(spare_buffers.back());
        }
        spare_buffers.pop_back();
    }
    return res;
}

// The ubatches behind these rows keep the devices busy while the caller computes with them: a ubatch or two between its own,
// or all that belong to them. Once the slots of these rows are in use again, there is nothing left to wait for.
llama_turboprefill_rows_state llama_turboprefill::rows_state(const llama_turboprefill_rows & rows) const {
    if (!in_flight(rows) || ggml_turboprefill_idle(engine)) {
        return LLAMA_TURBOPREFILL_ROWS_LATE;
    }
    const int64_t n_behind = ggml_turboprefill_last_result(engine) - rows.i_ubatch;
    const int64_t n_enough = std::min<int64_t>(entries.size(), n_devices + rows.n_ubatches);
    return n_behind < n_enough                   ? LLAMA_TURBOPREFILL_ROWS_EARLY
         : n_behind < n_enough + rows.n_ubatches ? LLAMA_TURBOPREFILL_ROWS_DUE
                                                 : LLAMA_TURBOPREFILL_ROWS_LATE;
}

bool llama_turboprefill::use_rows(llama_turboprefill_rows & rows, int64_t i_first) {
    unuse_rows();
    if (in_flight(rows)) {
        wait(rows.i_ubatch, GGML_TURBOPREFILL_CAUSE_RESULT);
    }
    if (rows.failed) {
        return false;
    }
    exchange_results(rows.results);
    exchange_others (rows.results);
    ctx.output_reorder();
    compat::shift_rows(ctx, i_first);
    rows_used   = &rows;
    i_rows_used = i_first;
    return true;
}

void llama_turboprefill::unuse_rows() {
    if (rows_used) {
        compat::shift_rows(ctx, -i_rows_used);
        exchange_results(rows_used->results);
        exchange_others (rows_used->results);
        rows_used = nullptr;
    }
}

// the caller's thread is about to wait for a slot: let it do something else
void llama_turboprefill::call_between() {
    if (between && engine && ggml_turboprefill_full(engine)) {
        between(between_data);
    }
}

void llama_turboprefill::free_rows(llama_turboprefill_rows & rows) {
    if (rows_used == &rows) {
        unuse_rows();
    }
    if (in_flight(rows)) {
        wait(rows.i_ubatch, GGML_TURBOPREFILL_CAUSE_RESULT); // they may still be written
    }
    rows_held.erase(std::remove(rows_held.begin(), rows_held.end(), &rows), rows_held.end());
    spare_buffers.push_back(std::move(rows.buffer));
}

// ubatches from i_ubatch on were not computed
void llama_turboprefill::fail_rows(int64_t i_ubatch) {
    for (auto * rows : rows_held) {
        if (in_flight(*rows) && rows->i_ubatch >= i_ubatch) {
            rows->failed = true;
        }
    }
}

//
// API
//

llama_turboprefill_rows * llama_turboprefill_hold_rows(llama_context * ctx) {
    auto * tp = llama_turboprefill::get(*ctx);
    return tp ? tp->hold_rows() : nullptr;
}

llama_turboprefill_rows * llama_turboprefill_hold_logits(llama_context * ctx) {
    auto * tp = llama_turboprefill::get(*ctx);
    return tp ? tp->hold_logits() : nullptr;
}

llama_turboprefill_rows_state llama_turboprefill_get_rows_state(const llama_turboprefill_rows * rows) {
    const auto owner = rows->owner.lock();
    return owner ? owner->rows_state(*rows) : LLAMA_TURBOPREFILL_ROWS_LATE;
}

bool llama_turboprefill_use_rows(llama_turboprefill_rows * rows, int32_t i_first) {
    const auto owner = rows->owner.lock();
    return owner && owner->use_rows(*rows, i_first);
}

void llama_turboprefill_unuse_rows(llama_context * ctx) {
    if (auto * tp = llama_turboprefill::get(*ctx)) {
        tp->unuse_rows();
    }
}

void llama_turboprefill_free_rows(llama_turboprefill_rows * rows) {
    if (rows == nullptr) {
        return;
    }
    if (const auto owner = rows->owner.lock()) {
        owner->free_rows(*rows);
    }
    delete rows;
}

void llama_turboprefill_set_before_use(llama_context * ctx, llama_turboprefill_before_use callback, void * data) {
    auto & tp = llama_turboprefill::make(*ctx);
    tp.before_use      = callback;
    tp.before_use_data = data;
}

void llama_turboprefill_set_between(llama_context * ctx, llama_turboprefill_between callback, void * data) {
    auto & tp = llama_turboprefill::make(*ctx);
    tp.between      = callback;
    tp.between_data = data;
}
