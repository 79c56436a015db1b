// turboprefill: how an engine is created and freed
//
// Whatever is slow to get or may be refused (pinned memory, streams, threads) is requested here, for the largest graph: no
// prompt has to wait for it, and a context that can't have it takes the standard path from the start.

#include "ggml-turboprefill-impl.h"

#include <algorithm>
#include <exception>
#include <utility>

static void ggml_turboprefill_worker_init(ggml_turboprefill_worker & worker, ggml_backend_sched_t sched, ggml_backend_t backend, int n_slots) {
    ggml_backend_dev_t dev = ggml_backend_get_device(backend);

    worker.backend = backend;
    worker.buft    = ggml_backend_sched_get_buffer_type(sched, backend);
    worker.device  = ggml_backend_dev_name(dev);
    worker.upload  = backend;

    if (backend->iface.event_record == nullptr || backend->iface.event_wait == nullptr) {
        return;
    }
    for (int i = 0; i < n_slots; i++) {
        ggml_backend_event_ptr inputs_done { ggml_backend_event_new(dev) };
        ggml_backend_event_ptr split_done  { ggml_backend_event_new(dev) };
        if (!inputs_done || !split_done) {
            worker.inputs_done.clear();
            worker.split_done.clear();
            return;
        }
        worker.inputs_done.push_back(std::move(inputs_done));
        worker.split_done.push_back(std::move(split_done));
    }

    worker.upload_owned.reset(ggml_backend_dev_init(dev, nullptr));
    if (worker.upload_owned) {
        worker.upload = worker.upload_owned.get();
    }
}

static void ggml_turboprefill_stop_workers(ggml_turboprefill_engine * engine) {
    {
        std::lock_guard<std::mutex> lock(engine->mutex);
        engine->stop = true;
    }
    engine->progress.notify_all();
    for (auto & worker : engine->workers) {
        if (worker->thread.joinable()) {
            worker->thread.join();
        }
    }
}

// reuses the host memory of the previous engine where it is of the same buffer type
static void ggml_turboprefill_take_over(ggml_turboprefill_engine * engine, ggml_turboprefill_parts & parts) {
    const auto size = [](const ggml_backend_buffer_ptr & buf) { return buf ? ggml_backend_buffer_get_size(buf.get()) : 0; };

    for (size_t i = 0; i < std::min(parts.host.size(), engine->slots.size()) && parts.host_buft == engine->host_buft; i++) {
        engine->slots[i]->host = std::move(parts.host[i]);
        engine->mem_host += size(engine->slots[i]->host);
    }
    for (size_t i = 0; i < std::min(parts.workers.size(), engine->workers.size()); i++) {
        ggml_turboprefill_worker & worker = *engine->workers[i];
        if (parts.workers[i].buft != worker.staging_buft) {
            continue;
        }
        worker.staging = std::move(parts.workers[i].staging);
        for (const auto & buf : worker.staging) {
            engine->mem_host += size(buf);
        }
    }
}

// host memory that the device can copy from and to while it computes. nullptr: the device offers none
static ggml_backend_buffer_type_t ggml_turboprefill_pinned(const ggml_turboprefill_worker & worker) {
    return ggml_backend_dev_host_buffer_type(ggml_backend_get_device(worker.backend));
}

// llama_context takes pinned memory from the first device. That may be an RPC server, which has none, in front of devices
// whose copies block without it. So user inputs ask every device, and staging asks both ends of a boundary.
static void ggml_turboprefill_choose_host(ggml_turboprefill_engine * engine, const std::vector<ggml_turboprefill_boundary> & boundaries) {
    const auto & workers = engine->workers;
    engine->host_buft = ggml_backend_sched_get_buffer_type(engine->sched, workers.back()->backend);
    for (size_t i = 0; i < workers.size() && !ggml_turboprefill_pinned(*workers[0]); i++) {
        if (auto * buft = ggml_turboprefill_pinned(*workers[i])) {
            engine->host_buft = buft;
            break;
        }
    }
    for (const auto & worker : workers) {
        auto * buft = ggml_turboprefill_pinned(*worker);
        worker->staging_buft = buft ? buft : engine->host_buft;
    }
    for (const auto & boundary : boundaries) {
        auto * buft = ggml_turboprefill_pinned(*workers[boundary.from]);
        if (buft && !ggml_turboprefill_pinned(*workers[boundary.to])) {
            workers[boundary.to]->staging_buft = buft;
        }
    }
}

