// turboprefill: the ways that a boundary can take between two devices
//
// Staged is the default. A peer copy saves one of two copies, which a pipeline hides, and has a price: the backend makes
// a stream of the receiver wait for the sender, and a driver that synchronizes with the receiver, to load a kernel, then
// waits for the sender's next ubatch. That slows a first prompt; later ones are equally fast either way.

#include "ggml-turboprefill-impl.h"
#include "ggml-alloc.h"

#include <algorithm>
#include <iterator>
#include <utility>

// devices may refuse asynchronous copies, between them or within their own memory, and say so only when asked for one
static bool turboprefill_can_copy(ggml_backend_t from, ggml_backend_t to, ggml_backend_buffer_type_t buft_from, ggml_backend_buffer_type_t buft_to) {
    ggml_init_params params = { ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true };
    ggml_context_ptr ctx_from { ggml_init(params) };
    ggml_context_ptr ctx_to   { ggml_init(params) };
    ggml_tensor * src = ggml_new_tensor_1d(ctx_from.get(), GGML_TYPE_F32, 1024);
    ggml_tensor * dst = ggml_new_tensor_1d(ctx_to.get(),   GGML_TYPE_F32, 1024);

    ggml_backend_buffer_ptr buf_from { ggml_backend_alloc_ctx_tensors_from_buft(ctx_from.get(), buft_from) };
    ggml_backend_buffer_ptr buf_to   { ggml_backend_alloc_ctx_tensors_from_buft(ctx_to.get(),   buft_to) };
    if (buf_from) {
        ggml_backend_buffer_clear(buf_from.get(), 0); // tools that look for reads of what was never written are right
    }
    if (!buf_from || !buf_to || !to->iface.cpy_tensor_async(from, to, src, dst)) {
        return false;
    }
    ggml_backend_synchronize(from);
    ggml_backend_synchronize(to);
    return true;
}

bool turboprefill_make_link(turboprefill_engine * engine, int from, int to) {
    turboprefill_stage & s = *engine->stages[from];
    if (s.links.count(to) != 0) {
        return s.links[to].peer;
    }

    // workers look links up
    turboprefill_drain(engine, TURBOPREFILL_CAUSE_BUFFER);

    turboprefill_stage & t    = *engine->stages[to];
    turboprefill_link  & link = s.links[to];

    if (engine->params.transport != TURBOPREFILL_TRANSPORT_PEER || !s.has_events() || !t.has_events() ||
        t.backend->iface.cpy_tensor_async == nullptr || s.backend->iface.cpy_tensor_async != t.backend->iface.cpy_tensor_async) {
        return false;
    }

    link.receiver.reset(ggml_backend_dev_init(t.backend->device, nullptr));
    link.peer = link.receiver && turboprefill_can_copy(s.backend, link.receiver.get(), s.buft, t.buft);
    if (!link.peer) {
        link.receiver.reset();
    }
    return link.peer;
}

// without an outbox, a copy to another device stands in the way of computing the next ubatch
void turboprefill_outbox_init(turboprefill_engine * engine, turboprefill_stage & stage, size_t size) {
    if (size == 0 || !stage.has_events() || stage.backend->iface.cpy_tensor_async == nullptr ||
        !turboprefill_can_copy(stage.backend, stage.backend, stage.buft, stage.buft)) {
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
