// llama.cpp's log, kept in C++ until Python asks for it
//
// llama.cpp logs from any thread, also while the GIL is released or the interpreter shuts down. So the callback
// never enters Python: it appends to a bounded queue, and Python drains that after its calls into this module.

#pragma once

namespace turboprefill {

void log_install(); // idempotent

} // namespace turboprefill
