#include "turboprefill-layers.h"
#include "turboprefill-compat.h"

#include "llama-model.h"

#include <cstdio>

int llama_turboprefill_n_layer    (const llama_model & model) { return llama_turboprefill::compat::n_layer_all(model.hparams); }
int llama_turboprefill_n_layer_run(const llama_model & model) { return llama_turboprefill::compat::n_layer_run(model.hparams); }

int llama_turboprefill_layer_of(const llama_model & model, const std::string & name) {
    // encoders and decoders have layers with the same numbers, which are placed together
    const bool half = name.compare(0, 4, "enc.") == 0 || name.compare(0, 4, "dec.") == 0;

    int il = -1;
    const bool found = sscanf(name.c_str() + (half ? 4 : 0), "blk.%d.", &il) == 1;
    return found && il >= 0 && il < llama_turboprefill_n_layer(model) ? il : -1;
}

double llama_turboprefill_weights_used(const llama_model & model, int il, const std::string & name, const ggml_tensor * tensor) {
    if (il >= llama_turboprefill_n_layer_run(model)) {
        return 0;
    }
    const double n = ggml_nelements(tensor);
    if (name.find("exps.") == std::string::npos) { // _exps and _chexps, but not the shared _shexp
        return n;
    }
    const double n_expert = model.hparams.n_expert;
    const double n_used   = llama_turboprefill::compat::n_expert_used(model.hparams, il);
    return n_used > 0 && n_used < n_expert ? n*n_used/n_expert : n;
}
