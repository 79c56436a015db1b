// turboprefill: several contexts on one RPC device, and servers that end. Included by ggml-rpc.cpp
//
// The client notes the last graph of each device and, if the next one is the same, only tells the server to repeat it. Two
// contexts on two threads must not come between that note and its command; and a server that frees a buffer forgets the
// graph, and ends the connection of a client that asks for it again.

#pragma once

#include "ggml-backend.h"
#include "ggml-turboprefill.h"

#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>

static std::mutex ggml_turboprefill_rpc_mutex;
static uint64_t   ggml_turboprefill_rpc_n_freed = 0; // buffers, on all servers
static std::unordered_map<ggml_backend_t, uint64_t> ggml_turboprefill_rpc_seen; // of them, when the backend computed last

// while a graph is noted and its command is queued
struct ggml_turboprefill_rpc_lock {
    std::lock_guard<std::mutex> guard { ggml_turboprefill_rpc_mutex };
};

// while the command to free a buffer is queued
struct ggml_turboprefill_rpc_free : ggml_turboprefill_rpc_lock {
    ggml_turboprefill_rpc_free() { ggml_turboprefill_rpc_n_freed++; }
};

// whether the server still has the graph that the client has noted. under the lock
static inline bool ggml_turboprefill_rpc_may_repeat(ggml_backend_t backend, bool noted) {
    uint64_t & seen = ggml_turboprefill_rpc_seen[backend];
    const bool same = seen == ggml_turboprefill_rpc_n_freed;
    seen = ggml_turboprefill_rpc_n_freed;
    return noted && same;
}

// this thread talks to that server until it ends: if the process is aborted in it, the message says so
static inline void ggml_turboprefill_rpc_serves(const std::string & endpoint) {
    ggml_turboprefill_serves(endpoint.c_str());
}
