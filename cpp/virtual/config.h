// configuration of each virtual device, from TURBOPREFILL_VIRTUAL or from a file

#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

enum virt_peer {
    VIRT_PEER_ASYNC,    // copies between devices are queued
    VIRT_PEER_BLOCKING, // the caller waits until the copy is done
    VIRT_PEER_REFUSED,  // copies are refused: the scheduler copies through the host
};

struct virt_config {
    virt_peer peer   = VIRT_PEER_ASYNC;
    bool      events = true;
    bool      fusion = false; // asks for the plans of a backend that fuses operations

    double split_us      = 0; // fixed time of a graph
    double us_per_token  = 0; // added for each of its tokens
    double slow          = 1; // factor of both
    double launch_us     = 0; // how long submitting a graph holds the caller
    double bandwidth_gbs = 0; // of each direction of the link, 0: as fast as memory
    double latency_us    = 0; // of each copy
    double memory_gb     = 16;

    // faults: the number of the request that fails, from 1 since the configuration was set, 0: never
    int64_t fail_graph    = 0;
    int64_t fail_copy     = 0; // into the device's memory
    int64_t fail_download = 0; // out of it
    int64_t fail_buffer   = 0;
    int64_t lost_event    = 0;
    int64_t throw_graph   = 0; // submitting it throws
    int64_t refuse_event  = 0; // the event that is not created
    int64_t refuse_stream = 0; // the backend instance that is not created
    int64_t refuse_host   = 0; // the buffer of pinned memory that is not allocated
    int64_t refuse_tensor = 0; // the tensor that is not initialized in its buffer
    int64_t refuse_copies = 0; // from this one on, asynchronous copies from a device, itself included, are refused
    int64_t stall_graph   = 0;
    double  stall_ms      = 0; // additional time of that graph

    ggml_status fail_as = GGML_STATUS_FAILED; // what the failing graph returns

    double graph_us(int64_t n_tokens) const { return slow*(split_us + us_per_token*n_tokens); }
    double copy_us (size_t  n_bytes)  const { return latency_us + (bandwidth_gbs > 0 ? n_bytes/(1e3*bandwidth_gbs) : 0); }
    size_t memory() const { return (size_t) (memory_gb*1024*1024*1024); }
};

constexpr int VIRT_MAX_DEVICES = 15; // the scheduler takes 16 backends, and the CPU is one of them

// "4,peer=blocking,slow=1/1/2/1" or "@file.json": one entry per device
// throws std::invalid_argument on anything that it does not understand
std::vector<virt_config> virt_parse_config(const std::string & spec);
