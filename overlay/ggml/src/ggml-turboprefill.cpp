// turboprefill: replay of captured ubatches, one worker thread per stage
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
// such as the first use of a kernel or a growing memory pool, and with it the thread that feeds the device.
// An event that was never recorded does not block, so a wait for somebody else's event is always preceded by a wait
// for the count of ubatches which that stage has issued: the event was recorded before it was counted.

#include "ggml-turboprefill-impl.h"
#include "ggml-alloc.h"

#include <algorithm>
#include <cinttypes>

//
// memory
//

static ggml_backend_buffer_t turboprefill_alloc(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_t buf = ggml_backend_buft_alloc_buffer(buft, size);
    if (buf) {
        // as the scheduler's own buffers: not weights, so backends don't cache or convert what is in them
        ggml_backend_buffer_set_usage(buf, GGML_BACKEND_BUFFER_USAGE_COMPUTE);
    }
    return buf;
}

static bool turboprefill_reserve(ggml_backend_buffer_ptr & buf, ggml_backend_buffer_type_t buft, size_t size, uint64_t & total) {
    const size_t size_cur = buf ? ggml_backend_buffer_get_size(buf.get()) : 0;
    if (buf && size_cur >= size) {
        return true;
    }
    buf.reset();
    total -= size_cur;
    buf.reset(turboprefill_alloc(buft, std::max<size_t>(size, 1)));
    if (!buf) {
        GGML_LOG_WARN("%s: failed to allocate %zu bytes in %s\n", __func__, size, ggml_backend_buft_name(buft));
        return false;
    }
    total += ggml_backend_buffer_get_size(buf.get());
    return true;
}

bool turboprefill_reserve_host(turboprefill_engine * engine, ggml_backend_buffer_ptr & buf, size_t size) {
    if (buf && ggml_backend_buffer_get_size(buf.get()) >= size) {
        return true;
    }
    // masks grow with every ubatch of a long prompt, and pinned memory is slow to get
    return turboprefill_reserve(buf, engine->host_buft, size + size/2, engine->mem_host);
}

// regions that ubatches take in turns: nothing may be in flight when they move
static bool turboprefill_reserve_regions(turboprefill_engine * engine, std::vector<ggml_backend_buffer_ptr> & regions, int n,
        ggml_backend_buffer_type_t buft, size_t size, uint64_t & total) {
    regions.resize(n);
    for (auto & buf : regions) {
        if (!buf || ggml_backend_buffer_get_size(buf.get()) < size) {
            turboprefill_drain(engine);
        }
        if (!turboprefill_reserve(buf, buft, size, total)) {
            return false;
        }
    }
    return true;
}

bool turboprefill_reserve_landing(turboprefill_engine * engine, turboprefill_stage & stage, size_t size) {
    return turboprefill_reserve_regions(engine, stage.landing, TURBOPREFILL_N_LANDINGS, stage.buft, size, engine->mem_device);
}

bool turboprefill_reserve_staging(turboprefill_engine * engine, turboprefill_stage & stage, size_t size) {
    return turboprefill_reserve_regions(engine, stage.staging, TURBOPREFILL_N_STAGINGS, engine->host_buft, size, engine->mem_host);
}

bool turboprefill_reserve_outbox(turboprefill_engine * engine, turboprefill_stage & stage, size_t size) {
    return turboprefill_reserve_regions(engine, stage.outbox, TURBOPREFILL_N_OUTBOXES, stage.buft, size, engine->mem_device);
}

//
// transport
//

// true if the backends can copy without blocking the host
static bool turboprefill_probe_peer(ggml_backend_t from, ggml_backend_t to, ggml_backend_buffer_type_t buft_from, ggml_backend_buffer_type_t buft_to) {
    const int64_t n        = 4*1024*1024; // 16 MiB, about the boundary of a large model
    const int     n_copies = 8;

    ggml_init_params params = { 2*ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true };
    ggml_context_ptr ctx_from { ggml_init(params) };
    ggml_context_ptr ctx_to   { ggml_init(params) };
    ggml_tensor * src = ggml_new_tensor_1d(ctx_from.get(), GGML_TYPE_F32, n);
    ggml_tensor * dst = ggml_new_tensor_1d(ctx_to.get(),   GGML_TYPE_F32, n);

    ggml_backend_buffer_ptr buf_from { ggml_backend_alloc_ctx_tensors_from_buft(ctx_from.get(), buft_from) };
    ggml_backend_buffer_ptr buf_to   { ggml_backend_alloc_ctx_tensors_from_buft(ctx_to.get(),   buft_to) };
    if (!buf_from || !buf_to) {
        return false;
    }

    // the first copy sets things up
    if (!to->iface.cpy_tensor_async(from, to, src, dst)) {
        return false;
    }
    ggml_backend_synchronize(from);
    ggml_backend_synchronize(to);

    const int64_t t_start = ggml_time_us();
    for (int i = 0; i < n_copies; i++) {
        if (!to->iface.cpy_tensor_async(from, to, src, dst)) {
            ggml_backend_synchronize(from); // those before it
            ggml_backend_synchronize(to);
            return false;
        }
    }
    const int64_t t_call = ggml_time_us() - t_start;
    ggml_backend_synchronize(from);
    ggml_backend_synchronize(to);
    const int64_t t_total = ggml_time_us() - t_start;

    // a copy that blocks takes its whole time inside of the call. below a millisecond it would not matter
    const bool blocks = t_call > 1000 && 2*t_call > t_total;
    GGML_LOG_DEBUG("%s: %s -> %s: %d copies of 16 MiB: call %" PRId64 " us, total %" PRId64 " us: %s\n", __func__,
            ggml_backend_name(from), ggml_backend_name(to), n_copies, t_call, t_total, blocks ? "blocking" : "asynchronous");
    return !blocks;
}

