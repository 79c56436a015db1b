// calls while ubatches are in flight: each has to wait for what it needs, and nothing may break

#include "support.h"

#include <functional>
#include <iterator>

// devices so slow that a decode returns long before they are done
static const char * const SLOW = ",split_us=1500";

static const int N_PROMPT = 64;

struct driver_call {
    const char * name;
    std::function<void(llama_context *)> call;
    std::function<void(llama_context *)> before = nullptr; // called before the first decode
};

static void call_trace(llama_context * ctx) {
    llama_turboprefill_trace_start(ctx);
    require(driver_decode(ctx, driver_prompt(2*N_PROMPT), N_PROMPT, N_PROMPT/2, OUTPUTS_LAST) == 0, "a decode under a trace");
    const size_t n = llama_turboprefill_trace_stop(ctx);
    std::vector<llama_turboprefill_span> spans(n);
    require(llama_turboprefill_trace_read(ctx, spans.data(), n) == n, "spans are missing");
}

static void call_vector(llama_context * ctx) {
    const llama_model * model = llama_get_model(ctx);
    const int n_embd = llama_model_n_embd(model);
    const std::vector<float> data((size_t) n_embd*(llama_model_n_layer(model) - 1), 0.01f);
    require(llama_set_adapter_cvec(ctx, data.data(), data.size(), n_embd, 1, llama_model_n_layer(model) - 1) == 0, "a control vector");
}

static void call_save_sequence(llama_context * ctx) {
    std::vector<uint8_t> state(llama_state_seq_get_size(ctx, 0));
    require(llama_state_seq_get_data(ctx, state.data(), state.size(), 0) == state.size(), "a sequence is not saved whole");
    require(llama_state_seq_set_data(ctx, state.data(), state.size(), 1) == state.size(), "a sequence is not loaded whole");
}

static const driver_call CALLS[] = {
    { "save the state",      [](llama_context * ctx) { driver_state(ctx); } },
    { "save a sequence",     call_save_sequence },
    { "remove positions",    [](llama_context * ctx) { llama_memory_seq_rm (llama_get_memory(ctx), 0, N_PROMPT - 12, -1); } },
    { "copy a sequence",     [](llama_context * ctx) { llama_memory_seq_cp (llama_get_memory(ctx), 0, 1, -1, -1); } },
    { "keep a sequence",     [](llama_context * ctx) { llama_memory_seq_keep(llama_get_memory(ctx), 0); } },
    { "clear",               [](llama_context * ctx) { llama_memory_clear  (llama_get_memory(ctx), true); } },
    { "read the last logits",[](llama_context * ctx) { require(llama_get_logits_ith(ctx, -1), "no logits"); } },
    { "set threads",         [](llama_context * ctx) { llama_set_n_threads(ctx, 1, 1); } },
    { "set an abort callback",[](llama_context * ctx) { llama_set_abort_callback(ctx, [](void *) { return false; }, nullptr); } },
    { "set a control vector",call_vector },
    { "ask for statistics",  [](llama_context * ctx) {
        llama_turboprefill_stage stage;
        for (int i = 0; i < 50; i++) {
            for (int s = 0; s < llama_turboprefill_n_stages(ctx); s++) {
                llama_turboprefill_get_stage(ctx, s, &stage);
            }
        }
    } },
    { "trace",               call_trace },
};

// adapters of the model: one that is set while ubatches are in flight, and one that is freed while they use it
static std::vector<driver_call> adapter_calls(llama_model * model, const std::string & path) {
    const auto load = [=] {
        llama_adapter_lora * adapter = llama_adapter_lora_init(model, path.c_str());
        require(adapter, path + " does not load");
        return adapter;
    };
    const auto set = [](llama_context * ctx, std::vector<llama_adapter_lora *> adapters) {
        std::vector<float> scales(adapters.size(), 1.0f);
        require(llama_set_adapters_lora(ctx, adapters.data(), adapters.size(), scales.data()) == 0, "adapters");
    };
    const auto used = std::make_shared<llama_adapter_lora *>();
    return {
        { "set an adapter",  [=](llama_context * ctx) { set(ctx, { load() }); } },
        { "free an adapter", [=](llama_context * ctx) { set(ctx, {}); llama_adapter_lora_free(*used); },
                             [=](llama_context * ctx) { *used = load(); set(ctx, { *used }); } },
    };
}

