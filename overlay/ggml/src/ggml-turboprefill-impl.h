// turboprefill: declarations shared by the engine's files and the scheduler's side (private to ggml-base)

#pragma once

#include "ggml-turboprefill.h"
#include "ggml-turboprefill-plan.h"
#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "ggml-cpp.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>

// landing regions per device, unless the scheduler has input copies of its own, and staging regions per receiving device.
// two suffice: one is read while the other is written. the third absorbs jitter on the host, where it is cheap
#define GGML_TURBOPREFILL_N_LANDINGS 2
#define GGML_TURBOPREFILL_N_STAGINGS 3
#define GGML_TURBOPREFILL_STAGING_ALIGNMENT 256
// regions per device that boundaries leave from while the next ubatch is computed
#define GGML_TURBOPREFILL_N_OUTBOXES 2
// kinds of graphs whose plans are kept: for a large model, a plan takes half a megabyte of host memory
#define GGML_TURBOPREFILL_MAX_KINDS 16

// a tensor that a split reads, written by another split or by the caller
struct ggml_turboprefill_input {
    ggml_tensor * src;
    ggml_tensor * dst;     // its copy on the split's device
    int           source;  // worker that computes src; -1: a user input in the slot's host memory
    size_t        offset;  // in the staging region, if staged
    ggml_tensor   outbox;  // src in the outbox of its worker, if there is one
};

// a result that the caller asked for
struct ggml_turboprefill_output {
    const ggml_tensor * tensor;
    void *              data;
    size_t              offset;
    size_t              size;
};

struct ggml_turboprefill_split {
    int         backend_id;
    ggml_cgraph graph;
    std::vector<ggml_turboprefill_input>  inputs;
    std::vector<ggml_turboprefill_output> outputs;
};

struct ggml_turboprefill_slot {
    int     index;
    int64_t ubatch = -1; // counted from the creation of the engine, -1: none

    std::vector<ggml_turboprefill_split> splits; // [n_splits], in the order of the graph

    // what the scheduler wrote while it split the graph, including the copies of inputs
    char         * context_buffer = nullptr; // as large as the scheduler's, and swapped with it during capture
    ggml_context * ctx            = nullptr;

    ggml_backend_buffer_ptr host; // user inputs

    std::function<void(ggml_backend_t)> before_compute;
    int trace_ubatch = 0;

    ~ggml_turboprefill_slot() {
        ggml_free(ctx);
        free(context_buffer);
    }
};

struct ggml_turboprefill_link {
    bool peer = false;
    ggml_backend_ptr receiver; // instance on the receiving device, whose stream takes the wait that a peer copy queues
};

// a tensor that one worker hands to another
struct ggml_turboprefill_boundary {
    int    from;
    int    to;
    size_t n_bytes; // padded as in the outbox
};

struct ggml_turboprefill_plan_deleter {
    void operator()(struct ggml_turboprefill_plan * plan) const { ggml_turboprefill_plan_free(plan); }
};
typedef std::unique_ptr<struct ggml_turboprefill_plan, ggml_turboprefill_plan_deleter> ggml_turboprefill_plan_ptr;

// a plan for all graphs of a kind
struct ggml_turboprefill_kind {
    uint64_t              id; // hash of the nodes: operations, sources, devices
    ggml_turboprefill_plan_ptr plan;
};

// what outlives an engine, because it is slow to allocate: the scheduler is replaced whenever a setting changes the graph
struct ggml_turboprefill_parts {
    struct worker {
        ggml_backend_buffer_type_t           buft;
        std::vector<ggml_backend_buffer_ptr> staging;
    };
    ggml_backend_buffer_type_t host_buft;
    std::vector<ggml_backend_buffer_ptr> host; // of slots
    std::vector<worker> workers;
};

// what a thread is doing, for the watchdog. the order is that of the watchdog's verbs
enum ggml_turboprefill_activity {
    GGML_TURBOPREFILL_DOES_NOTHING,
    GGML_TURBOPREFILL_UPLOADS,
    GGML_TURBOPREFILL_COMPUTES,
    GGML_TURBOPREFILL_HANDS_OVER,
    GGML_TURBOPREFILL_FINISHES,
    GGML_TURBOPREFILL_WAITS_FOR_WORKER, // until another worker has issued a ubatch to its device
    GGML_TURBOPREFILL_WAITS_FOR_DEVICE, // until another device is done with it
};

struct ggml_turboprefill_waiter {
    std::atomic<int> doing { GGML_TURBOPREFILL_DOES_NOTHING };
    std::atomic<int> other { -1 }; // the worker that it waits for

    void does(ggml_turboprefill_activity activity, int worker = -1) {
        other.store(worker,    std::memory_order_relaxed);
        doing.store(activity, std::memory_order_relaxed);
    }
};

struct ggml_turboprefill_watchdog;
struct ggml_turboprefill_watchdog_deleter {
    void operator()(ggml_turboprefill_watchdog * watchdog) const;
};

// one per backend of the scheduler. without a split it only counts ubatches
struct ggml_turboprefill_worker {
    ggml_backend_t             backend;
    ggml_backend_buffer_type_t buft;
    std::string                device;

