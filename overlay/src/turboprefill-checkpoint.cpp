// TurboPrefill: reads the state of a sequence behind the ubatches in flight, see turboprefill-checkpoint.h
//
// llama_context writes the state as usual, but its reads from devices are recorded instead, and submitted to the pipeline
// like a ubatch: each worker copies its part between the ubatches before and after.

#include "turboprefill-impl.h"

#include "llama-impl.h"

#include <algorithm>
#include <memory>
#include <vector>

// a read in the background, and its data
struct llama_turboprefill_read {
    std::weak_ptr<llama_turboprefill> owner; // expired: it drained before it was destroyed
    int64_t i_engine = 0; // a later engine started with nothing in flight
    int64_t i_ubatch = 0;
    bool    failed   = false;

    std::vector<uint8_t> data;
};

llama_turboprefill_read * llama_turboprefill::read_state(llama_seq_id seq_id, llama_state_seq_flags flags) {
    if (!engine) {
        return nullptr;
    }
    submit();
    if (ggml_turboprefill_idle(engine)) {
        return nullptr;
    }
#ifdef LLAMA_STATE_SEQ_FLAGS_ON_DEVICE
    if (flags & LLAMA_STATE_SEQ_FLAGS_ON_DEVICE) {
        return nullptr;
    }
#endif
    auto read = std::make_unique<llama_turboprefill_read>();

    std::vector<ggml_turboprefill_tensor_read> reads;
    size_t n;
    {
        struct recording { // ends also if there is no memory for the state
            bool & reading;
            ~recording() {
                ggml_turboprefill_record_reads(nullptr);
                reading = false;
            }
        };
        reading = true; // don't wait: the host knows sizes and cells
        const recording now { reading };
        read->data.resize(ctx.state_seq_get_size(seq_id, flags));
        ggml_turboprefill_record_reads(&reads);
        n = ctx.state_seq_get_data(seq_id, read->data.data(), read->data.size(), flags);
    }
    if (n == 0 || n != read->data.size()) {
        return nullptr;
    }

    ggml_turboprefill_slot * slot_read = ggml_turboprefill_acquire(engine);
    if (!slot_read) {
        return nullptr; // a device failed: the next wait notices
    }
    const int64_t i_ubatch = ggml_turboprefill_slot_ubatch(slot_read);
    auto & entry = entries[ggml_turboprefill_slot_index(slot_read)];
    entry.ubatch   = {};
    entry.i_ubatch = i_ubatch;
    if (!ggml_turboprefill_submit_reads(engine, slot_read, reads)) {
        entry.i_ubatch = -1;
        return nullptr;
    }
    read->owner    = ctx.turboprefill;
    read->i_engine = i_engine;
    read->i_ubatch = i_ubatch;
    reads_held.push_back(read.get());
    return read.release();
}

void llama_turboprefill::read_finish(llama_turboprefill_read & read) {
    if (read.i_engine == i_engine) {
        wait(read.i_ubatch, GGML_TURBOPREFILL_CAUSE_STATE);
    }
    reads_held.erase(std::remove(reads_held.begin(), reads_held.end(), &read), reads_held.end());
}

// ubatches from i_ubatch on were not computed
void llama_turboprefill::fail_reads(int64_t i_ubatch) {
    for (auto * read : reads_held) {
        read->failed = read->failed || (read->i_engine == i_engine && read->i_ubatch >= i_ubatch);
    }
}

//
// API
//

llama_turboprefill_read * llama_turboprefill_read_state(llama_context * ctx, llama_seq_id seq_id, llama_state_seq_flags flags) {
    auto * tp = llama_turboprefill::get(*ctx);
    return tp ? tp->read_state(seq_id, flags) : nullptr;
}

size_t llama_turboprefill_read_size(const llama_turboprefill_read * read) {
    return read->data.size();
}

bool llama_turboprefill_read_get(llama_turboprefill_read * read, uint8_t * data) {
    if (const auto owner = read->owner.lock()) {
        owner->read_finish(*read);
    }
    if (!read->failed) {
        std::copy(read->data.begin(), read->data.end(), data);
    }
    return !read->failed;
}

void llama_turboprefill_read_free(llama_turboprefill_read * read) {
    if (read == nullptr) {
        return;
    }
    if (const auto owner = read->owner.lock()) {
        owner->read_finish(*read);
    }
    delete read;
}
