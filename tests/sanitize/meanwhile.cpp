// calls that must wait for a part of what is in flight, while the devices are slow: without the wait they would see, move or
// free what is still computed. Each is compared with a context on the standard path that makes the same calls

#include "support.h"

#include "turboprefill-checkpoint.h"

#include <functional>
#include <string>
#include <vector>

static const int N_CALL = 4*N_UBATCH;

static const char * const SLOW = ",split_us=1500,peer=refused";

static int64_t n_waits(llama_context * ctx, const std::string & cause) {
    llama_turboprefill_wait wait;
    for (int i = 0; llama_turboprefill_get_wait(ctx, i, &wait); i++) {
        if (cause == wait.cause) {
            return wait.n;
        }
    }
    throw std::runtime_error("there is no cause " + cause);
}

static int decode(llama_context * ctx, llama_seq_id seq_id, int first, int n, const float * embd = nullptr, bool outputs = false) {
    const auto tokens = driver_prompt(256, 7 + seq_id);
    const int n_embd  = embd ? llama_model_n_embd(llama_get_model(ctx)) : 0;
    llama_batch batch = llama_batch_init(n, n_embd, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        if (embd) {
            std::copy(embd + (size_t) i*n_embd, embd + (size_t) (i + 1)*n_embd, batch.embd + (size_t) i*n_embd);
        } else {
            batch.token[i] = tokens[first + i];
        }
        batch.pos[i]       = first + i;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = seq_id;
        batch.logits[i]    = outputs && i == n - 1;
    }
    const int code = llama_decode(ctx, batch);
    llama_batch_free(batch);
    return code;
}

static std::vector<uint8_t> state_of(llama_context * ctx, llama_seq_id seq_id) {
    std::vector<uint8_t> state(llama_state_seq_get_size(ctx, seq_id));
    state.resize(llama_state_seq_get_data(ctx, state.data(), state.size(), seq_id));
    return state;
}

// what it was about: bytes that the calls have returned, and everything at the end
struct driver_story {
    std::vector<std::vector<uint8_t>> parts;
    std::vector<uint8_t>              end;
};

using driver_calls = std::function<void(llama_context * ctx, driver_story & story)>;

static void same_story(const driver_env & env, const char * preset, const char * name, const driver_calls & calls) {
    const std::string what = std::string(preset) + ", " + name;
    const auto tell = [&](bool turbo, const char * devices) {
        env.configure_standard();
        auto model = env.load(preset);
        driver_options options;
        options.turbo   = turbo;
        options.n_seq   = 3;
        options.n_ctx   = 768;
        options.unified = true;
        auto ctx = driver_make_context(model.get(), options);
        env.configure(devices);
        driver_story story;
        calls(ctx.get(), story);
        story.end = driver_state(ctx.get());
        if (turbo) {
            driver_count(ctx.get(), what);
        }
        return story;
    };
    const driver_story expected = tell(false, ",peer=refused");
    const driver_story found    = tell(true,  SLOW);
    require(found.parts.size() == expected.parts.size(), what + ": another number of parts");
    for (size_t i = 0; i < found.parts.size(); i++) {
        require(found.parts[i] == expected.parts[i], what + ": part " + std::to_string(i) + " has other bytes");
    }
    require(found.end == expected.end, what + ": another state at the end");
}

// a state is read while its ubatches are in flight, and while only those of another sequence are
static void states(llama_context * ctx, driver_story & story) {
    require(decode(ctx, 0, 0, N_CALL) == 0 && decode(ctx, 1, 0, N_CALL) == 0, "a decode");
    story.parts.push_back(state_of(ctx, 0));
    require(decode(ctx, 1, N_CALL, N_CALL) == 0, "a decode");
    story.parts.push_back(state_of(ctx, 0));
    require(decode(ctx, 2, 0, N_CALL) == 0, "a decode");
    story.parts.push_back(state_of(ctx, 1));
    require(decode(ctx, 2, N_CALL, N_CALL) == 0 && decode(ctx, 0, N_CALL, N_CALL) == 0, "a decode");
    story.parts.push_back(state_of(ctx, 2));
}

