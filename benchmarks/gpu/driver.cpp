// Runs measurements of one build: loads a model once, then runs the jobs of its command line and prints JSON lines.
//
//   driver run BACKEND_DIR MODEL SPLIT_MODE TENSOR_SPLIT RPC_SERVERS JOB...
//       SPLIT_MODE layer|none, TENSOR_SPLIT 4,4,5 or -, RPC_SERVERS host:port,host:port or -
//       JOB n=16384,ub=512,nb=16384,r=2 and optionally w=WARM_UP_TOKENS,state=1,steps=1,gen=128,trace=1,t=THREADS
//   driver serve BACKEND_DIR HOST:PORT      an RPC server with one thread, to try things out without GPUs
//
// TurboPrefill is enabled by its environment variable, as users do it. Times are in nanoseconds, memory in bytes.

#include "ggml-backend.h"
#include "llama.h"

#if __has_include("turboprefill.h")
#include "turboprefill.h"
#define HAVE_TURBOPREFILL
#endif

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

[[noreturn]] static void fail(const std::string & what) {
    fprintf(stderr, "driver: %s\n", what.c_str());
    exit(1);
}

static int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static std::vector<std::string> split(const std::string & text, char at) {
    std::vector<std::string> parts;
    std::istringstream stream(text == "-" ? "" : text);
    for (std::string part; std::getline(stream, part, at);) {
        parts.push_back(part);
    }
    return parts;
}

// FNV-1a over 8-byte words: states are hundreds of megabytes
static std::string digest(const void * data, size_t size) {
    uint64_t hash = 0xcbf29ce484222325ull ^ size;
    for (size_t i = 0; i < size; i += 8) {
        uint64_t word = 0;
        memcpy(&word, (const char *) data + i, std::min<size_t>(8, size - i));
        hash = (hash ^ word) * 0x100000001b3ull;
    }
    char text[17];
    snprintf(text, sizeof(text), "%016llx", (unsigned long long) hash);
    return text;
}

static std::string quoted(const char * text) {
    std::string out = "\"";
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') {
            out += '\\';
        }
        out += (unsigned char) *text < 32 ? ' ' : *text;
    }
    return out + "\"";
}

template <typename T> static std::string list(const std::vector<T> & values) {
    std::ostringstream out;
    for (size_t i = 0; i < values.size(); i++) {
        out << (i ? "," : "[") << values[i];
    }
    return values.empty() ? "[]" : out.str() + "]";
}

// the backend's module must use this build's libggml-base, not the one that it was linked with
static void check_libraries() {
    std::ifstream maps("/proc/self/maps");
    std::set<std::string> found;
    for (std::string line; std::getline(maps, line);) {
        if (line.find("/libggml-base") != std::string::npos) {
            found.insert(line.substr(line.find('/')));
        }
    }
    if (found.size() != 1) {
        std::string all;
        for (const auto & path : found) {
            all += " " + path;
        }
        fail("expected one libggml-base in the process, found:" + all);
    }
}

static void * rpc_function(const char * name) {
    ggml_backend_reg_t reg = ggml_backend_reg_by_name("RPC");
    void * function = reg ? ggml_backend_reg_get_proc_address(reg, name) : nullptr;
    if (!function) {
        fail("this build has no RPC backend");
    }
    return function;
}

static int serve(const char * endpoint) {
    using start_t = void (*)(const char *, const char *, size_t, size_t, ggml_backend_dev_t *);
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ((start_t) rpc_function("ggml_backend_rpc_start_server"))(endpoint, nullptr, 1, 1, &cpu);
    return 1; // it only returns if it could not start
}

