// what the virtual devices are: read from TURBOPREFILL_VIRTUAL or from a file, per device

#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

enum virt_peer {
    VIRT_PEER_ASYNC,    // copies between devices are queued
    VIRT_PEER_BLOCKING, // the caller waits until the copy is done
    VIRT_PEER_REFUSED,  // there are none: the scheduler copies through the host
};

struct virt_config {
    virt_peer peer   = VIRT_PEER_ASYNC;
    bool      events = true;
    bool      fusion = false; // plans graphs as backends do that fuse operations

    double split_us      = 0; // time of a graph, however many tokens it has
    double us_per_token  = 0; // and for each of its tokens
    double slow          = 1; // both are multiplied by this
    double launch_us     = 0; // how long the caller is held when it hands over a graph
    double bandwidth_gbs = 0; // of each direction of the link, 0: as fast as memory
    double latency_us    = 0; // of each copy
    double memory_gb     = 16;

    // faults. numbers count from 1 since the configuration was set, 0: never
    int64_t fail_graph    = 0;
    int64_t fail_copy     = 0; // into the memory of the device
    int64_t fail_download = 0; // out of it
    int64_t fail_buffer   = 0;
    int64_t lost_event    = 0;
    int64_t stall_graph   = 0;
    double  stall_ms      = 0; // how long that graph takes in addition

    ggml_status fail_as = GGML_STATUS_FAILED; // what the graph that fails returns

    double graph_us(int64_t n_tokens) const { return slow*(split_us + us_per_token*n_tokens); }
    double copy_us (size_t  n_bytes)  const { return latency_us + (bandwidth_gbs > 0 ? n_bytes/(1e3*bandwidth_gbs) : 0); }
    size_t memory() const { return (size_t) (memory_gb*1024*1024*1024); }
};

constexpr int VIRT_MAX_DEVICES = 15; // the scheduler takes 16 backends, and the CPU is one of them

// "4,peer=blocking,slow=1/1/2/1" or "@file.json": one entry per device
// throws std::invalid_argument if there is anything that it does not understand
std::vector<virt_config> virt_parse_config(const std::string & spec);
