// TurboPrefill's environment variables

#pragma once

#include <string>

// value in lower case, "" if not set
std::string llama_turboprefill_getenv(const char * name);

// the number in a variable; unset if it is not set, and, with a warning, if it is not a number from min to max
double llama_turboprefill_getenv_number(const char * name, double min, double max, double unset);

// TURBOPREFILL: unset, empty, 0, false and off mean disabled
bool llama_turboprefill_env_enabled();
