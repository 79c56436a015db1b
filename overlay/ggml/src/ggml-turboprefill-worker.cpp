// turboprefill: the hot loop: replay of captured ubatches, one worker thread per stage
//
//   time ->        u0      u1      u2
//   stage 0     [split0][split0][split0]
//                     | boundary
//   stage 1             [split1][split1][split1]
//                             | boundary
//   stage 2                     [split2][split2][split2]
//
// What keeps it correct:
// - A device computes ubatches in order on one stream. Compute buffers and KV cache are shared by all ubatches,
//   as they are between consecutive graphs upstream.
// - A boundary is read on the stream that computed it, before the next ubatch is computed there. Where the device can,
//   that is a copy into the outbox u % N_OUTBOXES, which another stream empties; the one that fills it waits for that.
// - Ubatch u lands in region u % n_copies of the next device. It is free once that device has computed u - n_copies.
// - Staged boundaries pass through host region u % N_STAGINGS. It is free once u - N_STAGINGS was uploaded from it.
// - A slot, with everything that ubatch u reads from host memory, is free once all stages have computed u.
// Stages wait for each other on the host, in their own threads, even where a device could wait for another device's
// event: a queue that is stuck behind another device would hold up every call of the driver that synchronizes with it,
// such as the first use of a kernel or a growing memory pool, and with it the thread that feeds the device. Peer copies
// break that rule, in the backend: ggml-turboprefill-transport.cpp.
// An event that was never recorded does not block, so a wait for somebody else's event is always preceded by a wait
// for the count of ubatches which that stage has issued: the event was recorded before it was counted.

#include "ggml-turboprefill-impl.h"

#include <cinttypes>
#include <exception>

void turboprefill_wait_issued(turboprefill_engine * engine, turboprefill_waiter & waiter, int s, int64_t ubatch) {
    if (ubatch < 0) {
        return;
    }
    const turboprefill_stage & stage = *engine->stages[s];
    waiter.does(TURBOPREFILL_WAITS_FOR_STAGE, s);
    std::unique_lock<std::mutex> lock(engine->mutex);
    engine->progress.wait(lock, [&] { return stage.n_issued > ubatch; });
}

static bool turboprefill_failed(turboprefill_engine * engine, int64_t ubatch) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    return engine->failure.status != GGML_STATUS_SUCCESS && engine->failure.ubatch <= ubatch;
}

static void turboprefill_fail(turboprefill_engine * engine, const turboprefill_stage & stage, int64_t ubatch, ggml_status status) {
    GGML_LOG_ERROR("%s: stage on %s failed at ubatch %" PRId64 " with status %d (%s)\n", __func__,
            stage.device.c_str(), ubatch, status, ggml_status_to_string(status));
    std::lock_guard<std::mutex> lock(engine->mutex);
    if (engine->failure.status == GGML_STATUS_SUCCESS || engine->failure.ubatch > ubatch) {
        engine->failure = { status, ubatch };
    }
}

// the boundary moves aside, so that the next ubatch can be computed while it leaves
static void turboprefill_fill_outbox(turboprefill_engine * engine, turboprefill_slot * slot, int s) {
    turboprefill_stage & stage = *engine->stages[s];
    int & used = stage.outbox_slot[slot->ubatch % TURBOPREFILL_N_OUTBOXES];

    if (used >= 0) {
        ggml_backend_event_wait(stage.backend, stage.boundary_done[used].get());
    }
    used = slot->index;

    for (auto & split : slot->splits) {
        for (auto & input : split.inputs) {
            if (input.source != s || ggml_nbytes(input.src) == 0) {
                continue;
            }
            if (!stage.backend->iface.cpy_tensor_async(stage.backend, stage.backend, input.src, &input.outbox)) {
                // it could when the engine was made: slow, still right
                ggml_backend_synchronize(stage.backend);
                ggml_backend_tensor_copy(input.src, &input.outbox);
            }
        }
    }
    ggml_backend_event_record(stage.outbox_full[slot->index].get(), stage.backend);
    ggml_backend_event_wait(stage.download.get(), stage.outbox_full[slot->index].get());
}

