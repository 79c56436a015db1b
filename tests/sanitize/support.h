// shared by the scenarios of the driver: devices, models, contexts, prompts, and results to compare

#pragma once

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "llama.h"
#include "turboprefill.h"

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

struct driver_model_deleter   { void operator()(llama_model   * model) const { llama_model_free(model); } };
struct driver_context_deleter { void operator()(llama_context * ctx)   const { llama_free(ctx); } };

using driver_model   = std::unique_ptr<llama_model,   driver_model_deleter>;
using driver_context = std::unique_ptr<llama_context, driver_context_deleter>;
using driver_tokens  = std::vector<llama_token>;

const int N_DEVICES = 4;
const int N_UBATCH  = 8;

// throws `what` unless the condition holds
void require(bool holds, const std::string & what);

struct driver_env {
    std::string models;                  // folder with the presets
    std::vector<ggml_backend_dev_t> rpc; // devices behind RPC servers, may be empty

    std::vector<ggml_backend_dev_t> virt;

    void         configure(const std::string & more = "") const; // "" or ",key=value", for all virtual devices
    void         configure_standard() const;
    int64_t      counter(const char * name) const;
    driver_model load(const std::string & preset, int n_gpu_layers = 99) const;
    driver_model load_on(const std::string & preset, std::vector<ggml_backend_dev_t> devices, int n_gpu_layers = 99) const;
};

struct driver_options {
    bool     turbo     = true;
    uint32_t n_ctx     = 256;
    uint32_t n_batch   = 256;
    uint32_t n_ubatch  = N_UBATCH;
    uint32_t n_seq     = 1;
    bool     unified   = false;
};

// nullptr if it cannot be made
driver_context driver_try_context(llama_model * model, const driver_options & options = {});
driver_context driver_make_context(llama_model * model, const driver_options & options = {});

driver_tokens driver_prompt(int n, uint32_t seed = 1);

enum driver_outputs { OUTPUTS_NONE, OUTPUTS_LAST, OUTPUTS_ALL, OUTPUTS_MIXED };

// one call of llama_decode; token i belongs to sequence i % n_seq. returns its code
int driver_decode(llama_context * ctx, const driver_tokens & tokens, int first, int n, driver_outputs outputs, int n_seq = 1);

struct driver_result {
    std::vector<float>   logits;
    std::vector<uint8_t> state;
};

std::vector<uint8_t> driver_state(llama_context * ctx);

// decodes the whole prompt in calls of n_batch tokens, from an empty memory
driver_result driver_run(llama_context * ctx, const driver_tokens & tokens, int n_batch, driver_outputs outputs, int n_seq = 1);

void driver_same(const driver_result & result, const driver_result & expected, const std::string & what);

// adds the ubatches that a context pipelined to the scenario's total, and requires that there were any
void    driver_count(llama_context * ctx, const std::string & what);
int64_t driver_take_count();

// scenarios
void scenario_paths    (const driver_env & env);
void scenario_sequences(const driver_env & env);
void scenario_memory   (const driver_env & env);
void scenario_behind   (const driver_env & env);
void scenario_in_flight(const driver_env & env);
void scenario_checkpoints(const driver_env & env);
void scenario_switches (const driver_env & env);
void scenario_free     (const driver_env & env);
void scenario_abort    (const driver_env & env);
void scenario_faults   (const driver_env & env);
void scenario_late     (const driver_env & env);
void scenario_buffers  (const driver_env & env);
void scenario_refusals (const driver_env & env);
void scenario_timing   (const driver_env & env);
void scenario_threads  (const driver_env & env);
void scenario_rpc      (const driver_env & env);
void scenario_rows     (const driver_env & env);
