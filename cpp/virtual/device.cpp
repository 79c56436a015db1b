#include "device.h"

#include "ggml-impl.h"

#include <stdexcept>

//
// state
//

virt_device::virt_device(int index, const virt_config & config, ggml_backend_reg_t reg)
    : index(index), name("VIRT" + std::to_string(index)), description("virtual device " + std::to_string(index)) {
    configure(config);
    virt_buft_init(this);
    virt_device_init(this, reg);
}

void virt_device::configure(const virt_config & value) {
    std::lock_guard<std::mutex> lock(mutex);
    current = value;
    n       = {};
    broken  = false;
    dev.iface.event_new = value.events ? virt_event_new : nullptr;
}

virt_config virt_device::config() const {
    std::lock_guard<std::mutex> lock(mutex);
    return current;
}

bool virt_device::due(const char * what, int64_t number, int64_t fault) const {
    if (number != fault) {
        return false;
    }
    GGML_LOG_ERROR("virtual devices: %s: fault of %s %lld, as configured\n", name.c_str(), what, (long long) number);
    virt_get_counters().faults++;
    return true;
}

ggml_status virt_device::next_graph(double & stall_us) {
    std::lock_guard<std::mutex> lock(mutex);
    n.graphs++;
    stall_us = n.graphs == current.stall_graph ? 1e3*current.stall_ms : 0;
    if (broken) {
        GGML_LOG_ERROR("virtual devices: %s: no graph after a copy that failed\n", name.c_str());
        return GGML_STATUS_FAILED;
    }
    if (due("graph", n.graphs, current.throw_graph)) {
        throw std::runtime_error(name + ": graph " + std::to_string(n.graphs) + " throws, as configured");
    }
    return due("graph", n.graphs, current.fail_graph) ? current.fail_as : GGML_STATUS_SUCCESS;
}

bool virt_device::next_copy() {
    std::lock_guard<std::mutex> lock(mutex);
    const bool fault = due("copy", ++n.copies, current.fail_copy);
    broken = broken || fault;
    return !fault;
}

bool virt_device::next_download() {
    std::lock_guard<std::mutex> lock(mutex);
    const bool fault = due("download", ++n.downloads, current.fail_download);
    broken = broken || fault;
    return !fault;
}

bool virt_device::next_event() {
    std::lock_guard<std::mutex> lock(mutex);
    return !due("event", ++n.events, current.lost_event);
}

bool virt_device::next_buffer(size_t size) {
    std::lock_guard<std::mutex> lock(mutex);
    if (due("buffer", ++n.buffers, current.fail_buffer)) {
        return false;
    }
    if (size > current.memory() || used > current.memory() - size) {
        GGML_LOG_ERROR("%s: %s: %zu bytes do not fit: %zu of %zu are in use\n", __func__, name.c_str(), size, used, current.memory());
        return false;
    }
    used += size;
    return true;
}

bool virt_device::next_new_event() {
    std::lock_guard<std::mutex> lock(mutex);
    return !due("new event", ++n.new_events, current.refuse_event);
}

bool virt_device::next_stream() {
    std::lock_guard<std::mutex> lock(mutex);
    return !due("stream", ++n.streams, current.refuse_stream);
}

bool virt_device::next_host_buffer() {
    std::lock_guard<std::mutex> lock(mutex);
    return !due("host buffer", ++n.host_buffers, current.refuse_host);
}

bool virt_device::next_tensor() {
    std::lock_guard<std::mutex> lock(mutex);
    return !due("tensor", ++n.tensors, current.refuse_tensor);
}

bool virt_device::next_async_copy() {
    std::lock_guard<std::mutex> lock(mutex);
    n.async_copies++;
    if (current.refuse_copies == 0 || n.async_copies < current.refuse_copies) {
        return true;
    }
    virt_get_counters().faults++;
    return false;
}

void virt_device::free_buffer(size_t size) {
    std::lock_guard<std::mutex> lock(mutex);
    used -= size;
}

size_t virt_device::memory_used() const {
    std::lock_guard<std::mutex> lock(mutex);
    return used;
}

virt_numbers virt_device::numbers() const {
    std::lock_guard<std::mutex> lock(mutex);
    return n;
}

//
// interface
//

static const char * virt_device_name(ggml_backend_dev_t dev) {
    return virt_device_of(dev)->name.c_str();
}

static const char * virt_device_description(ggml_backend_dev_t dev) {
    return virt_device_of(dev)->description.c_str();
}

static void virt_device_memory(ggml_backend_dev_t dev, size_t * free, size_t * total) {
    const size_t used = virt_device_of(dev)->memory_used();
    *total = virt_device_of(dev)->config().memory();
    *free  = *total > used ? *total - used : 0;
}

static enum ggml_backend_dev_type virt_device_type(ggml_backend_dev_t /*dev*/) {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

static void virt_device_props(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    *props = {};
    props->name        = virt_device_name(dev);
    props->description = virt_device_description(dev);
    props->type        = virt_device_type(dev);
    virt_device_memory(dev, &props->memory_free, &props->memory_total);

    props->caps.async                = true;
    props->caps.host_buffer          = true;
    props->caps.buffer_from_host_ptr = false;
    props->caps.events               = virt_device_of(dev)->config().events;
}

static ggml_backend_buffer_type_t virt_device_buft(ggml_backend_dev_t dev) {
    return &virt_device_of(dev)->buft;
}

static ggml_backend_buffer_type_t virt_device_host_buft(ggml_backend_dev_t dev) {
    return &virt_device_of(dev)->buft_host;
}

static bool virt_device_supports_op(ggml_backend_dev_t /*dev*/, const ggml_tensor * op) {
    ggml_backend_dev_t cpu = virt_cpu();
    return cpu && ggml_backend_dev_supports_op(cpu, op);
}

static bool virt_device_supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) {
    return buft == &virt_device_of(dev)->buft;
}

void virt_device_init(virt_device * device, ggml_backend_reg_t reg) {
    ggml_backend_device_i & iface = device->dev.iface;

    const auto event_new = iface.event_new;
    iface = {};
    iface.get_name             = virt_device_name;
    iface.get_description      = virt_device_description;
    iface.get_memory           = virt_device_memory;
    iface.get_type             = virt_device_type;
    iface.get_props            = virt_device_props;
    iface.init_backend         = virt_backend_new;
    iface.get_buffer_type      = virt_device_buft;
    iface.get_host_buffer_type = virt_device_host_buft;
    iface.supports_op          = virt_device_supports_op;
    iface.supports_buft        = virt_device_supports_buft;
    iface.event_new            = event_new;
    iface.event_free           = virt_event_free;
    iface.event_synchronize    = virt_event_synchronize;

    device->dev.reg     = reg;
    device->dev.context = device;
}
