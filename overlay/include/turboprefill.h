// TurboPrefill: pipeline parallelism for the prefill of models that are split by layer over several devices
//
// Public C API. It works on contexts created by llama_init_from_model() and is as thread-safe as they are: one context is
// used by one thread at a time.
//
// The environment variable TURBOPREFILL sets the default for new contexts (unset, 0, false or off: disabled).
// While it is disabled, llama_decode() behaves exactly as upstream's.

#pragma once

#include "llama.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TURBOPREFILL_VERSION "0.1.0"

#ifdef __cplusplus
extern "C" {
#endif

// Enables or disables the pipeline of one context. Waits for ubatches in flight. false: the change was not made, because
// there is not enough memory; if it was to be enabled, llama_turboprefill_reason() says so.
LLAMA_API bool llama_turboprefill_set_enabled(struct llama_context * ctx, bool enabled);
LLAMA_API bool llama_turboprefill_enabled(const struct llama_context * ctx);

// Lets each llama_decode() choose a ubatch size, at most the context's n_ubatch, from the length of the prompt and the number
// of devices. overhead: the fixed cost per ubatch, in token equivalents; 0 always uses n_ubatch, a negative value estimates it
// from the model's layers. Results are those of the standard path at the chosen size. The environment variable
// TURBOPREFILL_UBATCH sets the default: auto (estimated), auto:OVERHEAD, off.
LLAMA_API void llama_turboprefill_set_auto_ubatch(struct llama_context * ctx, float overhead);

// Why the last llama_decode() used the standard path for at least one of its ubatches; "" if it did not.
// Valid until the next call on ctx.
LLAMA_API const char * llama_turboprefill_reason(const struct llama_context * ctx);

// Like llama_synchronize(), and returns how the work in flight ended: 0, or the code for ubatches that failed after their own
// llama_decode() had returned. The next llama_decode() would have returned that code; now it does not.
// The outputs of a prompt that failed are NaN.
LLAMA_API int32_t llama_turboprefill_synchronize(struct llama_context * ctx);

// Waits for the results of the last llama_decode() only; ubatches in flight behind the last one with results continue.
// llama_get_logits() and the other functions that return results do this themselves. Returns false if nothing is left in flight:
// call llama_synchronize() then. status, which the caller initializes to 0, receives what llama_turboprefill_synchronize()
// would return, if there is something to report; with nullptr, a fault is left for the next call that can report it.
LLAMA_API bool llama_turboprefill_synchronize_results(struct llama_context * ctx, int32_t * status);

// One line for a log: what was done since the last report, or since the stats were reset. Valid until the next call.
LLAMA_API const char * llama_turboprefill_report(struct llama_context * ctx);

// Called between the ubatches of llama_decode() when it would otherwise wait for the devices. nullptr removes the callback.
typedef void (*llama_turboprefill_between)(void * data);
LLAMA_API void llama_turboprefill_set_between(struct llama_context * ctx, llama_turboprefill_between callback, void * data);

// Called before each ubatch, on the caller's thread, with TurboPrefill enabled or not. Returning true ends llama_decode(), which
// returns 2 and keeps in memory what was computed before (except for an image in several ubatches, whose tokens share a
// position). nullptr removes the callback.
typedef bool (*llama_turboprefill_interrupt)(void * data);
LLAMA_API void llama_turboprefill_set_interrupt(struct llama_context * ctx, llama_turboprefill_interrupt callback, void * data);

// Called before a sequence (negative: any) in the memory of ctx is changed or read from position pos on, other than by
// llama_decode(). nullptr removes the callback.
typedef void (*llama_turboprefill_before_use)(void * data, llama_seq_id seq_id, llama_pos pos);
LLAMA_API void llama_turboprefill_set_before_use(struct llama_context * ctx, llama_turboprefill_before_use callback, void * data);

// The watchdog: for how many microseconds the pipeline of ctx (nullptr: of any context in this process) has made no progress
// although somebody waits for it; 0 if all is well. A stall is noticed after TURBOPREFILL_WATCHDOG_S seconds (default 120,
// 0: never). text receives up to n bytes, including the terminating zero: which device does not answer, and who waits for it.
// Only pipelined ubatches are watched, not graphs of the standard path. Any thread may call this while ctx exists.
LLAMA_API int64_t llama_turboprefill_stuck_us(const struct llama_context * ctx, char * text, size_t n);

//
// state that is read in the background; turboprefill-checkpoint.h uses it
//

// Queues a read of the state of a sequence behind the ubatches in flight. Waits for nothing. nullptr if nothing is in flight,
// or if this state cannot be read that way.
struct llama_turboprefill_read;
LLAMA_API struct llama_turboprefill_read * llama_turboprefill_read_state(struct llama_context * ctx, llama_seq_id seq_id, llama_state_seq_flags flags);
LLAMA_API size_t llama_turboprefill_read_size(const struct llama_turboprefill_read * read);
// Waits, and copies what llama_state_seq_get_data_ext() would have returned. false: a device failed, nothing was copied.
LLAMA_API bool   llama_turboprefill_read_get (struct llama_turboprefill_read * read, uint8_t * data);
LLAMA_API void   llama_turboprefill_read_free(struct llama_turboprefill_read * read); // waits as well

//
// results that are read after later decodes; turboprefill-draft.h and turboprefill-server.h use them
//

// Holds results of the last llama_decode(): hold_rows the hidden states of all tokens of a decode without outputs, hold_logits
// the logits of a decode that produces nothing else. nullptr if there are other results, or if nothing is in flight: read
// the results now.
struct llama_turboprefill_rows;
LLAMA_API struct llama_turboprefill_rows * llama_turboprefill_hold_rows  (struct llama_context * ctx);
LLAMA_API struct llama_turboprefill_rows * llama_turboprefill_hold_logits(struct llama_context * ctx);

// Waits for them; until unuse, the context returns them as its results, hidden states from token i_first on. false: a device
// failed; the next llama_decode() returns the code.
LLAMA_API bool llama_turboprefill_use_rows  (struct llama_turboprefill_rows * rows, int32_t i_first);
LLAMA_API void llama_turboprefill_unuse_rows(struct llama_context * ctx);
LLAMA_API void llama_turboprefill_free_rows (struct llama_turboprefill_rows * rows); // nullptr is allowed

enum llama_turboprefill_rows_state {
    LLAMA_TURBOPREFILL_ROWS_EARLY, // using them now would wait, and leave the devices with little to do
    LLAMA_TURBOPREFILL_ROWS_DUE,   // enough is in flight behind them
    LLAMA_TURBOPREFILL_ROWS_LATE,  // so much is in flight behind them that they should be used now
};
LLAMA_API enum llama_turboprefill_rows_state llama_turboprefill_get_rows_state(const struct llama_turboprefill_rows * rows);

//
// statistics
//

struct llama_turboprefill_stats {
    int64_t n_ubatches_pipelined; // since the context was created or its stats were reset,
    int64_t n_ubatches_standard;  // counted while TurboPrefill is enabled
    int64_t n_tokens_pipelined;
    int64_t n_tokens_standard;

    int64_t n_faults;       // failures of a device, each of which cost the memory what was not computed

    int64_t t_capture_us;   // host time spent capturing ubatches
    int64_t t_slot_wait_us; // host time spent waiting for a free slot

    uint64_t n_bytes_moved; // from stage to stage
    uint64_t mem_host;      // bytes of host memory held by slots and transport
    uint64_t mem_device;    // bytes of device memory held by the transport

    int32_t n_stages;       // 0 before the first pipelined ubatch
    int32_t n_slots;
};

LLAMA_API struct llama_turboprefill_stats llama_turboprefill_get_stats  (const struct llama_context * ctx);
LLAMA_API void                            llama_turboprefill_reset_stats(      struct llama_context * ctx);

// How often the caller's thread waited for ubatches in flight, by cause: result, synchronize, memory operation, state,
// standard-path graph, plan, growing buffer, setting, abort callback, fault, full slots. The last one costs nothing: the
// caller is ahead of the devices.
struct llama_turboprefill_wait {
    const char * cause; // static
    int64_t      n;     // waits since the context was created or its stats were reset
    int64_t      t_us;
};

LLAMA_API int32_t llama_turboprefill_n_waits (void);
LLAMA_API bool    llama_turboprefill_get_wait(const struct llama_context * ctx, int32_t i, struct llama_turboprefill_wait * wait);

// a stage: a device with its part of the graph; stage 0 computes first
struct llama_turboprefill_stage {
    const char * device;     // valid as long as the device is
    const char * transport;  // static; how the activations of the previous stage arrive: "none", "staged" or "peer"
    int64_t      n_ubatches;
    uint64_t     n_bytes_in; // activations received from other stages
};

LLAMA_API int32_t llama_turboprefill_n_stages (const struct llama_context * ctx);
LLAMA_API bool    llama_turboprefill_get_stage(const struct llama_context * ctx, int32_t i, struct llama_turboprefill_stage * stage);

// Timeline of the devices, for both paths; it works with TurboPrefill disabled, too.
// A span begins when a split is submitted to an idle device, or when the device finishes the split before it.
struct llama_turboprefill_span {
    const char * device;    // owned by the context
    int32_t      stage;
    int32_t      ubatch;    // counted from trace_start
    bool         pipelined;
    int64_t      t_start_us;
    int64_t      t_end_us;
};

// starts a new timeline
LLAMA_API void   llama_turboprefill_trace_start(struct llama_context * ctx);
// waits for the devices and returns the number of spans
LLAMA_API size_t llama_turboprefill_trace_stop (struct llama_context * ctx);
// copies up to n spans, ordered by their end, and returns how many
LLAMA_API size_t llama_turboprefill_trace_read (const struct llama_context * ctx, struct llama_turboprefill_span * spans, size_t n);

#ifdef __cplusplus
}
#endif
