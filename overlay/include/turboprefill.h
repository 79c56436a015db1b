// TurboPrefill: pipelined prefill for models that are split by layers over several devices
//
// Public C API. It works on contexts made by llama_init_from_model() and is as thread-safe as they are:
// one context is used by one thread at a time.
//
// The environment variable TURBOPREFILL sets the default of new contexts (unset, 0, false or off: disabled).
// While disabled, llama_decode() is upstream's, byte for byte and step for step.

#pragma once

#include "llama.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TURBOPREFILL_VERSION "0.1.0"

#ifdef __cplusplus
extern "C" {
#endif

// Switches the pipeline of one context on or off. Waits for ubatches in flight.
LLAMA_API void llama_turboprefill_set_enabled(struct llama_context * ctx, bool enabled);
LLAMA_API bool llama_turboprefill_enabled(const struct llama_context * ctx);

// Lets each llama_decode() choose a size of ubatches up to the context's n_ubatch, from the length of the prompt and the
// number of devices. overhead: what a ubatch costs beyond its tokens, in tokens; 0 keeps n_ubatch, below 0 it is guessed from
// the model's layers. Results are those of the standard path at the chosen size. The environment variable
// TURBOPREFILL_UBATCH sets the default: auto (guessed), auto:OVERHEAD, off.
LLAMA_API void llama_turboprefill_set_auto_ubatch(struct llama_context * ctx, float overhead);

// Why the last llama_decode() used the standard path for at least one of its ubatches, "" if it did not.
// Valid until the next call on ctx.
LLAMA_API const char * llama_turboprefill_reason(const struct llama_context * ctx);

// As llama_synchronize(), and returns what the devices made of it: 0, or the code that the next llama_decode() would
// return for ubatches whose own llama_decode() had returned already; that next one then does not.
// The outputs of a prompt that failed are NaN.
LLAMA_API int32_t llama_turboprefill_synchronize(struct llama_context * ctx);

// Waits for the results of the last llama_decode() only: what it has in flight behind the last ubatch with results goes on.
// llama_get_logits() and the other functions that return results do that by themselves. false: nothing is in flight, use
// llama_synchronize(). status: receives what llama_turboprefill_synchronize() returns; nullptr leaves it to the next call
// that can.
LLAMA_API bool llama_turboprefill_synchronize_results(struct llama_context * ctx, int32_t * status);

// The same, also where nothing is in flight, and returns what llama_turboprefill_synchronize() does; what failed behind the
// results is left to the next call that waits for it.
LLAMA_API int32_t llama_turboprefill_results(struct llama_context * ctx);

// What was done since the last report or reset of the stats, in one line for a log. Valid until the next call.
LLAMA_API const char * llama_turboprefill_report(struct llama_context * ctx);

// The state of a sequence behind the ubatches in flight, as turboprefill-checkpoint.h uses it. Waits for nothing. nullptr: it
// can't be had this way, or nothing is in flight.
struct llama_turboprefill_read;
LLAMA_API struct llama_turboprefill_read * llama_turboprefill_read_state(struct llama_context * ctx, llama_seq_id seq_id, llama_state_seq_flags flags);
LLAMA_API size_t llama_turboprefill_read_size(const struct llama_turboprefill_read * read);
// waits, and copies what llama_state_seq_get_data_ext() would have returned; false: a device failed, nothing was copied
LLAMA_API bool   llama_turboprefill_read_get (struct llama_turboprefill_read * read, uint8_t * data);
LLAMA_API void   llama_turboprefill_read_free(struct llama_turboprefill_read * read); // waits as well

// Results of the last llama_decode(), for a reader that comes after later ones, see turboprefill-draft.h and
// turboprefill-server.h. hold_rows: the hidden rows of all tokens of a decode without outputs, hold_logits: the logits of one
// that makes nothing else; nullptr: there is something else, or nothing is in flight: read them now. use: waits for them, and
// the context returns them as its results until unuse, hidden rows from token i_first on; false: a device failed, which the
// next llama_decode() returns. free takes nullptr as well.
struct llama_turboprefill_rows;
LLAMA_API struct llama_turboprefill_rows * llama_turboprefill_hold_rows(struct llama_context * ctx);
LLAMA_API struct llama_turboprefill_rows * llama_turboprefill_hold_logits(struct llama_context * ctx);
LLAMA_API bool llama_turboprefill_use_rows  (struct llama_turboprefill_rows * rows, int32_t i_first);
LLAMA_API void llama_turboprefill_unuse_rows(struct llama_context * ctx);
LLAMA_API void llama_turboprefill_free_rows (struct llama_turboprefill_rows * rows);

enum llama_turboprefill_rows_state {
    LLAMA_TURBOPREFILL_ROWS_EARLY, // whoever uses them now waits, and the devices have little to do meanwhile
    LLAMA_TURBOPREFILL_ROWS_DUE,   // enough is in flight behind them
    LLAMA_TURBOPREFILL_ROWS_LATE,  // so much that it may be better not to wait any longer
};
LLAMA_API enum llama_turboprefill_rows_state llama_turboprefill_get_rows_state(const struct llama_turboprefill_rows * rows);

// Called between the ubatches of llama_decode(), when it would have to wait for the devices. nullptr: not any more.
typedef void (*llama_turboprefill_between)(void * data);
LLAMA_API void llama_turboprefill_set_between(struct llama_context * ctx, llama_turboprefill_between callback, void * data);

// Asked before each ubatch, on the caller's thread: true ends llama_decode(), which returns 2 and keeps in memory what was
// computed before, with TurboPrefill enabled or not (but for an image in several ubatches, whose tokens share a position).
// nullptr: not any more.
typedef bool (*llama_turboprefill_interrupt)(void * data);
LLAMA_API void llama_turboprefill_set_interrupt(struct llama_context * ctx, llama_turboprefill_interrupt callback, void * data);

// For how many microseconds nothing has moved in the pipeline of ctx, nullptr: of any context in this process, although
// somebody waits; 0: all is well. It is noticed after TURBOPREFILL_WATCHDOG_S seconds (default 120, 0: never). text receives up
// to n bytes with the final zero: which device does not answer, and what everybody waits for. Only the pipeline is watched,
// not graphs of the standard path. Any thread may ask, at any time while ctx exists.
LLAMA_API int64_t llama_turboprefill_stuck_us(const struct llama_context * ctx, char * text, size_t n);

// Called before a sequence (below 0: any) in the memory of ctx is changed or read, from position pos on, other than by
// llama_decode(). nullptr: not any more.
typedef void (*llama_turboprefill_before_use)(void * data, llama_seq_id seq_id, llama_pos pos);
LLAMA_API void llama_turboprefill_set_before_use(struct llama_context * ctx, llama_turboprefill_before_use callback, void * data);

struct llama_turboprefill_stats {
    int64_t n_ubatches_pipelined; // since the context was created or its stats were reset,
    int64_t n_ubatches_standard;  // counted while TurboPrefill is enabled
    int64_t n_tokens_pipelined;
    int64_t n_tokens_standard;

    int64_t n_faults;       // how often a device failed, and memory lost what it had not computed

    int64_t t_capture_us;   // host time spent on capturing ubatches
    int64_t t_slot_wait_us; // host time spent on waiting for a free slot

    uint64_t n_bytes_moved; // over stage boundaries
    uint64_t mem_host;      // bytes of host memory held by slots and transport
    uint64_t mem_device;    // bytes of device memory held by the transport

    int32_t n_stages;       // 0 before the first pipelined ubatch
    int32_t n_slots;
};

LLAMA_API struct llama_turboprefill_stats llama_turboprefill_get_stats  (const struct llama_context * ctx);
LLAMA_API void                            llama_turboprefill_reset_stats(      struct llama_context * ctx);

// How often the caller's thread waited for ubatches in flight, and why: result, synchronize, memory operation, state,
// standard-path graph, plan, growing buffer, setting, abort callback, fault, full slots. The last one is no loss: the caller is
// ahead of the devices.
struct llama_turboprefill_wait {
    const char * cause; // static
    int64_t      n;     // since the context was created or its stats were reset
    int64_t      t_us;
};

LLAMA_API int32_t llama_turboprefill_n_waits (void);
LLAMA_API bool    llama_turboprefill_get_wait(const struct llama_context * ctx, int32_t i, struct llama_turboprefill_wait * wait);

struct llama_turboprefill_stage {
    const char * device;     // lives as long as the device
    const char * transport;  // static; how the activations of the stage before arrive: "none", "staged" or "peer"
    int64_t      n_ubatches;
    uint64_t     n_bytes_in; // activations received from other stages
};

LLAMA_API int32_t llama_turboprefill_n_stages (const struct llama_context * ctx);
LLAMA_API bool    llama_turboprefill_get_stage(const struct llama_context * ctx, int32_t i, struct llama_turboprefill_stage * stage);

// Timeline of the devices' work, for both paths; it works with TurboPrefill disabled as well.
// A span begins when the split was handed to an idle device, or when the device finished the split before it.
struct llama_turboprefill_span {
    const char * device;    // owned by the context
    int32_t      stage;
    int32_t      ubatch;    // counted from trace_start
    bool         pipelined;
    int64_t      t_start_us;
    int64_t      t_end_us;
};

// starts with an empty timeline
LLAMA_API void   llama_turboprefill_trace_start(struct llama_context * ctx);
// waits for the devices, returns the number of spans
LLAMA_API size_t llama_turboprefill_trace_stop (struct llama_context * ctx);
// copies up to n spans in order of their end, returns how many
LLAMA_API size_t llama_turboprefill_trace_read (const struct llama_context * ctx, struct llama_turboprefill_span * spans, size_t n);

#ifdef __cplusplus
}
#endif
