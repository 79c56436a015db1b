#include "batch.h"

#include "errors.h"
#include "model.h"

#include <algorithm>
#include <climits>
#include <numeric>
#include <string>

namespace turboprefill {

namespace {

template <typename T, int F> std::vector<T> to_vector(const py::array_t<T, F> & a) {
    return std::vector<T>(a.data(), a.data() + a.size());
}

void expect_size(const char * name, size_t got, size_t expected) {
    if (got != expected) {
        throw invalid_input(std::string(name) + " has " + std::to_string(got) + " entries; expected " +
            std::to_string(expected));
    }
}

template <typename T> void expect_range(const char * name, const std::vector<T> & values, int64_t end) {
    for (size_t i = 0; i < values.size(); ++i) {
        if (values[i] < 0 || values[i] >= end) {
            throw invalid_input(std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(values[i]) +
                "; expected 0 to " + std::to_string(end - 1));
        }
    }
}

} // namespace

batch_data::batch_data(const std::optional<i32_array> & tokens, const std::optional<f32_array> & embd,
        const i32_array & pos, const i32_array & n_seq_id, const i32_array & seq_id, const i8_array & output) :
        pos_(to_vector(pos)), n_seq_id_(to_vector(n_seq_id)), seq_id_(to_vector(seq_id)), output_(to_vector(output)) {
    if (tokens.has_value() == embd.has_value()) {
        throw invalid_input("a batch has either tokens or embeddings");
    }
    if (tokens) {
        tokens_ = to_vector(*tokens);
        expect_size("tokens", tokens_.size(), output_.size());
    } else {
        if (embd->ndim() != 2) {
            throw invalid_input("embeddings have " + std::to_string(embd->ndim()) + " dimensions; expected (n, n_embd)");
        }
        expect_size("embeddings", embd->shape(0), output_.size());
        embd_width_ = embd->shape(1);
        embd_       = to_vector(*embd);
    }
    if (output_.empty()) {
        throw invalid_input("the batch is empty; expected at least one token");
    }

    expect_size("n_seq_id", n_seq_id_.size(), output_.size());
    for (size_t i = 0; i < n_seq_id_.size(); ++i) {
        if (n_seq_id_[i] < 1) {
            throw invalid_input("token " + std::to_string(i) + " belongs to no sequence; expected at least one id");
        }
    }
    expect_size("seq_id", seq_id_.size(), std::accumulate(n_seq_id_.begin(), n_seq_id_.end(), size_t(0)));
}

void batch_data::check(const llama_model * model, llama_context * ctx, bool unified) const {
    const int64_t n = n_tokens();
    const int64_t n_batch  = llama_n_batch(ctx);
    const int64_t n_ubatch = llama_n_ubatch(ctx);
    if (n > n_batch) {
        throw invalid_input("the batch has " + std::to_string(n) + " tokens; n_batch is " + std::to_string(n_batch));
    }
    if (n > n_ubatch && (!llama_get_memory(ctx) || !llama_get_causal_attn(ctx))) {
        throw invalid_input("the batch has " + std::to_string(n) + " tokens; without causal attention they must fit "
            "into one ubatch (n_ubatch is " + std::to_string(n_ubatch) + "): raise n_ubatch");
    }

    if (!tokens_.empty()) {
        expect_range("tokens", tokens_, llama_vocab_n_tokens(llama_model_get_vocab(model)));
    } else if (embd_width_ != llama_model_n_embd_inp(model)) {
        throw invalid_input("embeddings are " + std::to_string(embd_width_) + " wide; this model takes " +
            std::to_string(llama_model_n_embd_inp(model)));
    }

    expect_range("seq_ids", seq_id_, llama_n_seq_max(ctx));
    if (seq_id_.size() != output_.size() && !unified && !llama_model_is_recurrent(model)) {
        throw invalid_input("a token belongs to several sequences; create the context with kv_unified=True for that");
    }
    expect_size("pos", pos_.size(), tokens_.empty() ? n*model_n_pos_per_embd(model) : n);
    expect_range("pos", pos_, INT32_MAX);
}

llama_batch batch_data::get() {
    seq_id_ptr_.clear();
    llama_seq_id * ids = seq_id_.data();
    for (const int32_t count : n_seq_id_) {
        seq_id_ptr_.push_back(ids);
        ids += count;
    }

    llama_batch batch = {};
    batch.n_tokens = (int32_t) n_tokens();
    batch.token    = tokens_.empty() ? nullptr : tokens_.data();
    batch.embd     = tokens_.empty() ? embd_.data() : nullptr;
    batch.pos      = pos_.data();
    batch.n_seq_id = n_seq_id_.data();
    batch.seq_id   = seq_id_ptr_.data();
    batch.logits   = output_.data();
    return batch;
}

int64_t batch_data::n_outputs() const {
    return std::count_if(output_.begin(), output_.end(), [](int8_t o) { return o != 0; });
}

} // namespace turboprefill
