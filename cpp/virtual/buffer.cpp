// memory of virtual devices: host memory that claims not to be, so that the scheduler copies as it does for GPUs
//
// The synchronous functions wait for no stream, like the default copies of a GPU: callers have to synchronize. The scheduler
// does so before it copies, and llama.cpp before it reads or writes caches and outputs.

#include "copy.h"
#include "device.h"
#include "pace.h"

#include <cstring>

struct virt_buffer {
    virt_device *         device; // nullptr: host memory
    ggml_backend_buffer_t memory;
    virt_alive            alive { virt_get_counters().buffers };
    virt_alive            bytes;

    virt_buffer(virt_device * device, ggml_backend_buffer_t memory)
        : device(device), memory(memory), bytes(virt_get_counters().bytes, ggml_backend_buffer_get_size(memory)) {}
};

static virt_buffer * virt_buffer_of(ggml_backend_buffer_t buffer) {
    return (virt_buffer *) buffer->context;
}

static void virt_buffer_free(ggml_backend_buffer_t buffer) {
    virt_buffer * ctx = virt_buffer_of(buffer);
    if (ctx->device) {
        ctx->device->free_buffer(buffer->size);
    }
    ggml_backend_buffer_free(ctx->memory);
    delete ctx;
}

virt_device * virt_buffer_device(ggml_backend_buffer_t buffer) {
    return buffer && buffer->iface.free_buffer == virt_buffer_free ? virt_buffer_of(buffer)->device : nullptr;
}

static void * virt_buffer_get_base(ggml_backend_buffer_t buffer) {
    return ggml_backend_buffer_get_base(virt_buffer_of(buffer)->memory);
}

static enum ggml_status virt_buffer_init_tensor(ggml_backend_buffer_t buffer, ggml_tensor * /*tensor*/) {
    return virt_buffer_of(buffer)->device->next_tensor() ? GGML_STATUS_SUCCESS : GGML_STATUS_ALLOC_FAILED;
}

static void virt_buffer_memset_tensor(ggml_backend_buffer_t /*buffer*/, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
    memset((char *) tensor->data + offset, value, size);
}

static void virt_buffer_set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    virt_device * device = virt_buffer_of(buffer)->device;
    const bool    good   = device->next_copy();
    std::lock_guard<std::mutex> lock(device->upload);
    virt_pace pace(device->config().copy_us(size));
    virt_move((char *) tensor->data + offset, data, size, good);
}

static void virt_buffer_get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    virt_device * device = virt_buffer_of(buffer)->device;
    const bool    good   = device->next_download();
    std::lock_guard<std::mutex> lock(device->download);
    virt_pace pace(device->config().copy_us(size));
    virt_move(data, (const char *) tensor->data + offset, size, good);
}

static bool virt_buffer_cpy_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * src, ggml_tensor * dst) {
    virt_device * from = virt_buffer_device(src->view_src ? src->view_src->buffer : src->buffer);
    virt_device * to   = virt_buffer_of(buffer)->device;
    if (!from || (from != to && to->config().peer == VIRT_PEER_REFUSED)) {
        return false; // through the host
    }
    const bool good = from == to || to->next_copy();
    virt_pace pace(from == to ? 0 : to->config().copy_us(ggml_nbytes(src)));
    virt_move(dst->data, src->data, ggml_nbytes(src), good);
    return true;
}

static void virt_buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) {
    memset(virt_buffer_get_base(buffer), value, buffer->size);
}

static const ggml_backend_buffer_i virt_buffer_iface = {
    /* .free_buffer   = */ virt_buffer_free,
    /* .get_base      = */ virt_buffer_get_base,
    /* .init_tensor   = */ virt_buffer_init_tensor,
    /* .memset_tensor = */ virt_buffer_memset_tensor,
    /* .set_tensor    = */ virt_buffer_set_tensor,
    /* .get_tensor    = */ virt_buffer_get_tensor,
    /* .set_tensor_2d = */ nullptr,
    /* .get_tensor_2d = */ nullptr,
    /* .cpy_tensor    = */ virt_buffer_cpy_tensor,
    /* .clear         = */ virt_buffer_clear,
    /* .reset         = */ nullptr,
};

//
// buffer types
//

static const char * virt_buft_name(ggml_backend_buffer_type_t buft) {
    return virt_device_of(buft->device)->name.c_str();
}

static ggml_backend_buffer_t virt_buft_alloc(ggml_backend_buffer_type_t buft, size_t size) {
    virt_device * device = virt_device_of(buft->device);
    if (!device->next_buffer(size)) {
        return nullptr;
    }
    ggml_backend_buffer_t memory = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (!memory) {
        device->free_buffer(size);
        return nullptr;
    }
    return ggml_backend_buffer_init(buft, virt_buffer_iface, new virt_buffer(device, memory), size);
}

static size_t virt_buft_alignment(ggml_backend_buffer_type_t /*buft*/) {
    return ggml_backend_buft_get_alignment(ggml_backend_cpu_buffer_type());
}

static size_t virt_buft_max_size(ggml_backend_buffer_type_t buft) {
    return virt_device_of(buft->device)->config().memory();
}

static bool virt_buft_is_host(ggml_backend_buffer_type_t /*buft*/) {
    return false;
}

static const char * virt_host_buft_name(ggml_backend_buffer_type_t /*buft*/) {
    return "VIRT_Host";
}

static ggml_backend_buffer_t virt_host_buft_alloc(ggml_backend_buffer_type_t buft, size_t size) {
    if (!virt_device_of(buft->device)->next_host_buffer()) {
        return nullptr;
    }
    ggml_backend_buffer_t memory = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (!memory) {
        return nullptr;
    }
    // the CPU's functions do the work, except where they need the buffer's context, which is ours
    ggml_backend_buffer_i iface = memory->iface;
    iface.free_buffer = virt_buffer_free;
    iface.get_base    = virt_buffer_get_base;
    iface.clear       = virt_buffer_clear;
    return ggml_backend_buffer_init(buft, iface, new virt_buffer(nullptr, memory), size);
}

static bool virt_host_buft_is_host(ggml_backend_buffer_type_t /*buft*/) {
    return true;
}

void virt_buft_init(virt_device * device) {
    device->buft = {
        /* .iface = */ { virt_buft_name, virt_buft_alloc, virt_buft_alignment, virt_buft_max_size, nullptr, virt_buft_is_host },
        /* .device  = */ &device->dev,
        /* .context = */ nullptr,
    };
    device->buft_host = {
        /* .iface = */ { virt_host_buft_name, virt_host_buft_alloc, virt_buft_alignment, nullptr, nullptr, virt_host_buft_is_host },
        /* .device  = */ &device->dev,
        /* .context = */ nullptr,
    };
}
