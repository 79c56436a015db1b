// TurboPrefill's hooks in llama_context, called at the places that hooks.json names
//
// What they do: turboprefill-capture.cpp for each ubatch, turboprefill-sched.cpp when the scheduler is replaced,
// turboprefill-faults.cpp if a device fails.

#pragma once

#include "llama.h"

#include <cstdint>

struct llama_memory_i;
struct llama_memory_context_i;
struct llama_ubatch;
class  llm_graph_result;

// the scheduler is about to be replaced / is new / has reserved its worst-case graph
void llama_turboprefill_sched_begin(llama_context & ctx);
void llama_turboprefill_sched_new  (llama_context & ctx);
void llama_turboprefill_sched_end  (llama_context & ctx);

// != 0: a device failed since the last call; return this from llama_decode()
int32_t llama_turboprefill_decode_begin(llama_context & ctx);

// while it lives, the context cuts batches into ubatches of the size that suits the pipeline, if that was asked for
struct llama_turboprefill_ubatch_choice {
    explicit llama_turboprefill_ubatch_choice(llama_context & ctx);
    ~llama_turboprefill_ubatch_choice();

    llama_context & ctx;
};

void llama_turboprefill_restore_ubatch(llama_context & ctx);

// true: this ubatch was taken, with its result in res, or nullptr and the status in ret. false: it is upstream's
bool llama_turboprefill_process(llama_context & ctx, const llama_ubatch & ubatch, int gtype, llama_memory_context_i * mctx,
        ggml_status & ret, llm_graph_result *& res);

// the results of the ubatch were asked for: the devices may have it
void llama_turboprefill_submit(llama_context & ctx);

int32_t llama_turboprefill_decode_end(llama_context & ctx);

// the context is about to change: wait for everything in flight, and forget the memory cells that were not computed
void llama_turboprefill_before_setting(llama_context & ctx);
// the same for llama_context::synchronize()
void llama_turboprefill_before_synchronize(llama_context & ctx);
// for what a sequence has in flight, below 0: for everything. false: nothing is in flight
bool llama_turboprefill_wait_state(llama_context & ctx, llama_seq_id seq_id);

// the same, before the state of a sequence is written; throws if a device failed and nobody was told
void llama_turboprefill_before_write(llama_context & ctx, llama_seq_id seq_id);

// the state is about to be replaced
void llama_turboprefill_before_state(llama_context & ctx);

// cells of a sequence are about to go
void llama_turboprefill_before_remove(llama_memory_i * memory, llama_seq_id seq_id, llama_pos p0);
// for what a sequence of this memory has in flight
void llama_turboprefill_wait_memory(llama_memory_i * memory, llama_seq_id seq_id);
// for everything, and what failed before does not matter any more
void llama_turboprefill_clear_memory(llama_memory_i * memory);
