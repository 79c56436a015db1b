// turboprefill: links and outboxes: how a boundary gets from one device to another
//
// Staged is the default. A peer copy saves one of two copies, but the pipeline hides both, and it has a price: the backend
// makes a stream of the receiver wait for the sender. When the driver then synchronizes with the receiver, to load a kernel
// for example, it waits for the sender's next ubatch. That slows down the first prompt; later ones are equally fast.

#include "ggml-turboprefill-impl.h"
#include "ggml-alloc.h"

#include <algorithm>
#include <iterator>
#include <utility>

// whether a device accepts asynchronous copies, to another device or within its memory. only trying tells
static bool ggml_turboprefill_can_copy(ggml_backend_t from, ggml_backend_t to, ggml_backend_buffer_type_t buft_from, ggml_backend_buffer_type_t buft_to) {
    ggml_init_params params = { ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true };
    ggml_context_ptr ctx_from { ggml_init(params) };
    ggml_context_ptr ctx_to   { ggml_init(params) };
    ggml_tensor * src = ggml_new_tensor_1d(ctx_from.get(), GGML_TYPE_F32, 1024);
    ggml_tensor * dst = ggml_new_tensor_1d(ctx_to.get(),   GGML_TYPE_F32, 1024);

    ggml_backend_buffer_ptr buf_from { ggml_backend_alloc_ctx_tensors_from_buft(ctx_from.get(), buft_from) };
    ggml_backend_buffer_ptr buf_to   { ggml_backend_alloc_ctx_tensors_from_buft(ctx_to.get(),   buft_to) };
    if (buf_from) {
        ggml_backend_buffer_clear(buf_from.get(), 0); // tools would rightly report a read of uninitialized memory
    }
    if (!buf_from || !buf_to || !to->iface.cpy_tensor_async(from, to, src, dst)) {
        return false;
    }
    ggml_backend_synchronize(from);
    ggml_backend_synchronize(to);
    return true;
}

bool ggml_turboprefill_make_link(ggml_turboprefill_engine * engine, int from, int to) {
    ggml_turboprefill_worker & s = *engine->workers[from];
    if (s.links.count(to) != 0) {
        return s.links[to].peer;
    }

    // workers read the map of links
    ggml_turboprefill_drain(engine, GGML_TURBOPREFILL_CAUSE_BUFFER);

    ggml_turboprefill_worker & t    = *engine->workers[to];
    ggml_turboprefill_link  & link = s.links[to];

    if (engine->params.transport != GGML_TURBOPREFILL_TRANSPORT_PEER || !s.has_events() || !t.has_events() ||
        t.backend->iface.cpy_tensor_async == nullptr || s.backend->iface.cpy_tensor_async != t.backend->iface.cpy_tensor_async) {
        return false;
    }

    link.receiver.reset(ggml_backend_dev_init(t.backend->device, nullptr));
    link.peer = link.receiver && ggml_turboprefill_can_copy(s.backend, link.receiver.get(), s.buft, t.buft);
    if (!link.peer) {
        link.receiver.reset();
    }
    return link.peer;
}

// without an outbox, the next ubatch is computed only after the boundary was copied to the other device
void ggml_turboprefill_outbox_init(ggml_turboprefill_engine * engine, ggml_turboprefill_worker & worker, size_t size) {
    if (size == 0 || !worker.has_events() || worker.backend->iface.cpy_tensor_async == nullptr ||
        !ggml_turboprefill_can_copy(worker.backend, worker.backend, worker.buft, worker.buft)) {
        return;
    }
    std::fill(std::begin(worker.outbox_slot), std::end(worker.outbox_slot), -1);

    for (int i = 0; i < engine->params.n_slots; i++) {
        worker.outbox_full.emplace_back(ggml_backend_event_new(worker.backend->device));
        worker.boundary_done.emplace_back(ggml_backend_event_new(worker.backend->device));
        if (!worker.outbox_full.back() || !worker.boundary_done.back()) {
            return;
        }
    }
    ggml_backend_ptr download { ggml_backend_dev_init(worker.backend->device, nullptr) };
    if (download && ggml_turboprefill_reserve_outbox(engine, worker, size)) {
        worker.download = std::move(download);
        return;
    }
    for (auto & buf : worker.outbox) {
        engine->mem_device -= buf ? ggml_backend_buffer_get_size(buf.get()) : 0;
    }
    worker.outbox.clear();
}
