// checks a model file for contents on which llama.cpp ends the process instead of refusing the file

#pragma once

#include <string>

namespace turboprefill {

// throws ModelLoadError; what llama.cpp refuses itself is left to it
void check_model_file(const std::string & path);

} // namespace turboprefill
