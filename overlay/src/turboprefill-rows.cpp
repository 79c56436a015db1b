// TurboPrefill: hidden rows of a decode that are read after later decodes, see turboprefill-draft.h
//
// Nothing is copied: the rows stay in the buffer that the devices write to, and the context goes on with another one.

#include "turboprefill-impl.h"

#include <algorithm>

// of a decode, until its reader is done
struct llama_turboprefill_rows {
    std::weak_ptr<llama_turboprefill> owner; // gone: it waited before it went

    ggml_backend_buffer_ptr  buffer;
    turboprefill_hidden_rows rows;

    int64_t i_engine   = 0; // a later engine began with nothing in flight
    int64_t i_ubatch   = 0; // the last one that makes some of them
    int64_t n_ubatches = 0;
    bool    failed     = false;
};

// what was in flight when the engine of these rows went has arrived
bool llama_turboprefill::in_flight(const llama_turboprefill_rows & rows) const {
    return engine && rows.i_engine == i_engine;
}

llama_turboprefill_rows * llama_turboprefill::hold_rows() {
    if (!engine || rows_used || ctx.n_outputs != 0) {
        return nullptr;
    }
    submit();
    if (turboprefill_idle(engine)) {
        return nullptr;
    }
    auto * rows = new llama_turboprefill_rows;
    if (!exchange_rows(ctx, rows->rows, 0)) {
        delete rows;
        return nullptr;
    }
    rows->owner      = ctx.turboprefill;
    rows->i_engine   = i_engine;
    rows->i_ubatch   = turboprefill_last_result(engine);
    rows->n_ubatches = n_ubatches_decode;
    rows->buffer     = std::move(ctx.buf_output);
    rows_held.push_back(rows);

    // the context has no results now, until its next decode
    ctx.logits          = {nullptr, 0};
    ctx.embd            = {nullptr, 0};
    ctx.sampling.logits = {nullptr, 0};
    ctx.sampling.probs  = {nullptr, 0};
    ctx.output_swaps.clear();
    ctx.buf_output = spare_buffer(ggml_backend_buffer_get_size(rows->buffer.get()));
    return rows;
}

// a smaller one would have to be replaced, which waits for everything
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

// true: the devices have work while the caller reads these rows, and computes as many ubatches on one of them
bool llama_turboprefill::rows_due(const llama_turboprefill_rows & rows) const {
    if (!in_flight(rows) || turboprefill_idle(engine)) {
        return true;
    }
    const int64_t n_behind = turboprefill_last_result(engine) - rows.i_ubatch;
    return n_behind >= std::min<int64_t>(entries.size(), n_devices + rows.n_ubatches);
}

bool llama_turboprefill::use_rows(llama_turboprefill_rows & rows) {
    if (rows_used == &rows) {
        return true;
    }
    unuse_rows();
    if (in_flight(rows)) {
        wait(rows.i_ubatch, TURBOPREFILL_CAUSE_RESULT);
    }
    if (rows.failed) {
        return false;
    }
    exchange_rows(ctx, rows.rows, 0);
    rows_used = &rows;
    return true;
}

void llama_turboprefill::unuse_rows() {
    if (rows_used) {
        exchange_rows(ctx, rows_used->rows, 0);
        rows_used = nullptr;
    }
}

void llama_turboprefill::free_rows(llama_turboprefill_rows & rows) {
    if (rows_used == &rows) {
        unuse_rows();
    }
    if (in_flight(rows)) {
        wait(rows.i_ubatch, TURBOPREFILL_CAUSE_RESULT); // they may still be written
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

bool llama_turboprefill_rows_due(const llama_turboprefill_rows * rows) {
    const auto owner = rows->owner.lock();
    return !owner || owner->rows_due(*rows);
}

bool llama_turboprefill_use_rows(llama_turboprefill_rows * rows) {
    const auto owner = rows->owner.lock();
    return owner && owner->use_rows(*rows);
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