bool turboprefill_make_link(turboprefill_engine * engine, int from, int to) {
    turboprefill_stage & s = *engine->stages[from];
    if (s.links.count(to) != 0) {
        return s.links[to].peer;
    }

    // workers look links up, and the probe needs quiet devices
    turboprefill_drain(engine);

    turboprefill_stage & t    = *engine->stages[to];
    turboprefill_link  & link = s.links[to];

    if (engine->params.transport == TURBOPREFILL_TRANSPORT_STAGED || !s.has_events() || !t.has_events() ||
        t.backend->iface.cpy_tensor_async == nullptr || s.backend->iface.cpy_tensor_async != t.backend->iface.cpy_tensor_async) {
        return false;
    }

    link.receiver.reset(ggml_backend_dev_init(t.backend->device, nullptr));
    if (!link.receiver) {
        return false;
    }
    const bool async = turboprefill_probe_peer(s.backend, link.receiver.get(), s.buft, t.buft);
    link.peer = async || engine->params.transport == TURBOPREFILL_TRANSPORT_PEER;
    if (!link.peer) {
        link.receiver.reset();
    }
    return link.peer;
}

//
// replay
//

static void turboprefill_wait_issued(turboprefill_engine * engine, const turboprefill_stage & stage, int64_t ubatch) {
    if (ubatch < 0) {
        return;
    }
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
                    turboprefill_wait_issued(engine, target, u - engine->n_copies);
                    ggml_backend_event_synchronize(target.split_done[(u - engine->n_copies) % engine->params.n_slots].get());
                }
                if (!link.receiver->iface.cpy_tensor_async(from, link.receiver.get(), src, input.dst)) {
                    // the probe said otherwise: slow, still right
                    ggml_backend_synchronize(from);
                    ggml_backend_tensor_copy(src, input.dst);
                }
            } else {
                if (!waited && u >= TURBOPREFILL_N_STAGINGS) {
                    // the target still uploads from the staging region
                    turboprefill_wait_issued(engine, target, u - TURBOPREFILL_N_STAGINGS);
                    if (target.has_events()) {
                        ggml_backend_event_synchronize(target.inputs_done[(u - TURBOPREFILL_N_STAGINGS) % engine->params.n_slots].get());
                    }
                }
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
        turboprefill_wait_issued(engine, source, u);
        if (turboprefill_failed(engine, u)) {
            return;
        }
        if (source.has_events()) {
            ggml_backend_event_synchronize((source.has_outbox() ? source.boundary_done : source.split_done)[slot->index].get());
        }
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

    for (auto & output : split.outputs) {
        ggml_backend_tensor_get_async(stage.backend, output.tensor, output.data, output.offset, output.size);
    }

    turboprefill_push(engine, slot, split.stage);
}

