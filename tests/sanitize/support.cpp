#include "support.h"

#include <algorithm>
#include <atomic>
#include <cstring>

void require(bool holds, const std::string & what) {
    if (!holds) {
        throw std::runtime_error(what);
    }
}

//
// devices and models
//

static void * driver_virtual_function(const driver_env & env, const char * name) {
    return ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(env.virt.at(0)), name);
}

void driver_env::configure(const std::string & more) const {
    const auto configure = (const char * (*)(const char *)) driver_virtual_function(*this, "turboprefill_virtual_configure");
    const char * why = configure((std::to_string(virt.size()) + more).c_str());
    require(!why, why ? why : "");
}

// For llama.cpp's own pipeline: in unpatched trees, too, its asynchronous copies do not wait until the receiving device has
// finished computing from the old data. If that device is slower, results are wrong now and then.
void driver_env::configure_standard() const {
    configure(",peer=refused");
}

int64_t driver_env::counter(const char * name) const {
    return ((int64_t (*)(const char *)) driver_virtual_function(*this, "turboprefill_virtual_counter"))(name);
}

driver_model driver_env::load(const std::string & preset, int n_gpu_layers) const {
    return load_on(preset, virt, n_gpu_layers);
}

driver_model driver_env::load_on(const std::string & preset, std::vector<ggml_backend_dev_t> devices, int n_gpu_layers) const {
    devices.push_back(nullptr);
    llama_model_params params = llama_model_default_params();
    params.devices         = devices.data();
    params.n_gpu_layers    = n_gpu_layers;
    params.split_mode      = LLAMA_SPLIT_MODE_LAYER;
    params.use_extra_bufts = false;
    const std::string path = models + "/" + preset + ".gguf";
    driver_model model { llama_model_load_from_file(path.c_str(), params) };
    require(!!model, path + " does not load");
    return model;
}

//
// contexts
//

driver_context driver_try_context(llama_model * model, const driver_options & options) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = options.n_ctx;
    params.n_batch         = options.n_batch;
    params.n_ubatch        = options.n_ubatch;
    params.n_seq_max       = options.n_seq;
    params.kv_unified      = options.unified;
    params.n_threads       = 1;
    params.n_threads_batch = 1;
    params.op_offload      = false;
    params.no_perf         = true;
    driver_context ctx { llama_init_from_model(model, params) };
    if (ctx && options.turbo) {
        llama_turboprefill_set_enabled(ctx.get(), true);
        if (!llama_turboprefill_enabled(ctx.get())) {
            ctx.reset();
        }
    }
    return ctx;
}

driver_context driver_make_context(llama_model * model, const driver_options & options) {
    driver_context ctx = driver_try_context(model, options);
    require(!!ctx, "a context cannot be made");
    return ctx;
}

driver_tokens driver_prompt(int n, uint32_t seed) {
    driver_tokens tokens(n);
    for (auto & token : tokens) {
        seed  = seed*1664525u + 1013904223u;
        token = 300 + (seed >> 8) % 700;
    }
    return tokens;
}

int driver_decode(llama_context * ctx, const driver_tokens & tokens, int first, int n, driver_outputs outputs, int n_seq) {
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        const int  k    = first + i;
        const bool last = k == (int) tokens.size() - 1;
        batch.token[i]     = tokens[k];
        batch.pos[i]       = k / n_seq;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = k % n_seq;
        batch.logits[i]    = outputs == OUTPUTS_ALL || (outputs == OUTPUTS_LAST && last) || (outputs == OUTPUTS_MIXED && (k % 3 == 0 || last));
    }
    const int code = llama_decode(ctx, batch);
    llama_batch_free(batch);
    return code;
}

//
// results
//

std::vector<uint8_t> driver_state(llama_context * ctx) {
    std::vector<uint8_t> state(llama_state_get_size(ctx));
    state.resize(llama_state_get_data(ctx, state.data(), state.size()));
    return state;
}

static int driver_n_outputs(int first, int n, int n_tokens, driver_outputs outputs) {
    int res = 0;
    for (int k = first; k < first + n; k++) {
        const bool last = k == n_tokens - 1;
        res += outputs == OUTPUTS_ALL || (outputs == OUTPUTS_LAST && last) || (outputs == OUTPUTS_MIXED && (k % 3 == 0 || last));
    }
    return res;
}

driver_result driver_run(llama_context * ctx, const driver_tokens & tokens, int n_batch, driver_outputs outputs, int n_seq) {
    const int n_tokens = (int) tokens.size();
    const int n_vocab  = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));

    driver_result res;
    llama_memory_clear(llama_get_memory(ctx), true);
    for (int first = 0; first < n_tokens; first += n_batch) {
        const int n    = std::min(n_batch, n_tokens - first);
        const int code = driver_decode(ctx, tokens, first, n, outputs, n_seq);
        require(code == 0, "llama_decode returned " + std::to_string(code) + ", expected 0");
        const int n_outputs = driver_n_outputs(first, n, n_tokens, outputs);
        if (n_outputs > 0) {
            const float * logits = llama_get_logits(ctx);
            res.logits.insert(res.logits.end(), logits, logits + (size_t) n_outputs*n_vocab);
        }
    }
    res.state = driver_state(ctx);
    return res;
}

void driver_same(const driver_result & result, const driver_result & expected, const std::string & what) {
    require(result.logits.size() == expected.logits.size(), what + ": another number of logits");
    require(!memcmp(result.logits.data(), expected.logits.data(), expected.logits.size()*sizeof(float)), what + ": other logits");
    require(result.state == expected.state, what + ": another state");
}

static std::atomic<int64_t> g_driver_count{0};

void driver_count(llama_context * ctx, const std::string & what) {
    const int64_t n = llama_turboprefill_get_stats(ctx).n_ubatches_pipelined;
    require(n > 0, what + ": nothing was pipelined: " + llama_turboprefill_reason(ctx));
    g_driver_count += n;
}

int64_t driver_take_count() {
    return g_driver_count.exchange(0);
}
