// a backend instance: one in-order stream of a virtual device. it computes graphs with a CPU backend of its own and one
// thread, so results are those of the CPU with one thread

#include "copy.h"
#include "device.h"
#include "event.h"
#include "pace.h"
#include "snapshot.h"

#include "ggml-impl.h"

#include <cstring>
#include <unordered_map>
#include <utility>

struct virt_backend {
    virt_device *    device;
    ggml_backend_ptr cpu;
    std::unordered_map<const ggml_tensor *, int64_t> optimized; // graphs by their first node; no lock, as in CUDA's backend
    virt_stream      stream; // declared last: it uses the others until it has ended
};

static virt_backend * virt_backend_of(ggml_backend_t backend) {
    return (virt_backend *) backend->context;
}

static const char * virt_backend_name(ggml_backend_t backend) {
    return virt_backend_of(backend)->device->name.c_str();
}

static void virt_backend_free(ggml_backend_t backend) {
    delete virt_backend_of(backend);
    delete backend;
}

//
// copies
//
// Copies return no status, so a failed copy shows with the next graph: the device that was written to, or for a download the
// one that was read, refuses all further graphs. This is decided during the call, before a graph that uses the data can be
// submitted. What was queued before the copy is still computed.

static void virt_backend_set_async(ggml_backend_t backend, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    virt_device * device = virt_backend_of(backend)->device;
    const bool    good   = device->next_copy();
    virt_backend_of(backend)->stream.push([device, to = (char *) tensor->data + offset, data, size, good] {
        std::lock_guard<std::mutex> lock(device->upload);
        virt_pace pace(device->config().copy_us(size));
        virt_move(to, data, size, good);
    });
}

static void virt_backend_get_async(ggml_backend_t backend, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    virt_device * device = virt_backend_of(backend)->device;
    const bool    good   = device->next_download();
    virt_backend_of(backend)->stream.push([device, from = (const char *) tensor->data + offset, data, size, good] {
        std::lock_guard<std::mutex> lock(device->download);
        virt_pace pace(device->config().copy_us(size));
        virt_move(data, from, size, good);
    });
}

static bool virt_backend_is_virtual(ggml_backend_t backend) {
    return backend->iface.free == virt_backend_free;
}

// like CUDA: on the source's stream, and the destination's stream waits for it
static bool virt_backend_cpy_async(ggml_backend_t backend_src, ggml_backend_t backend_dst, const ggml_tensor * src, ggml_tensor * dst) {
    if (!virt_backend_is_virtual(backend_src) || !virt_backend_is_virtual(backend_dst)) {
        return false;
    }
    virt_backend * from = virt_backend_of(backend_src);
    virt_backend * to   = virt_backend_of(backend_dst);

    if (virt_buffer_device(src->view_src ? src->view_src->buffer : src->buffer) != from->device ||
        virt_buffer_device(dst->view_src ? dst->view_src->buffer : dst->buffer) != to->device) {
        return false;
    }

    const bool   same   = from->device == to->device;
    const size_t size   = ggml_nbytes(src);
    const auto   config = to->device->config();
    if (!same && config.peer == VIRT_PEER_REFUSED) {
        return false;
    }

    if (!to->device->next_async_copy()) {
        return false;
    }

    const bool good = same || to->device->next_copy();
    from->stream.push([from = from->device, to = to->device, same, size, dst = dst->data, src = src->data, good] {
        if (same) {
            memcpy(dst, src, size);
            return;
        }
        std::scoped_lock lock(from->download, to->upload);
        virt_pace pace(to->config().copy_us(size));
        virt_move(dst, src, size, good);
        virt_get_counters().copies++;
    });
    if (from != to) {
        auto done = from->stream.mark();
        to->stream.wait(done);
        if (!same && config.peer == VIRT_PEER_BLOCKING) {
            done->wait();
        }
    }
    return true;
}

//
// graphs
//

