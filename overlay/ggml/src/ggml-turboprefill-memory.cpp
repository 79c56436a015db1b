// turboprefill: the engine's own memory, beside the scheduler's
//
// The scheduler's buffers are planned for one graph at a time. What must outlive that graph while several ubatches are in
// flight has memory of its own: user inputs in a slot's host memory, boundaries in regions that ubatches use in turn.

#include "ggml-turboprefill-impl.h"

#include <algorithm>

static ggml_backend_buffer_t ggml_turboprefill_alloc(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_t buf = ggml_backend_buft_alloc_buffer(buft, size);
    if (buf) {
        // like the scheduler's own buffers: not weights, so backends don't cache or convert the contents
        ggml_backend_buffer_set_usage(buf, GGML_BACKEND_BUFFER_USAGE_COMPUTE);
    }
    return buf;
}

bool ggml_turboprefill_reserve(ggml_backend_buffer_ptr & buf, ggml_backend_buffer_type_t buft, size_t size, uint64_t & total) {
    const size_t size_cur = buf ? ggml_backend_buffer_get_size(buf.get()) : 0;
    if (buf && size_cur >= size) {
        return true;
    }
    buf.reset();
    total -= size_cur;
    buf.reset(ggml_turboprefill_alloc(buft, std::max<size_t>(size, 1)));
    if (!buf) {
        GGML_LOG_WARN("%s: failed to allocate %zu bytes in %s\n", __func__, size, ggml_backend_buft_name(buft));
        return false;
    }
    total += ggml_backend_buffer_get_size(buf.get());
    return true;
}

bool ggml_turboprefill_reserve_host(ggml_turboprefill_engine * engine, ggml_backend_buffer_ptr & buf, size_t size) {
    if (buf && ggml_backend_buffer_get_size(buf.get()) >= size) {
        return true;
    }
    // leave room: masks grow with every ubatch of a long prompt, and pinned memory is slow to allocate
    return ggml_turboprefill_reserve(buf, engine->host_buft, size + size/2, engine->mem_host);
}

// regions that ubatches use in turn: nothing may be in flight when they move
static bool ggml_turboprefill_reserve_regions(ggml_turboprefill_engine * engine, std::vector<ggml_backend_buffer_ptr> & regions, int n,
        ggml_backend_buffer_type_t buft, size_t size, uint64_t & total) {
    regions.resize(n);
    for (auto & buf : regions) {
        if (!buf || ggml_backend_buffer_get_size(buf.get()) < size) {
            ggml_turboprefill_drain(engine, GGML_TURBOPREFILL_CAUSE_BUFFER);
        }
        if (!ggml_turboprefill_reserve(buf, buft, size, total)) {
            return false;
        }
    }
    return true;
}

bool ggml_turboprefill_reserve_landing(ggml_turboprefill_engine * engine, ggml_turboprefill_worker & worker, size_t size) {
    return ggml_turboprefill_reserve_regions(engine, worker.landing, GGML_TURBOPREFILL_N_LANDINGS, worker.buft, size, engine->mem_device);
}

bool ggml_turboprefill_reserve_staging(ggml_turboprefill_engine * engine, ggml_turboprefill_worker & worker, size_t size) {
    return ggml_turboprefill_reserve_regions(engine, worker.staging, GGML_TURBOPREFILL_N_STAGINGS, worker.staging_buft, size, engine->mem_host);
}

bool ggml_turboprefill_reserve_outbox(ggml_turboprefill_engine * engine, ggml_turboprefill_worker & worker, size_t size) {
    return ggml_turboprefill_reserve_regions(engine, worker.outbox, GGML_TURBOPREFILL_N_OUTBOXES, worker.buft, size, engine->mem_device);
}