static void turboprefill_work(turboprefill_engine * engine, int s) {
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
        for (auto & split : slot->splits) {
            if (split.stage == s) {
                has_split = true;
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

        try {
            // also for a ubatch that has no split here or was skipped: others wait for the event of its number
            if (stage.has_events()) {
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
            stage.n_ubatches += has_split;
        }
        engine->progress.notify_all();
    }
}

//
// engine
//

static void turboprefill_stage_init(turboprefill_stage & stage, ggml_backend_sched_t sched, ggml_backend_t backend, int n_slots) {
    ggml_backend_dev_t dev = ggml_backend_get_device(backend);

    stage.backend = backend;
    stage.buft    = ggml_backend_sched_get_buffer_type(sched, backend);
    stage.device  = ggml_backend_dev_name(dev);
    stage.upload  = backend;

    if (backend->iface.event_record == nullptr || backend->iface.event_wait == nullptr) {
        return;
    }
    for (int i = 0; i < n_slots; i++) {
        ggml_backend_event_ptr inputs_done { ggml_backend_event_new(dev) };
        ggml_backend_event_ptr split_done  { ggml_backend_event_new(dev) };
        if (!inputs_done || !split_done) {
            stage.inputs_done.clear();
            stage.split_done.clear();
            return;
        }
        stage.inputs_done.push_back(std::move(inputs_done));
        stage.split_done.push_back(std::move(split_done));
    }

    stage.upload_owned.reset(ggml_backend_dev_init(dev, nullptr));
    if (stage.upload_owned) {
        stage.upload = stage.upload_owned.get();
    }
}

// true if the device copies within its own memory without being waited for. RPC can't
static bool turboprefill_probe_local(const turboprefill_stage & stage) {
    ggml_init_params params = { 2*ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true };
    ggml_context_ptr ctx { ggml_init(params) };
    ggml_tensor * src = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 1024);
    ggml_tensor * dst = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 1024);

    ggml_backend_buffer_ptr buf { ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), stage.buft) };
    if (!buf || !stage.backend->iface.cpy_tensor_async(stage.backend, stage.backend, src, dst)) {
        return false;
    }
    ggml_backend_synchronize(stage.backend);
    return true;
}

// without an outbox, a copy to another device stands in the way of computing the next ubatch
static void turboprefill_outbox_init(turboprefill_engine * engine, turboprefill_stage & stage, size_t size) {
    if (size == 0 || !stage.has_events() || stage.backend->iface.cpy_tensor_async == nullptr || !turboprefill_probe_local(stage)) {
        return;
    }
    std::fill(std::begin(stage.outbox_slot), std::end(stage.outbox_slot), -1);

    for (int i = 0; i < engine->params.n_slots; i++) {
        stage.outbox_full.emplace_back(ggml_backend_event_new(stage.backend->device));
        stage.boundary_done.emplace_back(ggml_backend_event_new(stage.backend->device));
        if (!stage.outbox_full.back() || !stage.boundary_done.back()) {
            return;
        }
    }
    ggml_backend_ptr download { ggml_backend_dev_init(stage.backend->device, nullptr) };
    if (download && turboprefill_reserve_outbox(engine, stage, size)) {
        stage.download = std::move(download);
        return;
    }
    for (auto & buf : stage.outbox) {
        engine->mem_device -= buf ? ggml_backend_buffer_get_size(buf.get()) : 0;
    }
    stage.outbox.clear();
}

static void turboprefill_stop_workers(turboprefill_engine * engine) {
    {
        std::lock_guard<std::mutex> lock(engine->mutex);
        engine->stop = true;
    }
    engine->progress.notify_all();
    for (auto & stage : engine->stages) {
        if (stage->worker.joinable()) {
            stage->worker.join();
        }
    }
}

// the links between the same backends, and host memory if it is of the same kind
static void turboprefill_take_over(turboprefill_engine * engine, turboprefill_parts & parts) {
    for (size_t from = 0; parts.transport == engine->params.transport && from < engine->stages.size(); from++) {
        for (size_t to = 0; to < engine->stages.size(); to++) {
            const auto it = parts.links.find({ engine->stages[from]->backend, engine->stages[to]->backend });
            if (it != parts.links.end() && engine->stages[from]->has_events() && engine->stages[to]->has_events()) {
                engine->stages[from]->links[(int) to] = std::move(it->second);
            }
        }
    }
    for (size_t i = 0; parts.host_buft == engine->host_buft && i < std::min(parts.host.size(), engine->slots.size()); i++) {
        engine->slots[i]->host = std::move(parts.host[i]);
        engine->mem_host += engine->slots[i]->host ? ggml_backend_buffer_get_size(engine->slots[i]->host.get()) : 0;
    }
}