// the cell of a recurrent state moves for a batch of two other sequences, and is read before the devices have moved it
static void moves(llama_context * ctx, driver_story & story) {
    for (llama_seq_id seq_id : { 0, 1, 2 }) {
        require(decode(ctx, seq_id, 0, N_CALL) == 0, "a decode");
    }
    llama_synchronize(ctx);
    const int n = 12; // so few that the first ubatch is still in flight when the call returns
    const auto tokens = driver_prompt(2*n, 5);
    llama_batch batch = llama_batch_init(2*n, 0, 1);
    batch.n_tokens = 2*n;
    for (int i = 0; i < 2*n; i++) {
        batch.token[i]     = tokens[i];
        batch.pos[i]       = N_CALL + i%n;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = i < n ? 0 : 2;
        batch.logits[i]    = false;
    }
    const int code = llama_decode(ctx, batch);
    llama_batch_free(batch);
    require(code == 0, "a decode");
    story.parts.push_back(state_of(ctx, 1));
    llama_memory_seq_cp(llama_get_memory(ctx), 2, 1, -1, -1);
    require(decode(ctx, 2, N_CALL + n, N_CALL) == 0 && decode(ctx, 1, N_CALL + n, N_CALL) == 0, "a decode");
    story.parts.push_back(state_of(ctx, 1));
}

// checkpoints of sequences whose cells do not begin with the cache
static void checkpoints(llama_context * ctx, driver_story & story) {
    require(decode(ctx, 0, 0, N_CALL) == 0 && decode(ctx, 1, 0, N_CALL) == 0, "a decode");
    std::vector<uint8_t> data;
    llama_turboprefill_checkpoint reader;
    if (!reader.take(ctx, data, 1, 0)) {
        data = state_of(ctx, 1);
    }
    require(decode(ctx, 1, N_CALL, N_CALL) == 0, "a decode");
    require(reader.finish(), "a checkpoint failed");
    story.parts.push_back(data);
}

// another sequence is shifted: a graph of the standard path works on the caches that ubatches in flight write to
static void shift(llama_context * ctx, driver_story & story) {
    llama_memory_t memory = llama_get_memory(ctx);
    require(decode(ctx, 0, 0, N_CALL) == 0, "a decode");
    llama_synchronize(ctx);
    require(decode(ctx, 1, 0, N_CALL) == 0, "a decode");
    llama_memory_seq_rm (memory, 0, 4, 12);
    llama_memory_seq_add(memory, 0, 12, -1, -8);
    require(decode(ctx, 1, N_CALL, N_CALL) == 0, "a decode");
    if (llama_turboprefill_enabled(ctx)) {
        require(n_waits(ctx, "standard-path graph") > 0, "a shift did not wait for the ubatches in flight");
    }
    story.parts.push_back(state_of(ctx, 0));
}

// embeddings instead of tokens: a kind of graph that was not known, and that may need larger buffers
static void embeddings(llama_context * ctx, driver_story & story) {
    std::vector<float> embd((size_t) N_CALL*llama_model_n_embd(llama_get_model(ctx)));
    for (size_t i = 0; i < embd.size(); i++) {
        embd[i] = 0.01f*(float) ((i*7919) % 200) - 1.0f;
    }
    require(decode(ctx, 0, 0, N_CALL) == 0, "a decode");
    require(decode(ctx, 0, N_CALL, N_CALL, embd.data()) == 0, "embeddings");
    require(decode(ctx, 0, 2*N_CALL, N_CALL, nullptr, /*.outputs =*/ true) == 0, "a decode");
    const float * logits = llama_get_logits_ith(ctx, -1);
    require(logits, "there are no logits");
    const auto * begin = (const uint8_t *) logits;
    story.parts.emplace_back(begin, begin + sizeof(float)*llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))));
}

