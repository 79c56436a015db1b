// contents of a model file over which llama.cpp ends the process instead of refusing it

#pragma once

#include <string>

namespace turboprefill {

// throws ModelLoadError; what llama.cpp refuses by itself is left to it
void check_model_file(const std::string & path);

} // namespace turboprefill
