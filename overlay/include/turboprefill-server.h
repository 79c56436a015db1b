// TurboPrefill: prompts that end while others are still to come, in llama-server
//
// The server waits for the first token of a prompt before it gives the devices the next batch, and the pipeline runs empty
// for it. While nobody generates, the logits are kept instead, and sampled from when the next batch is on its way. A user
// who generates needs his token for that batch: then nothing is kept.
//
// Included by server-context.cpp behind struct server_slot.

#pragma once

#include "turboprefill.h"

#include <deque>
#include <utility>
#include <vector>

class llama_turboprefill_server {
public:
    llama_turboprefill_server() = default;
    llama_turboprefill_server(const llama_turboprefill_server &) = delete;
    llama_turboprefill_server & operator=(const llama_turboprefill_server &) = delete;

    ~llama_turboprefill_server() {
        while (!batches.empty()) {
            drop();
        }
    }

    // The logits of a batch, of n_tokens from off on, that was just decoded. true: kept, nobody need wait for them now
    bool keep(llama_context * ctx, std::vector<server_slot> & slots, int32_t n_tokens, int32_t off) {
        llama_turboprefill_rows * rows = may_wait(ctx, slots) ? llama_turboprefill_hold_logits(ctx) : nullptr;
        if (rows == nullptr) {
            return false;
        }
        kept batch = { rows, n_tokens, off, {} };
        for (auto & slot : slots) {
            if (slot.state == SLOT_STATE_DONE_PROMPT && slot.i_batch >= off && slot.i_batch < off + n_tokens) {
                batch.ends.push_back({ &slot, slot.task->id, slot.i_batch });
                slot.i_batch = -1;
            }
        }
        batches.push_back(std::move(batch));
        n_new = 1;
        return true;
    }

    // Of the batches before the one that was just decoded: post_decode(n_tokens, off) finds the slots and the results as they
    // were after each. false: a device failed, all slots were given to abort(reason)
    template <typename PostDecode, typename Abort>
    bool finish(llama_context * ctx, std::vector<server_slot> & slots, PostDecode && post_decode, Abort && abort) {
        const size_t n_left = std::exchange(n_new, 0);
        while (batches.size() > n_left) {
            const kept batch = std::move(batches.front());
            batches.pop_front();

            const in_use use(ctx, batch, slots);
            if (use.n_ends > 0 && !use.ok) {
                fail(ctx, slots, abort);
                return false;
            }
            if (use.n_ends > 0) {
                post_decode(batch.n_tokens, batch.off);
            }
        }
        return true;
    }

private:
    struct end_of_prompt {
        server_slot * slot;
        int           id_task; // a slot may have been released meanwhile, and taken by another
        int32_t       i_batch;
    };

    struct kept {
        llama_turboprefill_rows *  rows;
        int32_t                    n_tokens;
        int32_t                    off;
        std::vector<end_of_prompt> ends;
    };

    std::deque<kept> batches;
    size_t           n_new = 0; // of them: the batch that was just decoded

    // while it lives, the context has the results of a batch, and the slots those places in it that they had
    struct in_use {
        llama_context *            ctx;
        const kept &               batch;
        std::vector<server_slot> & slots;
        std::vector<int32_t>       i_batch;
        int                        n_ends = 0; // prompts that nobody has cancelled
        bool                       ok;

        in_use(llama_context * ctx, const kept & batch, std::vector<server_slot> & slots) : ctx(ctx), batch(batch), slots(slots) {
            ok = llama_turboprefill_use_rows(batch.rows, 0);
            for (auto & slot : slots) {
                i_batch.push_back(std::exchange(slot.i_batch, -1));
            }
            for (const auto & end : batch.ends) {
                if (end.slot->state == SLOT_STATE_DONE_PROMPT && end.slot->task && end.slot->task->id == end.id_task) {
                    end.slot->i_batch = end.i_batch;
                    n_ends++;
                }
            }
        }
        in_use(const in_use &) = delete;
        in_use & operator=(const in_use &) = delete;

        ~in_use() {
            for (size_t i = 0; i < slots.size() && ok; ++i) {
                slots[i].i_batch = i_batch[i];
            }
            llama_turboprefill_unuse_rows(ctx);
            llama_turboprefill_free_rows(batch.rows);
        }
    };

    // whether the server has more to compute that does not depend on these results, and only so much that nobody notices
    static bool may_wait(const llama_context * ctx, const std::vector<server_slot> & slots) {
        bool more = false;
        for (const auto & slot : slots) {
            if (!slot.is_processing()) {
                continue;
            }
            if (slot.state == SLOT_STATE_GENERATING || slot.spec || slot.task->is_parent() || slot.task->is_child()) {
                return false;
            }
            if (slot.state == SLOT_STATE_DONE_PROMPT && slot.i_batch >= 0 && !slot.task->need_sampling()) {
                return false; // embeddings and ranks are made of the batch itself
            }
            more |= slot.state == SLOT_STATE_STARTED || slot.state == SLOT_STATE_PROCESSING_PROMPT;
        }
        const int64_t n_slots = llama_turboprefill_get_stats(ctx).n_slots;
        return more && llama_n_batch(ctx) <= 2*n_slots*llama_n_ubatch(ctx);
    }

    void drop() {
        llama_turboprefill_free_rows(batches.front().rows);
        batches.pop_front();
    }

    // as the server does when llama_decode() returns an error
    template <typename Abort>
    void fail(llama_context * ctx, std::vector<server_slot> & slots, Abort && abort) {
        while (!batches.empty()) {
            drop();
        }
        std::vector<server_slot *> failed;
        for (auto & slot : slots) {
            if (slot.is_processing()) {
                failed.push_back(&slot);
            }
        }
        abort("Compute error.");
        for (auto * slot : failed) {
            slot->prompt_clear();
        }
        llama_turboprefill_synchronize(ctx); // that was the report of the failure
    }
};