static std::vector<ggml_backend_dev_t> find_devices(const std::string & servers) {
    std::vector<ggml_backend_dev_t> devices;
    for (const auto & server : split(servers, ',')) {
        using add_t = ggml_backend_reg_t (*)(const char *);
        ggml_backend_reg_t reg = ((add_t) rpc_function("ggml_backend_rpc_add_server"))(server.c_str());
        if (!reg) {
            fail("no RPC server at " + server);
        }
        ggml_backend_register(reg);
        devices.push_back(ggml_backend_reg_dev_get(reg, 0));
    }
    for (size_t i = 0; servers == "-" && i < ggml_backend_dev_count(); i++) {
        if (ggml_backend_dev_type(ggml_backend_dev_get(i)) == GGML_BACKEND_DEVICE_TYPE_GPU) {
            devices.push_back(ggml_backend_dev_get(i));
        }
    }
    if (devices.empty()) {
        fail("no devices found: is the backend's module in GGML_BACKEND_PATH, and is there a GPU?");
    }
    return devices;
}

static std::vector<size_t> free_memory(const std::vector<ggml_backend_dev_t> & devices) {
    std::vector<size_t> out;
    for (auto * device : devices) {
        size_t free = 0, total = 0;
        ggml_backend_dev_memory(device, &free, &total);
        out.push_back(free);
    }
    return out;
}

static std::vector<llama_token> prompt(int n, int n_vocab) {
    std::vector<llama_token> tokens(n);
    uint32_t seed = 12345;
    for (auto & token : tokens) {
        seed  = seed * 1664525u + 1013904223u;
        token = 3 + (seed >> 8) % (n_vocab - 3);
    }
    return tokens;
}

// decodes tokens[begin, end) in calls of n_batch tokens; the last token gets logits
static void decode(llama_context * ctx, std::vector<llama_token> & tokens, int begin, int end, int n_batch) {
    for (int offset = begin; offset < end; offset += n_batch) {
        llama_batch batch = llama_batch_init(std::min(n_batch, end - offset), 0, 1);
        for (int i = offset; i < std::min(offset + n_batch, end); i++) {
            const int k = batch.n_tokens++;
            batch.token[k]     = tokens[i];
            batch.pos[k]       = i;
            batch.n_seq_id[k]  = 1;
            batch.seq_id[k][0] = 0;
            batch.logits[k]    = i == end - 1;
        }
        const int code = llama_decode(ctx, batch);
        llama_batch_free(batch);
        if (code != 0) {
            fail("llama_decode returned " + std::to_string(code) + " at token " + std::to_string(offset));
        }
    }
}

static void clear(llama_context * ctx) {
    llama_memory_clear(llama_get_memory(ctx), true);
    llama_synchronize(ctx);
}

static std::vector<llama_token> generate(llama_context * ctx, int n, int n_vocab) {
    std::vector<llama_token> out;
    for (int i = 0; i < n; i++) {
        const float * logits = llama_get_logits_ith(ctx, -1);
        out.push_back(std::max_element(logits, logits + n_vocab) - logits);
        if (llama_decode(ctx, llama_batch_get_one(&out.back(), 1)) != 0) {
            fail("llama_decode failed while generating");
        }
    }
    llama_synchronize(ctx);
    return out;
}

static void print_turboprefill(llama_context * ctx) {
#ifdef HAVE_TURBOPREFILL
    const auto stats = llama_turboprefill_get_stats(ctx);
    std::string waits;
    for (int32_t i = 0; i < llama_turboprefill_n_waits(); i++) {
        llama_turboprefill_wait wait;
        if (llama_turboprefill_get_wait(ctx, i, &wait)) {
            waits += (waits.empty() ? "" : ",") + quoted(wait.cause) + ":" + std::to_string(wait.n);
        }
    }
    std::vector<std::string> transports;
    for (int32_t i = 0; i < llama_turboprefill_n_stages(ctx); i++) {
        llama_turboprefill_stage stage;
        if (llama_turboprefill_get_stage(ctx, i, &stage)) {
            transports.push_back(quoted(stage.transport));
        }
    }
    printf(",\"turboprefill\":{\"enabled\":%s,\"n_ubatches_pipelined\":%lld,\"n_ubatches_standard\":%lld,\"n_slots\":%d,"
           "\"n_stages\":%d,\"mem_host\":%llu,\"mem_device\":%llu,\"n_bytes_moved\":%llu,\"t_capture_us\":%lld,"
           "\"t_slot_wait_us\":%lld,\"waits\":{%s},\"reason\":%s,\"transports\":%s}",
        llama_turboprefill_enabled(ctx) ? "true" : "false", (long long) stats.n_ubatches_pipelined,
        (long long) stats.n_ubatches_standard, stats.n_slots, stats.n_stages, (unsigned long long) stats.mem_host,
        (unsigned long long) stats.mem_device, (unsigned long long) stats.n_bytes_moved, (long long) stats.t_capture_us,
        (long long) stats.t_slot_wait_us, waits.c_str(), quoted(llama_turboprefill_reason(ctx)).c_str(), list(transports).c_str());
#else
    (void) ctx;
#endif
}