// a decode, the call while the devices are busy, another decode
static driver_result with_call(llama_model * model, const driver_call & call, bool turbo, const std::string & what) {
    driver_options options;
    options.turbo   = turbo;
    options.n_ctx   = 512;
    options.n_seq   = 2;
    options.unified = true;
    auto ctx = driver_make_context(model, options);

    if (call.before) {
        call.before(ctx.get());
    }
    const auto tokens = driver_prompt(2*N_PROMPT);
    require(driver_decode(ctx.get(), driver_prompt(N_PROMPT), 0, N_PROMPT, OUTPUTS_LAST) == 0, what);
    if (!turbo) {
        // the pipeline waits by itself; llama.cpp expects the caller to, for example before the memory is cleared
        llama_synchronize(ctx.get());
    }
    call.call(ctx.get());

    const int n = llama_memory_seq_pos_max(llama_get_memory(ctx.get()), 0) + 1;
    require(driver_decode(ctx.get(), tokens, n, (int) tokens.size() - n, OUTPUTS_LAST) == 0, what);

    driver_result res;
    const float * logits = llama_get_logits_ith(ctx.get(), -1);
    res.logits.assign(logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(model)));
    res.state = driver_state(ctx.get());
    if (turbo) {
        driver_count(ctx.get(), what);
    }
    return res;
}

void scenario_in_flight(const driver_env & env) {
    for (const char * preset : { "tiny", "gemma3-tiny" }) {
        env.configure();
        auto model = env.load(preset);
        std::vector<driver_call> calls(std::begin(CALLS), std::end(CALLS));
        for (const auto & call : adapter_calls(model.get(), env.models + "/" + preset + "-lora.gguf")) {
            calls.push_back(call);
        }
        for (const auto & call : calls) {
            const std::string what = std::string(preset) + ", " + call.name;
            env.configure_standard();
            const auto expected = with_call(model.get(), call, false, what);
            env.configure(SLOW);
            driver_same(with_call(model.get(), call, true, what), expected, what);
        }
    }
}

// switches the pipeline on and off while ubatches are in flight, in the middle of a prompt
void scenario_switches(const driver_env & env) {
    for (const char * preset : { "tiny", "jamba-tiny" }) {
        env.configure_standard();
        auto model = env.load(preset);
        const auto tokens = driver_prompt(128);
        driver_options options;
        options.turbo = false;
        const auto expected = driver_run(driver_make_context(model.get(), options).get(), tokens, 32, OUTPUTS_LAST);

        env.configure(std::string(SLOW) + ",peer=refused"); // half of it takes the standard path
        auto ctx = driver_make_context(model.get());
        driver_result res;
        for (int i = 0; i < 4; i++) {
            require(driver_decode(ctx.get(), tokens, 32*i, 32, OUTPUTS_LAST) == 0, preset);
            llama_turboprefill_set_enabled(ctx.get(), i % 2 != 0);
        }
        const float * logits = llama_get_logits_ith(ctx.get(), -1);
        res.logits.assign(logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(model.get())));
        res.state = driver_state(ctx.get());
        driver_same(res, expected, std::string(preset) + ", switched");
        driver_count(ctx.get(), preset);
    }
}

void scenario_free(const driver_env & env) {
    for (const char * devices : { SLOW, ",split_us=1500,peer=refused", ",split_us=1500,events=off" }) {
        env.configure(devices);
        auto model = env.load("tiny");
        for (int n = N_UBATCH; n <= 128; n += 24) {
            auto ctx = driver_make_context(model.get());
            require(driver_decode(ctx.get(), driver_prompt(128), 0, n, OUTPUTS_ALL) == 0, devices);
            if (n > 2*N_UBATCH) {
                driver_count(ctx.get(), devices);
            }
            ctx.reset();
            require(env.counter("threads") == 0, "a context left threads behind");
        }
        model.reset();
        require(env.counter("buffers") == 0 && env.counter("events") == 0, "buffers or events were left behind");
    }
}
