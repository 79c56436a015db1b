// turboprefill: which ways a boundary can take between two devices, found out by trying
//
// Probes need quiet devices and take tens of milliseconds, so links are kept, even when the engine is replaced.

#include "ggml-turboprefill-impl.h"
#include "ggml-alloc.h"

#include <algorithm>
#include <cinttypes>
#include <utility>

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
void turboprefill_outbox_init(turboprefill_engine * engine, turboprefill_stage & stage, size_t size) {
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
