// a copy of a graph that does not need the caller's tensors, which may be overwritten as soon as the call returns

#pragma once

#include "ggml-impl.h"
#include "ggml-cpp.h"

#include <deque>
#include <unordered_map>

struct virt_snapshot {
    explicit virt_snapshot(const ggml_cgraph * graph);

    virt_snapshot(const virt_snapshot &) = delete;
    virt_snapshot & operator=(const virt_snapshot &) = delete;

    ggml_cgraph * graph() const { return copy; }
    int64_t    n_tokens() const { return tokens; } // that the graph works on

private:
    std::deque<ggml_tensor> tensors; // a deque: addresses must not change
    std::unordered_map<const ggml_tensor *, ggml_tensor *> copies;

    ggml_context_ptr ctx;
    ggml_cgraph *    copy   = nullptr;
    int64_t          tokens = 0;

    ggml_tensor * copy_of(const ggml_tensor * tensor);
};
