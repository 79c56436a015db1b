#include "turboprefill-env.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>

std::string llama_turboprefill_getenv(const char * name) {
    const char * value = getenv(name);
    std::string res = value ? value : "";
    std::transform(res.begin(), res.end(), res.begin(), [](unsigned char c) { return std::tolower(c); });
    return res;
}

bool llama_turboprefill_env_enabled() {
    const std::string value = llama_turboprefill_getenv("TURBOPREFILL");
    return !(value.empty() || value == "0" || value == "false" || value == "off");
}
