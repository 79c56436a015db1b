// failures in the middle of a prompt: callers that abort, devices that fail, allocations that are refused

#include "support.h"

#include "../src/llama-ext.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <functional>
#include <unistd.h>
#include <utility>
#include <vector>

static const int N_PROMPT = 96;

static driver_result expected_of(const driver_env & env, llama_model * model) {
    driver_options options;
    options.turbo = false;
    env.configure_standard();
    return driver_run(driver_make_context(model, options).get(), driver_prompt(N_PROMPT), 256, OUTPUTS_LAST);
}

// decodes the rest of the prompt
static driver_result go_on(llama_context * ctx, int n_batch = 256) {
    const auto tokens = driver_prompt(N_PROMPT);
    const int  there  = llama_memory_seq_pos_max(llama_get_memory(ctx), 0) + 1;
    for (int first = there; first < N_PROMPT; first += n_batch) {
        require(driver_decode(ctx, tokens, first, std::min(n_batch, N_PROMPT - first), OUTPUTS_LAST) == 0, "the prompt does not go on");
    }
    driver_result res;
    const float * logits = llama_get_logits_ith(ctx, -1);
    require(logits, "there are no logits");
    res.logits.assign(logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))));
    res.state = driver_state(ctx);
    return res;
}

// called by the thread that computes on the CPU
struct driver_abort {
    std::atomic<int> n_left;

    static bool ask(void * data) { return ((driver_abort *) data)->n_left-- <= 0; }
};

void scenario_abort(const driver_env & env) {
    for (const char * preset : { "tiny", "mamba-tiny", "gemma3-tiny" }) {
        auto model = env.load(preset, 5); // the first layers stay on the CPU
        const auto expected = expected_of(env, model.get());
        env.configure(",split_us=500");
        for (const int n_calls : { 1, 40, 200, 700 }) {
            const std::string what = std::string(preset) + ", abort after " + std::to_string(n_calls) + " nodes";
            auto ctx = driver_make_context(model.get());
            driver_abort abort { { n_calls } };
            llama_set_abort_callback(ctx.get(), driver_abort::ask, &abort);
            const int code = driver_decode(ctx.get(), driver_prompt(N_PROMPT), 0, N_PROMPT, OUTPUTS_LAST);
            require(code == 2, what + ": llama_decode returned " + std::to_string(code) + ", expected 2");
            llama_set_abort_callback(ctx.get(), nullptr, nullptr);
            driver_same(go_on(ctx.get()), expected, what);
            driver_count(ctx.get(), what);
        }
    }
}

void scenario_faults(const driver_env & env) {
    for (const char * preset : { "tiny", "jamba-tiny", "gemma3-tiny" }) {
        env.configure();
        auto model = env.load(preset);
        const auto expected = expected_of(env, model.get());
        for (const char * more : { ",split_us=500", ",split_us=500,peer=refused", ",events=off" }) {
            for (const int device : { 0, 1, N_DEVICES - 1 }) {
                for (const int graph : { 1, N_PROMPT/N_UBATCH/2, N_PROMPT/N_UBATCH }) {
                    const std::string what = std::string(preset) + more + ", graph " + std::to_string(graph) + " of device " + std::to_string(device);
                    env.configure(more);
                    auto ctx = driver_make_context(model.get());
                    std::string numbers;
                    for (int i = 0; i < N_DEVICES; i++) {
                        numbers += (i ? "/" : "") + std::to_string(i == device ? graph : 0);
                    }
                    env.configure(more + (",fail_graph=" + numbers));
                    int code = driver_decode(ctx.get(), driver_prompt(N_PROMPT), 0, N_PROMPT, OUTPUTS_LAST);
                    if (code == 0) {
                        // it had returned before the device failed: the next call reports it
                        llama_synchronize(ctx.get());
                        code = driver_decode(ctx.get(), driver_prompt(N_PROMPT + 1), N_PROMPT, 1, OUTPUTS_LAST);
                    }
                    require(code == -3, what + ": llama_decode returned " + std::to_string(code) + ", expected -3");
                    driver_same(go_on(ctx.get()), expected, what);
                    driver_count(ctx.get(), what);
                }
            }
        }
    }
}

// one buffer is refused: there is no context, or a context with or without a pipeline, whose results are right in any case
void scenario_buffers(const driver_env & env) {
    env.configure();
    auto model = env.load("tiny");
    const auto expected = expected_of(env, model.get());
    int n_made = 0;
    for (int buffer = 1; buffer <= 8; buffer++) {
        const std::string what = "without buffer " + std::to_string(buffer);
        // refuses copies, because without the pipeline it is the standard path
        env.configure(",peer=refused,fail_buffer=" + std::to_string(buffer));
        auto ctx = driver_try_context(model.get());
        if (ctx) {
            n_made++;
            driver_same(go_on(ctx.get()), expected, what);
        }
        ctx.reset();
        require(env.counter("threads") == 0, what + ": threads were left behind");
    }
    require(n_made > 0 && n_made < 8, std::to_string(n_made) + " of 8 contexts were made: expected some and not all");
    env.configure_standard();
    auto ctx = driver_make_context(model.get());
    driver_same(go_on(ctx.get()), expected, "after missing buffers");
    driver_count(ctx.get(), "after missing buffers");
}

