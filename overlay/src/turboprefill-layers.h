// TurboPrefill: what a model's layers cost per token of a prompt, from the names and shapes of its tensors

#pragma once

#include <string>

struct ggml_tensor;
struct llama_model;

int llama_turboprefill_n_layer    (const llama_model & model); // including those for multi-token prediction
int llama_turboprefill_n_layer_run(const llama_model & model); // those that prompts go through

// the layer that a tensor of this name belongs to, -1: none
int llama_turboprefill_layer_of(const llama_model & model, const std::string & name);

// weights of a layer's tensor that a token of the prompt is multiplied with; of experts, only those that are used
double llama_turboprefill_weights_used(const llama_model & model, int il, const std::string & name, const ggml_tensor * tensor);
