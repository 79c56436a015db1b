#include "turboprefill-layers.h"

#include "llama-model.h"

#include <cstdio>

// the number of layers including those for multi-token prediction, which is called so since July 2026
template <typename T> static auto n_layer_all(const T & hparams, int)  -> decltype((int) hparams.n_layer_all) { return hparams.n_layer_all; }
template <typename T> static auto n_layer_all(const T & hparams, long) -> decltype((int) hparams.n_layer)     { return hparams.n_layer; }

template <typename T> static auto n_layer_run(const T & hparams, int)  -> decltype((int) hparams.n_layer()) { return hparams.n_layer(); }
template <typename T> static auto n_layer_run(const T & hparams, long) -> decltype((int) hparams.n_layer)   { return hparams.n_layer; }

// per layer since September 2026
template <typename T> static auto n_expert_used(const T & hparams, int il, int)      -> decltype((double) hparams.n_expert_used(il)) { return hparams.n_expert_used(il); }
template <typename T> static auto n_expert_used(const T & hparams, int /*il*/, long) -> decltype((double) hparams.n_expert_used)     { return hparams.n_expert_used; }

int turboprefill_n_layer    (const llama_model & model) { return n_layer_all(model.hparams, 0); }
int turboprefill_n_layer_run(const llama_model & model) { return n_layer_run(model.hparams, 0); }

int turboprefill_layer_of(const llama_model & model, const std::string & name) {
    // encoders and decoders have layers of the same numbers, which go together
    const bool half = name.compare(0, 4, "enc.") == 0 || name.compare(0, 4, "dec.") == 0;

    int il = -1;
    const bool found = sscanf(name.c_str() + (half ? 4 : 0), "blk.%d.", &il) == 1;
    return found && il >= 0 && il < turboprefill_n_layer(model) ? il : -1;
}

double turboprefill_weights_used(const llama_model & model, int il, const std::string & name, const ggml_tensor * tensor) {
    if (il >= turboprefill_n_layer_run(model)) {
        return 0;
    }
    const double n = ggml_nelements(tensor);
    if (name.find("exps.") == std::string::npos) { // _exps and _chexps, but not the shared _shexp
        return n;
    }
    const double n_expert = model.hparams.n_expert;
    const double n_used   = n_expert_used(model.hparams, il, 0);
    return n_used > 0 && n_used < n_expert ? n*n_used/n_expert : n;
}
