// counters of what is alive and what was done, for leak tests and faults

#pragma once

#include <atomic>
#include <cstdint>

struct virt_counters {
    std::atomic<int64_t> graphs  { 0 }; // computed since the library was loaded
    std::atomic<int64_t> copies  { 0 }; // between devices without the host, likewise
    std::atomic<int64_t> faults  { 0 }; // likewise
    std::atomic<int64_t> events  { 0 }; // alive
    std::atomic<int64_t> buffers { 0 }; // alive, including those in host memory
    std::atomic<int64_t> bytes   { 0 }; // in them
    std::atomic<int64_t> streams { 0 }; // alive
    std::atomic<int64_t> threads { 0 }; // alive
};

virt_counters & virt_get_counters();

// requests to a device since its configuration was set; faults are specified in these numbers
struct virt_numbers {
    int64_t graphs    = 0;
    int64_t copies    = 0; // into its memory, from the host or from another device
    int64_t downloads = 0; // out of its memory, to the host
    int64_t buffers   = 0;
    int64_t events    = 0; // recorded

    int64_t new_events   = 0; // events that were created
    int64_t streams      = 0; // backend instances that were created
    int64_t host_buffers = 0; // of pinned memory
    int64_t tensors      = 0; // initialized in its memory
    int64_t async_copies = 0; // asynchronous copies into its memory from a device, itself included
};

// counts its owner while that exists
struct virt_alive {
    explicit virt_alive(std::atomic<int64_t> & counter, int64_t n = 1) : counter(counter), n(n) { counter += n; }
    ~virt_alive() { counter -= n; }

    virt_alive(const virt_alive &) = delete;
    virt_alive & operator=(const virt_alive &) = delete;

private:
    std::atomic<int64_t> & counter;
    const int64_t n;
};
