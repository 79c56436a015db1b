#include "turboprefill-split.h"
#include "turboprefill-env.h"
#include "turboprefill-layers.h"

#include "ggml-backend.h"

#include "llama-impl.h"
#include "llama-model.h"
#include "llama-model-loader.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>

// share of a device's free memory for weights: the sizes of KV cache and compute buffers are not known yet
static const double LLAMA_TURBOPREFILL_WEIGHTS_SHARE = 0.75;

// what is placed as a whole: a layer, or, at the end, the output
struct llama_turboprefill_unit {
    double cost  = 0; // per token of a prompt: weights that it is multiplied with
    double bytes = 0;
};

// layers and their weights, from the file: the model's tensors do not exist yet
static std::vector<llama_turboprefill_unit> llama_turboprefill_units(const llama_model & model, const llama_model_loader & ml) {
    const int n_layer = llama_turboprefill_n_layer(model);

    std::vector<llama_turboprefill_unit> units(n_layer + 1);
    double bytes_embd = 0;

    for (const auto & it : ml.weights_map) {
        const std::string & name   = it.first;
        const ggml_tensor * tensor = it.second.tensor;

        const int il = llama_turboprefill_layer_of(model, name);
        if (il >= 0) {
            units[il].bytes += ggml_nbytes(tensor);
            units[il].cost  += llama_turboprefill_weights_used(model, il, name, tensor);
        } else if (name == "token_embd.weight") {
            bytes_embd = ggml_nbytes(tensor);
        } else if (name.compare(0, 6, "output") == 0) {
            units[n_layer].bytes += ggml_nbytes(tensor);
        }
    }
    if (ml.weights_map.count("output.weight") == 0) {
        units[n_layer].bytes += bytes_embd; // the embeddings serve as output, and are copied for that
    }
    return units;
}

// contiguous units per device, so that the slowest device is as fast as possible, and of those splits the most even one. of
// equals, the one with more on the last devices: in most models, the last layer does less for tokens without outputs.
// empty: the units do not fit
static std::vector<int> llama_turboprefill_balance(const std::vector<llama_turboprefill_unit> & units, const std::vector<double> & memory) {
    const int n_units = units.size();
    const int n_dev   = memory.size();
    const double inf  = std::numeric_limits<double>::infinity();

    std::vector<double> cost(n_units + 1, 0), bytes(n_units + 1, 0); // prefix sums: of the first i units
    for (int i = 0; i < n_units; i++) {
        cost [i + 1] = cost [i] + units[i].cost;
        bytes[i + 1] = bytes[i] + units[i].bytes;
    }

    // best[d][k]: the minimum for the first k units on the first d devices, first of the largest cost, then of the sum of
    // squares
    double limit = inf;
    std::vector<std::vector<int>> from;
    for (const bool squares : { false, true }) {
        std::vector<std::vector<double>> best(n_dev + 1, std::vector<double>(n_units + 1, inf));
        from.assign(n_dev + 1, std::vector<int>(n_units + 1, -1));
        best[0][0] = 0;
        for (int d = 1; d <= n_dev; d++) {
            for (int k = 0; k <= n_units; k++) {
                for (int j = 0; j <= k; j++) {
                    const double c = cost[k] - cost[j];
                    if (bytes[k] - bytes[j] > memory[d - 1] || c > limit) {
                        continue;
                    }
                    const double value = squares ? best[d - 1][j] + c*c : std::max(best[d - 1][j], c);
                    if (value < best[d][k]) {
                        best[d][k] = value;
                        from[d][k] = j;
                    }
                }
            }
        }
        if (best[n_dev][n_units] == inf) {
            return {};
        }
        limit = best[n_dev][n_units]*(1 + 1e-9);
    }

    std::vector<int> counts(n_dev);
    for (int d = n_dev, k = n_units; d > 0; d--) {
        counts[d - 1] = k - from[d][k];
        k = from[d][k];
    }
    return counts;
}

// whether the devices are equally fast, as far as that is known. one with less free memory is used by others, too
static bool llama_turboprefill_one_kind(const llama_model & model, const std::vector<float> & free) {
    if (*std::min_element(free.begin(), free.end()) < 0.9*(*std::max_element(free.begin(), free.end()))) {
        return false;
    }
    const auto memory = [](ggml_backend_dev_t dev) {
        size_t free, total;
        ggml_backend_dev_memory(dev, &free, &total);
        return (double) total;
    };
    ggml_backend_dev_t first = model.devices[0].dev;
    for (const auto & device : model.devices) {
        const bool named = strcmp(ggml_backend_dev_description(device.dev), ggml_backend_dev_description(first)) == 0;
        const bool sized = std::fabs(memory(device.dev) - memory(first)) <= 0.02*memory(first);
        if (ggml_backend_dev_backend_reg(device.dev) != ggml_backend_dev_backend_reg(first) || !(named || sized)) {
            return false;
        }
    }
    return true;
}

