// turboprefill: several contexts on one RPC device, and servers that die. Included by ggml-rpc.cpp
//
// The client remembers the last graph of each device; if the next one is the same, it only tells the server to repeat it.
// A second context on another thread must not get between that record and its command. And a server that frees a buffer
// drops its graph, and closes the connection of a client that asks it to repeat that graph.

#pragma once

#include "ggml-backend.h"
#include "ggml-turboprefill.h"

#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>

static std::mutex ggml_turboprefill_rpc_mutex;
static uint64_t   ggml_turboprefill_rpc_n_freed = 0; // buffers freed, on all servers

// n_freed when the backend last computed. never destroyed: workers may still compute while the process exits
static std::unordered_map<ggml_backend_t, uint64_t> & ggml_turboprefill_rpc_seen = *new std::unordered_map<ggml_backend_t, uint64_t>;

// held while a graph is recorded and its command is queued
struct ggml_turboprefill_rpc_lock {
    std::lock_guard<std::mutex> guard { ggml_turboprefill_rpc_mutex };
};

// held while a buffer is freed, until its server has processed the commands before that: graphs wait, on all servers
struct ggml_turboprefill_rpc_free : ggml_turboprefill_rpc_lock {
    ggml_turboprefill_rpc_free() { ggml_turboprefill_rpc_n_freed++; }
};

// whether the server certainly still has the graph that the client recorded. the lock must be held
static inline bool ggml_turboprefill_rpc_may_repeat(ggml_backend_t backend, bool noted) {
    uint64_t & seen = ggml_turboprefill_rpc_seen[backend];
    const bool same = seen == ggml_turboprefill_rpc_n_freed;
    seen = ggml_turboprefill_rpc_n_freed;
    return noted && same;
}

// this thread talks to that server until it ends: if the process is aborted in it, the message names the server
static inline void ggml_turboprefill_rpc_serves(const std::string & endpoint) {
    ggml_turboprefill_serves(endpoint.c_str());
}
