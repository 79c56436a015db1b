// TurboPrefill: checkpoints of a sequence that do not stop the pipeline
//
// A checkpoint in the middle of a prompt has to hold the state of that moment. Instead of waiting for it, the devices are
// told to copy it out when they get there, between the ubatches before and after it.

#pragma once

#include "turboprefill.h"

#include <cstdint>
#include <utility>
#include <vector>

// Stands in front of the data that it fills: whoever copies, frees or changes that finds it complete.
class llama_turboprefill_checkpoint {
public:
    llama_turboprefill_checkpoint() = default;
    ~llama_turboprefill_checkpoint() { finish(); }

    // members are copied in their order: the data comes after this
    llama_turboprefill_checkpoint(const llama_turboprefill_checkpoint & other) { other.finish(); }
    llama_turboprefill_checkpoint(llama_turboprefill_checkpoint && other) noexcept { std::swap(read, other.read); }

    llama_turboprefill_checkpoint & operator=(const llama_turboprefill_checkpoint & other) {
        finish();
        other.finish();
        return *this;
    }
    llama_turboprefill_checkpoint & operator=(llama_turboprefill_checkpoint && other) noexcept {
        finish();
        std::swap(read, other.read);
        return *this;
    }

    // As llama_state_seq_get_data_ext() into data, which may not change until finish(). false: nothing was done, as nothing
    // is in flight or the state can't be had this way
    bool take(llama_context * ctx, std::vector<uint8_t> & data, llama_seq_id seq_id, llama_state_seq_flags flags) {
        finish();
        const size_t size = llama_turboprefill_read_size(ctx, seq_id, flags);
        if (size == 0) {
            return false;
        }
        data.resize(size);
        read = llama_turboprefill_read_state(ctx, data.data(), size, seq_id, flags);
        return read != nullptr;
    }

    void finish() const {
        llama_turboprefill_read_finish(read);
        read = nullptr;
    }

private:
    mutable llama_turboprefill_read * read = nullptr;
};
