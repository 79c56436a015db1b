// turboprefill: an engine in use, on the caller's thread: slots, submission, waiting, failures, statistics
//
// It is created and freed in ggml-turboprefill-engine.cpp; its workers run ggml-turboprefill-worker.cpp.

#include "ggml-turboprefill-impl.h"

#include <algorithm>
#include <iterator>
#include <utility>

ggml_turboprefill_slot * ggml_turboprefill_acquire(ggml_turboprefill_engine * engine) {
    GGML_ASSERT(!engine->capturing && "the previous slot was not submitted");

    ggml_turboprefill_slot * slot = engine->slots[engine->n_submitted % engine->params.n_slots].get();

    ggml_turboprefill_wait(engine, slot->ubatch, GGML_TURBOPREFILL_CAUSE_SLOT);
    if (ggml_turboprefill_get_failure(engine).status != GGML_STATUS_SUCCESS) {
        return nullptr;
    }

    if (ggml_turboprefill_idle(engine)) {
        // a graph of the standard path, which the engine does not count, may still be running in the same memory
        const ggml_turboprefill_watched watched(engine, GGML_TURBOPREFILL_CAUSE_GRAPH);
        for (size_t s = 0; s < engine->workers.size(); s++) {
            engine->caller.does(GGML_TURBOPREFILL_WAITS_FOR_DEVICE, (int) s);
            ggml_backend_synchronize(engine->workers[s]->backend);
        }
    }

    slot->ubatch = engine->n_submitted;
    slot->splits.clear();
    slot->before_compute = nullptr;
    ggml_free(slot->ctx);
    slot->ctx = nullptr;

    return slot;
}

void ggml_turboprefill_cancel(ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot) {
    if (engine->capturing) {
        ggml_turboprefill_sched_release(engine, slot, /*.take_ctx =*/ false);
        ggml_backend_sched_reset(engine->sched);
    }
    slot->ubatch = -1;
}

static void ggml_turboprefill_hand_over(ggml_turboprefill_engine * engine) {
    {
        std::lock_guard<std::mutex> lock(engine->mutex);
        engine->n_submitted++;
    }
    engine->progress.notify_all();
}

void ggml_turboprefill_submit(ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot, std::function<void(ggml_backend_t)> before_compute) {
    ggml_turboprefill_sched_release(engine, slot, /*.take_ctx =*/ true);

    slot->before_compute = std::move(before_compute);
    slot->trace_ubatch   = ggml_turboprefill_trace_next_ubatch(engine->trace);
    for (const auto & split : slot->splits) {
        if (!split.outputs.empty()) {
            engine->i_result = slot->ubatch;
        }
    }
    {
        std::lock_guard<std::mutex> lock(engine->mutex);
        for (size_t i = 0; i < slot->splits.size(); i++) {
            engine->workers[slot->splits[i].backend_id]->position = (int) i;
        }
    }
    ggml_turboprefill_hand_over(engine);
}

// the worker whose stream writes to the tensor, -1: none
static int ggml_turboprefill_worker_of(const ggml_turboprefill_engine * engine, const ggml_tensor * tensor) {
    const ggml_backend_buffer_t buffer = tensor->view_src ? tensor->view_src->buffer : tensor->buffer;
    if (buffer == nullptr) {
        return -1;
    }
    for (size_t s = 0; s < engine->workers.size(); s++) {
        if (engine->workers[s]->position >= 0 && ggml_backend_supports_buft(engine->workers[s]->backend, ggml_backend_buffer_get_type(buffer))) {
            return (int) s;
        }
    }
    return -1;
}

bool ggml_turboprefill_submit_reads(ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot, const std::vector<ggml_turboprefill_tensor_read> & reads) {
    std::map<int, ggml_turboprefill_split> splits;
    for (const auto & read : reads) {
        const int s = ggml_turboprefill_worker_of(engine, read.tensor);
        if (s < 0) {
            ggml_turboprefill_cancel(engine, slot);
            return false;
        }
        splits.emplace(s, ggml_turboprefill_split { s, {}, {}, {} }).first->second.outputs.push_back({ read.tensor, read.data, read.offset, read.size });
    }
    for (auto & split : splits) {
        slot->splits.push_back(std::move(split.second));
    }
    ggml_turboprefill_hand_over(engine);
    return true;
}

int ggml_turboprefill_slot_index(const ggml_turboprefill_slot * slot) {
    return slot->index;
}

int64_t ggml_turboprefill_slot_ubatch(const ggml_turboprefill_slot * slot) {
    return slot->ubatch;
}

int64_t ggml_turboprefill_last_result(const ggml_turboprefill_engine * engine) {
    return engine->i_result;
}

bool ggml_turboprefill_full(ggml_turboprefill_engine * engine) {
    const int64_t ubatch = engine->slots[engine->n_submitted % engine->params.n_slots]->ubatch;
    if (ubatch < engine->n_done) {
        return false;
    }
    // whether a device has computed the last ubatch that it was issued is not known: only those before it count
    std::lock_guard<std::mutex> lock(engine->mutex);
    return std::any_of(engine->workers.begin(), engine->workers.end(), [&](const auto & worker) { return worker->n_issued <= ubatch + 1; });
}

bool ggml_turboprefill_idle(const ggml_turboprefill_engine * engine) {
    return engine->n_done == engine->n_submitted;
}

