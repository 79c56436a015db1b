// turboprefill: capture and replay of scheduler splits, the part that lives in ggml
//
// Words, used everywhere:
//   ubatch    the piece of a batch that one graph computes
//   split     the part of that graph on one backend
//   stage     a device with its split; stage s works on ubatch u while stage s+1 works on ubatch u-1
//   boundary  the tensors that one split hands to another
//   slot      what one ubatch in flight owns: its splits, its tensor copies, host memory for its inputs
//   capture   build, split and allocate the graph of a ubatch, then take it out of the scheduler (caller's thread)
//   replay    compute the captured splits, one worker thread per stage, in the order of capture
//
// Use, per ubatch:
//
//   turboprefill_slot * slot = turboprefill_acquire(engine);  // waits for a free slot
//   turboprefill_capture_begin(engine, slot);                 // the scheduler is now empty and writes into the slot
//   ... build the graph ...
//   turboprefill_capture_graph(engine, slot, graph, &why);    // split, allocate, take out
//   ... write the user inputs ...
//   ... ggml_backend_tensor_get_async() of the results: queued behind the split that computes them ...
//   turboprefill_submit(engine, slot);                        // the workers may have it
//
// A capture that finds no plan for its kind of graph says TURBOPREFILL_CAPTURE_NO_PLAN: turboprefill_plan_graph() makes one from
// the largest graph of that kind, then the graph of the ubatch is built and captured again.
//
// One thread at a time uses an engine; it is the thread that uses the scheduler.

#pragma once

#include "ggml-backend.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

struct turboprefill_engine;
struct turboprefill_parts;
struct turboprefill_slot;
struct turboprefill_trace;

enum turboprefill_transport {
    TURBOPREFILL_TRANSPORT_STAGED, // device to host memory to device
    TURBOPREFILL_TRANSPORT_PEER,   // device to device, through the backend's asynchronous copy, where devices have one
};

enum turboprefill_capture_status {
    TURBOPREFILL_CAPTURE_OK,
    TURBOPREFILL_CAPTURE_NOT_ELIGIBLE, // the graph is allocated in the scheduler: compute it there
    TURBOPREFILL_CAPTURE_NO_PLAN,      // nothing was captured, the scheduler is empty again
    TURBOPREFILL_CAPTURE_ALLOC_FAILED,
};

// why the caller's thread waits for ubatches in flight
enum turboprefill_cause {
    TURBOPREFILL_CAUSE_RESULT,      // a result of the last decode is read: only the ubatches that make results
    TURBOPREFILL_CAUSE_SYNCHRONIZE, // llama_synchronize() and whatever calls it
    TURBOPREFILL_CAUSE_MEMORY,      // an operation on sequences that are in flight
    TURBOPREFILL_CAUSE_STATE,       // state is read or written
    TURBOPREFILL_CAUSE_GRAPH,       // a graph of the standard path
    TURBOPREFILL_CAUSE_PLAN,        // a kind of graph that was not there before
    TURBOPREFILL_CAUSE_BUFFER,      // transport buffers grow
    TURBOPREFILL_CAUSE_SETTING,     // the context changes: adapters, callbacks, threads, the scheduler
    TURBOPREFILL_CAUSE_ABORT,       // the abort callback's verdict
    TURBOPREFILL_CAUSE_FAULT,       // a device failed
    TURBOPREFILL_CAUSE_SLOT,        // all slots are in flight: the caller is ahead of the devices, as it should be
    TURBOPREFILL_N_CAUSES,
};

// What the watchdog has found out; it outlives engines, and may be asked by any thread.
struct turboprefill_health;
GGML_API std::shared_ptr<turboprefill_health> turboprefill_health_new();

// for how long nothing has moved, and why; 0: all is well. nullptr: of any engine of the process
GGML_API int64_t turboprefill_stuck_us(const turboprefill_health * health, std::string & what);

// Until it ends, this thread talks to that RPC server: if the process is aborted in it, the message says so.
GGML_API void turboprefill_serves(const char * endpoint);

struct turboprefill_params {
    int    n_slots        = 0; // 0: number of backends + 2
    size_t max_host_bytes = (size_t) 4*1024*1024*1024; // for user inputs: there are fewer slots if more would need more
    turboprefill_transport transport = TURBOPREFILL_TRANSPORT_STAGED;
    double watchdog_s = 0; // nothing moves for so long: the log says why. 0: never
    std::shared_ptr<turboprefill_health> health = nullptr; // one is made if there is none
};

struct turboprefill_wait_stats {
    int64_t n;
    int64_t t_us;
};

struct turboprefill_engine_stats {
    turboprefill_wait_stats waits[TURBOPREFILL_N_CAUSES];
    uint64_t n_bytes_moved;
    uint64_t mem_host;
    uint64_t mem_device;
    int      n_slots;
};

struct turboprefill_stage_stats {
    const char * device;    // owned by the backend's registry
    const char * transport; // static
    int64_t      n_ubatches;
    uint64_t     n_bytes_in;
};

struct turboprefill_failure {
    ggml_status status;  // GGML_STATUS_SUCCESS: none
    int64_t     ubatch;  // the first that was not computed everywhere; all later ones were not either
};

// What the scheduler's last reserved graph says about pipelining: nullptr if it fits, else the reason why not.
GGML_API const char * turboprefill_why_not(ggml_backend_sched_t sched);

