// TurboPrefill: what differs between the versions of llama.cpp that this builds with (private to libllama)
//
// One function for each difference. Which variant is compiled is decided by what the version's structs have, not by its
// number: the variants take int or long, the functions that the rest of the overlay calls pass 0, which prefers int.
// A new difference: write the old variant and the new one here, with the month in which upstream changed.

#pragma once

#include "turboprefill-impl.h"

// inside of llama_turboprefill, which llama_context has for a friend
struct llama_turboprefill::compat {
    // graphs of the standard path must not be reused after the scheduler was used for something else
    static void forget_graph(llama_context & ctx) { forget_graph(ctx, 0); }

    // calls f(view) with the inputs of layers, for draft models that read them
    template <typename F> static void for_layer_inputs(const llama_context & ctx, const F & f) { for_layer_inputs(ctx, f, 0); }

    // hidden states for multi-token prediction
    static auto hidden_rows(const llama_context & ctx) { return hidden_rows(ctx, 0); }

    // whether a decode makes hidden rows of all tokens
    static bool has_hidden_rows(const llama_context & ctx) { return has_hidden_rows(ctx, 0); }

    // the context's hidden rows and those given here change places
    static void exchange_hidden_rows(llama_context & ctx, kept_results & other) { exchange_hidden_rows(ctx, other, 0); }

    // the context's hidden rows begin n_tokens later
    static void shift_rows(llama_context & ctx, int64_t n_tokens) { shift_rows(ctx, n_tokens, 0); }

    // contexts of draft models build other graphs
    static bool is_default_type(const llama_cparams & cparams) { return is_default_type(cparams, 0); }

    // rows of results that a ubatch can have
    static uint32_t n_outputs_max(const llama_cparams & cparams) { return n_outputs_max(cparams, 0); }

    // rows of results that a sequence with a sampler can have
    static uint32_t n_outputs_max_per_seq(const llama_cparams & cparams) { return n_outputs_max_per_seq(cparams, 0); }

    // whether recurrent states are kept for positions before the last one
    static bool has_snapshots(const llama_cparams & cparams) { return has_snapshots(cparams, 0); }

    static int    n_layer_all  (const llama_hparams & hparams)         { return n_layer_all(hparams, 0); } // with those for multi-token prediction
    static int    n_layer_run  (const llama_hparams & hparams)         { return n_layer_run(hparams, 0); } // that prompts go through
    static double n_expert_used(const llama_hparams & hparams, int il) { return n_expert_used(hparams, il, 0); }

private:
    // two graph results since September 2026, one before
    template <typename T> static auto forget_graph(T & ctx, int)  -> decltype(ctx.gf_res_prev_active = nullptr, void()) { ctx.gf_res_prev_active = nullptr; }
    template <typename T> static auto forget_graph(T & ctx, long) -> decltype(ctx.gf_res_prev->reset(),         void()) { ctx.gf_res_prev->reset(); }

    template <typename T, typename F> static auto for_layer_inputs(const T & ctx, const F & f, int) -> decltype(ctx.embd_layer_inp, void()) {
        for (const auto & view : ctx.embd_layer_inp) {
            f(view);
        }
    }
    template <typename T, typename F> static void for_layer_inputs(const T & /*ctx*/, const F & /*f*/, long) {}

    template <typename T> static auto hidden_rows(const T & ctx, int)  -> decltype(ctx.embd_nextn) { return ctx.embd_nextn; }
    template <typename T> static auto hidden_rows(const T & ctx, long) -> decltype(ctx.embd)       { return ctx.embd; }

    template <typename T> static auto has_hidden_rows(const T & ctx, int) -> decltype(ctx.embd_nextn, ctx.embd_batch_idxs, bool()) { return ctx.embd_nextn.data && !ctx.cparams.embeddings_nextn_masked; }
    template <typename T> static bool has_hidden_rows(const T & /*ctx*/, long) { return false; }

    template <typename T> static auto exchange_hidden_rows(T & ctx, kept_results & other, int) -> decltype(ctx.embd_nextn, ctx.embd_layer_inp, ctx.embd_batch_idxs, void()) {
        exchange(ctx.embd_nextn, other.nextn);
        other.layer_inp.resize(ctx.embd_layer_inp.size());
        for (size_t i = 0; i < other.layer_inp.size(); ++i) {
            exchange(ctx.embd_layer_inp[i], other.layer_inp[i]);
        }
        ctx.embd_batch_idxs.swap(other.batch_idxs);
    }
    template <typename T> static void exchange_hidden_rows(T & /*ctx*/, kept_results & /*other*/, long) {}

    template <typename T> static auto shift_rows(T & ctx, int64_t n_tokens, int) -> decltype(ctx.embd_nextn, ctx.embd_layer_inp, void()) {
        const auto shift = [&](auto & view, int64_t n_embd) {
            if (view.data) {
                view.data += n_tokens*n_embd;
                view.size -= n_tokens*n_embd;
            }
        };
        shift(ctx.embd_nextn, ctx.model.hparams.n_embd_out());
        for (auto & layer : ctx.embd_layer_inp) {
            shift(layer, ctx.model.hparams.n_embd);
        }
    }
    template <typename T> static void shift_rows(T & /*ctx*/, int64_t /*n_tokens*/, long) {}

    // since June 2026
    template <typename T> static auto is_default_type(const T & cparams, int)  -> decltype((int) cparams.ctx_type == 0) { return (int) cparams.ctx_type == 0; }
    template <typename T> static bool is_default_type(const T & /*cparams*/, long) { return true; }

    template <typename T> static auto n_outputs_max(const T & cparams, int)  -> decltype(cparams.n_outputs_max) { return cparams.n_outputs_max; }
    template <typename T> static uint32_t n_outputs_max(const T & cparams, long) { return cparams.n_ubatch; }

    // since August 2026
    template <typename T> static auto n_outputs_max_per_seq(const T & cparams, int)  -> decltype(cparams.n_outputs_max_per_seq) { return cparams.n_outputs_max_per_seq; }
    template <typename T> static uint32_t n_outputs_max_per_seq(const T & /*cparams*/, long) { return 1; }

    // since June 2026
    template <typename T> static auto has_snapshots(const T & cparams, int)  -> decltype(cparams.n_rs_seq > 0) { return cparams.n_rs_seq > 0; }
    template <typename T> static bool has_snapshots(const T & /*cparams*/, long) { return false; }

    // called so since July 2026
    template <typename T> static auto n_layer_all(const T & hparams, int)  -> decltype((int) hparams.n_layer_all) { return hparams.n_layer_all; }
    template <typename T> static auto n_layer_all(const T & hparams, long) -> decltype((int) hparams.n_layer)     { return hparams.n_layer; }

    template <typename T> static auto n_layer_run(const T & hparams, int)  -> decltype((int) hparams.n_layer()) { return hparams.n_layer(); }
    template <typename T> static auto n_layer_run(const T & hparams, long) -> decltype((int) hparams.n_layer)   { return hparams.n_layer; }

    // per layer since September 2026
    template <typename T> static auto n_expert_used(const T & hparams, int il, int)      -> decltype((double) hparams.n_expert_used(il)) { return hparams.n_expert_used(il); }
    template <typename T> static auto n_expert_used(const T & hparams, int /*il*/, long) -> decltype((double) hparams.n_expert_used)     { return hparams.n_expert_used; }
};
