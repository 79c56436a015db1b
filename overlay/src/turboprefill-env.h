// TurboPrefill's environment variables

#pragma once

#include <string>

// value in lower case, "" if it is not set
std::string turboprefill_getenv(const char * name);

// TURBOPREFILL: unset, 0, false and off mean no
bool turboprefill_env_enabled();
