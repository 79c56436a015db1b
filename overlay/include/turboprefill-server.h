// TurboPrefill in llama-server: prompts whose first token can wait until the next batch is submitted
//
// The server waits for the first token of a prompt before it submits the next batch, which empties the pipeline. While no
// slot is generating, the logits are held instead, and sampled when the next batch is in flight. A slot that generates needs
// its token for that batch: then nothing is held.
//
// Included by server-context.cpp between struct server_slot and struct server_context_impl; each function takes the latter.

#pragma once

#include "turboprefill.h"

#include <deque>
#include <exception>
#include <utility>
#include <vector>

class llama_turboprefill_server {
public:
    llama_turboprefill_server() = default;
    llama_turboprefill_server(const llama_turboprefill_server &) = delete;
    llama_turboprefill_server & operator=(const llama_turboprefill_server &) = delete;

    ~llama_turboprefill_server() { drop_all(); }

    // For the n_tokens from off on that were just decoded. true: their logits are held, don't wait for them now
    template <typename Server>
    bool keep(Server & server, int32_t n_tokens, int32_t off) {
        std::vector<server_slot> & slots = server.slots;
        llama_turboprefill_rows * rows = may_wait(server.ctx_tgt, slots) ? llama_turboprefill_hold_logits(server.ctx_tgt) : nullptr;
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

    // Calls post_decode() for the batches before the one that was just decoded, with slots and results as they were after
    // each. false: a device failed, and all slots were aborted
    template <typename Server>
    bool finish(Server & server) {
        const size_t n_left = std::exchange(n_new, 0);
        while (batches.size() > n_left) {
            const kept batch = std::move(batches.front());
            batches.pop_front();

            in_use use(server.ctx_tgt, batch, server.slots, finishing);
            if (use.n_ends == 0) {
                continue;
            }
            server.queue_tasks.yield_to_queue([&] { use.ok = llama_turboprefill_use_rows(batch.rows, 0); });
            if (!use.ok) {
                fail(server);
                return false;
            }
            server.post_decode(batch.n_tokens, batch.off);
        }
        return true;
    }

    // The same when no batch follows after all
    template <typename Server>
    void finish_last(Server & server) {
        try {
            finish(server);
        } catch (const std::exception & err) {
            server.abort_all_slots(err.what());
        }
    }

    // whether post_decode() is called for an earlier batch, whose progress was reported to clients then
    bool finishes() const { return finishing; }

    // When all slots are idle: a fault found now concerns no request, only what the slots believe to be in memory.
    template <typename Server>
    void rest(Server & server) {
        llama_context * ctx = server.ctx_tgt;
        drop_all();
        if (!llama_turboprefill_enabled(ctx)) {
            return;
        }
        if (llama_turboprefill_synchronize(ctx) != 0) {
            forget(server);
        }
        llama_turboprefill_report(ctx); // discard: work until now, such as warmup, is not the next prompt's
    }

    // After a fault, when all slots are released: clears the prompts of slots whose tokens are no longer in memory. Upstream
    // only does so for slots that were processing, but ubatches of a cancelled request may have been in flight, too.
    template <typename Server>
    void forget(Server & server) {
        llama_context * ctx = server.ctx_tgt;
        if (!llama_turboprefill_enabled(ctx)) {
            return;
        }
        failed(ctx); // the fault counts as handled
        for (auto & slot : server.slots) {
            if (!slot.is_processing() && llama_memory_seq_pos_max(llama_get_memory(ctx), slot.id) < slot.prompt.tokens.pos_next() - 1) {
                slot.prompt_clear();
            }
        }
    }

    // After an image failed to decode. true: a device had failed, maybe on another slot's tokens, and all slots were aborted
    template <typename Server>
    bool image_failed(Server & server) {
        if (!failed(server.ctx_tgt)) {
            return false;
        }
        fail(server);
        server.batch.clear();
        return true;
    }

private:
    struct end_of_prompt {
        server_slot * slot;
        int           id_task; // the slot may have been released since, and given another task
        int32_t       i_batch;
    };

    struct kept {
        llama_turboprefill_rows *  rows;
        int32_t                    n_tokens;
        int32_t                    off;
        std::vector<end_of_prompt> ends;
    };

    // whether a device has failed since the last call
    bool failed(const llama_context * ctx) {
        const int64_t n = llama_turboprefill_get_stats(ctx).n_faults;
        return std::exchange(n_faults, n) < n;
    }

    // what the server does when llama_decode() returns an error
    template <typename Server>
    void fail(Server & server) {
        drop_all();
        std::vector<server_slot *> at_work;
        for (auto & slot : server.slots) {
            if (slot.is_processing()) {
                at_work.push_back(&slot);
            }
        }
        server.abort_all_slots("Compute error.");
        for (auto * slot : at_work) {
            slot->prompt_clear();
        }
        llama_turboprefill_synchronize(server.ctx_tgt); // the failure is reported, the next decode need not do it
        forget(server);
    }

    std::deque<kept> batches;
    size_t           n_new     = 0; // how many of them were just decoded, 0 or 1
    bool             finishing = false;
    int64_t          n_faults  = 0;

    // while one exists, slots have the i_batch of that batch; afterwards they, and the context's results, are restored
    struct in_use {
        llama_context *            ctx;
        const kept &               batch;
        std::vector<server_slot> & slots;
        bool &                     lives;
        std::vector<int32_t>       i_batch;
        int                        n_ends = 0; // prompts that were not cancelled
        bool                       ok = false;

        in_use(llama_context * ctx, const kept & batch, std::vector<server_slot> & slots, bool & lives) : ctx(ctx), batch(batch), slots(slots), lives(lives) {
            lives = true;
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
            lives = false;
            for (size_t i = 0; i < slots.size(); ++i) {
                slots[i].i_batch = i_batch[i];
            }
            llama_turboprefill_unuse_rows(ctx);
            llama_turboprefill_free_rows(batch.rows);
        }
    };

    // whether there is more to compute that does not depend on these results, and not so much that users notice the delay
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
                return false; // embeddings and ranks are made from the batch itself
            }
            more |= slot.state == SLOT_STATE_STARTED || slot.state == SLOT_STATE_PROCESSING_PROMPT;
        }
        // a batch with more ubatches than slots is only submitted when its first ubatches are done: these users would wait
        // longer than it takes to fill an empty pipeline again
        const int64_t n_slots = llama_turboprefill_get_stats(ctx).n_slots;
        return more && 2*llama_n_batch(ctx) <= 3*n_slots*llama_n_ubatch(ctx);
    }

    void drop_all() {
        for (; !batches.empty(); batches.pop_front()) {
            llama_turboprefill_free_rows(batches.front().rows);
        }
    }
};
