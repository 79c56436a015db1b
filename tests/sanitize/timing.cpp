// devices, copies and uploads that are late in turn: whoever does not wait for them computes from old or unfinished data

#include "support.h"

#include <string>

static const int N_PROMPT = 20*N_UBATCH;

static void late_devices(const driver_env & env, llama_model * model, const std::string & more, const driver_result & expected) {
    std::vector<std::string> cases = { ",latency_us=700", ",split_us=300,latency_us=300", ",bandwidth_gbs=0.02,split_us=200" };
    for (int i = 0; i < N_DEVICES; i++) {
        std::string slow;
        for (int j = 0; j < N_DEVICES; j++) {
            slow += (j ? "/" : "") + std::to_string(i == j ? 5 : 1);
        }
        cases.push_back(",split_us=400,slow=" + slow);
        cases.push_back(",split_us=100,latency_us=" + std::to_string(i) + "00/0/600/0");
    }
    for (const auto & late : cases) {
        env.configure(more + late);
        auto ctx = driver_make_context(model);
        driver_same(driver_run(ctx.get(), driver_prompt(N_PROMPT), 256, OUTPUTS_LAST), expected, "late:" + more + late);
        driver_count(ctx.get(), more + late);
    }
}

// ubatches fail on two devices: the earlier one counts, although the later one failed first
static void two_failures(const driver_env & env, llama_model * model) {
    env.configure();
    auto ctx = driver_make_context(model);
    env.configure(",split_us=500,slow=1/1/1/8,fail_graph=8/0/0/4");
    int code = driver_decode(ctx.get(), driver_prompt(N_PROMPT), 0, N_PROMPT, OUTPUTS_NONE);
    if (code == 0) {
        code = llama_turboprefill_synchronize(ctx.get());
    }
    require(code == -3, "two failures: llama_decode returned " + std::to_string(code));
    const int there = llama_memory_seq_pos_max(llama_get_memory(ctx.get()), 0) + 1;
    require(there == 3*N_UBATCH, "two failures: memory ends at " + std::to_string(there) + ", expected " + std::to_string(3*N_UBATCH));
    driver_count(ctx.get(), "two failures");
}

static void codes(const driver_env & env, llama_model * model) {
    const std::pair<const char *, int> expected[] = { { "failed", -3 }, { "memory", -2 }, { "aborted", 2 } };
    for (const auto & [name, code] : expected) {
        env.configure();
        auto ctx = driver_make_context(model);
        env.configure(std::string(",fail_graph=0/0/3/0,fail_as=") + name);
        int got = driver_decode(ctx.get(), driver_prompt(N_PROMPT), 0, N_PROMPT, OUTPUTS_LAST);
        if (got == 0) {
            got = llama_turboprefill_synchronize(ctx.get());
        }
        require(got == code, std::string("a graph that ends as ") + name + ": " + std::to_string(got) + ", expected " + std::to_string(code));
        driver_count(ctx.get(), name);
    }
}

void scenario_timing(const driver_env & env) {
    env.configure();
    for (const char * preset : { "tiny", "gemma3-tiny" }) {
        auto model = env.load(preset);
        driver_options options;
        options.turbo = false;
        env.configure_standard();
        const auto expected = driver_run(driver_make_context(model.get(), options).get(), driver_prompt(N_PROMPT), 256, OUTPUTS_LAST);
        for (const char * more : { "", ",peer=refused", ",events=off" }) {
            late_devices(env, model.get(), more, expected);
        }
    }
    auto model = env.load("tiny");
    two_failures(env, model.get());
    codes(env, model.get());
    env.configure();
}