turboprefill_engine * turboprefill_engine_new(ggml_backend_sched_t sched, const ggml_cgraph * graph, turboprefill_params params, turboprefill_parts * parts) {
    const std::unique_ptr<turboprefill_parts> parts_owned(parts);

    const int n_backends = ggml_backend_sched_get_n_backends(sched);

    auto engine = std::make_unique<turboprefill_engine>();
    engine->sched    = sched;
    engine->params   = params;
    engine->n_copies = ggml_backend_sched_get_n_copies(sched) > 1 ? ggml_backend_sched_get_n_copies(sched) : TURBOPREFILL_N_LANDINGS;

    // the scheduler's choice for the CPU: pinned if the first device offers it
    engine->host_buft = ggml_backend_sched_get_buffer_type(sched, ggml_backend_sched_get_backend(sched, n_backends - 1));

    const size_t n_bytes_user = std::max<size_t>(turboprefill_sched_user_bytes(engine.get(), graph), 1);

    // a ubatch per stage, one that is captured, one that waits in front of the first stage; fewer if memory is short
    const int n_slots_min = std::max(engine->n_copies, TURBOPREFILL_N_STAGINGS) + 1;
    if (engine->params.n_slots <= 0) {
        engine->params.n_slots = n_backends + 2;
    }
    engine->params.n_slots = (int) std::min<size_t>(engine->params.n_slots, params.max_host_bytes/n_bytes_user);
    engine->params.n_slots = std::max(engine->params.n_slots, n_slots_min);

    for (int i = 0; i < engine->params.n_slots; i++) {
        engine->slots.push_back(std::make_unique<turboprefill_slot>());
        engine->slots.back()->index = i;
    }
    for (int i = 0; i < n_backends; i++) {
        engine->stages.push_back(std::make_unique<turboprefill_stage>());
        turboprefill_stage_init(*engine->stages.back(), sched, ggml_backend_sched_get_backend(sched, i), engine->params.n_slots);
    }

    if (parts != nullptr) {
        turboprefill_take_over(engine.get(), *parts);
    }

    // for the largest graph that the scheduler has reserved: growing later would drain the pipeline
    for (int i = 0; i < n_backends; i++) {
        turboprefill_stage & stage = *engine->stages[i];
        const size_t n_bytes = turboprefill_sched_input_bytes(sched, i);
        if (ggml_backend_sched_get_n_copies(sched) == 1 && n_bytes > 0 && !turboprefill_reserve_landing(engine.get(), stage, n_bytes)) {
            return nullptr;
        }
    }
    // a probe takes tens of milliseconds, which no prompt should wait for
    std::vector<size_t> n_bytes_out(n_backends, 0), n_bytes_staged(n_backends, 0);
    for (const auto & boundary : turboprefill_sched_boundaries(sched)) {
        n_bytes_out[boundary.from] += boundary.n_bytes;
        if (!turboprefill_make_link(engine.get(), boundary.from, boundary.to)) {
            n_bytes_staged[boundary.to] += GGML_PAD(boundary.n_bytes, TURBOPREFILL_STAGING_ALIGNMENT);
        }
    }
    for (int i = 0; i < n_backends; i++) {
        turboprefill_outbox_init(engine.get(), *engine->stages[i], n_bytes_out[i]);
        if (n_bytes_staged[i] > 0 && !turboprefill_reserve_staging(engine.get(), *engine->stages[i], n_bytes_staged[i])) {
            return nullptr;
        }
    }
    for (auto & slot : engine->slots) {
        // the fewest slots may be too much at once: then they grow with the prompt, and drivers wait for all devices when they pin memory
        if (!turboprefill_reserve(slot->host, engine->host_buft, std::min(n_bytes_user, params.max_host_bytes/engine->slots.size()), engine->mem_host)) {
            return nullptr;
        }
    }

    try {
        for (int i = 0; i < n_backends; i++) {
            engine->stages[i]->worker = std::thread(turboprefill_work, engine.get(), i);
        }
    } catch (const std::exception & err) {
        GGML_LOG_ERROR("%s: failed to start the workers: %s\n", __func__, err.what());
        turboprefill_stop_workers(engine.get());
        return nullptr;
    }

    turboprefill_sched_set_engine(sched, engine.get());
    return engine.release();
}

turboprefill_parts * turboprefill_engine_dismantle(turboprefill_engine * engine) {
    turboprefill_drain(engine);

    auto parts = std::make_unique<turboprefill_parts>();
    parts->host_buft = engine->host_buft;
    parts->transport = engine->params.transport;
    for (auto & slot : engine->slots) {
        parts->host.push_back(std::move(slot->host));
    }
    for (auto & stage : engine->stages) {
        for (auto & [to, link] : stage->links) {
            if (!link.peer) {
                continue; // memory may have been short for the probe: the next engine tries again
            }
            parts->links[{ stage->backend, engine->stages[to]->backend }] = std::move(link);
        }
    }
    turboprefill_engine_free(engine);
    return parts.release();
}

void turboprefill_parts_free(turboprefill_parts * parts) {
    delete parts;
}

void turboprefill_engine_free(turboprefill_engine * engine) {
    if (engine == nullptr) {
        return;
    }
    turboprefill_drain(engine);
    turboprefill_sched_set_engine(engine->sched, nullptr);
    turboprefill_stop_workers(engine);
    for (auto & slot : engine->slots) {
        ggml_free(slot->ctx);
        free(slot->context_buffer);
    }
    delete engine;
}

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
