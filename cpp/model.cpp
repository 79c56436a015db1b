#include "model.h"

#include "backend.h"
#include "bindings.h"
#include "checkfile.h"
#include "errors.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <climits>
#include <exception>
#include <set>

namespace turboprefill {

namespace {

llama_split_mode split_mode_from(const std::string & name) {
    if (name == "none")   { return LLAMA_SPLIT_MODE_NONE;   }
    if (name == "layer")  { return LLAMA_SPLIT_MODE_LAYER;  }
    if (name == "row")    { return LLAMA_SPLIT_MODE_ROW;    }
    if (name == "tensor") { return LLAMA_SPLIT_MODE_TENSOR; }
    throw invalid_input("split_mode is '" + name + "'; expected 'none', 'layer', 'row' or 'tensor'");
}

llama_load_mode load_mode_from(bool use_mmap, bool use_mlock) {
    if (use_mmap) {
        return use_mlock ? LLAMA_LOAD_MODE_MMAP_MLOCK : LLAMA_LOAD_MODE_AUTO;
    }
    return use_mlock ? LLAMA_LOAD_MODE_MLOCK : LLAMA_LOAD_MODE_NONE;
}

// null-terminated list for llama.cpp
std::vector<ggml_backend_dev_t> resolve_devices(const std::vector<std::string> & names) {
    std::vector<ggml_backend_dev_t> devices;
    std::set<std::string> seen;
    for (const auto & name : names) {
        ggml_backend_dev_t dev = backend_device(name);
        const auto type = ggml_backend_dev_type(dev);
        if (type == GGML_BACKEND_DEVICE_TYPE_CPU || type == GGML_BACKEND_DEVICE_TYPE_ACCEL) {
            throw invalid_input("device '" + name + "' is always in use; leave it out, or pass devices=[] for CPU only");
        }
        if (!seen.insert(name).second) {
            throw invalid_input("device '" + name + "' is named twice in devices");
        }
        devices.push_back(dev);
    }
    devices.push_back(nullptr);
    return devices;
}

// llama.cpp's scheduler ends the process if there are too many backends, and the CPU is always one of them
void check_device_count(size_t n) {
    size_t n_host = 0;
    for (auto * dev : backend_devices()) {
        const auto type = ggml_backend_dev_type(dev);
        n_host += type == GGML_BACKEND_DEVICE_TYPE_CPU || type == GGML_BACKEND_DEVICE_TYPE_ACCEL;
    }
    const size_t n_max = llama_max_devices() - std::min(llama_max_devices(), n_host);
    if (n > n_max) {
        throw invalid_input(std::to_string(n) + " devices were given; llama.cpp takes at most " + std::to_string(n_max));
    }
}

// calls Python while the model loads; an exception there cancels loading, and the caller rethrows it
struct load_progress {
    const py::object & callback;
    std::exception_ptr error;
    int                percent = -1;

    static bool on_progress(float progress, void * data) {
        auto & self = *(load_progress *) data;
        const int percent = (int) (100*progress);
        if (self.callback.is_none() || percent == self.percent) {
            return true;
        }
        self.percent = percent;

        py::gil_scoped_acquire gil;
        try {
            const py::object result = self.callback(progress);
            return !(PyBool_Check(result.ptr()) && result.is(py::bool_(false)));
        } catch (py::error_already_set &) {
            self.error = std::current_exception();
            return false;
        }
    }
};

// llama.cpp ends the process when a model without a vocabulary is asked to use one
const llama_vocab * usable_vocab(const llama_model * model) {
    const auto * vocab = llama_model_get_vocab(model);
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
        throw invalid_input("this model file has no tokenizer; pass token ids instead of text");
    }
    return vocab;
}

std::string model_desc(const llama_model * model) {
    std::string buf(256, '\0');
    const int32_t n = llama_model_desc(model, buf.data(), buf.size());
    buf.resize(std::clamp<int32_t>(n, 0, (int32_t) buf.size() - 1));
    return buf;
}

std::string meta_string(const llama_model * model, int32_t i, decltype(&llama_model_meta_key_by_index) get) {
    const int32_t n = get(model, i, nullptr, 0);
    std::string buf(std::max<int32_t>(n, 0) + 1, '\0');
    get(model, i, buf.data(), buf.size());
    buf.pop_back();
    return buf;
}

py::str lenient_str(const std::string & s) {
    return py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(s.data(), (Py_ssize_t) s.size(), "replace"));
}

py::dict model_metadata(const model & self) {
    const auto model = self.get();
    py::dict out;
    for (int32_t i = 0; i < llama_model_meta_count(model.get()); ++i) {
        out[lenient_str(meta_string(model.get(), i, llama_model_meta_key_by_index))] =
            lenient_str(meta_string(model.get(), i, llama_model_meta_val_str_by_index));
    }
    return out;
}

template <typename F> auto property(F f) {
    return [f](const model & self) { return f(self.get().get()); };
}

template <typename F> auto vocab_property(F f) {
    return [f](const model & self) { return f(llama_model_get_vocab(self.get().get())); };
}

} // namespace

int32_t model_n_pos_per_embd(const llama_model * model) {
    const auto rope = llama_model_rope_type(model);
    return rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE ? 4 : 1;
}

