#include "checkfile.h"

#include "errors.h"
#include "log.h"

#include "gguf.h"
#include "llama-hparams.h"

#include <cmath>
#include <memory>
#include <optional>
#include <string_view>
#include <unordered_set>

namespace turboprefill {

namespace {

using gguf_ptr = std::unique_ptr<gguf_context, decltype(&gguf_free)>;

error damaged(const std::string & what) {
    log_error("the model file is damaged: " + what); // Python takes the exception's message from the log
    return error("ModelLoadError", what);
}

std::string text_of(const gguf_context * file, const char * key) {
    const int64_t id = gguf_find_key(file, key);
    return id >= 0 && gguf_get_kv_type(file, id) == GGUF_TYPE_STRING ? gguf_get_val_str(file, id) : "";
}

// a number stored under the name of the architecture
std::optional<uint32_t> hparam(const gguf_context * file, const char * name) {
    const int64_t id = gguf_find_key(file, (text_of(file, "general.architecture") + "." + name).c_str());
    if (id < 0 || gguf_get_kv_type(file, id) != GGUF_TYPE_UINT32) {
        return std::nullopt;
    }
    return gguf_get_val_u32(file, id);
}

void expect_hparam(const char * name, uint32_t value, uint32_t low, uint32_t high) {
    if (value < low || value > high) {
        throw damaged(std::string(name) + " is " + std::to_string(value) + "; expected " + std::to_string(low) + " to " +
            std::to_string(high));
    }
}

void check_counts(const gguf_context * file) {
    if (const auto n = hparam(file, "block_count")) {
        expect_hparam("block_count", *n, 1, LLAMA_MAX_LAYERS);
    }
    const auto n_expert = hparam(file, "expert_count");
    const auto n_used   = hparam(file, "expert_used_count");
    if (n_expert) {
        expect_hparam("expert_count", *n_expert, 0, LLAMA_MAX_EXPERTS);
    }
    if (n_expert && n_used && *n_expert > 1) {
        expect_hparam("expert_used_count", *n_used, 1, *n_expert);
    }
}

void check_epsilons(const gguf_context * file) {
    for (int64_t id = 0; id < gguf_get_n_kv(file); ++id) {
        const std::string key = gguf_get_key(file, id);
        if (gguf_get_kv_type(file, id) != GGUF_TYPE_FLOAT32 || key.find("epsilon") == std::string::npos) {
            continue;
        }
        const float value = gguf_get_val_f32(file, id);
        if (!std::isfinite(value) || value < 0.0f) {
            throw damaged(key + " is " + std::to_string(value) + "; expected a small number that is not negative");
        }
    }
}

void check_tokens(const gguf_context * file) {
    const int64_t id = gguf_find_key(file, "tokenizer.ggml.tokens");
    if (id < 0 || gguf_get_kv_type(file, id) != GGUF_TYPE_ARRAY || gguf_get_arr_type(file, id) != GGUF_TYPE_STRING ||
            text_of(file, "tokenizer.ggml.model") == "hybriddna") { // its tokens are made distinct while loading
        return;
    }
    std::unordered_set<std::string_view> seen;
    const size_t n = gguf_get_arr_n(file, id);
    seen.reserve(n);
    for (size_t i = 0; i < n; ++i) {
        const std::string_view token = gguf_get_arr_str(file, id, i);
        if (!token.empty() && !seen.insert(token).second) { // empty ones get names while loading
            throw damaged("token " + std::to_string(i) + " of its vocabulary is there twice: '" + std::string(token) + "'");
        }
    }
}

} // namespace

void check_model_file(const std::string & path) {
    const gguf_ptr file(gguf_init_from_file(path.c_str(), { /*.no_alloc =*/ true, /*.ctx =*/ nullptr }), gguf_free);
    if (!file) {
        return;
    }
    check_counts(file.get());
    check_epsilons(file.get());
    check_tokens(file.get());
}

} // namespace turboprefill
