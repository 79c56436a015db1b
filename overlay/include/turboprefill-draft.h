// TurboPrefill: batches that a draft model computes later, a few calls behind the target
//
// A draft model for multi-token prediction computes every token of the prompt from the target's hidden state of the token
// before. Waiting for these states after each llama_decode() would empty the pipeline. So batches without outputs are
// deferred, and computed when the target has enough in flight behind them: in order, in pieces, while the target would wait
// for its devices, and before anything else uses the draft model's memory.

#pragma once

#include "common.h"
#include "turboprefill.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <utility>

class llama_turboprefill_draft {
public:
    llama_turboprefill_draft() = default;
    llama_turboprefill_draft(const llama_turboprefill_draft &) = delete;
    llama_turboprefill_draft & operator=(const llama_turboprefill_draft &) = delete;

    ~llama_turboprefill_draft() {
        while (!batches.empty()) {
            drop();
        }
        if (ctx_dft) {
            llama_turboprefill_set_before_use(ctx_dft, nullptr, nullptr);
            llama_turboprefill_set_between(ctx_tgt, nullptr, nullptr);
        }
    }

    // impls: those of the struct common_speculative that this object is a member of; they must outlive it
    template <typename Impls>
    void init(llama_context * ctx_tgt_new, llama_context * ctx_dft_new, const Impls & impls) {
        // other types read more of the target than these hidden states, or nothing: n-gram types ignore batches
        const auto follows = [](const auto & impl) { return impl->type == COMMON_SPECULATIVE_TYPE_DRAFT_MTP; };
        const auto ignores = [](const auto & impl) { return impl->type >= COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE; };
        const bool suits = std::all_of(impls.begin(), impls.end(), [&](const auto & impl) { return follows(impl) || ignores(impl); });
        if (!ctx_tgt_new || !ctx_dft_new || !suits || std::none_of(impls.begin(), impls.end(), follows)) {
            return;
        }
        ctx_tgt = ctx_tgt_new;
        ctx_dft = ctx_dft_new;
        compute = [&impls](const common_batch & batch) {
            return std::all_of(impls.begin(), impls.end(), [&batch](const auto & impl) { return impl->process(batch); });
        };
        llama_turboprefill_set_before_use(ctx_dft, [](void * data, llama_seq_id seq_id, llama_pos pos) {
            ((llama_turboprefill_draft *) data)->before_use(seq_id, pos);
        }, this);
        llama_turboprefill_set_between(ctx_tgt, [](void * data) { ((llama_turboprefill_draft *) data)->between(); }, this);
    }

    // Takes the batch that the target was just given. true: it was deferred, or an earlier one failed; result is what
    // common_speculative_process() has to return. false: it was not deferred, earlier ones were computed; compute it now
    bool process(const common_batch & batch, bool & result) {
        const bool later = note(batch);
        if (!later) {
            flush();
        }
        while (later && batches.size() > 1 && state_of_first() == LLAMA_TURBOPREFILL_ROWS_LATE) {
            compute_piece();
        }
        result = !std::exchange(failed, false);
        return later || !result;
    }

    // computes everything deferred, before the draft model is used
    void flush() {
        while (!batches.empty() && !computing) {
            compute_piece();
        }
    }

private:
    struct noted {
        common_batch              batch;
        llama_turboprefill_rows * rows;
        int32_t                   n_piece; // tokens per piece
        int32_t                   n_done;
    };

    llama_context * ctx_tgt = nullptr;
    llama_context * ctx_dft = nullptr;

    std::function<bool(const common_batch &)> compute;

    std::deque<noted> batches;
    bool computing = false;
    bool failed    = false; // since the last call of process()

    bool note(const common_batch & batch) {
        const bool has_output = std::any_of(batch.tokens.begin(), batch.tokens.end(), [](const auto & token) { return token.output; });
        if (!ctx_tgt || !batch.has_token() || batch.has_embd() || has_output) {
            return false;
        }
        llama_turboprefill_rows * rows = llama_turboprefill_hold_rows(ctx_tgt);
        if (!rows) {
            return false;
        }
        // pieces end where the draft model's ubatches would end anyway; with several sequences that is elsewhere: one piece
        const bool one = std::all_of(batch.tokens.begin(), batch.tokens.end(), [&](const auto & token) {
            return token.seq_id == batch.tokens[0].seq_id && token.seq_ids_extra.empty();
        });
        batches.push_back({ {}, rows, one ? (int32_t) llama_n_ubatch(ctx_dft) : batch.size(), 0 });
        batches.back().batch.tokens = batch.tokens;
        batches.back().batch.n_pos  = batch.n_pos;
        return true;
    }

    llama_turboprefill_rows_state state_of_first() const {
        return llama_turboprefill_get_rows_state(batches.front().rows);
    }

    // called when the target would wait
    void between() {
        if (!computing && !batches.empty() && state_of_first() != LLAMA_TURBOPREFILL_ROWS_EARLY) {
            compute_piece();
        }
    }

    // if the target failed, its next llama_decode() reports it
    void compute_piece() {
        noted & first = batches.front();
        const int32_t n = std::min(first.n_piece, first.batch.size() - first.n_done);

        computing = true;
        const bool usable = !failed && llama_turboprefill_use_rows(first.rows, first.n_done);
        if (usable) {
            common_batch piece;
            piece.tokens.assign(first.batch.tokens.begin() + first.n_done, first.batch.tokens.begin() + first.n_done + n);
            piece.n_pos = first.batch.n_pos;
            try {
                failed = !compute(piece);
            } catch (...) {
                llama_turboprefill_unuse_rows(ctx_tgt);
                computing = false;
                throw;
            }
            llama_turboprefill_unuse_rows(ctx_tgt);
        }
        computing = false;

        first.n_done += n;
        if (!usable || first.n_done == first.batch.size()) {
            drop();
        }
    }

    void drop() {
        llama_turboprefill_free_rows(batches.front().rows);
        batches.pop_front();
    }

    void before_use(llama_seq_id seq_id, llama_pos pos) {
        const auto used = [&](const common_batch::token & token) {
            return (seq_id < 0 || token.seq_id == seq_id) && token.pos[0] >= pos;
        };
        for (const auto & it : batches) {
            if (std::any_of(it.batch.tokens.begin(), it.batch.tokens.end(), used)) {
                flush();
                return;
            }
        }
    }
};
