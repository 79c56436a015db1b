// TurboPrefill's environment variables

#pragma once

#include <string>

// value in lower case, "" if it is not set
std::string llama_turboprefill_getenv(const char * name);

// TURBOPREFILL: unset, 0, false and off mean no
bool llama_turboprefill_env_enabled();
