// The pipeline under a sanitizer, from C++: driver VIRTUAL_BACKEND MODELS [--rpc HOST:PORT,...] [SCENARIO...]
// All results are compared with the standard path. scripts/sanitize builds and runs it.

#include "support.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <sstream>

struct driver_scenario {
    const char * name;
    void (*run)(const driver_env & env);
};

static const driver_scenario SCENARIOS[] = {
    { "paths",     scenario_paths     },
    { "sequences", scenario_sequences },
    { "memory",    scenario_memory    },
    { "behind",    scenario_behind    },
    { "in-flight", scenario_in_flight },
    { "checkpoints", scenario_checkpoints },
    { "switches",  scenario_switches  },
    { "free",      scenario_free      },
    { "abort",     scenario_abort     },
    { "faults",    scenario_faults    },
    { "late",      scenario_late      },
    { "buffers",   scenario_buffers   },
    { "refusals",  scenario_refusals  },
    { "timing",    scenario_timing    },
    { "threads",   scenario_threads   },
    { "rpc",       scenario_rpc       },
    { "rows",      scenario_rows      },
};

static std::vector<ggml_backend_dev_t> devices_of(ggml_backend_reg_t reg) {
    std::vector<ggml_backend_dev_t> devices;
    for (size_t i = 0; i < ggml_backend_reg_dev_count(reg); i++) {
        devices.push_back(ggml_backend_reg_dev_get(reg, i));
    }
    return devices;
}

static std::vector<ggml_backend_dev_t> rpc_devices(const char * endpoints) {
    ggml_backend_reg_t reg = ggml_backend_reg_by_name("RPC");
    require(reg, "this build has no RPC backend");
    const auto add = (ggml_backend_reg_t (*)(const char *)) ggml_backend_reg_get_proc_address(reg, "ggml_backend_rpc_add_server");
    std::vector<ggml_backend_dev_t> devices;
    std::istringstream stream(endpoints);
    for (std::string endpoint; std::getline(stream, endpoint, ',');) {
        ggml_backend_reg_t server = add(endpoint.c_str());
        require(server, "no RPC server answers at " + endpoint);
        for (auto * dev : devices_of(server)) {
            devices.push_back(dev);
        }
    }
    return devices;
}

static bool chosen(const char * name, const std::vector<std::string> & only) {
    if (only.empty()) {
        return true;
    }
    for (const auto & each : only) {
        if (each == name) {
            return true;
        }
    }
    return false;
}

static int run(int argc, char ** argv) {
    require(argc >= 3, "usage: driver VIRTUAL_BACKEND MODELS [--rpc HOST:PORT,...] [SCENARIO...]");
    setenv("TURBOPREFILL_VIRTUAL", std::to_string(N_DEVICES).c_str(), 1);
    setenv("TURBOPREFILL_TRANSPORT", "peer", 1); // unless devices refuse: then it is staged
    unsetenv("TURBOPREFILL");

    // faults are intended here: their messages would only distract
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        static const bool verbose = getenv("DRIVER_VERBOSE");
        if (verbose && level >= GGML_LOG_LEVEL_WARN) {
            fputs(text, stderr);
        }
    }, nullptr);

    driver_env env;
    ggml_backend_reg_t reg = ggml_backend_load(argv[1]);
    require(reg, std::string(argv[1]) + " does not load");
    env.virt   = devices_of(reg);
    env.models = argv[2];

    std::vector<std::string> only;
    for (int i = 3; i < argc; i++) {
        if (strcmp(argv[i], "--rpc") == 0 && i + 1 < argc) {
            env.rpc = rpc_devices(argv[++i]);
        } else {
            only.push_back(argv[i]);
        }
    }

    int n_run = 0;
    for (const auto & scenario : SCENARIOS) {
        if (!chosen(scenario.name, only) || (scenario.run == scenario_rpc && env.rpc.empty())) {
            continue;
        }
        const auto start = std::chrono::steady_clock::now();
        try {
            scenario.run(env);
        } catch (const std::exception & err) {
            printf("%-11s FAILED: %s\n", scenario.name, err.what());
            return 1;
        }
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        printf("%-11s ok, %lld ubatches pipelined, %.0f s\n", scenario.name, (long long) driver_take_count(), seconds.count());
        fflush(stdout);
        n_run++;
    }
    require(n_run > 0, "there is no such scenario");
    return 0;
}

int main(int argc, char ** argv) {
    try {
        return run(argc, argv);
    } catch (const std::exception & err) {
        fprintf(stderr, "driver: %s\n", err.what());
        return 2;
    }
}
