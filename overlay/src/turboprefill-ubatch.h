// TurboPrefill: the ubatch size, if it is chosen here (TURBOPREFILL_UBATCH=auto)
//
// Small ubatches fill and drain the pipeline faster, large ones are computed faster per token. A ubatch of c tokens takes
// a + b*c. With h = a/b, the fixed cost per ubatch in token equivalents, N ubatches on S stages take
//     (sum of (h + c_i) + (S - 1)*max (h + c_i))/S
// so the best size depends on the prompt, the number of stages and h alone. Nothing is measured at run time: another size
// rounds differently, and a prompt should give the same bits every time.

#pragma once

#include <cstdint>

struct llama_model;

// h, estimated from the model's layers: see docs/planner.md. `turboprefill plan --calibrate` measures it
double llama_turboprefill_guess_ubatch_overhead(const llama_model & model);

// h according to TURBOPREFILL_UBATCH, 0: the ubatch size is not chosen here
double llama_turboprefill_default_ubatch_overhead(const llama_model & model);

// the best size for n_tokens on n_stages, of those that suit kernels, at most n_ubatch
uint32_t llama_turboprefill_choose_ubatch(uint32_t n_tokens, uint32_t n_stages, uint32_t n_ubatch, double overhead);
