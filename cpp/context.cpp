#include "context.h"

#include "backend.h"
#include "batch.h"
#include "bindings.h"
#include "errors.h"

#include "turboprefill.h"

#include <pybind11/stl.h>

#include <cstring>
#include <string_view>
#include <utility>

namespace turboprefill {

namespace {

llama_flash_attn_type flash_attn_from(const std::string & name) {
    if (name == "auto") { return LLAMA_FLASH_ATTN_TYPE_AUTO;     }
    if (name == "on")   { return LLAMA_FLASH_ATTN_TYPE_ENABLED;  }
    if (name == "off")  { return LLAMA_FLASH_ATTN_TYPE_DISABLED; }
    throw invalid_input("flash_attn is '" + name + "'; expected 'auto', 'on' or 'off'");
}

enum llama_pooling_type pooling_from(const std::string & name) {
    if (name == "default") { return LLAMA_POOLING_TYPE_UNSPECIFIED; }
    if (name == "none")    { return LLAMA_POOLING_TYPE_NONE; }
    if (name == "mean")    { return LLAMA_POOLING_TYPE_MEAN; }
    if (name == "cls")     { return LLAMA_POOLING_TYPE_CLS;  }
    if (name == "last")    { return LLAMA_POOLING_TYPE_LAST; }
    if (name == "rank")    { return LLAMA_POOLING_TYPE_RANK; }
    throw invalid_input("pooling is '" + name + "'; expected 'default', 'none', 'mean', 'cls', 'last' or 'rank'");
}

// waits for the results of the last decode, whether or not anything is in flight behind them
int32_t wait_for_results(llama_context * ctx) {
    int32_t status = 0;
    if (!llama_turboprefill_synchronize_results(ctx, &status) && status == 0) {
        status = llama_turboprefill_synchronize(ctx);
    }
    return status;
}

ggml_type type_from(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const char * type_name = ggml_type_name((ggml_type) i);
        if (type_name && name == type_name) {
            return (ggml_type) i;
        }
    }
    throw invalid_input("'" + name + "' is not a tensor type");
}

llama_context_params to_llama(const context_params & params) {
    llama_context_params out = llama_context_default_params();
    out.n_ctx           = params.n_ctx;
    out.n_batch         = params.n_batch;
    out.n_ubatch        = params.n_ubatch;
    out.n_seq_max       = params.n_seq_max;
    out.n_threads       = params.n_threads;
    out.n_threads_batch = params.n_threads_batch;
    out.flash_attn_type = flash_attn_from(params.flash_attn);
    out.pooling_type    = pooling_from(params.pooling);
    out.type_k          = type_from(params.type_k);
    out.type_v          = type_from(params.type_v);
    out.offload_kqv     = params.offload_kqv;
    out.op_offload      = params.op_offload;
    out.embeddings      = params.embeddings;
    out.kv_unified      = params.kv_unified;
    out.swa_full        = params.swa_full;
    out.no_perf         = !params.perf;
    return out;
}

int64_t output_width(const native_context & native, output_kind kind) {
    return kind == OUTPUT_LOGITS ? llama_vocab_n_tokens(llama_model_get_vocab(native.model.get()))
                                 : llama_model_n_embd_out(native.model.get());
}

// waits for them
const float * output_rows(const native_context & native, output_kind kind) {
    const float * rows = kind == OUTPUT_LOGITS ? llama_get_logits(native.ctx) : llama_get_embeddings(native.ctx);
    if (!rows) {
        throw invalid_input(kind == OUTPUT_LOGITS
            ? "this context has no logits; it was created for an embedding model"
            : "this context has no embeddings; create it with embeddings=True");
    }
    return rows;
}

void refuse_in_callback(const char * what) {
    if (in_abort_callback()) {
        throw in_use_error(std::string("a context cannot be ") + what + " from an abort callback or a signal handler while it "
            "decodes; return True in the one, raise in the other to stop it");
    }
}

} // namespace

native_context::~native_context() {
    if (ctx) {
        // freeing waits for work in flight, which may be waiting for the GIL to call the abort callback
        if (PyGILState_Check()) {
            py::gil_scoped_release nogil;
            llama_free(ctx);
        } else {
            llama_free(ctx);
        }
    }
    abort.forget();
}

context::use::use(context & self) : lock_(self.mutex_, std::defer_lock) {
    refuse_in_callback("used");
    lock_.lock();
    native = self.native_;
    if (!native) {
        throw closed_error("the context is closed; make a new one with model.context()");
    }
}

context::context(const model & model, const context_params & params) {
    auto native = std::make_shared<native_context>();
    native->model = model.get();

    py::gil_scoped_release nogil;
    native->ctx = llama_init_from_model(native->model.get(), to_llama(params));
    if (!native->ctx) {
        throw error("ContextCreationError", "llama.cpp refused to create the context");
    }
    llama_turboprefill_set_interrupt(native->ctx, abort_state::on_interrupt, &native->abort);
    embeddings_ = params.embeddings;
    unified_    = params.kv_unified || params.n_seq_max <= 1;
    native_     = std::move(native);
}

