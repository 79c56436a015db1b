// checkpoints that are read behind the ubatches in flight, and several kinds of graphs on devices that fuse operations

#include "support.h"

#include "turboprefill-checkpoint.h"

#include <cstring>

static const int N_PROMPT = 96;
static const int N_CALL   = 32;

// like llama-server's checkpoint: the reader is declared in front of the data
struct driver_checkpoint {
    llama_turboprefill_checkpoint reader;
    std::vector<uint8_t>          data;
};

static std::vector<uint8_t> sequence_state(llama_context * ctx, llama_state_seq_flags flags) {
    std::vector<uint8_t> data(llama_state_seq_get_size_ext(ctx, 0, flags));
    require(llama_state_seq_get_data_ext(ctx, data.data(), data.size(), 0, flags) == data.size(), "a sequence is not saved whole");
    return data;
}

static int64_t n_waits(llama_context * ctx, const char * cause) {
    for (int i = 0; i < llama_turboprefill_n_waits(); i++) {
        llama_turboprefill_wait wait;
        if (llama_turboprefill_get_wait(ctx, i, &wait) && strcmp(wait.cause, cause) == 0) {
            return wait.n;
        }
    }
    throw std::runtime_error(std::string("there is no cause ") + cause);
}

// takes a checkpoint in front of every call but the first
static std::vector<std::vector<uint8_t>> checkpoints(llama_context * ctx, llama_state_seq_flags flags, bool turbo, driver_result & res) {
    const auto tokens = driver_prompt(N_PROMPT);
    std::vector<driver_checkpoint> taken(N_PROMPT/N_CALL);

    for (int i = 0; i < (int) taken.size(); i++) {
        if (i > 0 && !(turbo && taken[i].reader.take(ctx, taken[i].data, 0, flags))) {
            require(!turbo, "a checkpoint was not read behind what is in flight");
            taken[i].data = sequence_state(ctx, flags);
        }
        require(driver_decode(ctx, tokens, N_CALL*i, N_CALL, OUTPUTS_LAST) == 0, "a call of the prompt");
    }
    if (turbo) {
        require(n_waits(ctx, "state") == 0 && n_waits(ctx, "synchronize") == 0, "a checkpoint waited");
    }
    // copying a checkpoint completes it
    const std::vector<driver_checkpoint> copies = taken;
    std::vector<std::vector<uint8_t>> out;
    for (const auto & each : copies) {
        out.push_back(each.data);
    }
    const float * logits = llama_get_logits_ith(ctx, -1);
    res.logits.assign(logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))));
    res.state = driver_state(ctx);
    return out;
}

static void same_checkpoints(const driver_env & env, const char * preset, llama_state_seq_flags flags) {
    const std::string what = std::string(preset) + ", flags " + std::to_string(flags);
    env.configure_standard();
    auto model = env.load(preset);
    driver_options options;
    options.turbo = false;
    driver_result expected, result;
    const auto wanted = checkpoints(driver_make_context(model.get(), options).get(), flags, false, expected);

    env.configure(",split_us=1500");
    auto ctx = driver_make_context(model.get());
    const auto found = checkpoints(ctx.get(), flags, true, result);
    driver_same(result, expected, what);
    for (size_t i = 0; i < wanted.size(); i++) {
        require(found[i] == wanted[i], what + ": checkpoint " + std::to_string(i) + " has other bytes");
    }
    driver_count(ctx.get(), what);
}

// a checkpoint that is dropped, moved, or outlives its context while it is read
static void lives(const driver_env & env) {
    env.configure(",split_us=1500");
    auto model = env.load("gemma3-tiny");
    driver_checkpoint late;
    {
        auto ctx = driver_make_context(model.get());
        require(driver_decode(ctx.get(), driver_prompt(N_PROMPT), 0, N_CALL, OUTPUTS_NONE) == 0, "a call");
        {
            driver_checkpoint dropped;
            require(dropped.reader.take(ctx.get(), dropped.data, 0, 0), "nothing was taken");
        }
        driver_checkpoint first;
        require(driver_decode(ctx.get(), driver_prompt(N_PROMPT), N_CALL, N_CALL, OUTPUTS_NONE) == 0, "a call");
        require(first.reader.take(ctx.get(), first.data, 0, 0), "nothing was taken");
        late = std::move(first);
        driver_count(ctx.get(), "checkpoints");
    }
    require(!late.data.empty(), "a moved checkpoint lost its data");
}

static void kinds(const driver_env & env) {
    const auto run = [&](llama_context * ctx) {
        return driver_run(ctx, driver_prompt(N_PROMPT), 40, OUTPUTS_LAST);
    };
    auto model = env.load("moe-tiny");
    driver_options options;
    options.turbo = false;
    env.configure(",peer=refused,fusion=on");
    const auto expected = run(driver_make_context(model.get(), options).get());

    for (const char * devices : { ",fusion=on,us_per_token=20", ",fusion=on,peer=refused", ",fusion=on,events=off" }) {
        env.configure(devices);
        auto ctx = driver_make_context(model.get());
        driver_same(run(ctx.get()), expected, devices);
        driver_same(run(ctx.get()), expected, devices);
        require(n_waits(ctx.get(), "plan") == 0 && n_waits(ctx.get(), "growing buffer") == 0, std::string(devices) + ": a plan waited");
        driver_count(ctx.get(), devices);
    }
}

void scenario_checkpoints(const driver_env & env) {
    for (const char * preset : { "tiny", "gemma3-tiny", "gptoss-tiny", "jamba-tiny" }) {
        for (const llama_state_seq_flags flags : { 0, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY }) {
            same_checkpoints(env, preset, flags);
        }
    }
    lives(env);
    kinds(env);
}
