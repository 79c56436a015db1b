// what the library exports beside ggml_backend_init, by name and through ggml_backend_reg_get_proc_address

#pragma once

#include "ggml-backend.h"

#include <cstdint>

#if defined(_WIN32)
#    define VIRT_API extern "C" __declspec(dllexport)
#else
#    define VIRT_API extern "C" __attribute__ ((visibility ("default")))
#endif

// the first two: nullptr, or what is wrong, valid until the next call of the same thread

// says whether a specification is understood
VIRT_API const char * turboprefill_virtual_check(const char * spec);
// gives the devices, as many as there are, other properties and counts their graphs and buffers from the start again.
// contexts take over at once what concerns times, copies and faults; whether there are events is asked when they are made
VIRT_API const char * turboprefill_virtual_configure(const char * spec);

// a counter by name (counters.h), -1: there is none of that name
VIRT_API int64_t turboprefill_virtual_counter(const char * name);
// one of virt_numbers of a device by name, -1: there is none of that name, or no such device
VIRT_API int64_t turboprefill_virtual_number(int32_t device, const char * name);
// lets the events that were lost happen; how many
VIRT_API int64_t turboprefill_virtual_release(void);

VIRT_API ggml_backend_reg_t ggml_backend_init(void);
