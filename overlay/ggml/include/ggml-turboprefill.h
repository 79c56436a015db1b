// turboprefill: capture and replay of scheduler splits, the part that lives in ggml
//
// Terms, used throughout:
//   ubatch    the micro-batch that one graph computes
//   split     the part of that graph on one backend
//   stage     the position of a split in the graph: stage s works on ubatch u while stage s+1 works on ubatch u-1
//   worker    a backend of the scheduler with its thread, streams and buffers
//   boundary  the tensors that one split hands to another
//   slot      what one ubatch in flight owns: its splits, its tensor copies, host memory for its inputs
//   capture   build, split and allocate the graph of a ubatch, then take it out of the scheduler (caller's thread)
//   replay    compute the captured splits in the order of capture (workers)
//
// Usage, per ubatch:
//
//   ggml_turboprefill_slot * slot = ggml_turboprefill_acquire(engine);  // waits for a free slot
//   ggml_turboprefill_capture_begin(engine, slot);                      // the scheduler is empty now and writes into the slot
//   ... build the graph ...
//   ggml_turboprefill_capture_graph(engine, slot, graph, false, &why);  // split, allocate, take out
//   ... write the user inputs ...
//   ... ggml_backend_tensor_get_async() of the results: queued behind the split that computes them ...
//   ggml_turboprefill_submit(engine, slot, nullptr);                    // the workers may have it
//
// A capture that finds no allocation plan for its kind of graph returns GGML_TURBOPREFILL_CAPTURE_NO_PLAN. Then
// ggml_turboprefill_plan_graph() makes one from the largest graph of that kind, and the ubatch is built and captured again.
//
// One thread at a time uses an engine: the one that uses the scheduler.

#pragma once

#include "ggml-backend.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

struct ggml_turboprefill_engine;
struct ggml_turboprefill_parts;
struct ggml_turboprefill_slot;
struct ggml_turboprefill_trace;

enum ggml_turboprefill_transport {
    GGML_TURBOPREFILL_TRANSPORT_STAGED, // device to host memory to device
    GGML_TURBOPREFILL_TRANSPORT_PEER,   // device to device, by the backend's asynchronous copy, where devices support it
};

enum ggml_turboprefill_capture_status {
    GGML_TURBOPREFILL_CAPTURE_OK,
    GGML_TURBOPREFILL_CAPTURE_NOT_ELIGIBLE, // the graph is allocated in the scheduler: compute it there
    GGML_TURBOPREFILL_CAPTURE_NO_PLAN,      // nothing was captured, the scheduler is empty again
    GGML_TURBOPREFILL_CAPTURE_ALLOC_FAILED,
};

// why the caller's thread waits for ubatches in flight
enum ggml_turboprefill_cause {
    GGML_TURBOPREFILL_CAUSE_RESULT,      // a result of the last decode is read: only the ubatches that make results
    GGML_TURBOPREFILL_CAUSE_SYNCHRONIZE, // llama_synchronize() and everything that calls it
    GGML_TURBOPREFILL_CAUSE_MEMORY,      // an operation on sequences that are in flight
    GGML_TURBOPREFILL_CAUSE_STATE,       // state is read or written
    GGML_TURBOPREFILL_CAUSE_GRAPH,       // a graph of the standard path
    GGML_TURBOPREFILL_CAUSE_PLAN,        // a kind of graph that was not there before
    GGML_TURBOPREFILL_CAUSE_BUFFER,      // transport buffers grow
    GGML_TURBOPREFILL_CAUSE_SETTING,     // the context changes: adapters, callbacks, threads, the scheduler
    GGML_TURBOPREFILL_CAUSE_ABORT,       // the abort callback's verdict
    GGML_TURBOPREFILL_CAUSE_FAULT,       // a device failed
    GGML_TURBOPREFILL_CAUSE_SLOT,        // all slots are in flight: the caller is ahead of the devices, as it should be
    GGML_TURBOPREFILL_N_CAUSES,
};

