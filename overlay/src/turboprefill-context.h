// TurboPrefill's hooks in llama_context; hooks.json lists where they are called
//
// They lead to turboprefill-capture.cpp for each ubatch, turboprefill-sched.cpp when the scheduler is replaced, and
// turboprefill-faults.cpp when a device fails.

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

// != 0: a device failed after an earlier decode had returned; return this from llama_decode()
int32_t llama_turboprefill_decode_begin(llama_context & ctx);

// while one exists, the context cuts batches into ubatches of the size that suits the pipeline, if that was requested
struct llama_turboprefill_ubatch_choice {
    explicit llama_turboprefill_ubatch_choice(llama_context & ctx);
    ~llama_turboprefill_ubatch_choice();

    llama_context & ctx;
};

void llama_turboprefill_restore_ubatch(llama_context & ctx);

// true: the ubatch was handled; res is its result, or nullptr with the status in ret. false: upstream computes it
bool llama_turboprefill_process(llama_context & ctx, const llama_ubatch & ubatch, int gtype, llama_memory_context_i * mctx,
        ggml_status & ret, llm_graph_result *& res);

// the results of the ubatch have been requested: the workers may compute it
void llama_turboprefill_submit(llama_context & ctx);

int32_t llama_turboprefill_decode_end(llama_context & ctx);

// before the context changes: waits for everything in flight, and after a fault removes what was not computed from memory
void llama_turboprefill_before_setting(llama_context & ctx);
// the same for llama_context::synchronize()
void llama_turboprefill_before_synchronize(llama_context & ctx);
// waits for the ubatches of a sequence, below 0: for everything. false: nothing was in flight
bool llama_turboprefill_wait_state(llama_context & ctx, llama_seq_id seq_id);

// the same, before the state of a sequence is written out; throws if a device failed and no call has reported it
void llama_turboprefill_before_write(llama_context & ctx, llama_seq_id seq_id);

// before state is replaced
void llama_turboprefill_before_state(llama_context & ctx);

// before cells of a sequence are removed
void llama_turboprefill_before_remove(llama_memory_i * memory, llama_seq_id seq_id, llama_pos p0);
// waits for the ubatches of a sequence of this memory
void llama_turboprefill_wait_memory(llama_memory_i * memory, llama_seq_id seq_id);
// waits for everything, and discards earlier failures
void llama_turboprefill_clear_memory(llama_memory_i * memory);
