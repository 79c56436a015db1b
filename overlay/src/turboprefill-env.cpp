#include "turboprefill-env.h"

#include "llama-impl.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>

std::string llama_turboprefill_getenv(const char * name) {
    const char * value = getenv(name);
    std::string res = value ? value : "";
    std::transform(res.begin(), res.end(), res.begin(), [](unsigned char c) { return std::tolower(c); });
    return res;
}

double llama_turboprefill_getenv_number(const char * name, double min, double max, double unset) {
    const std::string value = llama_turboprefill_getenv(name);
    if (value.empty()) {
        return unset;
    }
    char * end = nullptr;
    const double number = strtod(value.c_str(), &end);
    if (*end != 0 || !(number >= min && number <= max)) {
        LLAMA_LOG_WARN("%s: %s=%s: expected a number from %g to %g; using the default\n", __func__, name, value.c_str(), min, max);
        return unset;
    }
    return number;
}

bool llama_turboprefill_env_enabled() {
    const std::string value = llama_turboprefill_getenv("TURBOPREFILL");
    return !(value.empty() || value == "0" || value == "false" || value == "off");
}