// What the watchdog has found; it outlives engines, and any thread may ask for it.
struct ggml_turboprefill_health;
GGML_API std::shared_ptr<ggml_turboprefill_health> ggml_turboprefill_health_new();

// For how long there has been no progress, and why; 0: all is well. nullptr: of any engine in the process
GGML_API int64_t ggml_turboprefill_stuck_us(const ggml_turboprefill_health * health, std::string & what);

// This thread talks to that RPC server until it ends: if the process is aborted in it, the message names the server.
GGML_API void ggml_turboprefill_serves(const char * endpoint);

struct ggml_turboprefill_params {
    int    n_slots        = 0; // 0: number of backends + 2
    size_t max_host_bytes = (size_t) 4*1024*1024*1024; // for user inputs: the number of slots is reduced to fit
    ggml_turboprefill_transport transport = GGML_TURBOPREFILL_TRANSPORT_STAGED;
    double watchdog_s = 0; // without progress for this long, the log says why. 0: never
    std::shared_ptr<ggml_turboprefill_health> health = nullptr; // nullptr: a new one
};

struct ggml_turboprefill_wait_stats {
    int64_t n;
    int64_t t_us;
};

struct ggml_turboprefill_engine_stats {
    ggml_turboprefill_wait_stats waits[GGML_TURBOPREFILL_N_CAUSES];
    uint64_t n_bytes_moved;
    uint64_t mem_host;
    uint64_t mem_device;
    int      n_slots;
};

struct ggml_turboprefill_stage_stats {
    const char * device;    // owned by the backend's registry
    const char * transport; // static
    int64_t      n_ubatches;
    uint64_t     n_bytes_in;
};

struct ggml_turboprefill_failure {
    ggml_status status;  // GGML_STATUS_SUCCESS: none
    int64_t     ubatch;  // the first that was not computed everywhere; all later ones were not either
};

// Why the graph that the scheduler reserved last cannot be pipelined; nullptr if it can.
GGML_API const char * ggml_turboprefill_why_not(ggml_backend_sched_t sched);

// Devices that multiply matrices in that graph: the lookup of token embeddings on the CPU does not count
GGML_API int ggml_turboprefill_n_devices(ggml_backend_sched_t sched);

// true if that graph returns to a device that it has left
GGML_API bool ggml_turboprefill_repeats_devices(ggml_backend_sched_t sched);

// Lets the scheduler group the nodes by device where the graph allows it (off by default).
// The graphs of recurrent models need this to have one split per device.
GGML_API void ggml_turboprefill_sched_set_regroup(ggml_backend_sched_t sched, bool regroup);

// graph: the one that was reserved last, the largest there will be. parts: of a previous engine, or nullptr; consumed.
// Returns nullptr if memory or threads are not available.
GGML_API ggml_turboprefill_engine * ggml_turboprefill_engine_new (ggml_backend_sched_t sched, const ggml_cgraph * graph, ggml_turboprefill_params params, ggml_turboprefill_parts * parts);
GGML_API void                  ggml_turboprefill_engine_free(ggml_turboprefill_engine * engine); // drains first

// Drains and frees the engine, but keeps what is slow to allocate: pinned memory.
GGML_API ggml_turboprefill_parts * ggml_turboprefill_engine_dismantle(ggml_turboprefill_engine * engine);
GGML_API void                 ggml_turboprefill_parts_free      (ggml_turboprefill_parts * parts);

GGML_API ggml_turboprefill_slot * ggml_turboprefill_acquire    (ggml_turboprefill_engine * engine); // nullptr after a failure
GGML_API void                ggml_turboprefill_cancel     (ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot); // instead of submit
GGML_API int                 ggml_turboprefill_slot_index (const ggml_turboprefill_slot * slot);
GGML_API int64_t             ggml_turboprefill_slot_ubatch(const ggml_turboprefill_slot * slot);

GGML_API void                        ggml_turboprefill_capture_begin(ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot);
// may_plan: if there is no plan, make one for this very graph instead of returning NO_PLAN
GGML_API ggml_turboprefill_capture_status ggml_turboprefill_capture_graph(ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot, ggml_cgraph * graph, bool may_plan, const char ** why_not);

