// turboprefill: hooks that depend on what the calling thread is doing: splitting a graph, asking for the results of a ubatch
// that it has captured, or recording which state would be read

#include "ggml-turboprefill-impl.h"

ggml_turboprefill_thread & ggml_turboprefill_this_thread() {
    static thread_local ggml_turboprefill_thread thread;
    return thread;
}

bool ggml_turboprefill_queue_output(ggml_backend_t backend, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    const ggml_turboprefill_thread & thread = ggml_turboprefill_this_thread();
    if (thread.captured == nullptr) {
        return false;
    }
    for (auto & split : thread.captured->splits) {
        if (thread.captured_by->workers[split.backend_id]->backend == backend) {
            split.outputs.push_back({ tensor, data, offset, size });
            return true;
        }
    }
    // not computed by any split: an input in host memory, which is there already
    return false;
}

// Backends note something about a graph when they optimize it, where computing looks it up: both at once, on two threads, need
// two instances. The one for uploads does not compute.
ggml_backend_t ggml_turboprefill_optimizer(ggml_backend_t backend) {
    if (const ggml_turboprefill_engine * engine = ggml_turboprefill_this_thread().splitting) {
        for (const auto & worker : engine->workers) {
            if (worker->backend == backend) {
                return worker->upload;
            }
        }
    }
    return backend;
}

void ggml_turboprefill_record_reads(std::vector<ggml_turboprefill_tensor_read> * reads) {
    ggml_turboprefill_this_thread().reads = reads;
}

bool ggml_turboprefill_record_read(const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    std::vector<ggml_turboprefill_tensor_read> * reads = ggml_turboprefill_this_thread().reads;
    if (reads == nullptr) {
        return false;
    }
    reads->push_back({ tensor, data, offset, size });
    return true;
}
