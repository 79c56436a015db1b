// held rows, read some decodes later: hidden states, as for draft models, also between the ubatches of a decode, and logits,
// as llama-server reads them where prompts end

#include "support.h"

#include "../src/llama-ext.h"

#include <algorithm>
#include <deque>

static const int N_PROMPT = 192;
static const int N_CALL   = 32;
static const int N_PIECE  = 12; // does not divide N_CALL

using driver_rows = std::vector<float>;

static driver_context make_context(llama_model * model, bool turbo) {
    driver_options options;
    options.turbo = turbo;
    auto ctx = driver_make_context(model, options);
    llama_set_embeddings_nextn(ctx.get(), true, false);
    return ctx;
}

static void take(llama_context * ctx, int n, driver_rows & res) {
    const size_t n_embd = llama_model_n_embd(llama_get_model(ctx));
    const float * rows = llama_get_embeddings_nextn(ctx);
    require(rows != nullptr, "there are no rows");
    res.insert(res.end(), rows, rows + n*n_embd);
}

static driver_rows rows_at_once(llama_model * model, const driver_tokens & tokens) {
    auto ctx = make_context(model, false);
    driver_rows res;
    for (int i = 0; i < N_PROMPT; i += N_CALL) {
        require(driver_decode(ctx.get(), tokens, i, N_CALL, OUTPUTS_LAST) == 0, "a decode");
        take(ctx.get(), N_CALL, res);
    }
    return res;
}

// reads the oldest held rows, piece by piece
struct driver_reader {
    llama_context * ctx;
    std::deque<llama_turboprefill_rows *> held;
    int         n_done = 0; // of the oldest
    int         n_between = 0;
    driver_rows res;

    void piece() {
        const int n = std::min(N_PIECE, N_CALL - n_done);
        require(llama_turboprefill_use_rows(held.front(), n_done), "rows are lost");
        take(ctx, n, res);
        llama_turboprefill_unuse_rows(ctx);
        n_done += n;
        if (n_done == N_CALL) {
            llama_turboprefill_free_rows(held.front());
            held.pop_front();
            n_done = 0;
        }
    }
};

static driver_rows rows_later(llama_model * model, const driver_tokens & tokens, size_t n_held, bool between) {
    auto ctx = make_context(model, true);
    driver_reader reader { ctx.get(), {}, 0, 0, {} };
    if (between) {
        llama_turboprefill_set_between(ctx.get(), [](void * data) {
            auto & reader = *(driver_reader *) data;
            if (!reader.held.empty() && llama_turboprefill_get_rows_state(reader.held.front()) != LLAMA_TURBOPREFILL_ROWS_EARLY) {
                reader.piece();
                reader.n_between++;
            }
        }, &reader);
    }
    for (int i = 0; i < N_PROMPT; i += N_CALL) {
        require(driver_decode(ctx.get(), tokens, i, N_CALL, OUTPUTS_LAST) == 0, "a decode");
        if (auto * rows = llama_turboprefill_hold_rows(ctx.get())) {
            reader.held.push_back(rows);
            while (reader.held.size() > n_held) {
                reader.piece();
            }
            continue;
        }
        require(i + N_CALL == N_PROMPT, "rows can't be held");
        while (!reader.held.empty()) {
            reader.piece();
        }
        take(ctx.get(), N_CALL, reader.res);
    }
    require(!between || reader.n_between > 0, "nothing was read between ubatches");
    driver_count(ctx.get(), "rows");
    return reader.res;
}

// some of the held rows come from a device that fails
static void rows_of_a_fault(const driver_env & env, const driver_tokens & tokens, int graph) {
    env.configure();
    auto model = env.load("mtp-tiny");
    auto ctx   = make_context(model.get(), true);
    env.configure(",split_us=1500,fail_graph=0/0/" + std::to_string(graph) + "/0");
    std::deque<llama_turboprefill_rows *> held;
    int code = 0;
    for (int i = 0; i < N_PROMPT - N_CALL && code == 0; i += N_CALL) {
        code = driver_decode(ctx.get(), tokens, i, N_CALL, OUTPUTS_NONE);
        if (code == 0) {
            held.push_back(llama_turboprefill_hold_rows(ctx.get()));
            require(held.back() != nullptr, "rows can't be held");
        }
    }
    const int n_good = (graph - 1)/(N_CALL/N_UBATCH);
    for (int i = 0; i < (int) held.size(); i++) {
        require(llama_turboprefill_use_rows(held[i], 0) == (i < n_good), "rows of decode " + std::to_string(i) + ", graph " + std::to_string(graph) + " failed");
        llama_turboprefill_unuse_rows(ctx.get());
        llama_turboprefill_free_rows(held[i]);
    }
    require(code != 0 || llama_turboprefill_synchronize(ctx.get()) != 0, "nobody told of the fault");
}