void ggml_turboprefill_drain_host(ggml_turboprefill_engine * engine) {
    if (ggml_turboprefill_idle(engine)) {
        return;
    }
    const ggml_turboprefill_waiting waiting(engine, GGML_TURBOPREFILL_CAUSE_ABORT);
    for (size_t s = 0; s < engine->workers.size(); s++) {
        if (ggml_backend_dev_type(engine->workers[s]->backend->device) == GGML_BACKEND_DEVICE_TYPE_CPU) {
            ggml_turboprefill_wait_issued(engine, engine->caller, (int) s, engine->n_submitted - 1);
        }
    }
}

// one ubatch after the other, so that the watchdog sees progress
static void ggml_turboprefill_wait_one_by_one(ggml_turboprefill_engine * engine, int64_t ubatch) {
    for (int64_t u = engine->n_done; u <= ubatch; u++) {
        for (size_t s = 0; s < engine->workers.size(); s++) {
            const auto & worker = engine->workers[s];
            ggml_turboprefill_wait_issued(engine, engine->caller, (int) s, u);
            engine->caller.does(GGML_TURBOPREFILL_WAITS_FOR_DEVICE, (int) s);
            // still the event of this ubatch: its slot is not reused before it is done
            if (worker->has_events()) {
                ggml_backend_event_synchronize(worker->split_done[u % engine->params.n_slots].get());
            }
        }
        engine->n_done = u + 1;
    }
}

void ggml_turboprefill_wait(ggml_turboprefill_engine * engine, int64_t ubatch, ggml_turboprefill_cause cause) {
    if (ubatch < engine->n_done) {
        return;
    }
    if (ubatch == engine->n_submitted - 1) {
        // nothing stays in flight: synchronize the devices instead of waiting for the events of the last ubatch
        ggml_turboprefill_drain(engine, cause);
        return;
    }
    const ggml_turboprefill_waiting waiting(engine, cause);
    ggml_turboprefill_wait_one_by_one(engine, ubatch);
}

void ggml_turboprefill_drain(ggml_turboprefill_engine * engine, ggml_turboprefill_cause cause) {
    if (ggml_turboprefill_idle(engine)) {
        return;
    }
    const ggml_turboprefill_waiting waiting(engine, cause);
    ggml_turboprefill_wait_one_by_one(engine, engine->n_submitted - 2);
    for (size_t s = 0; s < engine->workers.size(); s++) {
        ggml_turboprefill_wait_issued(engine, engine->caller, (int) s, engine->n_submitted - 1);
    }
    for (size_t s = 0; s < engine->workers.size(); s++) {
        const auto & worker = engine->workers[s];
        engine->caller.does(GGML_TURBOPREFILL_WAITS_FOR_DEVICE, (int) s);
        ggml_backend_synchronize(worker->backend);
        if (worker->upload != worker->backend) {
            ggml_backend_synchronize(worker->upload);
        }
        if (worker->has_outbox()) {
            ggml_backend_synchronize(worker->download.get());
        }
    }
    engine->n_done = engine->n_submitted;
}

ggml_turboprefill_failure ggml_turboprefill_get_failure(ggml_turboprefill_engine * engine) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    return engine->failure;
}

void ggml_turboprefill_clear_failure(ggml_turboprefill_engine * engine) {
    GGML_ASSERT(ggml_turboprefill_idle(engine));
    std::lock_guard<std::mutex> lock(engine->mutex);
    engine->failure = { GGML_STATUS_SUCCESS, -1 };
}

//
// stats
//

const char * ggml_turboprefill_cause_name(ggml_turboprefill_cause cause) {
    static const char * const names[] = {
        "result", "synchronize", "memory operation", "state", "standard-path graph", "plan", "growing buffer", "setting",
        "abort callback", "fault", "full slots",
    };
    static_assert(sizeof(names)/sizeof(names[0]) == GGML_TURBOPREFILL_N_CAUSES, "one name for each cause");
    return names[cause];
}

ggml_turboprefill_engine_stats ggml_turboprefill_get_stats(const ggml_turboprefill_engine * engine) {
    ggml_turboprefill_engine_stats stats = {};
    std::copy(std::begin(engine->waits), std::end(engine->waits), stats.waits);
    stats.mem_host   = engine->mem_host;
    stats.mem_device = engine->mem_device;
    stats.n_slots    = engine->params.n_slots;

    std::lock_guard<std::mutex> lock(engine->mutex);
    stats.n_bytes_moved = engine->n_bytes_moved;
    return stats;
}

std::vector<ggml_turboprefill_stage_stats> ggml_turboprefill_get_stages(const ggml_turboprefill_engine * engine) {
    static const char * const transports[] = { "none", "staged", "peer" };

    std::lock_guard<std::mutex> lock(engine->mutex);

    std::vector<const ggml_turboprefill_worker *> order;
    for (auto & worker : engine->workers) {
        if (worker->position >= 0) {
            order.push_back(worker.get());
        }
    }
    std::sort(order.begin(), order.end(), [](auto * a, auto * b) { return a->position < b->position; });

    std::vector<ggml_turboprefill_stage_stats> stats;
    for (auto * worker : order) {
        stats.push_back({ ggml_backend_dev_name(worker->backend->device), transports[worker->arrival], worker->n_ubatches, worker->n_bytes_in });
    }
    return stats;
}

void ggml_turboprefill_reset_stats(ggml_turboprefill_engine * engine) {
    std::fill(std::begin(engine->waits), std::end(engine->waits), ggml_turboprefill_wait_stats {});

    std::lock_guard<std::mutex> lock(engine->mutex);
    engine->n_bytes_moved = 0;
    for (auto & worker : engine->workers) {
        worker->n_ubatches = 0;
        worker->n_bytes_in = 0;
    }
}
