// TurboPrefill: when a context has an engine: created, dismantled and disabled with the scheduler that it belongs to
//
// Whether there is an engine, and how large its memory is, follows from the worst-case graph, which is known only while the
// scheduler is reserved. Recurrent models may need a second reservation inside the first.

#include "turboprefill-impl.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iterator>

static const double LLAMA_TURBOPREFILL_WATCHDOG_DEFAULT_S = 120; // longer than any ubatch that is worth waiting for

// Backends known to work with a thread per device. ROCm and MUSA are the CUDA backend compiled for other vendors. Vulkan
// records and waits for events on one thread only; OpenCL keeps data per tensor that the next ubatch overwrites.
static const char * const LLAMA_TURBOPREFILL_KNOWN_BACKENDS[] = { "CPU", "CUDA", "ROCm", "MUSA", "RPC", "VIRT" };

// TURBOPREFILL_SLOTS, TURBOPREFILL_HOST_MB, TURBOPREFILL_TRANSPORT, TURBOPREFILL_WATCHDOG_S
static ggml_turboprefill_params llama_turboprefill_default_params() {
    ggml_turboprefill_params params;

    params.n_slots    = (int) llama_turboprefill_getenv_number("TURBOPREFILL_SLOTS", 1, 1024, 0);
    params.watchdog_s = llama_turboprefill_getenv_number("TURBOPREFILL_WATCHDOG_S", 0, 1e6, LLAMA_TURBOPREFILL_WATCHDOG_DEFAULT_S);

    const double host_mb = llama_turboprefill_getenv_number("TURBOPREFILL_HOST_MB", 1, 1e8, 0);
    if (host_mb > 0) {
        params.max_host_bytes = (size_t) host_mb*1024*1024;
    }

    const std::string transport = llama_turboprefill_getenv("TURBOPREFILL_TRANSPORT");
    if (transport == "peer") {
        params.transport = GGML_TURBOPREFILL_TRANSPORT_PEER;
    } else if (!transport.empty() && transport != "staged") {
        LLAMA_LOG_WARN("%s: TURBOPREFILL_TRANSPORT=%s: expected staged or peer; using staged\n", __func__, transport.c_str());
    }
    return params;
}

std::string llama_turboprefill::why_no_backend() const {
    const std::string given = llama_turboprefill_getenv("TURBOPREFILL_BACKENDS");
    const auto allowed = [&](std::string name) {
        if (given.empty()) {
            const auto & known = LLAMA_TURBOPREFILL_KNOWN_BACKENDS;
            return std::any_of(std::begin(known), std::end(known), [&](const char * one) { return name == one; });
        }
        std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
        return given == "any" || ("," + given + ",").find("," + name + ",") != std::string::npos;
    };
    for (const auto & device : ctx.model.devices) {
        const char * name = ggml_backend_reg_name(ggml_backend_dev_backend_reg(device.dev));
        if (!allowed(name)) {
            return "this backend is not known to support a thread per device: " + std::string(name);
        }
        ggml_backend_dev_props props;
        ggml_backend_dev_get_props(device.dev, &props);
        if (strcmp(name, "RPC") == 0 && !props.caps.events) {
            return "this llama.cpp's RPC client allows only one thread per connection: update llama.cpp";
        }
    }
    return "";
}

uint64_t llama_turboprefill::graph_bytes() const {
    const auto n_nodes = entries.empty() ? 0 : ctx.get_gf_res_reserve()->get_max_nodes();
    return n_nodes == 0 ? 0 : entries.size()*(ggml_tensor_overhead()*n_nodes + ggml_graph_overhead_custom(n_nodes, false));
}

void llama_turboprefill::sched_begin() {
    if (engine) {
        drain(GGML_TURBOPREFILL_CAUSE_SETTING);
        keep_waits();
        ggml_turboprefill_parts_free(parts);
        parts  = ggml_turboprefill_engine_dismantle(engine);
        engine = nullptr;
        i_engine++;
        entries.clear();
    }
    if (trace && ctx.sched) {
        ggml_turboprefill_sched_set_trace(ctx.sched.get(), nullptr);
    }
}

void llama_turboprefill::sched_new() {
    ggml_turboprefill_sched_set_regroup(ctx.sched.get(), enabled && regroup == LLAMA_TURBOPREFILL_REGROUP_ON);
}