// faults while something reads or copies what is in flight
static void faults(const driver_env & env) {
    env.configure();
    auto model = env.load("tiny");
    driver_options options;
    options.n_seq   = 2;
    options.unified = true;
    {
        auto ctx = driver_make_context(model.get(), options);
        env.configure(std::string(SLOW) + ",fail_graph=0/0/3/0");
        require(decode(ctx.get(), 0, 0, N_CALL) == 0, "the decode did not return before the fault");
        llama_turboprefill_checkpoint reader;
        std::vector<uint8_t> data;
        require(reader.take(ctx.get(), data, 0, 0), "nothing was taken");
        require(!reader.finish(), "a checkpoint of a ubatch that failed was handed out");
        require(llama_turboprefill_synchronize(ctx.get()) != 0, "nobody was told of the fault");
        driver_count(ctx.get(), "a checkpoint and a fault");
    }
    {
        env.configure();
        auto ctx = driver_make_context(model.get(), options);
        env.configure(std::string(SLOW) + ",fail_graph=0/0/3/0");
        require(decode(ctx.get(), 0, 0, N_CALL) == 0, "the decode did not return before the fault");
        llama_memory_t memory = llama_get_memory(ctx.get());
        llama_memory_seq_cp(memory, 0, 1, -1, -1);
        require(llama_turboprefill_synchronize(ctx.get()) != 0, "nobody was told of the fault");
        require(llama_memory_seq_pos_max(memory, 0) + 1 == 2*N_UBATCH, "memory holds what was not computed");
        require(llama_memory_seq_pos_max(memory, 1) + 1 == 2*N_UBATCH, "a copy holds what was not computed");
        driver_count(ctx.get(), "a copy and a fault");
    }
    for (const auto & [name, code] : { std::pair<const char *, int> { "failed", -3 }, { "memory", -2 }, { "aborted", 2 } }) {
        env.configure();
        auto ctx = driver_make_context(model.get(), options);
        env.configure(std::string(SLOW) + ",fail_graph=0/0/3/0,fail_as=" + name);
        require(decode(ctx.get(), 0, 0, N_CALL) == 0, "the decode did not return before the fault");
        const int got = llama_turboprefill_synchronize(ctx.get());
        require(got == code, std::string("a graph that ends late as ") + name + ": " + std::to_string(got) + ", expected " + std::to_string(code));
        driver_count(ctx.get(), name);
    }
    env.configure();
}

// a timeline that is still recorded when it starts again, when another scheduler comes, and when the context goes
static void timelines(const driver_env & env) {
    env.configure(SLOW);
    auto model = env.load("tiny");
    auto ctx = driver_make_context(model.get());
    llama_turboprefill_trace_start(ctx.get());
    require(decode(ctx.get(), 0, 0, N_CALL) == 0, "a decode");
    llama_turboprefill_trace_start(ctx.get());
    require(decode(ctx.get(), 0, N_CALL, N_CALL) == 0, "a decode");
    llama_set_embeddings(ctx.get(), true);
    require(decode(ctx.get(), 0, 2*N_CALL, N_CALL) == 0, "a decode");
    require(llama_turboprefill_trace_stop(ctx.get()) > 0, "nothing was recorded");
    llama_turboprefill_trace_start(ctx.get());
    llama_set_embeddings(ctx.get(), false);
    require(decode(ctx.get(), 0, 3*N_CALL, N_CALL) == 0, "a decode");
    driver_count(ctx.get(), "timelines");
}

// the ubatch size is left to the pipeline: results are those of the standard path at the size that was chosen
static void auto_ubatch(const driver_env & env) {
    const int n = 192;
    env.configure();
    auto model = env.load("tiny");
    driver_options options;
    options.n_ubatch = 96;
    auto ctx = driver_make_context(model.get(), options);
    llama_turboprefill_set_auto_ubatch(ctx.get(), 1);
    const auto found = driver_run(ctx.get(), driver_prompt(n), 256, OUTPUTS_LAST);
    const auto n_ubatches = llama_turboprefill_get_stats(ctx.get()).n_ubatches_pipelined;
    require(n_ubatches > n/96 && n % n_ubatches == 0, "the size was not chosen: " + std::to_string(n_ubatches) + " ubatches");

    options.n_ubatch = n/n_ubatches;
    options.turbo    = false;
    env.configure_standard();
    driver_same(found, driver_run(driver_make_context(model.get(), options).get(), driver_prompt(n), 256, OUTPUTS_LAST), "the chosen size");
    driver_count(ctx.get(), "the chosen size");

    llama_turboprefill_set_auto_ubatch(ctx.get(), -1); // estimated
    driver_run(ctx.get(), driver_prompt(n), 256, OUTPUTS_LAST);
}

void scenario_meanwhile(const driver_env & env) {
    for (const char * preset : { "tiny", "gemma3-tiny", "mamba-tiny", "jamba-tiny" }) {
        same_story(env, preset, "states", states);
        same_story(env, preset, "checkpoints", checkpoints);
        same_story(env, preset, "moves", moves);
    }
    for (const char * preset : { "tiny", "moe-tiny" }) {
        same_story(env, preset, "shift", shift);
        same_story(env, preset, "embeddings", embeddings);
    }
    faults(env);
    timelines(env);
    auto_ubatch(env);
}
