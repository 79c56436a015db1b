// compares results of the pipeline and the standard path, for every kind of model, transport and batch

#include "support.h"

#include <cstdlib>

static const char * const PRESETS[] = { "tiny", "moe-tiny", "gptoss-tiny", "gemma3-tiny", "mamba-tiny", "jamba-tiny", "granite-hybrid-tiny" };

static const char * const DEVICES[] = { "", ",peer=refused", ",events=off", ",split_us=300,peer=blocking" };

struct driver_shape {
    int            n_batch;
    driver_outputs outputs;
};

static void compare_paths(const driver_env & env, llama_model * model, const std::string & devices, const driver_shape & shape, const std::string & what) {
    const auto tokens = driver_prompt(92); // the last ubatch is not full

    driver_options standard;
    standard.turbo = false;
    env.configure_standard();
    const auto expected = driver_run(driver_make_context(model, standard).get(), tokens, shape.n_batch, shape.outputs);

    env.configure(devices);
    auto ctx = driver_make_context(model);
    for (int i = 0; i < 2; i++) {
        driver_same(driver_run(ctx.get(), tokens, shape.n_batch, shape.outputs), expected, what);
    }
    driver_count(ctx.get(), what);
}

void scenario_paths(const driver_env & env) {
    const driver_shape shapes[] = { { 256, OUTPUTS_ALL }, { 256, OUTPUTS_LAST }, { 36, OUTPUTS_MIXED }, { 24, OUTPUTS_LAST } };
    int turn = 0;
    for (const char * preset : PRESETS) {
        env.configure();
        auto model = env.load(preset);
        for (const char * devices : DEVICES) {
            for (const auto & shape : shapes) {
                // every combination for the first model, some of them for the others
                if (preset == PRESETS[0] || turn++ % 8 == 0) {
                    compare_paths(env, model.get(), devices, shape, std::string(preset) + devices + " in calls of " + std::to_string(shape.n_batch));
                }
            }
        }
    }
}

void scenario_sequences(const driver_env & env) {
    for (const char * preset : { "tiny", "gemma3-tiny", "jamba-tiny" }) {
        env.configure();
        auto model = env.load(preset);
        for (const bool unified : { false, true }) {
            const std::string what = std::string(preset) + (unified ? " unified" : " split");
            driver_options options;
            options.n_seq   = 4;
            options.n_ctx   = 512;
            options.unified = unified;
            options.turbo   = false;
            env.configure_standard();
            const auto tokens   = driver_prompt(96);
            const auto expected = driver_run(driver_make_context(model.get(), options).get(), tokens, 256, OUTPUTS_MIXED, 4);
            options.turbo = true;
            env.configure();
            auto ctx = driver_make_context(model.get(), options);
            driver_same(driver_run(ctx.get(), tokens, 256, OUTPUTS_MIXED, 4), expected, what);
            driver_count(ctx.get(), what);
        }
    }
}

// as few slots as possible, and so little memory for their masks that it has to grow with the prompt
void scenario_memory(const driver_env & env) {
    env.configure_standard(); // the pipeline is staged then
    auto model  = env.load("tiny");
    auto tokens = driver_prompt(1200);

    driver_options options;
    options.n_ctx    = 4096;
    options.n_batch  = 2048;
    options.n_ubatch = 128;
    options.turbo    = false;
    const auto expected = driver_run(driver_make_context(model.get(), options).get(), tokens, 2048, OUTPUTS_LAST);

    options.turbo = true;
    setenv("TURBOPREFILL_HOST_MB", "1", 1);
    setenv("TURBOPREFILL_SLOTS",   "2", 1);
    auto ctx = driver_make_context(model.get(), options);
    unsetenv("TURBOPREFILL_HOST_MB");
    unsetenv("TURBOPREFILL_SLOTS");
    const uint64_t n_bytes = llama_turboprefill_get_stats(ctx.get()).mem_host;
    driver_same(driver_run(ctx.get(), tokens, 2048, OUTPUTS_LAST), expected, "little host memory");
    require(llama_turboprefill_get_stats(ctx.get()).mem_host > n_bytes, "the memory of slots did not grow: expected that it has to");
    driver_count(ctx.get(), "little host memory");
}

// The last device, or the link to it, is much slower than the others, which get as far ahead as they can: if a wait is
// missing, a region is overwritten before it was read.
void scenario_behind(const driver_env & env) {
    const char * const slow[] = {
        ",split_us=1000,slow=1/1/1/40",                       // landing regions of peer copies
        ",split_us=1000,latency_us=0/0/0/5000",               // outboxes
        ",split_us=1000,slow=1/1/1/40,peer=refused",          // landing regions of uploads
        ",split_us=1000,latency_us=0/0/0/5000,peer=refused",  // staging regions
    };
    const auto tokens = driver_prompt(24*N_UBATCH);
    for (const char * preset : { "tiny", "jamba-tiny" }) {
        env.configure_standard();
        auto model = env.load(preset);
        driver_options options;
        options.turbo = false;
        const auto expected = driver_run(driver_make_context(model.get(), options).get(), tokens, 256, OUTPUTS_LAST);
        options.turbo = true;
        for (const char * devices : slow) {
            const std::string what = std::string(preset) + devices;
            env.configure(devices);
            auto ctx = driver_make_context(model.get(), options);
            driver_same(driver_run(ctx.get(), tokens, 256, OUTPUTS_LAST), expected, what);
            driver_count(ctx.get(), what);
        }
    }
}
