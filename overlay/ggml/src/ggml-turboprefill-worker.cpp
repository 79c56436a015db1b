// turboprefill: the hot loop: replay of captured ubatches, one thread per worker
//
//   time ->        u0      u1      u2
//   stage 0     [split0][split0][split0]
//                     | boundary
//   stage 1             [split1][split1][split1]
//                             | boundary
//   stage 2                     [split2][split2][split2]
//
// Why it is correct:
// - A device computes ubatches in order on one stream. All ubatches share its compute buffer and KV cache, like
//   consecutive graphs upstream.
// - A boundary is read on the stream that computed it, before the next ubatch is computed there. Where the device can,
//   that is a copy into outbox u % N_OUTBOXES, which another stream empties; the stream that fills it waits for that.
// - Ubatch u arrives in landing region u % n_copies of a device, which is free once the device has computed u - n_copies.
// - A staged boundary passes through staging region u % N_STAGINGS, which is free once u - N_STAGINGS was uploaded.
// - A slot, with everything that ubatch u reads from host memory, is free once all workers have computed u.
// Workers wait for each other on the host, in their own threads, even where a device could wait for another device's
// event. A queue that is blocked behind another device stalls every driver call that synchronizes with it, such as the
// first use of a kernel or a growing memory pool, and with it the thread that feeds the device. Peer copies break this
// rule, inside the backend: see ggml-turboprefill-transport.cpp.
// An event that was never recorded does not block. So waiting for another worker's event is always preceded by waiting
// for its count of issued ubatches: the event is recorded before it is counted.

#include "ggml-turboprefill-impl.h"

#include <cinttypes>
#include <exception>

void ggml_turboprefill_wait_issued(ggml_turboprefill_engine * engine, ggml_turboprefill_waiter & waiter, int s, int64_t ubatch) {
    if (ubatch < 0) {
        return;
    }
    const ggml_turboprefill_worker & worker = *engine->workers[s];
    waiter.does(GGML_TURBOPREFILL_WAITS_FOR_WORKER, s);
    std::unique_lock<std::mutex> lock(engine->mutex);
    engine->progress.wait(lock, [&] { return worker.n_issued > ubatch; });
}

static bool ggml_turboprefill_failed(ggml_turboprefill_engine * engine, int64_t ubatch) {
    std::lock_guard<std::mutex> lock(engine->mutex);
    return engine->failure.status != GGML_STATUS_SUCCESS && engine->failure.ubatch <= ubatch;
}

static void ggml_turboprefill_fail(ggml_turboprefill_engine * engine, const ggml_turboprefill_worker & worker, int64_t ubatch, ggml_status status) {
    GGML_LOG_ERROR("%s: device %s failed at ubatch %" PRId64 " with status %d (%s)\n", __func__,
            worker.device.c_str(), ubatch, status, ggml_status_to_string(status));
    std::lock_guard<std::mutex> lock(engine->mutex);
    if (engine->failure.status == GGML_STATUS_SUCCESS || engine->failure.ubatch > ubatch) {
        engine->failure = { status, ubatch };
    }
}

// moves the boundary out of the way, so that the next ubatch can be computed while it leaves
static void ggml_turboprefill_fill_outbox(ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot, int s) {
    ggml_turboprefill_worker & worker = *engine->workers[s];
    int & used = worker.outbox_slot[slot->ubatch % GGML_TURBOPREFILL_N_OUTBOXES];

    if (used >= 0) {
        ggml_backend_event_wait(worker.backend, worker.boundary_done[used].get());
    }
    used = slot->index;

    for (auto & split : slot->splits) {
        for (auto & input : split.inputs) {
            if (input.source != s || ggml_nbytes(input.src) == 0) {
                continue;
            }
            if (!worker.backend->iface.cpy_tensor_async(worker.backend, worker.backend, input.src, &input.outbox)) {
                // it could when the engine was created: slow, but still correct
                ggml_backend_synchronize(worker.backend);
                ggml_backend_tensor_copy(input.src, &input.outbox);
            }
        }
    }
    ggml_backend_event_record(worker.outbox_full[slot->index].get(), worker.backend);
    ggml_backend_event_wait(worker.download.get(), worker.outbox_full[slot->index].get());
}

