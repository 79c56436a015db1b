#include "turboprefill-ubatch.h"
#include "turboprefill-env.h"
#include "turboprefill-layers.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <cstdlib>
#include <limits>
#include <string>

// fixed costs of a ubatch, as measured on an H200: see docs/planner.md
static const double TOKENS_PER_READING = 28;     // reading all weights, in tokens that use all of them
static const double WEIGHTS_PER_LAYER  = 1.6e10; // launching a layer's kernels, in weights that tokens could use meanwhile

double llama_turboprefill_guess_ubatch_overhead(const llama_model & model) {
    double n_read = 0; // weights that a ubatch reads
    double n_used = 0; // weights that a token uses
    for (const auto & [name, tensor] : model.tensors_by_name) {
        const int il = llama_turboprefill_layer_of(model, name);
        if (il >= 0 && il < llama_turboprefill_n_layer_run(model)) {
            n_read += ggml_nelements(tensor);
            n_used += llama_turboprefill_weights_used(model, il, name, tensor);
        }
    }
    if (n_used <= 0) {
        return TOKENS_PER_READING;
    }
    return (TOKENS_PER_READING*n_read + WEIGHTS_PER_LAYER*llama_turboprefill_n_layer_run(model))/n_used;
}

double llama_turboprefill_default_ubatch_overhead(const llama_model & model) {
    const std::string value = llama_turboprefill_getenv("TURBOPREFILL_UBATCH");
    if (value == "auto") {
        return llama_turboprefill_guess_ubatch_overhead(model);
    }
    if (value.compare(0, 5, "auto:") == 0) {
        char * end = nullptr;
        const double overhead = strtod(value.c_str() + 5, &end);
        if (*end == 0 && overhead > 0 && overhead <= 1e9) {
            return overhead;
        }
    }
    if (!(value.empty() || value == "off" || value == "0")) {
        LLAMA_LOG_WARN("%s: TURBOPREFILL_UBATCH=%s: expected auto, auto:TOKENS or off; using off\n", __func__, value.c_str());
    }
    return 0;
}

static double llama_turboprefill_time(uint32_t n_tokens, uint32_t n_stages, uint32_t size, double overhead) {
    const uint32_t n_full  = n_tokens/size;
    const uint32_t rest    = n_tokens%size;
    const double   largest = overhead + (n_full > 0 ? size : rest);
    return n_full*(overhead + size) + (rest > 0 ? overhead + rest : 0) + (n_stages - 1)*largest;
}

uint32_t llama_turboprefill_choose_ubatch(uint32_t n_tokens, uint32_t n_stages, uint32_t n_ubatch, double overhead) {
    uint32_t best = n_ubatch;
    double   time = std::numeric_limits<double>::infinity();

    const auto consider = [&](uint32_t size) {
        const double t = llama_turboprefill_time(n_tokens, n_stages, size, overhead);
        if (t <= time) { // of equals, the larger one
            time = t;
            best = size;
        }
    };
    // powers of two, 96 and 192. not 384, which was slower than both of its neighbours
    for (uint32_t size = 32; size < n_ubatch; size *= 2) {
        consider(size);
        if (size >= 64 && size < 256 && size + size/2 < n_ubatch) {
            consider(size + size/2);
        }
    }
    consider(n_ubatch);
    return best;
}