// devices that multiply in that graph: the lookup of token embeddings, which the CPU does, is not worth a stage
GGML_API int turboprefill_n_devices(ggml_backend_sched_t sched);

// true if that graph goes back to a device that it had left
GGML_API bool turboprefill_repeats_devices(ggml_backend_sched_t sched);

// Let the scheduler compute the nodes of each device together, where the graph allows it (off by default).
// The graphs of recurrent models need it to have one split per device.
GGML_API void turboprefill_sched_set_regroup(ggml_backend_sched_t sched, bool regroup);

// graph: the one that was reserved last, the largest there will be. nullptr if memory or threads can't be had.
// parts: of an engine before it, or nullptr; they are used up
GGML_API turboprefill_engine * turboprefill_engine_new (ggml_backend_sched_t sched, const ggml_cgraph * graph, turboprefill_params params, turboprefill_parts * parts);
GGML_API void                  turboprefill_engine_free(turboprefill_engine * engine); // drains first

// Drains and frees the engine, but keeps what is slow to get: pinned memory.
GGML_API turboprefill_parts * turboprefill_engine_dismantle(turboprefill_engine * engine);
GGML_API void                 turboprefill_parts_free      (turboprefill_parts * parts);

GGML_API turboprefill_slot * turboprefill_acquire    (turboprefill_engine * engine); // nullptr after a failure
GGML_API void                turboprefill_cancel     (turboprefill_engine * engine, turboprefill_slot * slot); // instead of submit
GGML_API int                 turboprefill_slot_index (const turboprefill_slot * slot);
GGML_API int64_t             turboprefill_slot_ubatch(const turboprefill_slot * slot);

GGML_API void                        turboprefill_capture_begin(turboprefill_engine * engine, turboprefill_slot * slot);
// may_plan: if there is no plan, then one for this very graph, instead of NO_PLAN
GGML_API turboprefill_capture_status turboprefill_capture_graph(turboprefill_engine * engine, turboprefill_slot * slot, ggml_cgraph * graph, bool may_plan, const char ** why_not);

// Plans a graph, for all graphs of its kind that are not larger. The scheduler is empty before and after. Ubatches in flight
// are waited for only if the scheduler's buffers have to grow. false: no memory
GGML_API bool turboprefill_plan_graph(turboprefill_engine * engine, ggml_cgraph * graph);

// before_compute runs on the worker of each stage, just before its split
GGML_API void turboprefill_submit(turboprefill_engine * engine, turboprefill_slot * slot, std::function<void(ggml_backend_t)> before_compute);

struct turboprefill_tensor_read {
    const ggml_tensor * tensor; // memory of a device
    void *        data;   // may not move or go before the ubatch is computed
    size_t        offset;
    size_t        size;
};

// Until it is called with nullptr, ggml_backend_tensor_get() of this thread adds to reads instead of reading.
GGML_API void turboprefill_record_reads(std::vector<turboprefill_tensor_read> * reads);

// Instead of submit: what the tensors hold once everything submitted so far is computed. The slot's number is that of a
// ubatch without tokens. false: a tensor belongs to no stage, the slot was cancelled
GGML_API bool turboprefill_submit_reads(turboprefill_engine * engine, turboprefill_slot * slot, const std::vector<turboprefill_tensor_read> & reads);

// The last submitted ubatch that has results, -1: none.
GGML_API int64_t turboprefill_last_result(const turboprefill_engine * engine);

// Waits until this ubatch and all before it were computed and their results have arrived, or until they failed.
GGML_API void turboprefill_wait (turboprefill_engine * engine, int64_t ubatch, turboprefill_cause cause);
// The same for every submitted ubatch.
GGML_API void turboprefill_drain(turboprefill_engine * engine, turboprefill_cause cause);
// Waits until host stages have computed every submitted ubatch: their faults are known then.
GGML_API void turboprefill_drain_host(turboprefill_engine * engine);
// the next ubatch would have to wait for a slot, or almost
GGML_API bool turboprefill_full (turboprefill_engine * engine);
GGML_API bool turboprefill_idle (const turboprefill_engine * engine);

GGML_API const char * turboprefill_cause_name(turboprefill_cause cause);

GGML_API turboprefill_failure turboprefill_get_failure  (turboprefill_engine * engine);
GGML_API void                 turboprefill_clear_failure(turboprefill_engine * engine); // drain first

GGML_API turboprefill_engine_stats             turboprefill_get_stats (const turboprefill_engine * engine);
GGML_API std::vector<turboprefill_stage_stats> turboprefill_get_stages(const turboprefill_engine * engine);
GGML_API void                                  turboprefill_reset_stats(turboprefill_engine * engine);

//
// timeline
//

struct turboprefill_span {
    ggml_backend_t backend;
    int            stage;
    int            ubatch;
    bool           pipelined;
    int64_t        t_start_us;
    int64_t        t_end_us;
};

GGML_API turboprefill_trace * turboprefill_trace_new ();
GGML_API void                 turboprefill_trace_free(turboprefill_trace * trace);
// waits for all spans, in order of their end
GGML_API std::vector<turboprefill_span> turboprefill_trace_spans(turboprefill_trace * trace);

// at most one each, nullptr: none; the scheduler does not own them
GGML_API void turboprefill_sched_set_engine(ggml_backend_sched_t sched, turboprefill_engine * engine);
GGML_API void turboprefill_sched_set_trace (ggml_backend_sched_t sched, turboprefill_trace  * trace);