context::~context() {
    py::gil_scoped_release nogil;
    native_.reset();
}

void context::close() {
    refuse_in_callback("closed");
    std::shared_ptr<native_context> native;
    {
        py::gil_scoped_release nogil;
        std::lock_guard<std::mutex> lock(mutex_);
        py::gil_scoped_acquire gil;
        native.swap(native_);
        n_rows_ = 0;
    }
    if (native) {
        native->abort.forget();
        py::gil_scoped_release nogil;
        native.reset();
    }
}

int32_t context::decode(const std::optional<i32_array> & tokens, const std::optional<f32_array> & embd,
        const i32_array & pos, const i32_array & n_seq_id, const i32_array & seq_id, const i8_array & output) {
    // copied before the GIL is released: another thread could change the arrays between check and use
    batch_data batch(tokens, embd, pos, n_seq_id, seq_id, output);

    use u(*this);
    batch.check(u.native->model.get(), *u, unified_);
    if (u.native->n_views > 0) {
        throw in_use_error("a view from logits(copy=False) or embeddings(copy=False) is still alive, and decoding "
            "would overwrite it; delete it and everything made by slicing it, or let the call copy");
    }
    n_rows_ = 0;
    u.native->abort.begin();

    const int32_t ret = llama_decode(*u, batch.get());
    if (ret == 0) {
        n_rows_ = embeddings_ ? batch.n_tokens() : batch.n_outputs();
    }
    u.native->abort.rethrow();
    return ret;
}

std::pair<double, std::string> context::health() const {
    const auto native = native_; // without the lock: the thread that holds it may be the one that is stuck
    if (!native) {
        throw closed_error("the context is closed; make a new one with model.context()");
    }
    char text[1024];
    const int64_t t_us = llama_turboprefill_stuck_us(native->ctx, text, sizeof(text));
    return { t_us/1e6, text };
}

int32_t context::synchronize() {
    use u(*this);
    const int32_t ret = llama_turboprefill_synchronize(*u);
    u.native->abort.rethrow();
    return ret;
}

int32_t context::results() {
    use u(*this);
    const int32_t ret = wait_for_results(*u);
    u.native->abort.rethrow();
    return ret;
}

void context::copy_outputs(output_kind kind, const i32_array & rows, f32_array & out) {
    if (rows.ndim() != 1 || out.ndim() != 2 || out.shape(0) != rows.shape(0)) {
        throw invalid_input("copy_outputs takes rows (n,) and out (n, width)");
    }
    const int64_t n = rows.shape(0);
    float * dst = out.mutable_data();
    const std::vector<int32_t> src_rows(rows.data(), rows.data() + n);
    const int64_t out_width = out.shape(1);

    use u(*this);
    const int64_t width = output_width(*u.native, kind);
    const float * src = output_rows(*u.native, kind);
    u.native->abort.rethrow();
    if (out_width != width) {
        throw invalid_input("out has " + std::to_string(out_width) + " columns; expected " + std::to_string(width));
    }
    for (int64_t i = 0; i < n; ++i) {
        if (src_rows[i] < 0 || src_rows[i] >= n_rows_) {
            throw invalid_input("output row " + std::to_string(src_rows[i]) + " does not exist; the last decode made " +
                std::to_string(n_rows_));
        }
        std::memcpy(dst + i*width, src + src_rows[i]*width, width*sizeof(float));
    }
}

