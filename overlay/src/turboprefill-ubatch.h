// TurboPrefill: the size of ubatches, if it is left to us (TURBOPREFILL_UBATCH=auto)
//
// Small ubatches fill the pipeline soon and empty it soon, large ones are computed faster per token. A ubatch of c tokens
// takes a + b*c; with h = a/b, the tokens that could be computed while a ubatch is launched, N ubatches on S stages take
//     (sum of (h + c_i) + (S - 1)*max (h + c_i))/S
// and the best size depends on the prompt, the number of stages and h alone. It is chosen without measuring anything at
// run time: another size rounds differently, and a prompt should give the same bits on every day.

#pragma once

#include <cstdint>

struct llama_model;

// h, guessed from the model's layers: docs/planner.md. `turboprefill plan --calibrate` measures it
double llama_turboprefill_guess_ubatch_overhead(const llama_model & model);

// TURBOPREFILL_UBATCH: what a ubatch costs in tokens if its size is ours to choose, 0 if it is not
double llama_turboprefill_default_ubatch_overhead(const llama_model & model);

// the best size for n_tokens on n_stages, of those that kernels like, at most n_ubatch
uint32_t llama_turboprefill_choose_ubatch(uint32_t n_tokens, uint32_t n_stages, uint32_t n_ubatch, double overhead);