// timeline of the devices for one more prompt: [stage, ubatch, start, end] in microseconds from the first start
static void print_timeline(llama_context * ctx, std::vector<llama_token> & tokens, int n_batch) {
#ifdef HAVE_TURBOPREFILL
    clear(ctx);
    llama_turboprefill_trace_start(ctx);
    decode(ctx, tokens, 0, tokens.size(), n_batch);
    std::vector<llama_turboprefill_span> spans(llama_turboprefill_trace_stop(ctx));
    spans.resize(llama_turboprefill_trace_read(ctx, spans.data(), spans.size()));
    int64_t first = spans.empty() ? 0 : spans[0].t_start_us;
    for (const auto & span : spans) {
        first = std::min(first, span.t_start_us);
    }
    printf(",\"spans\":[");
    for (size_t i = 0; i < spans.size(); i++) {
        printf("%s[%d,%d,%lld,%lld]", i ? "," : "", spans[i].stage, spans[i].ubatch, (long long) (spans[i].t_start_us - first),
            (long long) (spans[i].t_end_us - first));
    }
    printf("]");
#else
    (void) ctx, (void) tokens, (void) n_batch;
#endif
}

static void run_job(llama_model * model, const std::vector<ggml_backend_dev_t> & devices, const std::string & text) {
    std::map<std::string, int> job;
    for (const auto & pair : split(text, ',')) {
        job[pair.substr(0, pair.find('='))] = atoi(pair.substr(pair.find('=') + 1).c_str());
    }
    const int n = job["n"], n_batch = job["nb"], n_ubatch = job["ub"];
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));

    const auto free_before = free_memory(devices);
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = n + job["gen"] + 64;
    params.n_batch         = n_batch;
    params.n_ubatch        = n_ubatch;
    params.n_threads       = params.n_threads_batch = std::max(1, job["t"]);
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.swa_full        = false; // as llama-server and llama-bench do
    params.no_perf         = true;
    llama_context * ctx = llama_init_from_model(model, params);
    if (!ctx) {
        fail("cannot create a context for " + text);
    }
    const auto free_context = free_memory(devices);

    auto tokens = prompt(n, n_vocab);
    if (job["w"] > 0) {
        decode(ctx, tokens, 0, std::min(n, job["w"]), n_batch);
    }
    std::vector<int64_t> samples, steps, generated;
    std::set<std::string> logits, states, texts;
    for (int r = 0; r < job["r"]; r++) {
        clear(ctx);
#ifdef HAVE_TURBOPREFILL
        llama_turboprefill_reset_stats(ctx);
#endif
        const int64_t start = now_ns();
        decode(ctx, tokens, 0, n, n_batch);
        const float * last = llama_get_logits_ith(ctx, -1); // waits for the devices
        samples.push_back(now_ns() - start);
        logits.insert(quoted(digest(last, n_vocab * sizeof(float)).c_str()));
    }
    if (job["state"]) {
        std::vector<uint8_t> state(llama_state_get_size(ctx));
        states.insert(quoted(digest(state.data(), llama_state_get_data(ctx, state.data(), state.size())).c_str()));
    }
    const auto free_after = free_memory(devices);

    // before anything else uses the context: these numbers are those of the last prompt
    printf("{\"job\":%s,\"samples_ns\":%s,\"logits\":%s,\"states\":%s,\"free_before\":%s,\"free_context\":%s,\"free_after\":%s",
        quoted(text.c_str()).c_str(), list(samples).c_str(), list(std::vector<std::string>(logits.begin(), logits.end())).c_str(),
        list(std::vector<std::string>(states.begin(), states.end())).c_str(), list(free_before).c_str(),
        list(free_context).c_str(), list(free_after).c_str());
    print_turboprefill(ctx);

    for (int r = 0; job["gen"] && r < std::max(1, job["r"]); r++) {
        clear(ctx);
        decode(ctx, tokens, 0, n, n_batch);
        llama_synchronize(ctx);
        const int64_t start = now_ns();
        const auto out = generate(ctx, job["gen"], n_vocab);
        generated.push_back(now_ns() - start);
        texts.insert(quoted(digest(out.data(), out.size() * sizeof(out[0])).c_str()));
    }
    if (job["steps"]) { // time of each ubatch on its own
        clear(ctx);
        for (int begin = 0; begin < n; begin += n_ubatch) {
            const int64_t start = now_ns();
            decode(ctx, tokens, begin, std::min(n, begin + n_ubatch), n_ubatch);
            llama_synchronize(ctx);
            steps.push_back(now_ns() - start);
        }
    }
    if (job["trace"]) {
        print_timeline(ctx, tokens, n_batch);
    }
    printf(",\"gen_ns\":%s,\"gen_tokens\":%s,\"steps_ns\":%s}\n", list(generated).c_str(),
        list(std::vector<std::string>(texts.begin(), texts.end())).c_str(), list(steps).c_str());
    fflush(stdout);
    llama_free(ctx);
}