py::array context::view_outputs(output_kind kind) {
    std::shared_ptr<native_context> native;
    const float * rows;
    int64_t n_rows;
    {
        use u(*this);
        rows   = output_rows(*u.native, kind);
        n_rows = n_rows_;
        u.native->abort.rethrow();
        native = u.native;
        native->n_views++; // before the lock is released: a decode on another thread must see it
    }
    const int64_t width = output_width(*native, kind);
    auto * owner = new std::shared_ptr<native_context>(std::move(native));
    py::capsule base(owner, [](void * p) {
        auto * owner = (std::shared_ptr<native_context> *) p;
        (*owner)->n_views--;
        delete owner;
    });
    py::array_t<float> view({ n_rows, width }, rows, base);
    py::detail::array_proxy(view.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    return view;
}

py::array context::seq_embeddings(llama_seq_id seq_id) {
    std::vector<float> data;
    {
        use u(*this);
        wait_for_results(*u);
        u.native->abort.rethrow();
        const auto * model = u.native->model.get();
        const bool rank = llama_pooling_type(*u) == LLAMA_POOLING_TYPE_RANK;
        const size_t n = rank ? llama_model_n_cls_out(model) : llama_model_n_embd_out(model);
        const float * embd = llama_get_embeddings_seq(*u, seq_id);
        if (!embd) {
            throw invalid_input("there is no pooled embedding of sequence " + std::to_string(seq_id) +
                "; create the context with embeddings=True and a pooling, and decode that sequence first");
        }
        data.assign(embd, embd + n);
    }
    py::array_t<float> out((py::ssize_t) data.size());
    std::memcpy(out.mutable_data(), data.data(), data.size()*sizeof(float));
    return out;
}

py::bytes context::state(const py::bytes & header) {
    const std::string_view head = header;
    size_t size;
    {
        use u(*this);
        llama_synchronize(*u);
        u.native->abort.rethrow();
        size = llama_state_get_size(*u);
    }
    // filled in place: a state may be many GB
    PyObject * raw = PyBytes_FromStringAndSize(nullptr, (Py_ssize_t) (head.size() + size + sizeof(uint32_t)));
    if (!raw) {
        throw py::error_already_set();
    }
    const auto out = py::reinterpret_steal<py::bytes>(raw);
    char * dst = PyBytes_AS_STRING(raw);
    std::memcpy(dst, head.data(), head.size());
    size_t written;
    {
        use u(*this);
        written = size == 0 ? 0 : llama_state_get_data(*u, (uint8_t *) dst + head.size(), size);
    }
    if (written == 0 || written != size) {
        throw error("StateError", "llama.cpp could not save the state (" + std::to_string(written) + " of " +
            std::to_string(size) + " bytes); another thread may have decoded meanwhile");
    }
    const py::object crc32 = py::module_::import("zlib").attr("crc32");
    const uint32_t crc = crc32(py::memoryview::from_memory(dst, (py::ssize_t) (head.size() + size))).cast<uint32_t>();
    std::memcpy(dst + head.size() + size, &crc, sizeof(crc));
    return out;
}

bool context::load_state(const py::buffer & data) {
    const py::buffer_info info = data.request(); // keeps the memory in place
    if (info.ndim != 1 || info.itemsize != 1 || info.strides[0] != 1) {
        throw invalid_input("a state is a flat buffer of bytes");
    }
    const uint8_t * src = (const uint8_t *) info.ptr;
    const size_t size = (size_t) info.size;

    use u(*this);
    n_rows_ = 0;
    const size_t n_read = llama_state_set_data(*u, src, size);
    if (n_read == 0 || n_read != size) {
        llama_memory_clear(llama_get_memory(*u), true); // half a state is worse than none
        return false;
    }
    return true;
}

void context::set_abort_callback(const py::object & callback, double interval_s) {
    use u(*this);
    {
        py::gil_scoped_acquire gil;
        u.native->abort.set(callback, interval_s);
    }
    llama_set_abort_callback(*u, callback.is_none() ? nullptr : abort_state::on_abort, &u.native->abort);
}

void bind_context(py::module_ & m) {
    py::enum_<output_kind>(m, "OutputKind")
        .value("LOGITS",     OUTPUT_LOGITS)
        .value("EMBEDDINGS", OUTPUT_EMBEDDINGS);

    const auto number = [](auto f) {
        return [f](context & self) { context::use u(self); return f(*u); };
    };

    py::class_<context> cls(m, "Context");
    cls.def(py::init<const model &, const context_params &>(), py::arg("model"), py::arg("params"))
        .def("close", &context::close)
        .def_property_readonly("closed", &context::closed)
        .def("decode", &context::decode, py::kw_only(),
            py::arg("tokens").noconvert(), py::arg("embd").noconvert(), py::arg("pos").noconvert(),
            py::arg("n_seq_id").noconvert(), py::arg("seq_id").noconvert(), py::arg("output").noconvert())
        .def("synchronize", &context::synchronize)
        .def("health", &context::health)
        .def("results", &context::results)
        .def("copy_outputs", &context::copy_outputs,
            py::arg("kind"), py::arg("rows").noconvert(), py::arg("out").noconvert())
        .def("view_outputs", &context::view_outputs, py::arg("kind"))
        .def("seq_embeddings", &context::seq_embeddings, py::arg("seq_id"))
        .def("state", &context::state, py::arg("header"))
        .def("load_state", &context::load_state, py::arg("data"))
        .def("set_abort_callback", &context::set_abort_callback, py::arg("callback"), py::arg("interval_s"))
        .def_property_readonly("n_rows",    &context::n_rows)
        .def_property_readonly("n_ctx",     number(llama_n_ctx))
        .def_property_readonly("n_ctx_seq", number(llama_n_ctx_seq))
        .def_property_readonly("n_batch",   number(llama_n_batch))
        .def_property_readonly("n_ubatch",  number(llama_n_ubatch))
        .def_property_readonly("n_seq_max", number(llama_n_seq_max))
        .def_property_readonly("has_memory",  number([](llama_context * ctx) { return llama_get_memory(ctx) != nullptr; }))
        .def_property_readonly("causal_attn", number(llama_get_causal_attn))
        .def_property_readonly("pooling",     number([](llama_context * ctx) { return (int) llama_pooling_type(ctx); }));
    bind_memory(cls);
    bind_stats(m, cls);
}

} // namespace turboprefill
