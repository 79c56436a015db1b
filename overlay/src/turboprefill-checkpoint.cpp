// TurboPrefill: reading the state of a sequence behind the ubatches in flight, see turboprefill-checkpoint.h
//
// llama_context writes the state as always, but what it would copy from the devices at once is noted, and handed to the
// pipeline like a ubatch: each stage copies its part after the ubatches before, and before those after it.

#include "turboprefill-impl.h"

#include "llama-impl.h"

#include <exception>
#include <memory>

// what is read, until it has arrived
struct llama_turboprefill_read {
    std::weak_ptr<llama_turboprefill> owner; // gone: it waited before it went
    int64_t i_engine; // a later engine began with nothing in flight
    int64_t i_ubatch;
};

size_t llama_turboprefill::read_size(llama_seq_id seq_id, llama_state_seq_flags flags) {
    if (!engine || turboprefill_idle(engine)) {
        return 0;
    }
#ifdef LLAMA_STATE_SEQ_FLAGS_ON_DEVICE
    if (flags & LLAMA_STATE_SEQ_FLAGS_ON_DEVICE) {
        return 0;
    }
#endif
    reading = true; // sizes follow from the cells, which the host knows
    const size_t size = ctx.state_seq_get_size(seq_id, flags);
    reading = false;
    return size;
}

llama_turboprefill_read * llama_turboprefill::read_state(uint8_t * data, size_t size, llama_seq_id seq_id, llama_state_seq_flags flags) {
    if (!engine) {
        return nullptr;
    }
    submit();

    std::vector<turboprefill_tensor_read> reads;
    reading = true;
    turboprefill_record_reads(&reads);
    const size_t n = ctx.state_seq_get_data(seq_id, data, size, flags);
    turboprefill_record_reads(nullptr);
    reading = false;
    if (n != size) {
        return nullptr;
    }

    turboprefill_slot * slot_read = turboprefill_acquire(engine);
    if (!slot_read) {
        return nullptr; // a device failed: whoever waits next finds out
    }
    const int64_t i_ubatch = turboprefill_slot_ubatch(slot_read);
    auto & entry = entries[turboprefill_slot_index(slot_read)];
    entry.ubatch   = {};
    entry.i_ubatch = i_ubatch;
    if (!turboprefill_submit_reads(engine, slot_read, reads)) {
        entry.i_ubatch = -1;
        return nullptr;
    }
    return new llama_turboprefill_read { ctx.turboprefill, i_engine, i_ubatch };
}

void llama_turboprefill::read_finish(int64_t i_engine_read, int64_t i_ubatch) {
    if (i_engine_read == i_engine) {
        wait(i_ubatch, TURBOPREFILL_CAUSE_STATE);
    }
}

//
// API
//

size_t llama_turboprefill_read_size(llama_context * ctx, llama_seq_id seq_id, llama_state_seq_flags flags) {
    auto * tp = llama_turboprefill::get(*ctx);
    return tp ? tp->read_size(seq_id, flags) : 0;
}

llama_turboprefill_read * llama_turboprefill_read_state(llama_context * ctx, uint8_t * data, size_t size, llama_seq_id seq_id, llama_state_seq_flags flags) {
    auto * tp = llama_turboprefill::get(*ctx);
    return tp ? tp->read_state(data, size, seq_id, flags) : nullptr;
}

void llama_turboprefill_read_finish(llama_turboprefill_read * read) {
    if (read == nullptr) {
        return;
    }
    if (const auto owner = read->owner.lock()) {
        owner->read_finish(read->i_engine, read->i_ubatch);
    }
    delete read;
}