model::model(const std::string & path, const model_params & params, const py::object & progress) {
    load_progress state = { progress, nullptr };
    {
        py::gil_scoped_release nogil;
        backend_init();

        std::vector<ggml_backend_dev_t> devices;
        std::vector<float> tensor_split(llama_max_devices(), 0.0f);
        if (params.tensor_split.size() > tensor_split.size()) {
            throw invalid_input("tensor_split has " + std::to_string(params.tensor_split.size()) +
                " entries; llama.cpp takes at most " + std::to_string(tensor_split.size()));
        }
        std::copy(params.tensor_split.begin(), params.tensor_split.end(), tensor_split.begin());

        llama_model_params mparams = llama_model_default_params();
        if (params.devices) {
            devices = resolve_devices(*params.devices);
            check_device_count(devices.size() - 1);
            mparams.devices = devices.data();
        }
        mparams.n_gpu_layers  = params.n_gpu_layers;
        mparams.main_gpu      = params.main_gpu;
        mparams.split_mode    = split_mode_from(params.split_mode);
        mparams.load_mode     = load_mode_from(params.use_mmap, params.use_mlock);
        mparams.check_tensors = params.check_tensors;
        mparams.vocab_only    = params.vocab_only;
        if (!params.tensor_split.empty()) {
            mparams.tensor_split = tensor_split.data();
        }
        // always set: llama.cpp's default writes dots to the log
        mparams.progress_callback           = load_progress::on_progress;
        mparams.progress_callback_user_data = &state;

        check_model_file(path);
        model_.reset(llama_model_load_from_file(path.c_str(), mparams), llama_model_free);
        if (!model_.get()) {
            model_.reset();
        }
    }
    if (state.error) {
        std::rethrow_exception(state.error);
    }
    if (!model_) {
        throw error("ModelLoadError", "llama.cpp could not load the model");
    }
}

std::shared_ptr<llama_model> model::get() const {
    if (!model_) {
        throw closed_error("the model is closed; load it again");
    }
    return model_;
}

std::vector<llama_token> model::tokenize(const std::string & text, bool add_special, bool parse_special) const {
    const auto model = get();
    const auto * vocab = usable_vocab(model.get());
    if (text.size() > INT32_MAX) {
        throw invalid_input("the text has " + std::to_string(text.size()) + " bytes; the limit is 2147483647");
    }

    py::gil_scoped_release nogil;
    std::vector<llama_token> tokens(text.size() + 16); // a token is at least one byte, plus BOS and EOS
    int32_t n = llama_tokenize(vocab, text.data(), (int32_t) text.size(), tokens.data(), (int32_t) tokens.size(),
        add_special, parse_special);
    if (n < 0 && n != INT32_MIN) {
        tokens.resize(-n);
        n = llama_tokenize(vocab, text.data(), (int32_t) text.size(), tokens.data(), (int32_t) tokens.size(),
            add_special, parse_special);
    }
    if (n < 0) {
        throw invalid_input("the text has more tokens than llama.cpp can count");
    }
    tokens.resize(n);
    return tokens;
}

py::bytes model::detokenize(const std::vector<llama_token> & tokens, bool unparse_special) const {
    const auto model = get();
    const auto * vocab = usable_vocab(model.get());
    const int32_t n_vocab = llama_vocab_n_tokens(vocab);
    for (size_t i = 0; i < tokens.size(); ++i) {
        if (tokens[i] < 0 || tokens[i] >= n_vocab) {
            throw invalid_input("token " + std::to_string(i) + " is " + std::to_string(tokens[i]) +
                "; this model's ids are 0 to " + std::to_string(n_vocab - 1));
        }
    }
    if (tokens.empty()) {
        return py::bytes();
    }
    std::string text(8*tokens.size(), '\0');
    int32_t n = llama_detokenize(vocab, tokens.data(), (int32_t) tokens.size(), text.data(), (int32_t) text.size(),
        false, unparse_special);
    if (n < 0) {
        text.resize(-n);
        n = llama_detokenize(vocab, tokens.data(), (int32_t) tokens.size(), text.data(), (int32_t) text.size(),
            false, unparse_special);
    }
    text.resize(std::max<int32_t>(n, 0));
    return py::bytes(text);
}

void bind_model(py::module_ & m) {
    py::class_<model>(m, "Model")
        .def(py::init<const std::string &, const model_params &, const py::object &>(),
            py::arg("path"), py::arg("params"), py::arg("progress"))
        .def("close", &model::close)
        .def_property_readonly("closed", &model::closed)
        .def("tokenize", &model::tokenize, py::arg("text"), py::arg("add_special"), py::arg("parse_special"))
        .def("detokenize", &model::detokenize, py::arg("tokens"), py::arg("unparse_special"))
        .def("metadata", &model_metadata)
        .def("is_eog", [](const model & self, llama_token token) {
            const auto model = self.get();
            return llama_vocab_is_eog(llama_model_get_vocab(model.get()), token);
        }, py::arg("token"))
        .def_property_readonly("desc",        property(model_desc))
        .def_property_readonly("n_ctx_train", property(llama_model_n_ctx_train))
        .def_property_readonly("n_embd",      property(llama_model_n_embd))
        .def_property_readonly("n_embd_inp",  property(llama_model_n_embd_inp))
        .def_property_readonly("n_embd_out",  property(llama_model_n_embd_out))
        .def_property_readonly("n_layer",     property(llama_model_n_layer))
        .def_property_readonly("n_params",    property(llama_model_n_params))
        .def_property_readonly("n_pos_per_embd", property(model_n_pos_per_embd))
        .def_property_readonly("size",        property(llama_model_size))
        .def_property_readonly("has_encoder", property(llama_model_has_encoder))
        .def_property_readonly("has_decoder", property(llama_model_has_decoder))
        .def_property_readonly("n_vocab",     vocab_property(llama_vocab_n_tokens))
        .def_property_readonly("token_bos",   vocab_property(llama_vocab_bos))
        .def_property_readonly("token_eos",   vocab_property(llama_vocab_eos));
}

} // namespace turboprefill