// hand the tensors that other stages need over to them
static void turboprefill_push(turboprefill_engine * engine, turboprefill_slot * slot, int s) {
    turboprefill_stage & stage = *engine->stages[s];
    const int64_t u = slot->ubatch;

    stage.activity.does(TURBOPREFILL_HANDS_OVER);
    ggml_backend_t from = stage.backend;
    if (stage.has_outbox()) {
        from = stage.download.get();
        turboprefill_fill_outbox(engine, slot, s);
    }

    for (auto & split : slot->splits) {
        turboprefill_stage & target = *engine->stages[split.stage];

        bool     waited  = false;
        uint64_t n_bytes = 0;
        bool     peer    = false;

        for (auto & input : split.inputs) {
            if (input.source != s || ggml_nbytes(input.src) == 0) {
                continue; // a ubatch without outputs has tensors without rows
            }
            ggml_tensor * src = stage.has_outbox() ? &input.outbox : input.src;

            turboprefill_link & link = stage.links.at(split.stage);
            peer = link.peer;
            if (peer) {
                if (!waited && u >= engine->n_copies) {
                    // the target still computes from the landing region
                    turboprefill_wait_issued(engine, stage.activity, split.stage, u - engine->n_copies);
                    stage.activity.does(TURBOPREFILL_WAITS_FOR_DEVICE, split.stage);
                    ggml_backend_event_synchronize(target.split_done[(u - engine->n_copies) % engine->params.n_slots].get());
                }
                stage.activity.does(TURBOPREFILL_HANDS_OVER);
                if (!link.receiver->iface.cpy_tensor_async(from, link.receiver.get(), src, input.dst)) {
                    // it could when the link was made: slow, still right
                    ggml_backend_synchronize(from);
                    ggml_backend_tensor_copy(src, input.dst);
                }
            } else {
                if (!waited && u >= TURBOPREFILL_N_STAGINGS) {
                    // the target still uploads from the staging region
                    turboprefill_wait_issued(engine, stage.activity, split.stage, u - TURBOPREFILL_N_STAGINGS);
                    stage.activity.does(TURBOPREFILL_WAITS_FOR_DEVICE, split.stage);
                    if (target.has_events()) {
                        ggml_backend_event_synchronize(target.inputs_done[(u - TURBOPREFILL_N_STAGINGS) % engine->params.n_slots].get());
                    }
                }
                stage.activity.does(TURBOPREFILL_HANDS_OVER);
                char * host = (char *) ggml_backend_buffer_get_base(target.staging[u % TURBOPREFILL_N_STAGINGS].get());
                ggml_backend_tensor_get_async(from, src, host + input.offset, 0, ggml_nbytes(src));
            }
            waited   = true;
            n_bytes += ggml_nbytes(src);
        }

        if (n_bytes > 0) {
            std::lock_guard<std::mutex> lock(engine->mutex);
            target.n_bytes_in     += n_bytes;
            target.arrival         = peer ? 2 : 1;
            engine->n_bytes_moved += n_bytes;
        }
    }

    if (stage.has_outbox()) {
        ggml_backend_event_record(stage.boundary_done[slot->index].get(), from);
    }
}