int main(int argc, char ** argv) {
    const std::string command = argc > 3 ? argv[1] : "";
    if (!(command == "serve" && argc == 4) && !(command == "run" && argc > 7)) {
        fail("wrong arguments: see the first lines of driver.cpp");
    }
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR || getenv("BENCH_VERBOSE")) {
            fputs(text, stderr);
        }
    }, nullptr);
    ggml_backend_load_all_from_path(argv[2]); // and GGML_BACKEND_PATH
    check_libraries();
    if (command == "serve") {
        return serve(argv[3]);
    }

    auto devices = find_devices(argv[6]);
    const auto free_empty = free_memory(devices);
    std::vector<float> tensor_split(llama_max_devices(), 0.0f);
    const auto shares = split(argv[5], ',');
    for (size_t i = 0; i < std::min(shares.size(), tensor_split.size()); i++) {
        tensor_split[i] = atof(shares[i].c_str());
    }
    auto chosen = devices;
    chosen.push_back(nullptr);
    llama_model_params params = llama_model_default_params();
    params.devices      = chosen.data();
    params.n_gpu_layers = 999;
    params.split_mode   = strcmp(argv[4], "none") == 0 ? LLAMA_SPLIT_MODE_NONE : LLAMA_SPLIT_MODE_LAYER;
    params.tensor_split = shares.empty() ? nullptr : tensor_split.data();
    const int64_t start = now_ns();
    llama_model * model = llama_model_load_from_file(argv[3], params);
    if (!model) {
        fail(std::string("cannot load ") + argv[3]);
    }
    char description[128];
    llama_model_desc(model, description, sizeof(description));
    std::vector<std::string> names;
    for (auto * device : devices) {
        names.push_back(quoted((std::string(ggml_backend_dev_name(device)) + ": " + ggml_backend_dev_description(device)).c_str()));
    }
    printf("{\"model_type\":%s,\"model_size\":%llu,\"model_n_params\":%llu,\"n_layer\":%d,\"load_ns\":%lld,\"devices\":%s,"
           "\"free_empty\":%s,\"free_loaded\":%s}\n",
        quoted(description).c_str(), (unsigned long long) llama_model_size(model), (unsigned long long) llama_model_n_params(model),
        llama_model_n_layer(model), (long long) (now_ns() - start), list(names).c_str(), list(free_empty).c_str(),
        list(free_memory(devices)).c_str());
    fflush(stdout);
    for (int i = 7; i < argc; i++) {
        run_job(model, devices, argv[i]);
    }
    llama_model_free(model);
    return 0;
}
