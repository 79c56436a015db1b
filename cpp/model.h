// a loaded model; contexts share ownership, so it outlives them in whatever order Python frees things

#pragma once

#include "llama.h"

#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace turboprefill {

namespace py = pybind11;

struct model_params {
    std::optional<std::vector<std::string>> devices; // nullopt: llama.cpp's default, empty: CPU only
    std::vector<float> tensor_split;
    int32_t     n_gpu_layers  = -1;
    int32_t     main_gpu      = 0;
    std::string split_mode    = "layer";
    bool        use_mmap      = true;
    bool        use_mlock     = false;
    bool        check_tensors = false;
    bool        vocab_only    = false;
};

class model {
public:
    // progress: None or a callable that takes a float and returns False to cancel
    model(const std::string & path, const model_params & params, const py::object & progress);

    void close() { model_.reset(); }
    bool closed() const { return !model_; }

    std::shared_ptr<llama_model> get() const; // throws closed_error

    std::vector<llama_token> tokenize(const std::string & text, bool add_special, bool parse_special) const;
    py::bytes                detokenize(const std::vector<llama_token> & tokens, bool unparse_special) const;

private:
    std::shared_ptr<llama_model> model_;
};

int32_t model_n_pos_per_embd(const llama_model * model);

} // namespace turboprefill
