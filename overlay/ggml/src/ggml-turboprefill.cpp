// turboprefill: an engine in use, by its owner's thread: slots, submission, waiting, failures, statistics
//
// Making and freeing it: ggml-turboprefill-engine.cpp. What its workers do: ggml-turboprefill-worker.cpp.

#include "ggml-turboprefill-impl.h"

#include <algorithm>
#include <utility>

turboprefill_slot * turboprefill_acquire(turboprefill_engine * engine) {
    GGML_ASSERT(!engine->capturing && "the previous slot was not submitted");

    turboprefill_slot * slot = engine->slots[engine->n_submitted % engine->params.n_slots].get();

    if (slot->ubatch >= 0) {
        const int64_t t_start = ggml_time_us();
        for (auto & stage : engine->stages) {
            turboprefill_wait_issued(engine, *stage, slot->ubatch);
        }
        if (turboprefill_get_failure(engine).status != GGML_STATUS_SUCCESS) {
            return nullptr;
        }
        for (auto & split : slot->splits) {
            turboprefill_stage & stage = *engine->stages[split.stage];
            if (stage.has_events()) {
                ggml_backend_event_synchronize(stage.split_done[slot->index].get());
            }
        }
        engine->t_slot_wait_us += ggml_time_us() - t_start;
    } else if (turboprefill_get_failure(engine).status != GGML_STATUS_SUCCESS) {
        return nullptr;
    }

    if (turboprefill_idle(engine)) {
        // a graph of the standard path may still be running: it is not in our books, and shares memory with what comes
        for (auto & stage : engine->stages) {
            ggml_backend_synchronize(stage->backend);
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

void turboprefill_submit(turboprefill_engine * engine, turboprefill_slot * slot, std::function<void(ggml_backend_t)> before_compute) {
    turboprefill_sched_release(engine, slot, /*.take_ctx =*/ true);

    slot->before_compute = std::move(before_compute);
    slot->trace_ubatch   = turboprefill_trace_next_ubatch(engine->trace);
    {
        std::lock_guard<std::mutex> lock(engine->mutex);
        for (size_t i = 0; i < slot->splits.size(); i++) {
            engine->stages[slot->splits[i].stage]->position = (int) i;
        }
        engine->n_submitted++;
    }
    engine->progress.notify_all();
}

int turboprefill_slot_index(const turboprefill_slot * slot) {
    return slot->index;
}

int64_t turboprefill_slot_ubatch(const turboprefill_slot * slot) {
    return slot->ubatch;
}

bool turboprefill_idle(const turboprefill_engine * engine) {
    return engine->n_drained == engine->n_submitted;
}

static void turboprefill_wait_all(turboprefill_engine * engine, bool host_only) {
    for (auto & stage : engine->stages) {
        if (!host_only || ggml_backend_dev_type(stage->backend->device) == GGML_BACKEND_DEVICE_TYPE_CPU) {
            turboprefill_wait_issued(engine, *stage, engine->n_submitted - 1);
        }
    }
}

void turboprefill_drain_host(turboprefill_engine * engine) {
    turboprefill_wait_all(engine, true);
}

void turboprefill_drain(turboprefill_engine * engine) {
    if (turboprefill_idle(engine)) {
        return;
    }
    turboprefill_wait_all(engine, false);
    for (auto & stage : engine->stages) {
        ggml_backend_synchronize(stage->backend);
        if (stage->upload != stage->backend) {
            ggml_backend_synchronize(stage->upload);
        }
        if (stage->has_outbox()) {
            ggml_backend_synchronize(stage->download.get());
        }
    }
    engine->n_drained = engine->n_submitted;
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

turboprefill_engine_stats turboprefill_get_stats(const turboprefill_engine * engine) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    return {
        /*.t_slot_wait_us =*/ engine->t_slot_wait_us,
        /*.n_bytes_moved  =*/ engine->n_bytes_moved,
        /*.mem_host       =*/ engine->mem_host,
        /*.mem_device     =*/ engine->mem_device,
        /*.n_slots        =*/ engine->params.n_slots,
    };
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
        stats.push_back({ stage->device.c_str(), transports[stage->arrival], stage->n_ubatches, stage->n_bytes_in });
    }
    return stats;
}

void turboprefill_reset_stats(turboprefill_engine * engine) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    engine->t_slot_wait_us = 0;
    engine->n_bytes_moved  = 0;
    for (auto & stage : engine->stages) {
        stage->n_ubatches = 0;
        stage->n_bytes_in = 0;
    }
}