// Makes an allocation plan from a graph, for all graphs of its kind that are not larger. The scheduler is empty before and
// after. Waits for ubatches in flight only if the scheduler's buffers have to grow. false: out of memory
GGML_API bool ggml_turboprefill_plan_graph(ggml_turboprefill_engine * engine, ggml_cgraph * graph);

// before_compute runs on each worker, just before its split
GGML_API void ggml_turboprefill_submit(ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot, std::function<void(ggml_backend_t)> before_compute);

struct ggml_turboprefill_tensor_read {
    const ggml_tensor * tensor; // memory of a device
    void *        data;   // must stay valid until the ubatch is computed
    size_t        offset;
    size_t        size;
};

// Until this is called with nullptr, ggml_backend_tensor_get() on this thread appends to reads instead of reading.
GGML_API void ggml_turboprefill_record_reads(std::vector<ggml_turboprefill_tensor_read> * reads);

// Instead of submit: reads what the tensors hold once everything submitted so far is computed, as a ubatch without tokens.
// false: a tensor belongs to no worker, the slot was cancelled
GGML_API bool ggml_turboprefill_submit_reads(ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot, const std::vector<ggml_turboprefill_tensor_read> & reads);

// The last submitted ubatch with results, -1: none.
GGML_API int64_t ggml_turboprefill_last_result(const ggml_turboprefill_engine * engine);

// Waits until this ubatch and all before it are computed and their results have arrived, or until they failed.
GGML_API void ggml_turboprefill_wait (ggml_turboprefill_engine * engine, int64_t ubatch, ggml_turboprefill_cause cause);
// The same for every submitted ubatch.
GGML_API void ggml_turboprefill_drain(ggml_turboprefill_engine * engine, ggml_turboprefill_cause cause);
// Waits until workers on the host have computed every submitted ubatch: then their faults are known.
GGML_API void ggml_turboprefill_drain_host(ggml_turboprefill_engine * engine);
// whether the next ubatch would have to wait for a slot, or almost
GGML_API bool ggml_turboprefill_full (ggml_turboprefill_engine * engine);
GGML_API bool ggml_turboprefill_idle (const ggml_turboprefill_engine * engine);

GGML_API const char * ggml_turboprefill_cause_name(ggml_turboprefill_cause cause);

GGML_API ggml_turboprefill_failure ggml_turboprefill_get_failure  (ggml_turboprefill_engine * engine);
GGML_API void                 ggml_turboprefill_clear_failure(ggml_turboprefill_engine * engine); // drain first

GGML_API ggml_turboprefill_engine_stats             ggml_turboprefill_get_stats (const ggml_turboprefill_engine * engine);
GGML_API std::vector<ggml_turboprefill_stage_stats> ggml_turboprefill_get_stages(const ggml_turboprefill_engine * engine);
GGML_API void                                  ggml_turboprefill_reset_stats(ggml_turboprefill_engine * engine);

//
// timeline
//

struct ggml_turboprefill_span {
    ggml_backend_t backend;
    int            stage;
    int            ubatch;
    bool           pipelined;
    int64_t        t_start_us;
    int64_t        t_end_us;
};

GGML_API ggml_turboprefill_trace * ggml_turboprefill_trace_new ();
GGML_API void                 ggml_turboprefill_trace_free(ggml_turboprefill_trace * trace);
// waits for all spans, in order of their end
GGML_API std::vector<ggml_turboprefill_span> ggml_turboprefill_trace_spans(ggml_turboprefill_trace * trace);

// at most one of each, nullptr: none; the scheduler does not own them
GGML_API void ggml_turboprefill_sched_set_engine(ggml_backend_sched_t sched, ggml_turboprefill_engine * engine);
GGML_API void ggml_turboprefill_sched_set_trace (ggml_backend_sched_t sched, ggml_turboprefill_trace  * trace);
