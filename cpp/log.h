// llama.cpp's log, kept in C++ until Python asks for it
//
// llama.cpp logs from any thread, also while the GIL is released or the interpreter shuts down. So the callback
// never enters Python: it appends to a bounded queue, and Python drains that after its calls into this module.

#pragma once

#include <string>

namespace turboprefill {

void log_install(); // idempotent
void log_error(const std::string & text); // as llama.cpp would

} // namespace turboprefill