// A fault is returned by the call itself, and what was queued before is still computed. ggml's interface has no asynchronous
// errors: a backend whose device fails while it computes can only end the process, as CUDA's does.
static ggml_status virt_backend_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    virt_backend * ctx    = virt_backend_of(backend);
    virt_device  * device = ctx->device;

    virt_pace launch(device->config().launch_us);

    double stall_us = 0;
    const ggml_status status = device->next_graph(stall_us);
    if (status != GGML_STATUS_SUCCESS) {
        return status;
    }

    if (device->config().fusion) {
        ctx->optimized.erase(graph->nodes[0]);
    }

    auto snapshot = std::make_shared<virt_snapshot>(graph);
    ctx->stream.push([device, snapshot, stall_us, cpu = ctx->cpu.get()] {
        std::lock_guard<std::mutex> lock(device->compute);
        virt_pace pace(stall_us + device->config().graph_us(snapshot->n_tokens()));
        const ggml_status status = ggml_backend_graph_compute(cpu, snapshot->graph());
        if (status != GGML_STATUS_SUCCESS) {
            GGML_ABORT("%s: the CPU backend failed with status %d", device->name.c_str(), status);
        }
        virt_get_counters().graphs++;
    });
    return GGML_STATUS_SUCCESS;
}

// What a backend that fuses operations asks of the scheduler: to keep the factors of a product until the next node, unless
// the product has no rows. So graphs with and without results are planned differently, like mixtures of experts on CUDA.
// Upstream added the third argument in September 2026.
template <typename... Params> static void virt_backend_optimize(ggml_backend_t backend, ggml_cgraph * graph, Params... params) {
    virt_backend * ctx = virt_backend_of(backend);
    if (!ctx->device->config().fusion || graph->n_nodes == 0) {
        return;
    }
    ctx->optimized[graph->nodes[0]]++;
    if constexpr (sizeof...(Params) > 0) {
        const auto keep = [](auto * p, ggml_tensor * tensor, ggml_tensor * until) { p->add_alloc_dep(p->user_data, tensor, until); };
        for (int i = 0; i + 1 < graph->n_nodes; i++) {
            ggml_tensor * node = graph->nodes[i];
            if (node->op == GGML_OP_MUL && ggml_nelements(node) > 0) {
                (keep(params, node->src[0], graph->nodes[i + 1]), ...);
                (keep(params, node->src[1], graph->nodes[i + 1]), ...);
            }
        }
    }
}

static void virt_backend_synchronize(ggml_backend_t backend) {
    virt_backend_of(backend)->stream.synchronize();
}

static void virt_backend_event_record(ggml_backend_t backend, ggml_backend_event_t event) {
    virt_event_record(event, virt_backend_of(backend)->stream);
}

static void virt_backend_event_wait(ggml_backend_t backend, ggml_backend_event_t event) {
    virt_event_wait(event, virt_backend_of(backend)->stream);
}

static ggml_guid_t virt_backend_guid() {
    static ggml_guid guid = { 0x74, 0x70, 0x2d, 0x76, 0x69, 0x72, 0x74, 0x75, 0x61, 0x6c, 0x2d, 0x67, 0x70, 0x75, 0x00, 0x01 };
    return &guid;
}

static ggml_backend_ptr virt_cpu_backend() {
    ggml_backend_dev_t cpu = virt_cpu();
    ggml_backend_ptr backend { cpu ? ggml_backend_dev_init(cpu, nullptr) : nullptr };
    if (backend) {
        auto set_n_threads = (ggml_backend_set_n_threads_t)
            ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), "ggml_backend_set_n_threads");
        set_n_threads(backend.get(), 1);
    }
    return backend;
}

ggml_backend_t virt_backend_new(ggml_backend_dev_t dev, const char * /*params*/) {
    if (!virt_device_of(dev)->next_stream()) {
        return nullptr;
    }
    ggml_backend_ptr cpu = virt_cpu_backend();
    if (!cpu) {
        GGML_LOG_ERROR("%s: there is no CPU backend to compute with\n", __func__);
        return nullptr;
    }
    virt_device * device = virt_device_of(dev);
    const bool    events = device->config().events;

    ggml_backend_i iface = {};
    iface.get_name         = virt_backend_name;
    iface.free             = virt_backend_free;
    iface.set_tensor_async = virt_backend_set_async;
    iface.get_tensor_async = virt_backend_get_async;
    iface.cpy_tensor_async = virt_backend_cpy_async;
    iface.synchronize      = virt_backend_synchronize;
    iface.graph_compute    = virt_backend_compute;
    iface.graph_optimize   = virt_backend_optimize;
    iface.event_record     = events ? virt_backend_event_record : nullptr;
    iface.event_wait       = events ? virt_backend_event_wait   : nullptr;

    return new ggml_backend {
        /* .guid    = */ virt_backend_guid(),
        /* .iface   = */ iface,
        /* .device  = */ dev,
        /* .context = */ new virt_backend { device, std::move(cpu), {}, {} },
    };
}
