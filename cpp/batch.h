// a batch as llama_decode takes it, copied from NumPy arrays and checked
//
// On some bad batches (too many tokens, no sequence id, ...) llama.cpp ends the process, on others it indexes arrays out of
// bounds. Whatever it does not reject with a return code is rejected here.

#pragma once

#include "llama.h"

#include <pybind11/numpy.h>

#include <optional>
#include <vector>

namespace turboprefill {

namespace py = pybind11;

class batch_data {
public:
    using i32_array = py::array_t<int32_t, py::array::c_style>;
    using i8_array  = py::array_t<int8_t,  py::array::c_style>;
    using f32_array = py::array_t<float,   py::array::c_style>;

    batch_data(const std::optional<i32_array> & tokens, const std::optional<f32_array> & embd, const i32_array & pos,
               const i32_array & n_seq_id, const i32_array & seq_id, const i8_array & output);

    void check(const llama_model * model, llama_context * ctx, bool unified) const; // throws invalid_input

    llama_batch get(); // points into this object
    int64_t     n_tokens()  const { return (int64_t) output_.size(); }
    int64_t     n_outputs() const;

private:
    std::vector<llama_token>    tokens_;
    std::vector<float>          embd_;
    int64_t                     embd_width_ = 0;
    std::vector<llama_pos>      pos_;
    std::vector<int32_t>        n_seq_id_;
    std::vector<llama_seq_id>   seq_id_;
    std::vector<llama_seq_id *> seq_id_ptr_;
    std::vector<int8_t>         output_;
};

} // namespace turboprefill
