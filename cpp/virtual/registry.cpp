// entry point of the library: ggml_backend_load() calls ggml_backend_init()

#include "virtual.h"

#include "device.h"
#include "event.h"

#include "ggml-impl.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <stdexcept>
#include <vector>

// never destroyed: devices live as long as the process
struct virt_registry {
    ggml_backend_reg reg = {};
    std::vector<std::unique_ptr<virt_device>> devices;
};

static virt_registry & virt_get_registry() {
    static virt_registry * registry = new virt_registry;
    return *registry;
}

// found at the first use: the registry of backends must not be asked while it loads this one
ggml_backend_dev_t virt_cpu() {
    static ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return cpu;
}

static const char * virt_reg_name(ggml_backend_reg_t /*reg*/) {
    return "VIRT";
}

static size_t virt_reg_count(ggml_backend_reg_t /*reg*/) {
    return virt_get_registry().devices.size();
}

static ggml_backend_dev_t virt_reg_device(ggml_backend_reg_t /*reg*/, size_t index) {
    return &virt_get_registry().devices.at(index)->dev;
}

static void * virt_reg_proc_address(ggml_backend_reg_t /*reg*/, const char * name) {
    static const std::map<std::string, void *> functions = {
        { "turboprefill_virtual_check",     (void *) turboprefill_virtual_check },
        { "turboprefill_virtual_configure", (void *) turboprefill_virtual_configure },
        { "turboprefill_virtual_counter",   (void *) turboprefill_virtual_counter },
        { "turboprefill_virtual_number",    (void *) turboprefill_virtual_number },
        { "turboprefill_virtual_release",   (void *) turboprefill_virtual_release },
    };
    const auto it = functions.find(name);
    return it == functions.end() ? nullptr : it->second;
}

// calls a function that may throw and returns the message: nothing may be thrown through the C interface
template <typename F> static const char * virt_guarded(F && function) {
    static thread_local std::string message;
    try {
        function();
        return nullptr;
    } catch (const std::exception & err) {
        message = err.what();
        return message.c_str();
    }
}

const char * turboprefill_virtual_check(const char * spec) {
    return virt_guarded([&] { virt_parse_config(spec); });
}

const char * turboprefill_virtual_configure(const char * spec) {
    return virt_guarded([&] {
        auto & devices = virt_get_registry().devices;
        const auto configs = virt_parse_config(spec);
        if (configs.size() != devices.size()) {
            throw std::invalid_argument("virtual devices: this process has " + std::to_string(devices.size()) +
                    ", and their number cannot become " + std::to_string(configs.size()));
        }
        for (size_t i = 0; i < devices.size(); i++) {
            devices[i]->configure(configs[i]);
        }
    });
}

int64_t turboprefill_virtual_counter(const char * name) {
    const virt_counters & counters = virt_get_counters();
    const std::map<std::string, const std::atomic<int64_t> *> known = {
        { "graphs",  &counters.graphs  }, { "copies",  &counters.copies  }, { "faults",  &counters.faults  },
        { "events",  &counters.events  }, { "buffers", &counters.buffers }, { "bytes",   &counters.bytes   },
        { "streams", &counters.streams }, { "threads", &counters.threads },
    };
    const auto it = known.find(name);
    return it == known.end() ? -1 : it->second->load();
}

int64_t turboprefill_virtual_number(int32_t device, const char * name) {
    static const std::map<std::string, int64_t virt_numbers::*> known = {
        { "graphs",  &virt_numbers::graphs  }, { "copies", &virt_numbers::copies }, { "downloads", &virt_numbers::downloads },
        { "buffers", &virt_numbers::buffers }, { "events", &virt_numbers::events },
        { "new_events",   &virt_numbers::new_events },   { "streams", &virt_numbers::streams },
        { "host_buffers", &virt_numbers::host_buffers }, { "tensors", &virt_numbers::tensors },
        { "async_copies", &virt_numbers::async_copies },
    };
    const auto & devices = virt_get_registry().devices;
    const auto it = known.find(name);
    return it == known.end() || device < 0 || (size_t) device >= devices.size() ? -1 : devices[device]->numbers().*it->second;
}

int64_t turboprefill_virtual_release(void) {
    return virt_event_release();
}

ggml_backend_reg_t ggml_backend_init(void) {
    virt_registry & registry = virt_get_registry();
    if (!registry.devices.empty()) {
        return &registry.reg;
    }
    const char * spec = std::getenv("TURBOPREFILL_VIRTUAL");
    const char * why  = virt_guarded([&] {
        if (!spec) {
            throw std::invalid_argument("virtual devices: TURBOPREFILL_VIRTUAL is not set, expected their number, as in 4");
        }
        const auto configs = virt_parse_config(spec);
        for (size_t i = 0; i < configs.size(); i++) {
            registry.devices.push_back(std::make_unique<virt_device>((int) i, configs[i], &registry.reg));
        }
    });
    if (why) {
        GGML_LOG_ERROR("%s\n", why);
        return nullptr;
    }
    registry.reg.api_version = GGML_BACKEND_API_VERSION;
    registry.reg.iface       = { virt_reg_name, virt_reg_count, virt_reg_device, virt_reg_proc_address };
    return &registry.reg;
}
