// turboprefill: how an engine is made and how it ends
//
// What takes long or may be refused, such as pinned memory, streams and threads, is asked for here, for the largest graph:
// a prompt need not wait for it, and a context that can't have it takes the standard path from the start.

#include "ggml-turboprefill-impl.h"

#include <algorithm>
#include <exception>
#include <utility>

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

// host memory if it is of the same kind
static void turboprefill_take_over(turboprefill_engine * engine, turboprefill_parts & parts) {
    const auto size = [](const ggml_backend_buffer_ptr & buf) { return buf ? ggml_backend_buffer_get_size(buf.get()) : 0; };

    for (size_t i = 0; i < std::min(parts.host.size(), engine->slots.size()) && parts.host_buft == engine->host_buft; i++) {
        engine->slots[i]->host = std::move(parts.host[i]);
        engine->mem_host += size(engine->slots[i]->host);
    }
    for (size_t i = 0; i < std::min(parts.stages.size(), engine->stages.size()); i++) {
        turboprefill_stage & stage = *engine->stages[i];
        if (parts.stages[i].buft != stage.staging_buft) {
            continue;
        }
        stage.staging = std::move(parts.stages[i].staging);
        for (const auto & buf : stage.staging) {
            engine->mem_host += size(buf);
        }
    }
}

// memory that a device copies from and to while it computes, nullptr: it has none of its own
static ggml_backend_buffer_type_t turboprefill_pinned(const turboprefill_stage & stage) {
    return ggml_backend_dev_host_buffer_type(ggml_backend_get_device(stage.backend));
}

// The scheduler asks its first device for pinned memory. That may be an RPC server, which has none, before devices that block
// without: each boundary asks both its ends, user inputs ask all.
static void turboprefill_choose_host(turboprefill_engine * engine, const std::vector<turboprefill_boundary> & boundaries) {
    const auto & stages = engine->stages;
    engine->host_buft = ggml_backend_sched_get_buffer_type(engine->sched, stages.back()->backend);
    for (size_t i = 0; i < stages.size() && !turboprefill_pinned(*stages[0]); i++) {
        if (auto * buft = turboprefill_pinned(*stages[i])) {
            engine->host_buft = buft;
            break;
        }
    }
    for (const auto & stage : stages) {
        auto * buft = turboprefill_pinned(*stage);
        stage->staging_buft = buft ? buft : engine->host_buft;
    }
    for (const auto & boundary : boundaries) {
        auto * buft = turboprefill_pinned(*stages[boundary.from]);
        if (buft && !turboprefill_pinned(*stages[boundary.to])) {
            stages[boundary.to]->staging_buft = buft;
        }
    }
}

turboprefill_engine * turboprefill_engine_new(ggml_backend_sched_t sched, const ggml_cgraph * graph, turboprefill_params params, turboprefill_parts * parts) {
    const std::unique_ptr<turboprefill_parts> parts_owned(parts);

    const int n_backends = ggml_backend_sched_get_n_backends(sched);

    auto engine = std::make_unique<turboprefill_engine>();
    engine->sched    = sched;
    engine->params   = params;
    if (!engine->params.health) {
        engine->params.health = turboprefill_health_new();
    }
    engine->n_copies = ggml_backend_sched_get_n_copies(sched) > 1 ? ggml_backend_sched_get_n_copies(sched) : TURBOPREFILL_N_LANDINGS;

    // where user inputs lie decides how they are padded, and their size how many slots there are
    const auto boundaries = turboprefill_sched_boundaries(sched);
    for (int i = 0; i < n_backends; i++) {
        engine->stages.push_back(std::make_unique<turboprefill_stage>());
        engine->stages.back()->backend = ggml_backend_sched_get_backend(sched, i);
    }
    turboprefill_choose_host(engine.get(), boundaries);

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
        // address space: the pages that a graph does not need are never touched
        engine->slots.back()->context_buffer = (char *) malloc(turboprefill_sched_context_bytes(sched));
        if (engine->slots.back()->context_buffer == nullptr) {
            GGML_LOG_WARN("%s: failed to allocate %zu bytes for the graphs of a slot\n", __func__, turboprefill_sched_context_bytes(sched));
            return nullptr;
        }
    }
    for (int i = 0; i < n_backends; i++) {
        turboprefill_stage_init(*engine->stages[i], sched, ggml_backend_sched_get_backend(sched, i), engine->params.n_slots);
    }

    if (parts != nullptr) {
        turboprefill_take_over(engine.get(), *parts);
    }

    // for the largest graph that the scheduler has reserved: growing later would drain the pipeline
    for (int i = 0; i < n_backends; i++) {
        turboprefill_stage & stage = *engine->stages[i];
        const size_t n_bytes = turboprefill_sched_input_bytes(sched, i);
        if (ggml_backend_sched_get_n_copies(sched) > 1) {
            stage.landing_size = n_bytes;
        } else if (n_bytes > 0 && !turboprefill_reserve_landing(engine.get(), stage, n_bytes)) {
            return nullptr;
        }
    }
    std::vector<size_t> n_bytes_out(n_backends, 0), n_bytes_staged(n_backends, 0);
    for (const auto & boundary : boundaries) {
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
        turboprefill_watch(engine.get());
    } catch (const std::exception & err) {
        GGML_LOG_ERROR("%s: failed to start the workers: %s\n", __func__, err.what());
        turboprefill_stop_workers(engine.get());
        return nullptr;
    }

    turboprefill_sched_set_engine(sched, engine.get());
    return engine.release();
}

turboprefill_parts * turboprefill_engine_dismantle(turboprefill_engine * engine) {
    turboprefill_drain(engine, TURBOPREFILL_CAUSE_SETTING);

    auto parts = std::make_unique<turboprefill_parts>();
    parts->host_buft = engine->host_buft;
    for (auto & slot : engine->slots) {
        parts->host.push_back(std::move(slot->host));
    }
    for (auto & stage : engine->stages) {
        parts->stages.push_back({ stage->staging_buft, std::move(stage->staging) });
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
    turboprefill_drain(engine, TURBOPREFILL_CAUSE_SETTING);
    turboprefill_sched_set_engine(engine->sched, nullptr);
    engine->watchdog.reset();
    turboprefill_stop_workers(engine);
    delete engine;
}
