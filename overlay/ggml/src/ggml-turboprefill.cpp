// turboprefill: an engine in use, by its owner's thread: slots, submission, waiting, failures, statistics
//
// Making and freeing it: ggml-turboprefill-engine.cpp. What its workers do: ggml-turboprefill-worker.cpp.

#include "ggml-turboprefill-impl.h"

#include <algorithm>
#include <iterator>
#include <utility>

turboprefill_slot * turboprefill_acquire(turboprefill_engine * engine) {
    GGML_ASSERT(!engine->capturing && "the previous slot was not submitted");

    turboprefill_slot * slot = engine->slots[engine->n_submitted % engine->params.n_slots].get();

    turboprefill_wait(engine, slot->ubatch, TURBOPREFILL_CAUSE_SLOT);
    if (turboprefill_get_failure(engine).status != GGML_STATUS_SUCCESS) {
        return nullptr;
    }

    if (turboprefill_idle(engine)) {
        // a graph of the standard path may still be running: it is not in our books, and shares memory with what comes
        const turboprefill_watched watched(engine, TURBOPREFILL_CAUSE_GRAPH);
        for (size_t s = 0; s < engine->stages.size(); s++) {
            engine->caller.does(TURBOPREFILL_WAITS_FOR_DEVICE, (int) s);
            ggml_backend_synchronize(engine->stages[s]->backend);
        }
    }

    slot->ubatch = engine->n_submitted;
    slot->splits.clear();
    slot->before_compute = nullptr;
    ggml_free(slot->ctx);
    slot->ctx = nullptr;

    return slot;
}

void turboprefill_cancel(turboprefill_engine * engine, turboprefill_slot * slot) {
    if (engine->capturing) {
        turboprefill_sched_release(engine, slot, /*.take_ctx =*/ false);
        ggml_backend_sched_reset(engine->sched);
    }
    slot->ubatch = -1;
}

static void turboprefill_hand_over(turboprefill_engine * engine) {
    {
        std::lock_guard<std::mutex> lock(engine->mutex);
        engine->n_submitted++;
    }
    engine->progress.notify_all();
}

void turboprefill_submit(turboprefill_engine * engine, turboprefill_slot * slot, std::function<void(ggml_backend_t)> before_compute) {
    turboprefill_sched_release(engine, slot, /*.take_ctx =*/ true);

    slot->before_compute = std::move(before_compute);
    slot->trace_ubatch   = turboprefill_trace_next_ubatch(engine->trace);
    for (const auto & split : slot->splits) {
        if (!split.outputs.empty()) {
            engine->i_result = slot->ubatch;
        }
    }
    {
        std::lock_guard<std::mutex> lock(engine->mutex);
        for (size_t i = 0; i < slot->splits.size(); i++) {
            engine->stages[slot->splits[i].stage]->position = (int) i;
        }
    }
    turboprefill_hand_over(engine);
}

// the stage whose stream writes to the tensor, -1: none
static int turboprefill_stage_of(const turboprefill_engine * engine, const ggml_tensor * tensor) {
    const ggml_backend_buffer_t buffer = tensor->view_src ? tensor->view_src->buffer : tensor->buffer;
    if (buffer == nullptr) {
        return -1;
    }
    for (size_t s = 0; s < engine->stages.size(); s++) {
        if (engine->stages[s]->position >= 0 && ggml_backend_supports_buft(engine->stages[s]->backend, ggml_backend_buffer_get_type(buffer))) {
            return (int) s;
        }
    }
    return -1;
}

bool turboprefill_submit_reads(turboprefill_engine * engine, turboprefill_slot * slot, const std::vector<turboprefill_tensor_read> & reads) {
    std::map<int, turboprefill_split> splits;
    for (const auto & read : reads) {
        const int s = turboprefill_stage_of(engine, read.tensor);
        if (s < 0) {
            turboprefill_cancel(engine, slot);
            return false;
        }
        splits.emplace(s, turboprefill_split { s, {}, {}, {} }).first->second.outputs.push_back({ read.tensor, read.data, read.offset, read.size });
    }
    for (auto & split : splits) {
        slot->splits.push_back(std::move(split.second));
    }
    turboprefill_hand_over(engine);
    return true;
}

int turboprefill_slot_index(const turboprefill_slot * slot) {
    return slot->index;
}

int64_t turboprefill_slot_ubatch(const turboprefill_slot * slot) {
    return slot->ubatch;
}

int64_t turboprefill_last_result(const turboprefill_engine * engine) {
    return engine->i_result;
}

bool turboprefill_full(turboprefill_engine * engine) {
    const int64_t ubatch = engine->slots[engine->n_submitted % engine->params.n_slots]->ubatch;
    if (ubatch < engine->n_done) {
        return false;
    }
    // what a device was given last it may have computed or not
    std::lock_guard<std::mutex> lock(engine->mutex);
    return std::any_of(engine->stages.begin(), engine->stages.end(), [&](const auto & stage) { return stage->n_issued <= ubatch + 1; });
}

bool turboprefill_idle(const turboprefill_engine * engine) {
    return engine->n_done == engine->n_submitted;
}