static std::string llama_turboprefill_join(const std::vector<int> & counts) {
    std::string text;
    for (const int count : counts) {
        text += (text.empty() ? "" : ",") + std::to_string(count);
    }
    return text;
}

// tensors on other devices than their layers make devices take turns: suggest how many whole layers would fit instead
static void llama_turboprefill_advise(const llama_model & model, std::vector<llama_turboprefill_unit> units) {
    std::vector<double> memory;
    for (const auto & device : model.devices) {
        size_t free, total;
        ggml_backend_dev_memory(device.dev, &free, &total);
        memory.push_back(LLAMA_TURBOPREFILL_WEIGHTS_SHARE*free);
    }
    const size_t n_all = units.size();
    std::vector<int> counts;
    while (units.size() >= memory.size() && counts.empty()) {
        counts = llama_turboprefill_balance(units, memory);
        units.erase(units.begin()); // the first layers stay on the CPU
    }
    if (counts.empty()) {
        return;
    }
    const size_t n_gpu_layers = std::accumulate(counts.begin(), counts.end(), (size_t) 0);
    const std::string ngl = n_gpu_layers < n_all ? " -ngl " + std::to_string(n_gpu_layers) : "";
    LLAMA_LOG_WARN("%s: TurboPrefill: -ot, --cpu-moe or --fit puts tensors on other devices than their layers, which prevents "
            "pipelining. Without it, whole layers fit with%s -ts %s if the KV cache leaves room\n", __func__, ngl.c_str(), llama_turboprefill_join(counts).c_str());
}

void llama_turboprefill_split(const llama_model & model, const llama_model_loader & ml, bool given, std::vector<float> & splits) {
    if (!llama_turboprefill_env_enabled() || model.split_mode() != LLAMA_SPLIT_MODE_LAYER || splits.size() < 2 || model.n_gpu_layers() == 0) {
        return;
    }
    const bool advises  = model.has_tensor_overrides() && !model.hparams.no_alloc;
    const bool balances = !given && llama_turboprefill_getenv("TURBOPREFILL_SPLIT") != "off";
    if (!advises && !balances) {
        return;
    }
    std::vector<llama_turboprefill_unit> units = llama_turboprefill_units(model, ml);
    if (std::any_of(units.begin(), units.end() - 1, [](const llama_turboprefill_unit & unit) { return unit.bytes == 0; })) {
        return; // an architecture that names its layers differently
    }
    if (advises) {
        llama_turboprefill_advise(model, units);
    }
    if (!balances) {
        return;
    }
    if (!llama_turboprefill_one_kind(model, splits)) {
        LLAMA_LOG_INFO("%s: TurboPrefill: the devices differ in kind or in free memory, so llama.cpp's own split is kept; "
                "`turboprefill plan` suggests a -ts\n", __func__);
        return;
    }

    const size_t n_gpu_layers = model.n_gpu_layers();
    if (n_gpu_layers < units.size()) {
        units.erase(units.begin(), units.end() - n_gpu_layers); // the first layers stay on the CPU
    }

    double bytes_all = 0, free_all = 0;
    for (const auto & unit : units) {
        bytes_all += unit.bytes;
    }
    for (const float free : splits) {
        free_all += free;
    }
    std::vector<double> memory;
    for (const float free : splits) {
        // at most as full as by default, unless the usual share is more
        memory.push_back(std::max(LLAMA_TURBOPREFILL_WEIGHTS_SHARE*free, bytes_all*free/free_all));
    }

    const std::vector<int> counts = llama_turboprefill_balance(units, memory);
    if (counts.empty()) {
        LLAMA_LOG_INFO("%s: TurboPrefill: not enough memory to balance the layers\n", __func__);
        return;
    }
    std::copy(counts.begin(), counts.end(), splits.begin());
    const std::string text = llama_turboprefill_join(counts);
    LLAMA_LOG_INFO("%s: TurboPrefill: layers per device: %s (the same as -ts %s); TURBOPREFILL_SPLIT=off keeps llama.cpp's own split\n",
            __func__, text.c_str(), text.c_str());
}
