// TurboPrefill's environment variables

#pragma once

#include <string>

// value in lower case, "" if not set
std::string llama_turboprefill_getenv(const char * name);

// TURBOPREFILL: unset, empty, 0, false and off mean disabled
bool llama_turboprefill_env_enabled();