void llama_turboprefill::sched_end() {
    ggml_turboprefill_sched_set_trace(ctx.sched.get(), trace);

    if (!enabled || ctx.model.hparams.no_alloc) {
        return;
    }

    if (engine) {
        return; // created by a reservation inside this one
    }

    why_no_engine.clear();
    if (ctx.model.split_mode() != LLAMA_SPLIT_MODE_LAYER) {
        why_no_engine = "the split mode is not layer";
    } else if (const std::string why = why_no_backend(); !why.empty()) {
        why_no_engine = why;
    } else if (const char * why = ggml_turboprefill_why_not(ctx.sched.get())) {
        why_no_engine = why;
        if (regroup == LLAMA_TURBOPREFILL_REGROUP_UNTRIED && ggml_turboprefill_repeats_devices(ctx.sched.get())) {
            try_regroup();
            return;
        }
    } else {
        bool planned = false;
        try {
            ggml_turboprefill_parts * old = parts;
            parts  = nullptr;
            ggml_turboprefill_params params = llama_turboprefill_default_params();
            params.health = health;
            engine = ggml_turboprefill_engine_new(ctx.sched.get(), ctx.get_gf_res_reserve()->get_gf(), params, old);
            n_devices = ggml_turboprefill_n_devices(ctx.sched.get()); // before other graphs are split
            planned   = engine && plan_known_kinds();
        } catch (const std::exception & err) {
            LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
        }
        if (engine && !planned) {
            ggml_turboprefill_engine_free(engine);
            engine = nullptr;
        }
        if (!engine) {
            why_no_engine = "not enough memory or threads for the pipeline";
        }
    }

    if (!engine && regroup == LLAMA_TURBOPREFILL_REGROUP_ON) {
        if (!regrouping) {
            undo_regroup(ctx.cparams.pipeline_parallel);
        }
        return;
    }

    if (engine) {
        entries.resize(ggml_turboprefill_get_stats(engine).n_slots);
        for (auto & entry : entries) {
            // now, not in the first prompt: this writes all of its memory, page by page
            entry.res.reset(new llm_graph_result(ctx.get_gf_res_reserve()->get_max_nodes()));
        }
        LLAMA_LOG_INFO("%s: TurboPrefill: prefill is pipelined, %d slots\n", __func__, (int) entries.size());
        if (ubatch_overhead > 0) {
            LLAMA_LOG_INFO("%s: TurboPrefill: the ubatch size is chosen for each prompt, with a fixed cost per ubatch of %.0f tokens\n", __func__, ubatch_overhead);
        }
    } else {
        LLAMA_LOG_WARN("%s: TurboPrefill: standard path: %s\n", __func__, why_no_engine.c_str());
    }
}

// frees the parts of the previous engine if there is no new one that could have taken them over
void llama_turboprefill::drop_parts() {
    if (!engine && !regrouping) {
        ggml_turboprefill_parts_free(parts);
        parts = nullptr;
    }
}

// buffers are planned for an order of nodes: another order needs another reservation, inside the one that is ending
void llama_turboprefill::try_regroup() {
    const bool pipeline_parallel = ctx.cparams.pipeline_parallel;

    regroup    = LLAMA_TURBOPREFILL_REGROUP_ON;
    regrouping = true;
    try {
        ctx.sched_need_reserve = true;
        ctx.sched_reserve();
    } catch (const std::exception & err) {
        LLAMA_LOG_WARN("%s: %s\n", __func__, err.what());
    }
    regrouping = false;

    if (!engine || ctx.cparams.pipeline_parallel != pipeline_parallel) {
        undo_regroup(pipeline_parallel);
    }
}

// it did not help: back to upstream's order
void llama_turboprefill::undo_regroup(bool pipeline_parallel) {
    regroup = LLAMA_TURBOPREFILL_REGROUP_USELESS;
    ctx.cparams.pipeline_parallel = pipeline_parallel;
    ctx.sched_need_reserve = true;
    try {
        ctx.sched_reserve();
    } catch (...) {
        ctx.sched_need_reserve = true;
        throw;
    }
}

void llama_turboprefill::set_enabled(bool value) {
    drain(GGML_TURBOPREFILL_CAUSE_SETTING);
    why_disabled = nullptr;
    if (enabled == value) {
        return;
    }
    enabled = value;
    // an engine takes its sizes from the worst-case graph, which is known only while that is reserved.
    // without an engine, graphs return to upstream's order of nodes
    const bool reserve = enabled ? !engine : regroup == LLAMA_TURBOPREFILL_REGROUP_ON;
    if (!reserve || !ctx.sched) {
        return;
    }
    try {
        ctx.sched_need_reserve = true;
        ctx.sched_reserve();
    } catch (...) {
        // restore the old setting; the next decode reserves again, and reports if it can't
        enabled = !value;
        ctx.sched_need_reserve = true;
        why_disabled = value ? "not enough memory to enable TurboPrefill" : nullptr;
        throw;
    }
}
