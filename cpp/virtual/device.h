// a virtual device: its properties, what its streams share, and its side of ggml's interfaces

#pragma once

#include "config.h"
#include "counters.h"

#include "ggml-backend-impl.h"

#include <memory>
#include <mutex>
#include <string>

struct virt_device {
    int         index;
    std::string name;
    std::string description;

    ggml_backend_device      dev       = {};
    ggml_backend_buffer_type buft      = {};
    ggml_backend_buffer_type buft_host = {};

    // one graph at a time, one copy at a time in each direction
    std::mutex compute;
    std::mutex upload;
    std::mutex download;

    virt_device(int index, const virt_config & config, ggml_backend_reg_t reg);

    void        configure(const virt_config & value); // restarts all counts
    virt_config config() const;

    // each counts a request and returns whether it succeeds. after a failed copy, graphs are refused until configure()
    ggml_status next_graph(double & stall_us);
    bool        next_copy();
    bool        next_download();
    bool        next_event();
    bool        next_buffer(size_t size);
    bool        next_new_event();
    bool        next_stream();
    bool        next_host_buffer();
    bool        next_tensor();
    bool        next_async_copy();
    void        free_buffer(size_t size);

    size_t       memory_used() const;
    virt_numbers numbers() const;

private:
    mutable std::mutex mutex;
    virt_config  current;
    virt_numbers n;
    bool         broken = false;
    size_t       used   = 0;

    bool due(const char * what, int64_t number, int64_t fault) const;
};

inline virt_device * virt_device_of(ggml_backend_dev_t dev) { return (virt_device *) dev->context; }

// device.cpp
void virt_device_init(virt_device * device, ggml_backend_reg_t reg);

// buffer.cpp
void          virt_buft_init(virt_device * device);
virt_device * virt_buffer_device(ggml_backend_buffer_t buffer); // nullptr: not in the memory of a virtual device

// backend.cpp
ggml_backend_t virt_backend_new(ggml_backend_dev_t dev, const char * params);

// event.cpp
ggml_backend_event_t virt_event_new        (ggml_backend_dev_t dev);
void                 virt_event_free       (ggml_backend_dev_t dev, ggml_backend_event_t event);
void                 virt_event_synchronize(ggml_backend_dev_t dev, ggml_backend_event_t event);

// the CPU device that computes: only known once all backends are registered
ggml_backend_dev_t virt_cpu();