    ggml_backend_t   upload;       // stream of the inputs; the backend itself if there is no second stream with events
    ggml_backend_ptr upload_owned;

    // stream on which boundaries leave the outbox. nullptr: no outbox, they leave from where they were computed
    ggml_backend_ptr download;
    std::vector<ggml_backend_buffer_ptr> outbox; // [GGML_TURBOPREFILL_N_OUTBOXES]
    int outbox_slot[GGML_TURBOPREFILL_N_OUTBOXES]; // whose boundary_done frees the region, -1: free. worker's thread only

    // ubatch u uses [u % n_slots]
    std::vector<ggml_backend_event_ptr> inputs_done; // [n_slots] inputs are on the device
    std::vector<ggml_backend_event_ptr> split_done;  // [n_slots] split computed, results read; no outbox: boundary too
    std::vector<ggml_backend_event_ptr> outbox_full;   // [n_slots] boundary is in the outbox
    std::vector<ggml_backend_event_ptr> boundary_done; // [n_slots] boundary has left the outbox

    std::vector<ggml_backend_buffer_ptr> landing; // [GGML_TURBOPREFILL_N_LANDINGS] or none: in front of the compute buffer
    size_t landing_size = 0;                      // of each region in front of the compute buffer
    std::vector<ggml_backend_buffer_ptr> staging; // [GGML_TURBOPREFILL_N_STAGINGS] host memory for arriving boundaries
    ggml_backend_buffer_type_t staging_buft;      // pinned by this device, else by the source of a boundary, else host_buft

    std::map<int, ggml_turboprefill_link> links; // to other workers, by their index

    std::thread         thread;
    ggml_turboprefill_waiter activity;
    int64_t             n_issued = 0; // ubatches submitted to its device; guarded by the engine's mutex

    // stats; guarded by the engine's mutex
    int64_t  n_ubatches = 0;
    uint64_t n_bytes_in = 0;
    int      arrival    = 0;  // 0: nothing arrived yet, 1: staged, 2: peer
    int      position   = -1; // of its split in the graph, -1: no split so far

    bool has_events() const { return !split_done.empty(); }
    bool has_outbox() const { return download != nullptr; }
};

struct ggml_turboprefill_engine {
    ggml_backend_sched_t sched;
    ggml_turboprefill_params  params;

    std::vector<std::unique_ptr<ggml_turboprefill_worker>> workers; // [n_backends]
    std::vector<std::unique_ptr<ggml_turboprefill_slot>>  slots;  // [n_slots]

    ggml_backend_buffer_type_t host_buft; // of user inputs, which several devices read

    int  n_copies;          // input regions per device: the scheduler's copies, or landing regions
    bool capturing = false; // from capture_begin to submit: capture uses the scheduler, so the hooks there do nothing

    mutable std::mutex      mutex;
    std::condition_variable progress;
    int64_t n_submitted = 0;     // guarded by mutex; only the caller's thread writes it, and reads it without the mutex
    bool    stop        = false; // guarded by mutex
    ggml_turboprefill_failure failure = { GGML_STATUS_SUCCESS, -1 }; // guarded by mutex

    std::atomic<ggml_turboprefill_trace *> trace { nullptr };

    // caller's thread only
    std::vector<ggml_turboprefill_kind> kinds; // of graphs, most recently used first
    std::atomic<int64_t> n_done { 0 }; // ubatches known to be computed; the watchdog reads it, too
    int64_t  i_result   = -1; // the last ubatch submitted with results, -1: none
    uint64_t mem_host   = 0;
    uint64_t mem_device = 0;
    ggml_turboprefill_wait_stats waits[GGML_TURBOPREFILL_N_CAUSES] = {};

    uint64_t n_bytes_moved  = 0; // guarded by mutex

    // for the watchdog
    ggml_turboprefill_waiter caller;
    std::atomic<int>    caller_cause { -1 }; // why the caller's thread waits, -1: it does not
    std::unique_ptr<ggml_turboprefill_watchdog, ggml_turboprefill_watchdog_deleter> watchdog;
};

// ggml-turboprefill-watchdog.cpp
void ggml_turboprefill_watch(ggml_turboprefill_engine * engine); // starts engine->watchdog

// ggml-turboprefill-worker.cpp
void ggml_turboprefill_work(ggml_turboprefill_engine * engine, int s); // thread of worker s, until the engine stops
void ggml_turboprefill_wait_issued(ggml_turboprefill_engine * engine, ggml_turboprefill_waiter & waiter, int s, int64_t ubatch); // by worker s

// ggml-turboprefill-transport.cpp
bool ggml_turboprefill_make_link(ggml_turboprefill_engine * engine, int from, int to); // true: peer copies
void ggml_turboprefill_outbox_init(ggml_turboprefill_engine * engine, ggml_turboprefill_worker & worker, size_t size);

