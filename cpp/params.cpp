// option structs, filled by the Python classes that validate them

#include "bindings.h"
#include "context.h"
#include "model.h"

#include <pybind11/stl.h>

namespace turboprefill {

void bind_params(py::module_ & m) {
    py::class_<model_params>(m, "ModelParams")
        .def(py::init<>())
        .def_readwrite("devices",       &model_params::devices)
        .def_readwrite("tensor_split",  &model_params::tensor_split)
        .def_readwrite("n_gpu_layers",  &model_params::n_gpu_layers)
        .def_readwrite("main_gpu",      &model_params::main_gpu)
        .def_readwrite("split_mode",    &model_params::split_mode)
        .def_readwrite("use_mmap",      &model_params::use_mmap)
        .def_readwrite("use_mlock",     &model_params::use_mlock)
        .def_readwrite("check_tensors", &model_params::check_tensors)
        .def_readwrite("vocab_only",    &model_params::vocab_only);

    py::class_<context_params>(m, "ContextParams")
        .def(py::init<>())
        .def_readwrite("n_ctx",           &context_params::n_ctx)
        .def_readwrite("n_batch",         &context_params::n_batch)
        .def_readwrite("n_ubatch",        &context_params::n_ubatch)
        .def_readwrite("n_seq_max",       &context_params::n_seq_max)
        .def_readwrite("n_threads",       &context_params::n_threads)
        .def_readwrite("n_threads_batch", &context_params::n_threads_batch)
        .def_readwrite("flash_attn",      &context_params::flash_attn)
        .def_readwrite("pooling",         &context_params::pooling)
        .def_readwrite("type_k",          &context_params::type_k)
        .def_readwrite("type_v",          &context_params::type_v)
        .def_readwrite("offload_kqv",     &context_params::offload_kqv)
        .def_readwrite("op_offload",      &context_params::op_offload)
        .def_readwrite("embeddings",      &context_params::embeddings)
        .def_readwrite("kv_unified",      &context_params::kv_unified)
        .def_readwrite("swa_full",        &context_params::swa_full)
        .def_readwrite("perf",            &context_params::perf);
}

} // namespace turboprefill
