// TurboPrefill: checkpoints of a sequence that do not stop the pipeline
//
// A checkpoint in the middle of a prompt has to hold the state of that moment. Instead of waiting for it, the devices are
// told to copy it out when they get there, between the ubatches before and after it.

#pragma once

#include "turboprefill.h"

#include <cstdint>
#include <utility>
#include <vector>

// Stands in front of the data that it fills in finish(): whoever copies or changes that finds it complete. The devices write to
// memory of its own, so the data may go at any time.
class llama_turboprefill_checkpoint {
public:
    llama_turboprefill_checkpoint() = default;
    ~llama_turboprefill_checkpoint() { llama_turboprefill_read_free(read); }

    // members are copied in their order: the data comes after this
    llama_turboprefill_checkpoint(const llama_turboprefill_checkpoint & other) : failed(!other.finish()) {}
    llama_turboprefill_checkpoint(llama_turboprefill_checkpoint && other) noexcept { swap(other); }

    llama_turboprefill_checkpoint & operator=(const llama_turboprefill_checkpoint & other) {
        drop();
        failed = !other.finish();
        return *this;
    }
    llama_turboprefill_checkpoint & operator=(llama_turboprefill_checkpoint && other) noexcept {
        drop();
        swap(other);
        return *this;
    }

    // As llama_state_seq_get_data_ext() into data, which is zero and may not change its size until finish(). false: nothing
    // was done, as nothing is in flight or the state can't be had this way
    bool take(llama_context * ctx, std::vector<uint8_t> & to, llama_seq_id seq_id, llama_state_seq_flags flags) {
        drop();
        failed = false;
        read   = llama_turboprefill_read_state(ctx, seq_id, flags);
        if (read == nullptr) {
            return false;
        }
        to.assign(llama_turboprefill_read_size(read), 0);
        data = to.data(); // stays where it is when the vector is moved
        return true;
    }

    // waits for the devices. false: one failed, and the data stays zero
    bool finish() const {
        if (read != nullptr) {
            failed = !llama_turboprefill_read_get(read, data);
            drop();
        }
        return !failed;
    }

private:
    mutable llama_turboprefill_read * read = nullptr;
    mutable bool failed = false;
    uint8_t *    data   = nullptr;

    void drop() const {
        llama_turboprefill_read_free(read);
        read = nullptr;
    }

    void swap(llama_turboprefill_checkpoint & other) {
        std::swap(read,   other.read);
        std::swap(failed, other.failed);
        std::swap(data,   other.data);
    }
};
