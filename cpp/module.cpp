// turboprefill._core: thin wrappers over llama.h and turboprefill.h
//
// The Python modules of the package are the public interface; this one may change at any time.

#include "bindings.h"

#include "turboprefill.h"

PYBIND11_MODULE(_core, m) {
    m.doc() = "Native module of turboprefill. Private: use the names that the package exports.";
    m.attr("OVERLAY_VERSION") = TURBOPREFILL_VERSION;

    turboprefill::bind_errors(m);
    turboprefill::bind_log(m);
    turboprefill::bind_backend(m);
    turboprefill::bind_params(m);
    turboprefill::bind_model(m);
    turboprefill::bind_context(m);
}