// hands boundaries over to the workers that need them
static void ggml_turboprefill_push(ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot, int s) {
    ggml_turboprefill_worker & worker = *engine->workers[s];
    const int64_t u = slot->ubatch;

    worker.activity.does(GGML_TURBOPREFILL_HANDS_OVER);
    ggml_backend_t from = worker.backend;
    if (worker.has_outbox()) {
        from = worker.download.get();
        ggml_turboprefill_fill_outbox(engine, slot, s);
    }

    for (auto & split : slot->splits) {
        ggml_turboprefill_worker & target = *engine->workers[split.backend_id];

        bool     waited  = false;
        uint64_t n_bytes = 0;
        bool     peer    = false;

        for (auto & input : split.inputs) {
            if (input.source != s || ggml_nbytes(input.src) == 0) {
                continue; // a ubatch without results has tensors without rows
            }
            ggml_tensor * src = worker.has_outbox() ? &input.outbox : input.src;

            ggml_turboprefill_link & link = worker.links.at(split.backend_id);
            peer = link.peer;
            if (peer) {
                if (!waited && u >= engine->n_copies) {
                    // the target may still be computing from the landing region
                    ggml_turboprefill_wait_issued(engine, worker.activity, split.backend_id, u - engine->n_copies);
                    worker.activity.does(GGML_TURBOPREFILL_WAITS_FOR_DEVICE, split.backend_id);
                    ggml_backend_event_synchronize(target.split_done[(u - engine->n_copies) % engine->params.n_slots].get());
                }
                worker.activity.does(GGML_TURBOPREFILL_HANDS_OVER);
                if (!link.receiver->iface.cpy_tensor_async(from, link.receiver.get(), src, input.dst)) {
                    // it could when the link was made: slow, but still correct
                    ggml_backend_synchronize(from);
                    ggml_backend_tensor_copy(src, input.dst);
                }
            } else {
                if (!waited && u >= GGML_TURBOPREFILL_N_STAGINGS) {
                    // the target may still be uploading from the staging region
                    ggml_turboprefill_wait_issued(engine, worker.activity, split.backend_id, u - GGML_TURBOPREFILL_N_STAGINGS);
                    worker.activity.does(GGML_TURBOPREFILL_WAITS_FOR_DEVICE, split.backend_id);
                    if (target.has_events()) {
                        ggml_backend_event_synchronize(target.inputs_done[(u - GGML_TURBOPREFILL_N_STAGINGS) % engine->params.n_slots].get());
                    }
                }
                worker.activity.does(GGML_TURBOPREFILL_HANDS_OVER);
                char * host = (char *) ggml_backend_buffer_get_base(target.staging[u % GGML_TURBOPREFILL_N_STAGINGS].get());
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

    if (worker.has_outbox()) {
        ggml_backend_event_record(worker.boundary_done[slot->index].get(), from);
    }
}

static void ggml_turboprefill_replay(ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot, ggml_turboprefill_split & split) {
    ggml_turboprefill_worker & worker = *engine->workers[split.backend_id];
    const int64_t u = slot->ubatch;

    worker.activity.does(GGML_TURBOPREFILL_UPLOADS);
    if (worker.upload != worker.backend && u >= engine->n_copies) {
        // this device may still be computing from the landing region
        ggml_backend_event_wait(worker.upload, worker.split_done[(u - engine->n_copies) % engine->params.n_slots].get());
    }

    for (auto & input : split.inputs) {
        if (input.source < 0 && ggml_nbytes(input.src) > 0) {
            ggml_backend_tensor_set_async(worker.upload, input.dst, input.src->data, 0, ggml_nbytes(input.src));
        }
    }

    for (auto & input : split.inputs) {
        if (input.source < 0) {
            continue;
        }
        ggml_turboprefill_worker & source = *engine->workers[input.source];
        ggml_turboprefill_wait_issued(engine, worker.activity, input.source, u);
        if (ggml_turboprefill_failed(engine, u)) {
            return;
        }
        if (source.has_events()) {
            worker.activity.does(GGML_TURBOPREFILL_WAITS_FOR_DEVICE, input.source);
            ggml_backend_event_synchronize((source.has_outbox() ? source.boundary_done : source.split_done)[slot->index].get());
        }
        worker.activity.does(GGML_TURBOPREFILL_UPLOADS);
        if (!source.links.at(split.backend_id).peer && ggml_nbytes(input.src) > 0) {
            const char * host = (const char *) ggml_backend_buffer_get_base(worker.staging[u % GGML_TURBOPREFILL_N_STAGINGS].get());
            ggml_backend_tensor_set_async(worker.upload, input.dst, host + input.offset, 0, ggml_nbytes(input.src));
        }
    }

    if (worker.has_events()) {
        ggml_backend_event_record(worker.inputs_done[slot->index].get(), worker.upload);
        if (worker.upload != worker.backend) {
            ggml_backend_event_wait(worker.backend, worker.inputs_done[slot->index].get());
        }
    }

    if (ggml_turboprefill_failed(engine, u)) {
        return;
    }

    worker.activity.does(GGML_TURBOPREFILL_COMPUTES);
    if (split.graph.n_nodes > 0) {
        if (slot->before_compute) {
            slot->before_compute(worker.backend);
        }

        ggml_turboprefill_trace * trace = engine->trace.load(std::memory_order_acquire);
        ggml_turboprefill_trace_begin(trace, worker.backend);

        const ggml_status status = ggml_backend_graph_compute_async(worker.backend, &split.graph);

        ggml_turboprefill_trace_end(trace, worker.backend, (int) (&split - slot->splits.data()), slot->trace_ubatch, true);

        if (status != GGML_STATUS_SUCCESS) {
            ggml_turboprefill_fail(engine, worker, u, status);
            return;
        }
    }

    for (auto & output : split.outputs) {
        ggml_backend_tensor_get_async(worker.backend, output.tensor, output.data, output.offset, output.size);
    }

    ggml_turboprefill_push(engine, slot, split.backend_id);
}

void ggml_turboprefill_work(ggml_turboprefill_engine * engine, int s) {
    ggml_turboprefill_worker & worker = *engine->workers[s];

    for (int64_t u = 0; ; u++) {
        {
            std::unique_lock<std::mutex> lock(engine->mutex);
            engine->progress.wait(lock, [&] { return engine->stop || engine->n_submitted > u; });
            if (engine->n_submitted <= u) {
                return;
            }
        }

        ggml_turboprefill_slot * slot = engine->slots[u % engine->params.n_slots].get();

        bool has_split = false;
        bool computes  = false; // else it only reads
        for (auto & split : slot->splits) {
            if (split.backend_id == s) {
                has_split = true;
                computes  = split.graph.n_nodes > 0;
                if (!ggml_turboprefill_failed(engine, u)) {
                    try {
                        ggml_turboprefill_replay(engine, slot, split);
                    } catch (const std::exception & err) {
                        // thrown by a backend; upstream it reaches the caller, on this thread it would end the process
                        GGML_LOG_ERROR("%s: %s\n", __func__, err.what());
                        ggml_turboprefill_fail(engine, worker, u, GGML_STATUS_FAILED);
                    }
                }
            }
        }

        worker.activity.does(GGML_TURBOPREFILL_FINISHES);
        try {
            // also for a ubatch that has no split here or was skipped: others wait for its events
            if (worker.has_events()) {
                if (!has_split) {
                    ggml_backend_event_record(worker.inputs_done[slot->index].get(), worker.upload);
                }
                ggml_backend_event_record(worker.split_done[slot->index].get(), worker.backend);
            } else if (has_split) {
                ggml_backend_synchronize(worker.backend);
            }
        } catch (const std::exception & err) {
            GGML_LOG_ERROR("%s: %s\n", __func__, err.what());
            ggml_turboprefill_fail(engine, worker, u, GGML_STATUS_FAILED);
        }

        {
            std::lock_guard<std::mutex> lock(engine->mutex);
            worker.n_issued    = u + 1;
            worker.n_ubatches += computes;
            worker.activity.does(GGML_TURBOPREFILL_DOES_NOTHING);
        }
        engine->progress.notify_all();
    }
}