static void turboprefill_replay(turboprefill_engine * engine, turboprefill_slot * slot, turboprefill_split & split) {
    turboprefill_stage & stage = *engine->stages[split.stage];
    const int64_t u = slot->ubatch;

    stage.activity.does(TURBOPREFILL_UPLOADS);
    if (stage.upload != stage.backend && u >= engine->n_copies) {
        // this device still computes from the landing region
        ggml_backend_event_wait(stage.upload, stage.split_done[(u - engine->n_copies) % engine->params.n_slots].get());
    }

    for (auto & input : split.inputs) {
        if (input.source < 0 && ggml_nbytes(input.src) > 0) {
            ggml_backend_tensor_set_async(stage.upload, input.dst, input.src->data, 0, ggml_nbytes(input.src));
        }
    }

    for (auto & input : split.inputs) {
        if (input.source < 0) {
            continue;
        }
        turboprefill_stage & source = *engine->stages[input.source];
        turboprefill_wait_issued(engine, stage.activity, input.source, u);
        if (turboprefill_failed(engine, u)) {
            return;
        }
        if (source.has_events()) {
            stage.activity.does(TURBOPREFILL_WAITS_FOR_DEVICE, input.source);
            ggml_backend_event_synchronize((source.has_outbox() ? source.boundary_done : source.split_done)[slot->index].get());
        }
        stage.activity.does(TURBOPREFILL_UPLOADS);
        if (!source.links.at(split.stage).peer && ggml_nbytes(input.src) > 0) {
            const char * host = (const char *) ggml_backend_buffer_get_base(stage.staging[u % TURBOPREFILL_N_STAGINGS].get());
            ggml_backend_tensor_set_async(stage.upload, input.dst, host + input.offset, 0, ggml_nbytes(input.src));
        }
    }

    if (stage.has_events()) {
        ggml_backend_event_record(stage.inputs_done[slot->index].get(), stage.upload);
        if (stage.upload != stage.backend) {
            ggml_backend_event_wait(stage.backend, stage.inputs_done[slot->index].get());
        }
    }

    if (turboprefill_failed(engine, u)) {
        return;
    }

    stage.activity.does(TURBOPREFILL_COMPUTES);
    if (split.graph.n_nodes > 0) {
        if (slot->before_compute) {
            slot->before_compute(stage.backend);
        }

        turboprefill_trace * trace = engine->trace.load(std::memory_order_acquire);
        turboprefill_trace_begin(trace, stage.backend);

        const ggml_status status = ggml_backend_graph_compute_async(stage.backend, &split.graph);

        turboprefill_trace_end(trace, stage.backend, (int) (&split - slot->splits.data()), slot->trace_ubatch, true);

        if (status != GGML_STATUS_SUCCESS) {
            turboprefill_fail(engine, stage, u, status);
            return;
        }
    }

    for (auto & output : split.outputs) {
        ggml_backend_tensor_get_async(stage.backend, output.tensor, output.data, output.offset, output.size);
    }

    turboprefill_push(engine, slot, split.stage);
}

void turboprefill_work(turboprefill_engine * engine, int s) {
    turboprefill_stage & stage = *engine->stages[s];

    for (int64_t u = 0; ; u++) {
        {
            std::unique_lock<std::mutex> lock(engine->mutex);
            engine->progress.wait(lock, [&] { return engine->stop || engine->n_submitted > u; });
            if (engine->n_submitted <= u) {
                return;
            }
        }

        turboprefill_slot * slot = engine->slots[u % engine->params.n_slots].get();

        bool has_split = false;
        bool computes  = false; // or it only reads
        for (auto & split : slot->splits) {
            if (split.stage == s) {
                has_split = true;
                computes  = split.graph.n_nodes > 0;
                if (!turboprefill_failed(engine, u)) {
                    try {
                        turboprefill_replay(engine, slot, split);
                    } catch (const std::exception & err) {
                        // of a backend; upstream's caller would get it, here it would end the process
                        GGML_LOG_ERROR("%s: %s\n", __func__, err.what());
                        turboprefill_fail(engine, stage, u, GGML_STATUS_FAILED);
                    }
                }
            }
        }

        stage.activity.does(TURBOPREFILL_FINISHES);
        try {
            // also for a ubatch that has no split here or was skipped: others wait for the events of its number
            if (stage.has_events()) {
                if (!has_split) {
                    ggml_backend_event_record(stage.inputs_done[slot->index].get(), stage.upload);
                }
                ggml_backend_event_record(stage.split_done[slot->index].get(), stage.backend);
            } else if (has_split) {
                ggml_backend_synchronize(stage.backend);
            }
        } catch (const std::exception & err) {
            GGML_LOG_ERROR("%s: %s\n", __func__, err.what());
            turboprefill_fail(engine, stage, u, GGML_STATUS_FAILED);
        }

        {
            std::lock_guard<std::mutex> lock(engine->mutex);
            stage.n_issued    = u + 1;
            stage.n_ubatches += computes;
            stage.activity.does(TURBOPREFILL_DOES_NOTHING);
        }
        engine->progress.notify_all();
    }
}
