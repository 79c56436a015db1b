// TurboPrefill: checkpoints of a sequence that do not stop the pipeline
//
// A checkpoint in the middle of a prompt has to hold the state at that point. Nothing waits for the devices to get there:
// they copy the state out between the ubatches before and after it.

#pragma once

#include "turboprefill.h"

#include <cstdint>
#include <utility>
#include <vector>

// To be declared in front of the data that finish() fills, so that copies of both find the data complete. The devices write
// to other memory, so the data may be destroyed at any time.
class llama_turboprefill_checkpoint {
public:
    llama_turboprefill_checkpoint() = default;
    ~llama_turboprefill_checkpoint() { llama_turboprefill_read_free(read); }

    // members are copied in order of declaration: the data after this
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

    // Like llama_state_seq_get_data_ext() into a vector, which is zero, and must not be resized, until finish(). false:
    // nothing was done, because nothing is in flight or the state can't be read this way
    bool take(llama_context * ctx, std::vector<uint8_t> & to, llama_seq_id seq_id, llama_state_seq_flags flags) {
        drop();
        failed = false;
        read   = llama_turboprefill_read_state(ctx, seq_id, flags);
        if (read == nullptr) {
            return false;
        }
        to.assign(llama_turboprefill_read_size(read), 0);
        data = to.data(); // stays valid when the vector is moved
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
