// what the library exports besides ggml_backend_init, by name and through ggml_backend_reg_get_proc_address

#pragma once

#include "ggml-backend.h"

#include <cstdint>

#if defined(_WIN32)
#    define VIRT_API extern "C" __declspec(dllexport)
#else
#    define VIRT_API extern "C" __attribute__ ((visibility ("default")))
#endif

// the first two return nullptr, or what is wrong, which is valid until the thread's next call

// checks a specification
VIRT_API const char * turboprefill_virtual_check(const char * spec);
// gives the devices, whose number can't change, other properties, and restarts their counts. for existing contexts, times,
// copies and faults change at once; whether there are events is only asked when a context is created
VIRT_API const char * turboprefill_virtual_configure(const char * spec);

// a counter by name (counters.h), -1: no such counter
VIRT_API int64_t turboprefill_virtual_counter(const char * name);
// one of a device's virt_numbers by name, -1: no such number or device
VIRT_API int64_t turboprefill_virtual_number(int32_t device, const char * name);
// releases the lost events; returns how many
VIRT_API int64_t turboprefill_virtual_release(void);

VIRT_API ggml_backend_reg_t ggml_backend_init(void);