void turboprefill_drain_host(turboprefill_engine * engine) {
    if (turboprefill_idle(engine)) {
        return;
    }
    const turboprefill_waiting waiting(engine, TURBOPREFILL_CAUSE_ABORT);
    for (size_t s = 0; s < engine->stages.size(); s++) {
        if (ggml_backend_dev_type(engine->stages[s]->backend->device) == GGML_BACKEND_DEVICE_TYPE_CPU) {
            turboprefill_wait_issued(engine, engine->caller, (int) s, engine->n_submitted - 1);
        }
    }
}

// one after the other: the watchdog sees each
static void turboprefill_wait_one_by_one(turboprefill_engine * engine, int64_t ubatch) {
    for (int64_t u = engine->n_done; u <= ubatch; u++) {
        for (size_t s = 0; s < engine->stages.size(); s++) {
            const auto & stage = engine->stages[s];
            turboprefill_wait_issued(engine, engine->caller, (int) s, u);
            engine->caller.does(TURBOPREFILL_WAITS_FOR_DEVICE, (int) s);
            // of this ubatch: its slot is not used again before it is done
            if (stage->has_events()) {
                ggml_backend_event_synchronize(stage->split_done[u % engine->params.n_slots].get());
            }
        }
        engine->n_done = u + 1;
    }
}

void turboprefill_wait(turboprefill_engine * engine, int64_t ubatch, turboprefill_cause cause) {
    if (ubatch < engine->n_done) {
        return;
    }
    if (ubatch == engine->n_submitted - 1) {
        // nothing stays in flight: devices without events need not be asked one by one
        turboprefill_drain(engine, cause);
        return;
    }
    const turboprefill_waiting waiting(engine, cause);
    turboprefill_wait_one_by_one(engine, ubatch);
}

void turboprefill_drain(turboprefill_engine * engine, turboprefill_cause cause) {
    if (turboprefill_idle(engine)) {
        return;
    }
    const turboprefill_waiting waiting(engine, cause);
    turboprefill_wait_one_by_one(engine, engine->n_submitted - 2);
    for (size_t s = 0; s < engine->stages.size(); s++) {
        turboprefill_wait_issued(engine, engine->caller, (int) s, engine->n_submitted - 1);
    }
    for (size_t s = 0; s < engine->stages.size(); s++) {
        const auto & stage = engine->stages[s];
        engine->caller.does(TURBOPREFILL_WAITS_FOR_DEVICE, (int) s);
        ggml_backend_synchronize(stage->backend);
        if (stage->upload != stage->backend) {
            ggml_backend_synchronize(stage->upload);
        }
        if (stage->has_outbox()) {
            ggml_backend_synchronize(stage->download.get());
        }
    }
    engine->n_done = engine->n_submitted;
}

turboprefill_failure turboprefill_get_failure(turboprefill_engine * engine) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    return engine->failure;
}

void turboprefill_clear_failure(turboprefill_engine * engine) {
    GGML_ASSERT(turboprefill_idle(engine));
    std::lock_guard<std::mutex> lock(engine->mutex);
    engine->failure = { GGML_STATUS_SUCCESS, -1 };
}

//
// stats
//

const char * turboprefill_cause_name(turboprefill_cause cause) {
    static const char * const names[] = {
        "result", "synchronize", "memory operation", "state", "standard-path graph", "plan", "growing buffer", "setting",
        "abort callback", "fault", "full slots",
    };
    static_assert(sizeof(names)/sizeof(names[0]) == TURBOPREFILL_N_CAUSES, "one name for each cause");
    return names[cause];
}

turboprefill_engine_stats turboprefill_get_stats(const turboprefill_engine * engine) {
    turboprefill_engine_stats stats = {};
    std::copy(std::begin(engine->waits), std::end(engine->waits), stats.waits);
    stats.mem_host   = engine->mem_host;
    stats.mem_device = engine->mem_device;
    stats.n_slots    = engine->params.n_slots;

    std::lock_guard<std::mutex> lock(engine->mutex);
    stats.n_bytes_moved = engine->n_bytes_moved;
    return stats;
}

std::vector<turboprefill_stage_stats> turboprefill_get_stages(const turboprefill_engine * engine) {
    static const char * const transports[] = { "none", "staged", "peer" };

    std::lock_guard<std::mutex> lock(engine->mutex);

    std::vector<const turboprefill_stage *> order;
    for (auto & stage : engine->stages) {
        if (stage->position >= 0) {
            order.push_back(stage.get());
        }
    }
    std::sort(order.begin(), order.end(), [](auto * a, auto * b) { return a->position < b->position; });

    std::vector<turboprefill_stage_stats> stats;
    for (auto * stage : order) {
        stats.push_back({ ggml_backend_dev_name(stage->backend->device), transports[stage->arrival], stage->n_ubatches, stage->n_bytes_in });
    }
    return stats;
}

void turboprefill_reset_stats(turboprefill_engine * engine) {
    std::fill(std::begin(engine->waits), std::end(engine->waits), turboprefill_wait_stats {});

    std::lock_guard<std::mutex> lock(engine->mutex);
    engine->n_bytes_moved = 0;
    for (auto & stage : engine->stages) {
        stage->n_ubatches = 0;
        stage->n_bytes_in = 0;
    }
}