// a device fails after llama_decode() has returned: states would lack tokens that were decoded
void scenario_late(const driver_env & env) {
    env.configure();
    auto model = env.load("tiny");
    const auto expected = expected_of(env, model.get());
    const std::string file = "/tmp/turboprefill-driver-" + std::to_string(getpid());
    std::vector<uint8_t> data(16*1024*1024);

    using asks = std::function<size_t(llama_context *)>;
    const std::pair<const char *, asks> functions[] = {
        { "llama_state_get_size",      [](llama_context * ctx) { return llama_state_get_size(ctx); } },
        { "llama_state_get_data",      [&](llama_context * ctx) { return llama_state_get_data(ctx, data.data(), data.size()); } },
        { "llama_state_seq_get_size",  [](llama_context * ctx) { return llama_state_seq_get_size(ctx, 0); } },
        { "llama_state_seq_get_data",  [&](llama_context * ctx) { return llama_state_seq_get_data(ctx, data.data(), data.size(), 0); } },
        { "llama_state_save_file",     [&](llama_context * ctx) { return (size_t) llama_state_save_file(ctx, file.c_str(), nullptr, 0); } },
        { "llama_state_seq_save_file", [&](llama_context * ctx) { return llama_state_seq_save_file(ctx, file.c_str(), 0, nullptr, 0); } },
    };
    for (const auto & first : functions) {
        env.configure();
        auto ctx = driver_make_context(model.get());
        env.configure(",split_us=3000,fail_graph=0/0/3/0");
        require(driver_decode(ctx.get(), driver_prompt(N_PROMPT), 0, 4*N_UBATCH, OUTPUTS_NONE) == 0, "the decode did not return before the fault");
        require(first.second(ctx.get()) == 0, std::string(first.first) + " hides a fault");
        for (const auto & other : functions) {
            require(other.second(ctx.get()) == 0, std::string(other.first) + " hides a fault behind " + first.first);
        }
        require(llama_turboprefill_synchronize(ctx.get()) != 0, "nobody told of the fault");
        require(llama_turboprefill_get_stats(ctx.get()).n_faults == 1, "the fault was not counted");
        for (const auto & other : functions) {
            require(other.second(ctx.get()) != 0, std::string(other.first) + " fails after everybody was told");
        }
        driver_same(go_on(ctx.get()), expected, first.first);
        driver_count(ctx.get(), first.first);
    }
    remove(file.c_str());

    // what a draft model would read of a prompt that failed
    {
        env.configure();
        auto ctx = driver_make_context(model.get());
        llama_set_embeddings_layer_inp(ctx.get(), 1, true);
        require(driver_decode(ctx.get(), driver_prompt(N_PROMPT), 0, N_UBATCH, OUTPUTS_NONE) == 0, "a decode");
        env.configure(",split_us=3000,fail_graph=0/0/2/0");
        require(driver_decode(ctx.get(), driver_prompt(N_PROMPT), N_UBATCH, 3*N_UBATCH, OUTPUTS_NONE) == 0, "the decode did not return before the fault");
        llama_synchronize(ctx.get());
        const float * rows = llama_get_embeddings_layer_inp(ctx.get(), 1);
        require(rows != nullptr && std::isnan(rows[0]), "inputs of a layer that failed can be read");
    }

    // nor what the caller would read
    {
        env.configure();
        auto ctx = driver_make_context(model.get());
        env.configure(",split_us=3000,fail_graph=0/0/0/4");
        require(driver_decode(ctx.get(), driver_prompt(4*N_UBATCH), 0, 4*N_UBATCH, OUTPUTS_LAST) == 0, "the decode did not return before the fault");
        const float * logits = llama_get_logits_ith(ctx.get(), -1);
        require(logits != nullptr && std::isnan(logits[0]), "logits of a prompt that failed can be read");
    }

    // names of stages outlive the scheduler that they came from
    {
        env.configure();
        auto ctx = driver_make_context(model.get());
        require(driver_decode(ctx.get(), driver_prompt(N_PROMPT), 0, N_PROMPT, OUTPUTS_LAST) == 0, "a decode");
        llama_turboprefill_stage stage;
        require(llama_turboprefill_get_stage(ctx.get(), 1, &stage), "there is no second stage");
        const std::string device = stage.device;
        llama_set_embeddings(ctx.get(), true); // replaces the scheduler
        require(driver_decode(ctx.get(), driver_prompt(2*N_PROMPT), N_PROMPT, N_UBATCH, OUTPUTS_ALL) == 0, "a decode");
        require(device == stage.device, "the name of a device has changed");
    }
    env.configure();
}
