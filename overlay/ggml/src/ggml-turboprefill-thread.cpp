// turboprefill: hooks that depend on what the calling thread is doing: splitting a graph, requesting results of the ubatch
// that it has captured, or recording reads of state

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
    // not computed by any split: an input, which is in host memory already
    return false;
}

// A backend may keep notes about a graph when it optimizes it, which computing reads without a lock. Here both happen at the
// same time on two threads, so graphs are optimized on the instance that uploads: it does not compute.
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