static driver_rows logits_of_calls(llama_model * model, const driver_tokens & tokens, bool turbo, size_t n_held, int & code) {
    driver_options options;
    options.turbo = turbo;
    auto ctx = driver_make_context(model, options);
    const size_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    driver_rows res;
    const auto take = [&] {
        const float * logits = llama_get_logits(ctx.get());
        require(logits != nullptr, "there are no logits");
        res.insert(res.end(), logits, logits + N_CALL*n_vocab);
    };
    std::deque<llama_turboprefill_rows *> held;
    const auto take_oldest = [&] {
        if (llama_turboprefill_use_rows(held.front(), 0)) {
            take();
        } else {
            code = code != 0 ? code : llama_turboprefill_synchronize(ctx.get());
            require(code != 0, "nobody told of the fault");
        }
        llama_turboprefill_unuse_rows(ctx.get());
        llama_turboprefill_free_rows(held.front());
        held.pop_front();
    };
    code = 0;
    for (int i = 0; i < N_PROMPT && code == 0; i += N_CALL) {
        code = driver_decode(ctx.get(), tokens, i, N_CALL, OUTPUTS_ALL);
        if (code != 0) {
            break;
        }
        auto * rows = turbo ? llama_turboprefill_hold_logits(ctx.get()) : nullptr;
        require(rows != nullptr || !turbo, "logits can't be held");
        if (rows == nullptr) {
            take();
            continue;
        }
        held.push_back(rows);
        while (held.size() > n_held && code == 0) {
            take_oldest();
        }
    }
    while (!held.empty()) {
        take_oldest();
    }
    if (turbo) {
        driver_count(ctx.get(), "logits");
    }
    return res;
}

static void held_logits(const driver_env & env, const driver_tokens & tokens) {
    int code = 0;
    env.configure_standard();
    auto model = env.load("tiny");
    const auto expected = logits_of_calls(model.get(), tokens, false, 0, code);
    for (const char * devices : { ",split_us=1500", ",split_us=1500,peer=refused" }) {
        for (size_t n_held = 0; n_held < 4; n_held++) {
            env.configure(devices);
            require(logits_of_calls(model.get(), tokens, true, n_held, code) == expected, std::string("other logits") + devices + ", held: " + std::to_string(n_held));
            require(code == 0, "a decode");
        }
    }
    // logits that were returned are right
    for (const int graph : { 1, 6, 7, 16 }) {
        env.configure(",split_us=1500,fail_graph=0/0/" + std::to_string(graph) + "/0");
        const auto some = logits_of_calls(model.get(), tokens, true, 2, code);
        require(code != 0, "nobody told of the fault");
        require(some.size() < expected.size() && std::equal(some.begin(), some.end(), expected.begin()), "logits behind a fault, graph " + std::to_string(graph));
    }
    env.configure();
}

void scenario_rows(const driver_env & env) {
    const auto tokens = driver_prompt(N_PROMPT);
    env.configure_standard();
    auto model = env.load("mtp-tiny");
    const auto expected = rows_at_once(model.get(), tokens);
    for (const char * devices : { ",split_us=1500", ",split_us=1500,peer=refused", ",split_us=1500,events=off", "" }) {
        env.configure(devices);
        for (size_t n_held = 0; n_held < 4; n_held++) {
            require(rows_later(model.get(), tokens, n_held, false) == expected, std::string("other rows") + devices + ", held: " + std::to_string(n_held));
        }
        if (*devices) {
            env.configure(std::string(devices) + ",slow=5"); // so that the decode waits for slots
            require(rows_later(model.get(), tokens, 4, true) == expected, std::string("other rows between ubatches") + devices);
        }
    }

    // a context that is freed before its held rows, which are never read
    auto ctx = make_context(model.get(), true);
    require(driver_decode(ctx.get(), tokens, 0, N_CALL, OUTPUTS_LAST) == 0, "a decode");
    auto * rows = llama_turboprefill_hold_rows(ctx.get());
    require(rows != nullptr, "rows can't be held");
    ctx.reset();
    require(!llama_turboprefill_use_rows(rows, 0), "rows of no context");
    llama_turboprefill_free_rows(rows);

    for (const int graph : { 1, 4, 5, 11 }) {
        rows_of_a_fault(env, tokens, graph);
    }
    held_logits(env, tokens);
}
