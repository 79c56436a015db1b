// process-wide state of llama.cpp: initialisation, devices, RPC servers

#pragma once

#include "ggml-backend.h"

#include <string>
#include <vector>

namespace turboprefill {

void backend_init(); // idempotent, called by everything that needs llama.cpp

std::vector<ggml_backend_dev_t> backend_devices(); // registered devices, then those of RPC servers and loaded backends
ggml_backend_dev_t              backend_device(const std::string & name);

} // namespace turboprefill