ggml_turboprefill_engine * ggml_turboprefill_engine_new(ggml_backend_sched_t sched, const ggml_cgraph * graph, ggml_turboprefill_params params, ggml_turboprefill_parts * parts) {
    const std::unique_ptr<ggml_turboprefill_parts> parts_owned(parts);

    const int n_backends = ggml_backend_sched_get_n_backends(sched);

    auto engine = std::make_unique<ggml_turboprefill_engine>();
    engine->sched    = sched;
    engine->params   = params;
    if (!engine->params.health) {
        engine->params.health = ggml_turboprefill_health_new();
    }
    engine->n_copies = ggml_backend_sched_get_n_copies(sched) > 1 ? ggml_backend_sched_get_n_copies(sched) : GGML_TURBOPREFILL_N_LANDINGS;

    // the buffer type of user inputs determines their padding, their size the number of slots
    const auto boundaries = ggml_turboprefill_sched_boundaries(sched);
    for (int i = 0; i < n_backends; i++) {
        engine->workers.push_back(std::make_unique<ggml_turboprefill_worker>());
        engine->workers.back()->backend = ggml_backend_sched_get_backend(sched, i);
    }
    ggml_turboprefill_choose_host(engine.get(), boundaries);

    const size_t n_bytes_user = std::max<size_t>(ggml_turboprefill_graph_user_bytes(engine.get(), graph), 1);

    // one ubatch per worker, one being captured, one waiting for the first worker; fewer if memory is short
    const int n_slots_min = std::max(engine->n_copies, GGML_TURBOPREFILL_N_STAGINGS) + 1;
    if (engine->params.n_slots <= 0) {
        engine->params.n_slots = n_backends + 2;
    }
    engine->params.n_slots = (int) std::min<size_t>(engine->params.n_slots, params.max_host_bytes/n_bytes_user);
    engine->params.n_slots = std::max(engine->params.n_slots, n_slots_min);

    for (int i = 0; i < engine->params.n_slots; i++) {
        engine->slots.push_back(std::make_unique<ggml_turboprefill_slot>());
        engine->slots.back()->index = i;
        // address space only: pages that the graph does not need are never touched
        engine->slots.back()->context_buffer = (char *) malloc(ggml_turboprefill_sched_context_bytes(sched));
        if (engine->slots.back()->context_buffer == nullptr) {
            GGML_LOG_WARN("%s: failed to allocate %zu bytes for the graphs of a slot\n", __func__, ggml_turboprefill_sched_context_bytes(sched));
            return nullptr;
        }
    }
    for (int i = 0; i < n_backends; i++) {
        ggml_turboprefill_worker_init(*engine->workers[i], sched, ggml_backend_sched_get_backend(sched, i), engine->params.n_slots);
    }

    if (parts != nullptr) {
        ggml_turboprefill_take_over(engine.get(), *parts);
    }

    // sized for the largest graph that the scheduler has reserved: growing later would drain the pipeline
    for (int i = 0; i < n_backends; i++) {
        ggml_turboprefill_worker & worker = *engine->workers[i];
        const size_t n_bytes = ggml_turboprefill_sched_input_bytes(sched, i);
        if (ggml_backend_sched_get_n_copies(sched) > 1) {
            worker.landing_size = n_bytes;
        } else if (n_bytes > 0 && !ggml_turboprefill_reserve_landing(engine.get(), worker, n_bytes)) {
            return nullptr;
        }
    }
    std::vector<size_t> n_bytes_out(n_backends, 0), n_bytes_staged(n_backends, 0);
    for (const auto & boundary : boundaries) {
        n_bytes_out[boundary.from] += boundary.n_bytes;
        if (!ggml_turboprefill_make_link(engine.get(), boundary.from, boundary.to)) {
            n_bytes_staged[boundary.to] += GGML_PAD(boundary.n_bytes, GGML_TURBOPREFILL_STAGING_ALIGNMENT);
        }
    }
    for (int i = 0; i < n_backends; i++) {
        ggml_turboprefill_outbox_init(engine.get(), *engine->workers[i], n_bytes_out[i]);
        if (n_bytes_staged[i] > 0 && !ggml_turboprefill_reserve_staging(engine.get(), *engine->workers[i], n_bytes_staged[i])) {
            return nullptr;
        }
    }
    for (auto & slot : engine->slots) {
        // even the minimum number of slots may exceed the limit: then they start smaller and grow with the prompt, although
        // drivers wait for all devices when they pin memory
        if (!ggml_turboprefill_reserve(slot->host, engine->host_buft, std::min(n_bytes_user, params.max_host_bytes/engine->slots.size()), engine->mem_host)) {
            return nullptr;
        }
    }

    try {
        for (int i = 0; i < n_backends; i++) {
            engine->workers[i]->thread = std::thread(ggml_turboprefill_work, engine.get(), i);
        }
        ggml_turboprefill_watch(engine.get());
    } catch (const std::exception & err) {
        GGML_LOG_ERROR("%s: failed to start the workers: %s\n", __func__, err.what());
        ggml_turboprefill_stop_workers(engine.get());
        return nullptr;
    }

    ggml_turboprefill_sched_set_engine(sched, engine.get());
    return engine.release();
}

ggml_turboprefill_parts * ggml_turboprefill_engine_dismantle(ggml_turboprefill_engine * engine) {
    ggml_turboprefill_drain(engine, GGML_TURBOPREFILL_CAUSE_SETTING);

    auto parts = std::make_unique<ggml_turboprefill_parts>();
    parts->host_buft = engine->host_buft;
    for (auto & slot : engine->slots) {
        parts->host.push_back(std::move(slot->host));
    }
    for (auto & worker : engine->workers) {
        parts->workers.push_back({ worker->staging_buft, std::move(worker->staging) });
    }
    ggml_turboprefill_engine_free(engine);
    return parts.release();
}

void ggml_turboprefill_parts_free(ggml_turboprefill_parts * parts) {
    delete parts;
}

void ggml_turboprefill_engine_free(ggml_turboprefill_engine * engine) {
    if (engine == nullptr) {
        return;
    }
    ggml_turboprefill_drain(engine, GGML_TURBOPREFILL_CAUSE_SETTING);
    ggml_turboprefill_sched_set_engine(engine->sched, nullptr);
    engine->watchdog.reset();
    ggml_turboprefill_stop_workers(engine);
    delete engine;
}
