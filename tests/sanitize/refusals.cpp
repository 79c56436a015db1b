// resources that a device refuses, one at a time: a context does without, or takes the standard path, or a decode fails and
// the context goes on. Results are always those of the standard path.

#include "support.h"

#include <cstdlib>
#include <map>
#include <string>

static const int N_PROMPT = 96;
static const int DEVICE   = 1; // neither the first, which has the pinned memory of user inputs, nor the last

enum driver_outcome {
    OUTCOME_NO_CONTEXT, // llama.cpp itself needs it
    OUTCOME_STANDARD,   // the context was made, and nothing is pipelined
    OUTCOME_FALLBACK,   // some ubatch took the standard path
    OUTCOME_PIPELINED,  // all were pipelined all the same
    OUTCOME_FAILED,     // llama_decode() returned a code; the rest of the prompt went well afterwards
    OUTCOME_UNUSED,     // the device was never asked so often
};

static std::string only(int device, int value) {
    std::string text;
    for (int i = 0; i < N_DEVICES; i++) {
        text += (i ? "/" : "") + std::to_string(i == device ? value : 0);
    }
    return text;
}

static driver_result result_of(llama_context * ctx) {
    driver_result res;
    const float * logits = llama_get_logits_ith(ctx, -1);
    require(logits, "there are no logits");
    res.logits.assign(logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))));
    res.state = driver_state(ctx);
    return res;
}

// what comes of refusing the device's n-th
static driver_outcome refuse(const driver_env & env, llama_model * model, const std::string & more, const char * key, int device, int n,
        const driver_result & expected) {
    const std::string what = std::string(key) + " " + std::to_string(n) + " of device " + std::to_string(device) + more;
    env.configure(more + "," + key + "=" + only(device, n));
    const int64_t n_faults = env.counter("faults");

    auto ctx = driver_try_context(model);
    if (!ctx) {
        require(env.counter("faults") > n_faults, what + ": there is no context");
        return OUTCOME_NO_CONTEXT;
    }
    const auto tokens = driver_prompt(N_PROMPT);
    int code = driver_decode(ctx.get(), tokens, 0, N_PROMPT, OUTPUTS_LAST);
    if (code == 0) {
        code = llama_turboprefill_synchronize(ctx.get());
    }
    const bool refused = env.counter("faults") > n_faults;
    const llama_turboprefill_stats stats = llama_turboprefill_get_stats(ctx.get());
    if (code != 0) {
        require(refused && (code == -2 || code == -3), what + ": llama_decode returned " + std::to_string(code));
        const int there = llama_memory_seq_pos_max(llama_get_memory(ctx.get()), 0) + 1;
        require(there % N_UBATCH == 0 && there < N_PROMPT, what + ": memory ends at " + std::to_string(there));
        env.configure(more);
        require(driver_decode(ctx.get(), tokens, there, N_PROMPT - there, OUTPUTS_LAST) == 0, what + ": the context does not go on");
    }
    driver_same(result_of(ctx.get()), expected, what);
    if (!refused) {
        require(stats.n_ubatches_standard == 0, what + ": the standard path without a reason");
        return OUTCOME_UNUSED;
    }
    if (code != 0) {
        return OUTCOME_FAILED;
    }
    const std::string reason = llama_turboprefill_reason(ctx.get());
    if (stats.n_ubatches_pipelined == 0) {
        require(reason == "not enough memory or threads for the pipeline", what + ": the reason is '" + reason + "'");
        return OUTCOME_STANDARD;
    }
    driver_count(ctx.get(), what);
    return stats.n_ubatches_standard == 0 ? OUTCOME_PIPELINED : OUTCOME_FALLBACK;
}

using driver_outcomes = std::map<driver_outcome, int>;

// refuses the first, the second, ... until the device is not asked so often, or last
static driver_outcomes refuse_each(const driver_env & env, llama_model * model, const std::string & more, const char * key, int device,
        const driver_result & expected, int last) {
    driver_outcomes outcomes;
    for (int n = 1; n <= last; n++) {
        const driver_outcome outcome = refuse(env, model, more, key, device, n, expected);
        outcomes[outcome]++;
        if (outcome == OUTCOME_UNUSED) {
            break;
        }
    }
    require(env.counter("threads") == 0, std::string(key) + more + ": threads were left behind");
    return outcomes;
}

void scenario_refusals(const driver_env & env) {
    env.configure();
    auto model = env.load("tiny");
    driver_options options;
    options.turbo = false;
    env.configure_standard();
    const auto expected = driver_run(driver_make_context(model.get(), options).get(), driver_prompt(N_PROMPT), 256, OUTPUTS_LAST);

    const int many = 200;
    for (const std::string more : { "", ",peer=refused" }) {
        // a worker without events, or without an outbox, is slower and right
        driver_outcomes got = refuse_each(env, model.get(), more, "refuse_event", DEVICE, expected, many);
        require(got.size() == 2 && got[OUTCOME_PIPELINED] > 20, "refuse_event" + more + ": not everything was pipelined");

        // llama.cpp's own instance; those for uploads and for the outbox, which the pipeline can do without
        got = refuse_each(env, model.get(), more, "refuse_stream", DEVICE, expected, many);
        require(got[OUTCOME_NO_CONTEXT] == 1 && got[OUTCOME_PIPELINED] >= 2, "refuse_stream" + more + ": unexpected outcomes");

        // copies within the device fall back to where the boundary was computed, and to the host
        got = refuse_each(env, model.get(), more, "refuse_copies", DEVICE, expected, many);
        require(got.size() == 2 && got[OUTCOME_PIPELINED] > 2, "refuse_copies" + more + ": not everything was pipelined");

        // an exception of the backend is a failed ubatch
        got = refuse_each(env, model.get(), more, "throw_graph", DEVICE, expected, many);
        require(got.size() == 2 && got[OUTCOME_FAILED] == N_PROMPT/N_UBATCH, "throw_graph" + more + ": not every ubatch failed");
    }
    for (const int device : { 0, DEVICE }) {
        // the first device pins user inputs, and llama.cpp's own buffers; each pins its boundary
        const driver_outcomes got = refuse_each(env, model.get(), ",peer=refused", "refuse_host", device, expected, many);
        require(got.count(OUTCOME_STANDARD) && !got.count(OUTCOME_FALLBACK) && !got.count(OUTCOME_FAILED), "refuse_host: unexpected outcomes");
    }
    for (const std::string more : { ",peer=refused", ",events=off" }) {
        // llama.cpp's own caches; tensors of the plan; landings and outboxes of one ubatch
        const driver_outcomes got = refuse_each(env, model.get(), more, "refuse_tensor", DEVICE, expected, more == ",events=off" ? 100 : 220);
        require(got.count(OUTCOME_NO_CONTEXT) && got.count(OUTCOME_PIPELINED) && got.count(OUTCOME_FALLBACK), "refuse_tensor" + more + ": unexpected outcomes");
    }

    // peer copies that are refused later are done by the host
    env.configure();
    auto ctx = driver_make_context(model.get());
    for (const int n : { 1, 5, 11 }) {
        env.configure(",refuse_copies=" + only(DEVICE, n) + ",split_us=300");
        driver_same(driver_run(ctx.get(), driver_prompt(N_PROMPT), 256, OUTPUTS_LAST), expected, "peer copies refused from the " + std::to_string(n) + "th on");
    }
    driver_count(ctx.get(), "peer copies refused in between");
    env.configure();
}