// ggml-turboprefill-memory.cpp
bool ggml_turboprefill_reserve(ggml_backend_buffer_ptr & buf, ggml_backend_buffer_type_t buft, size_t size, uint64_t & total);
bool ggml_turboprefill_reserve_host   (ggml_turboprefill_engine * engine, ggml_backend_buffer_ptr & buf, size_t size);
bool ggml_turboprefill_reserve_landing(ggml_turboprefill_engine * engine, ggml_turboprefill_worker & worker, size_t size);
bool ggml_turboprefill_reserve_staging(ggml_turboprefill_engine * engine, ggml_turboprefill_worker & worker, size_t size);
bool ggml_turboprefill_reserve_outbox (ggml_turboprefill_engine * engine, ggml_turboprefill_worker & worker, size_t size);

// ggml-turboprefill-trace.cpp
// begin just before a split is submitted to its backend, end just after. trace may be nullptr
void ggml_turboprefill_trace_begin(ggml_turboprefill_trace * trace, ggml_backend_t backend);
void ggml_turboprefill_trace_end  (ggml_turboprefill_trace * trace, ggml_backend_t backend, int stage, int ubatch, bool pipelined);
int  ggml_turboprefill_trace_next_ubatch(ggml_turboprefill_trace * trace);
int  ggml_turboprefill_trace_cur_ubatch (ggml_turboprefill_trace * trace);

// ggml-turboprefill-thread.cpp
struct ggml_turboprefill_thread {
    ggml_turboprefill_engine * captured_by = nullptr;
    ggml_turboprefill_slot   * captured    = nullptr; // captured and not yet submitted
    ggml_turboprefill_engine * splitting   = nullptr; // whose graph is being split
    std::vector<ggml_turboprefill_tensor_read> * reads = nullptr; // where reads of tensors are recorded
};
ggml_turboprefill_thread & ggml_turboprefill_this_thread();

// the hooks in ggml-backend.cpp
ggml_backend_t ggml_turboprefill_optimizer(ggml_backend_t backend);
bool ggml_turboprefill_record_read  (const ggml_tensor * tensor, void * data, size_t offset, size_t size);
bool ggml_turboprefill_queue_output (ggml_backend_t backend, const ggml_tensor * tensor, void * data, size_t offset, size_t size);
void ggml_turboprefill_regroup      (ggml_backend_sched_t sched, ggml_cgraph * graph);
void ggml_turboprefill_sched_drain  (ggml_backend_sched_t sched); // before something else reads or uses the devices
void ggml_turboprefill_sched_compute(ggml_backend_sched_t sched); // before a graph is computed on the standard path

// while one exists, the watchdog knows that the caller's thread waits
struct ggml_turboprefill_watched {
    ggml_turboprefill_watched(ggml_turboprefill_engine * engine, ggml_turboprefill_cause cause) : engine(engine), cause(cause) {
        engine->caller_cause = cause;
    }
    ~ggml_turboprefill_watched() {
        engine->caller_cause = -1;
        engine->caller.does(GGML_TURBOPREFILL_DOES_NOTHING);
    }

    ggml_turboprefill_engine * const engine;
    const ggml_turboprefill_cause    cause;
};

// the same, and the wait is counted
struct ggml_turboprefill_waiting : ggml_turboprefill_watched {
    ggml_turboprefill_waiting(ggml_turboprefill_engine * engine, ggml_turboprefill_cause cause) : ggml_turboprefill_watched(engine, cause), t_start_us(ggml_time_us()) {}
    ~ggml_turboprefill_waiting() {
        engine->waits[cause].n++;
        engine->waits[cause].t_us += ggml_time_us() - t_start_us;
    }

    const int64_t t_start_us;
};

// ggml-turboprefill-place.cpp
bool   ggml_turboprefill_is_user_input(const ggml_tensor * tensor); // an input that the caller writes, or a view of one
size_t ggml_turboprefill_padded_size  (ggml_backend_buffer_type_t buft, const ggml_tensor * tensor); // in a buffer, up to the next tensor
void   ggml_turboprefill_place        (ggml_tensor * tensor, ggml_backend_buffer_t buffer, size_t offset);
size_t ggml_turboprefill_graph_user_bytes(const ggml_turboprefill_engine * engine, const ggml_cgraph * graph); // size of its user inputs
std::vector<ggml_tensor *> ggml_turboprefill_user_inputs(const ggml_cgraph * graph);
// false: out of memory
bool ggml_turboprefill_place_inputs     (ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot);
bool ggml_turboprefill_place_outboxes   (ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot);
bool ggml_turboprefill_place_user_inputs(ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot, ggml_cgraph * graph, const std::vector<ggml_tensor *> & leafs);

// ggml-turboprefill-sched.inc
void   ggml_turboprefill_sched_release(ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot, bool take_ctx);
size_t ggml_turboprefill_sched_context_bytes(ggml_backend_sched_t sched);

// ggml-turboprefill-graph.inc: about the graph that the scheduler has split last
size_t ggml_turboprefill_sched_input_bytes(ggml_backend_sched_t sched, int backend_id); // all inputs of the splits on a backend
std::vector<ggml_turboprefill_boundary> ggml_turboprefill_sched_boundaries(ggml_backend_sched_t sched); // what backends hand to each other
