// C++ errors that arrive in Python as classes of turboprefill.errors

#pragma once

#include <stdexcept>
#include <string>

namespace turboprefill {

struct error : std::runtime_error {
    error(const char * python_class, const std::string & msg) : std::runtime_error(msg), python_class(python_class) {}

    const char * python_class; // name in turboprefill.errors
};

inline error closed_error (const std::string & msg) { return error("ClosedError",       msg); }
inline error invalid_input(const std::string & msg) { return error("InvalidInputError", msg); }
inline error in_use_error (const std::string & msg) { return error("InUseError",        msg); }

} // namespace turboprefill
