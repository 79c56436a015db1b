#include "backend.h"

#include "bindings.h"
#include "errors.h"
#include "log.h"

#include "ggml-rpc.h"
#include "llama.h"

#include <pybind11/stl.h>

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

namespace turboprefill {

namespace {

// kept out of ggml's registry, where every device would be a default device of every model
struct extra_devices {
    std::mutex                                             mutex;
    std::map<std::string, std::vector<ggml_backend_dev_t>> by_endpoint;
    std::map<std::string, std::vector<ggml_backend_dev_t>> by_path;
    std::vector<ggml_backend_dev_t>                        devices; // in order of registration
};

extra_devices & extra() {
    static extra_devices * e = new extra_devices; // never destroyed: devices live as long as the process
    return *e;
}

std::vector<std::string> names_of(const std::vector<ggml_backend_dev_t> & devices) {
    std::vector<std::string> names;
    for (auto * dev : devices) {
        names.emplace_back(ggml_backend_dev_name(dev));
    }
    return names;
}

std::vector<std::string> add_rpc_server(const std::string & endpoint) {
    backend_init();
    std::lock_guard<std::mutex> lock(extra().mutex);
    const auto known = extra().by_endpoint.find(endpoint);
    if (known != extra().by_endpoint.end()) {
        return names_of(known->second);
    }

    ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
    if (!rpc) {
        throw error("EndpointError", "this build of llama.cpp has no RPC backend; rebuild with GGML_RPC=ON");
    }
    using add_server_t = ggml_backend_reg_t (*)(const char *);
    const auto add_server = (add_server_t) ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server");
    ggml_backend_reg_t reg = add_server ? add_server(endpoint.c_str()) : nullptr;
    if (!reg) {
        throw error("EndpointError", "RPC server " + endpoint + " offers no device; start ggml-rpc-server with -d");
    }

    std::vector<ggml_backend_dev_t> devices;
    for (size_t i = 0; i < ggml_backend_reg_dev_count(reg); ++i) {
        devices.push_back(ggml_backend_reg_dev_get(reg, i));
    }
    extra().by_endpoint[endpoint] = devices;
    extra().devices.insert(extra().devices.end(), devices.begin(), devices.end());
    return names_of(devices);
}

bool has_rpc_server(const std::string & endpoint) {
    std::lock_guard<std::mutex> lock(extra().mutex);
    return extra().by_endpoint.count(endpoint) != 0;
}

// like ggml_backend_load(), but kept out of the registry, too
std::vector<std::string> load_backend(const std::string & path) {
    backend_init();
    void * library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL); // never closed: devices live as long as the process
    if (!library) {
        throw error("NativeModuleError", "the backend does not load: " + std::string(dlerror()));
    }
    const auto init = (ggml_backend_reg_t (*)()) dlsym(library, "ggml_backend_init");
    ggml_backend_reg_t reg = init ? init() : nullptr;
    if (!reg) {
        throw error("NativeModuleError", path + " gives no backend; see the log turboprefill.llama");
    }

    std::lock_guard<std::mutex> lock(extra().mutex);
    auto & loaded = extra().by_path;
    if (loaded.count(path) == 0) {
        for (size_t i = 0; i < ggml_backend_reg_dev_count(reg); ++i) {
            loaded[path].push_back(ggml_backend_reg_dev_get(reg, i));
        }
        extra().devices.insert(extra().devices.end(), loaded[path].begin(), loaded[path].end());
    }
    return names_of(loaded[path]);
}

const char * type_name(ggml_backend_dev_t dev) {
    switch (ggml_backend_dev_type(dev)) {
        case GGML_BACKEND_DEVICE_TYPE_CPU:   return "cpu";
        case GGML_BACKEND_DEVICE_TYPE_GPU:   return "gpu";
        case GGML_BACKEND_DEVICE_TYPE_IGPU:  return "igpu";
        case GGML_BACKEND_DEVICE_TYPE_ACCEL: return "accel";
        default:                             return "other";
    }
}

struct device_info {
    std::string name, description, type, backend;
    size_t      memory_free = 0, memory_total = 0;
};

// silent: RPC servers that do not answer; asking them for memory would end the process
std::vector<device_info> list_devices(const std::vector<std::string> & silent) {
    backend_init();
    std::vector<device_info> out;
    for (auto * dev : backend_devices()) {
        device_info info;
        info.name        = ggml_backend_dev_name(dev);
        info.description = ggml_backend_dev_description(dev);
        info.type        = type_name(dev);
        info.backend     = ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev));
        if (std::find(silent.begin(), silent.end(), info.description) == silent.end()) {
            ggml_backend_dev_memory(dev, &info.memory_free, &info.memory_total);
        }
        out.push_back(std::move(info));
    }
    return out;
}

} // namespace

void backend_init() {
    static std::once_flag once;
    std::call_once(once, [] {
        log_install();
        llama_backend_init();
        // backends are linked in; this is upstream's way to add one more
        if (const char * path = std::getenv("GGML_BACKEND_PATH")) {
            ggml_backend_load(path);
        }
    });
}

std::vector<ggml_backend_dev_t> backend_devices() {
    std::vector<ggml_backend_dev_t> out;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        out.push_back(ggml_backend_dev_get(i));
    }
    std::lock_guard<std::mutex> lock(extra().mutex);
    out.insert(out.end(), extra().devices.begin(), extra().devices.end());
    return out;
}

ggml_backend_dev_t backend_device(const std::string & name) {
    std::string known;
    for (auto * dev : backend_devices()) {
        if (name == ggml_backend_dev_name(dev)) {
            return dev;
        }
        known += (known.empty() ? "" : ", ") + std::string(ggml_backend_dev_name(dev));
    }
    throw invalid_input("no device is named '" + name + "'; there are: " + known);
}

void bind_backend(py::module_ & m) {
    py::class_<device_info>(m, "DeviceInfo")
        .def_readonly("name",         &device_info::name)
        .def_readonly("description",  &device_info::description)
        .def_readonly("type",         &device_info::type)
        .def_readonly("backend",      &device_info::backend)
        .def_readonly("memory_free",  &device_info::memory_free)
        .def_readonly("memory_total", &device_info::memory_total);

    m.def("backend_init",   &backend_init, py::call_guard<py::gil_scoped_release>());
    m.def("devices",        &list_devices, py::arg("silent"), py::call_guard<py::gil_scoped_release>());
    m.def("load_backend",   &load_backend, py::arg("path"), py::call_guard<py::gil_scoped_release>());
    m.def("has_rpc_server", &has_rpc_server, py::arg("endpoint"), py::call_guard<py::gil_scoped_release>());
    // upstream ends the process if the endpoint does not answer: rpc.py probes it first
    m.def("add_rpc_server", &add_rpc_server, py::arg("endpoint"), py::call_guard<py::gil_scoped_release>());
    m.def("max_devices",    &llama_max_devices);
    m.def("max_sequences",  &llama_max_parallel_sequences);
    m.def("llama_version",  [] { return std::string(llama_version()); });
    m.def("time_us",        &llama_time_us);
    m.attr("RPC_PROTOCOL") = py::make_tuple(RPC_PROTO_MAJOR_VERSION, RPC_PROTO_MINOR_VERSION);
}

} // namespace turboprefill
