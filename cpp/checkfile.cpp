#include "checkfile.h"

#include "errors.h"
#include "log.h"

#include "gguf.h"
#include "llama-hparams.h"

#include <cmath>
#include <memory>
#include <string_view>
#include <unordered_set>

namespace turboprefill {

namespace {

using gguf_ptr = std::unique_ptr<gguf_context, decltype(&gguf_free)>;

error damaged(const std::string & what) {
    log_error("the model file is damaged: " + what); // what the exception's message is made of
    return error("ModelLoadError", what);
}

std::string text_of(const gguf_context * file, const char * key) {
    const int64_t id = gguf_find_key(file, key);
    return id >= 0 && gguf_get_kv_type(file, id) == GGUF_TYPE_STRING ? gguf_get_val_str(file, id) : "";
}

void check_layers(const gguf_context * file) {
    const std::string key = text_of(file, "general.architecture") + ".block_count";
    const int64_t id = gguf_find_key(file, key.c_str());
    if (id < 0 || gguf_get_kv_type(file, id) != GGUF_TYPE_UINT32) {
        return;
    }
    const uint32_t n = gguf_get_val_u32(file, id);
    if (n < 1 || n > LLAMA_MAX_LAYERS) {
        throw damaged(key + " is " + std::to_string(n) + "; expected 1 to " + std::to_string(LLAMA_MAX_LAYERS));
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
            text_of(file, "tokenizer.ggml.model") == "hybriddna") { // whose tokens are told apart while loading
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
    check_layers(file.get());
    check_epsilons(file.get());
    check_tokens(file.get());
}

} // namespace turboprefill
