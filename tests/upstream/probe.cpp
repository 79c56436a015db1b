// Preloaded into upstream's own, unmodified test programs: records what was pipelined, and splits models over several
// devices in programs that have no options for it. Environment:
//
//   PROBE_STATS=FILE           append a line for each context when it is freed: ubatches pipelined, ubatches of the
//                              standard path, the model, why the last ubatches were not pipelined. -1: no TurboPrefill
//   PROBE_DEVICES=NAME,NAME    models meant for the first of these devices alone are split over all of them
//   PROBE_SPLIT=N,N            in these proportions
//   PROBE_UBATCH=FROM:TO       contexts with n_ubatch FROM get TO
//   PROBE_LOAD=FILE            a backend to load before main() begins
//   PROBE_SKIP=N               drops every N-th upload of floats: a test that still passes checks nothing

#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

// the beginning of llama_turboprefill_stats, for which unpatched trees have no header; rest is larger than it will ever be
struct probe_stats {
    int64_t n_pipelined;
    int64_t n_standard;
    int64_t rest[62];
};

template <typename F> static F probe_next(F /*like*/, const char * name) {
    F found = (F) dlsym(RTLD_NEXT, name);
    if (!found) {
        fprintf(stderr, "probe: there is no %s to go on with\n", name);
        abort();
    }
    return found;
}

static std::string probe_getenv(const char * name) {
    const char * value = getenv(name);
    return value ? value : "";
}

static std::vector<std::string> probe_list(const char * name) {
    std::vector<std::string> res;
    std::istringstream stream(probe_getenv(name));
    for (std::string item; std::getline(stream, item, ',');) {
        res.push_back(item);
    }
    return res;
}

__attribute__((constructor)) static void probe_load() {
    const std::string path = probe_getenv("PROBE_LOAD");
    if (!path.empty() && !ggml_backend_load(path.c_str())) {
        fprintf(stderr, "probe: %s does not load\n", path.c_str());
        abort();
    }
}

// upstream's programs exit without waiting for the thread that writes their log
__attribute__((destructor)) static void probe_flush() {
    const auto log   = (void * (*)())       dlsym(RTLD_DEFAULT, "_Z15common_log_mainv");
    const auto flush = (void   (*)(void *)) dlsym(RTLD_DEFAULT, "_Z16common_log_flushP10common_log");
    if (log && flush) {
        flush(log());
    }
}

//
// statistics
//

extern "C" void llama_free(llama_context * ctx) {
    static const auto next = probe_next(&llama_free, "llama_free");
    static std::mutex mutex;

    const std::string path = probe_getenv("PROBE_STATS");
    if (ctx && !path.empty()) {
        using get_stats_t  = probe_stats (*)(const llama_context *);
        using get_reason_t = const char * (*)(const llama_context *);
        const auto get_stats  = (get_stats_t)  dlsym(RTLD_DEFAULT, "llama_turboprefill_get_stats");
        const auto get_reason = (get_reason_t) dlsym(RTLD_DEFAULT, "llama_turboprefill_reason");

        probe_stats stats = {};
        stats.n_pipelined = stats.n_standard = -1;
        if (get_stats) {
            stats = get_stats(ctx);
        }
        char desc[128] = "";
        llama_model_desc(llama_get_model(ctx), desc, sizeof(desc));

        std::lock_guard<std::mutex> lock(mutex);
        if (FILE * file = fopen(path.c_str(), "a")) {
            fprintf(file, "%lld\t%lld\t%s\t%s\n", (long long) stats.n_pipelined, (long long) stats.n_standard, desc,
                    get_reason ? get_reason(ctx) : "");
            fclose(file);
        }
    }
    next(ctx);
}

//
// devices
//

// what params point to while a model is created
struct probe_placement {
    std::vector<ggml_backend_dev_t> devices;
    std::vector<float>              split;

    explicit probe_placement(llama_model_params & params) {
        const auto names = probe_list("PROBE_DEVICES");
        if (names.empty() || !params.devices || !params.devices[0] || params.devices[1] ||
            names[0] != ggml_backend_dev_name(params.devices[0])) {
            return;
        }
        for (const auto & name : names) {
            devices.push_back(ggml_backend_dev_by_name(name.c_str()));
            if (!devices.back()) {
                fprintf(stderr, "probe: there is no device %s\n", name.c_str());
                abort();
            }
        }
        devices.push_back(nullptr);
        params.devices = devices.data();
        for (const auto & part : probe_list("PROBE_SPLIT")) {
            split.push_back(std::stof(part));
        }
        if (!split.empty()) {
            split.resize(llama_max_devices());
            params.tensor_split = split.data();
        }
        params.n_gpu_layers = 999;
    }
};

extern "C" llama_model * llama_model_init_from_user(gguf_context * metadata, llama_model_set_tensor_data_t set_tensor_data,
        void * user_data, llama_model_params params) {
    static const auto next = probe_next(&llama_model_init_from_user, "llama_model_init_from_user");
    probe_placement placement(params);
    return next(metadata, set_tensor_data, user_data, params);
}

extern "C" llama_model * llama_model_load_from_file_ptr(FILE * file, llama_model_params params) {
    static const auto next = probe_next(&llama_model_load_from_file_ptr, "llama_model_load_from_file_ptr");
    probe_placement placement(params);
    return next(file, params);
}

extern "C" llama_context * llama_init_from_model(llama_model * model, llama_context_params params) {
    static const auto next = probe_next(&llama_init_from_model, "llama_init_from_model");
    unsigned from = 0, to = 0;
    if (sscanf(probe_getenv("PROBE_UBATCH").c_str(), "%u:%u", &from, &to) == 2 && params.n_ubatch == from) {
        params.n_ubatch = to;
    }
    // two CPU threads do not always round like one, and virtual devices have one
    params.n_threads = params.n_threads_batch = 1;
    return next(model, params);
}

//
// sabotage
//

extern "C" void ggml_backend_tensor_set_async(ggml_backend_t backend, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    static const auto next = probe_next(&ggml_backend_tensor_set_async, "ggml_backend_tensor_set_async");
    static const int  skip = atoi(probe_getenv("PROBE_SKIP").c_str());
    static std::atomic<int> n_calls{0};
    // floats only: stale indices from another ubatch would just crash the program
    if (skip > 0 && tensor->type == GGML_TYPE_F32 && ++n_calls % skip == 0) {
        return;
    }
    next(backend, tensor, data, offset, size);
}
