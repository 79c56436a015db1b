// a context, used by one thread at a time
//
// Methods take the context's lock with the GIL released, so threads queue up instead of racing, and close() waits for a
// decode on another thread. Memory behind NumPy arrays belongs to `native_context`, which these arrays keep alive: close()
// frees it if there are none, else the last array does.

#pragma once

#include "abort.h"
#include "model.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include <pybind11/numpy.h>

namespace turboprefill {

struct context_params {
    uint32_t    n_ctx           = 512;
    uint32_t    n_batch         = 2048;
    uint32_t    n_ubatch        = 512;
    uint32_t    n_seq_max       = 1;
    int32_t     n_threads       = 4;
    int32_t     n_threads_batch = 4;
    std::string flash_attn      = "auto";
    std::string pooling         = "default";
    std::string type_k          = "f16";
    std::string type_v          = "f16";
    bool        offload_kqv     = true;
    bool        op_offload      = true;
    bool        embeddings      = false;
    bool        kv_unified      = false;
    bool        swa_full        = true;
    bool        perf            = true;
};

struct native_context {
    std::shared_ptr<llama_model> model;
    llama_context *              ctx = nullptr;
    abort_state                  abort;
    std::atomic<int>             n_views = 0; // NumPy arrays over the output buffer

    ~native_context();
};

enum output_kind { OUTPUT_LOGITS, OUTPUT_EMBEDDINGS };

class context {
public:
    using i32_array = py::array_t<int32_t, py::array::c_style>;
    using i8_array  = py::array_t<int8_t,  py::array::c_style>;
    using f32_array = py::array_t<float,   py::array::c_style>;

    context(const model & model, const context_params & params);
    ~context();

    void close();
    bool closed() const { return !native_; }

    // tokens (n,) or embd (n, n_embd_inp); pos (n,) or (n_pos_per_embd*n,); n_seq_id (n,);
    // seq_id: the ids of all tokens in one row; output (n,). Returns what llama_decode returned.
    int32_t   decode(const std::optional<i32_array> & tokens, const std::optional<f32_array> & embd,
                     const i32_array & pos, const i32_array & n_seq_id, const i32_array & seq_id,
                     const i8_array & output);
    int32_t   synchronize();
    std::pair<double, std::string> health() const; // seconds without progress, 0: all is well; and why. GIL held
    int32_t   results();
    void      copy_outputs(output_kind kind, const i32_array & rows, f32_array & out);
    py::array view_outputs(output_kind kind);
    py::array seq_embeddings(llama_seq_id seq_id);

    py::bytes state(const py::bytes & header); // header, llama.cpp's state, CRC-32 of both
    bool      load_state(const py::buffer & data); // llama.cpp's part; if that fails, the memory is empty

    void set_abort_callback(const py::object & callback, double interval_s);

    int64_t n_rows()  const { return n_rows_; }
    bool    unified() const { return unified_; } // sequences may share tokens

    // exclusive use: releases the GIL, then takes the lock; undone in reverse order
    class use {
    public:
        explicit use(context & self);

        llama_context * operator*() const { return native->ctx; }

    private:
        py::gil_scoped_release       nogil_;
        std::unique_lock<std::mutex> lock_;

    public:
        std::shared_ptr<native_context> native;
    };

private:
    std::mutex                      mutex_;
    std::shared_ptr<native_context> native_; // empty once closed; written with both the GIL and the lock held
    int64_t                         n_rows_ = 0; // outputs of the last decode
    bool                            embeddings_ = false;
    bool                            unified_    = false;
};

void bind_memory(py::class_<context> & cls);
void bind_stats (py::module_ & m, py::class_<context> & cls);

} // namespace turboprefill
