// several contexts on several threads, sharing models and devices

#include "support.h"

#include <exception>
#include <functional>
#include <mutex>
#include <thread>

// runs all jobs at once; if any throw, throws the message of the last one
static void at_once(const std::vector<std::function<void()>> & jobs) {
    std::vector<std::thread> threads;
    std::mutex               mutex;
    std::string              problem;
    for (const auto & job : jobs) {
        threads.emplace_back([&] {
            try {
                job();
            } catch (const std::exception & err) {
                std::lock_guard<std::mutex> lock(mutex);
                problem = err.what();
            }
        });
    }
    for (auto & thread : threads) {
        thread.join();
    }
    require(problem.empty(), problem);
}

static const int N_PROMPT = 96;

static driver_result expected_of(llama_model * model) {
    driver_options options;
    options.turbo = false;
    return driver_run(driver_make_context(model, options).get(), driver_prompt(N_PROMPT), 256, OUTPUTS_ALL);
}

// decodes the same prompt again and again, in one context or in a new one each time
static std::function<void()> repeat(llama_model * model, const driver_result & expected, const char * what, bool turbo, bool anew) {
    return [=, &expected] {
        driver_options options;
        options.turbo = turbo;
        auto ctx = driver_make_context(model, options);
        for (int i = 0; i < 4; i++) {
            driver_same(driver_run(ctx.get(), driver_prompt(N_PROMPT), 256, OUTPUTS_ALL), expected, what);
            if (turbo) {
                driver_count(ctx.get(), what);
            }
            if (anew) {
                // freed with work in flight
                require(driver_decode(ctx.get(), driver_prompt(2*N_PROMPT), N_PROMPT, N_PROMPT, OUTPUTS_NONE) == 0, what);
                ctx = driver_make_context(model, options);
            }
        }
    };
}

void scenario_threads(const driver_env & env) {
    for (const char * devices : { "", ",split_us=300,peer=refused" }) {
        const bool refused = std::string(devices).find("refused") != std::string::npos;
        env.configure_standard();
        auto dense  = env.load("tiny");
        auto hybrid = env.load("jamba-tiny");
        const auto expected_dense  = expected_of(dense.get());
        const auto expected_hybrid = expected_of(hybrid.get());
        env.configure(devices);
        at_once({
            repeat(dense.get(),  expected_dense,  "dense, one context",         true,  false),
            repeat(dense.get(),  expected_dense,  "dense, contexts come and go", true,  true),
            repeat(dense.get(),  expected_dense,  "dense, perhaps the standard path", !refused, false),
            repeat(hybrid.get(), expected_hybrid, "hybrid, one context",        true,  false),
            repeat(hybrid.get(), expected_hybrid, "hybrid, contexts come and go", true, true),
        });
    }
    require(env.counter("threads") == 0, "threads were left behind");
}

void scenario_rpc(const driver_env & env) {
    auto model = env.load_on("tiny", env.rpc);
    const auto expected = expected_of(model.get());
    at_once({
        repeat(model.get(), expected, "RPC, one context",          true, false),
        repeat(model.get(), expected, "RPC, contexts come and go", true, true),
    });
}
