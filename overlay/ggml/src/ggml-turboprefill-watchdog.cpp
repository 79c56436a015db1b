// turboprefill: finds out which device does not answer when there is no progress
//
// Devices hang: the driver lost an event, the server was stopped, the cable came loose. Work can't be taken back from them,
// so threads that wait keep waiting. But the log names the device, and so does a query for the health of the process.
//
// Threads note what they are about to do, and the watchdog looks at these notes a few times per deadline. The deadline moves
// with every ubatch that is submitted, issued to a device or known to be computed.

#include "ggml-turboprefill-impl.h"

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <exception>
#include <set>
#include <utility>

struct ggml_turboprefill_health {
    ggml_turboprefill_health();
    ~ggml_turboprefill_health();

    void    set(int64_t t_since_us, const std::string & what); // "": all is well
    int64_t stuck_us(std::string & what) const;

private:
    mutable std::mutex mutex;
    int64_t     since_us = 0;
    std::string text;
};

// of all contexts; never destroyed, because another static's destructor may free an engine
static std::mutex                      & g_mutex   = *new std::mutex;
static std::set<ggml_turboprefill_engine *> & g_engines = *new std::set<ggml_turboprefill_engine *>;
static std::set<ggml_turboprefill_health *> & g_healths = *new std::set<ggml_turboprefill_health *>;

ggml_turboprefill_health::ggml_turboprefill_health() {
    std::lock_guard<std::mutex> lock(g_mutex);
    g_healths.insert(this);
}

ggml_turboprefill_health::~ggml_turboprefill_health() {
    std::lock_guard<std::mutex> lock(g_mutex);
    g_healths.erase(this);
}

void ggml_turboprefill_health::set(int64_t t_since_us, const std::string & what) {
    std::lock_guard<std::mutex> lock(mutex);
    since_us = t_since_us;
    text     = what;
}

int64_t ggml_turboprefill_health::stuck_us(std::string & what) const {
    std::lock_guard<std::mutex> lock(mutex);
    what = text;
    return text.empty() ? 0 : ggml_time_us() - since_us;
}

std::shared_ptr<ggml_turboprefill_health> ggml_turboprefill_health_new() {
    return std::make_shared<ggml_turboprefill_health>();
}

int64_t ggml_turboprefill_stuck_us(const ggml_turboprefill_health * health, std::string & what) {
    if (health != nullptr) {
        return health->stuck_us(what);
    }
    std::lock_guard<std::mutex> lock(g_mutex);
    for (const auto * one : g_healths) {
        if (const int64_t t_us = one->stuck_us(what)) {
            return t_us;
        }
    }
    return 0;
}

//
// what each thread is doing
//

static std::string ggml_turboprefill_format(const char * fmt, ...) {
    char text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    return text;
}

// a worker that has not issued every ubatch to its device
static std::string ggml_turboprefill_describe_worker(const ggml_turboprefill_engine & engine, const ggml_turboprefill_worker & worker) {
    const char * device = worker.device.c_str();
    const auto doing    = (ggml_turboprefill_activity) worker.activity.doing.load(std::memory_order_relaxed);
    const int  other    = worker.activity.other.load(std::memory_order_relaxed);
    const char * peer   = other >= 0 ? engine.workers[other]->device.c_str() : "";
    switch (doing) {
        case GGML_TURBOPREFILL_WAITS_FOR_WORKER:  return ggml_turboprefill_format("%s waits for %s, in ubatch %" PRId64, device, peer, worker.n_issued);
        case GGML_TURBOPREFILL_WAITS_FOR_DEVICE: return ggml_turboprefill_format("%s waits for what %s was given, in ubatch %" PRId64, device, peer, worker.n_issued);
        default: break;
    }
    static const char * const verbs[] = { "", "its inputs", "its graph", "what it hands over", "the end of it" };
    int    n_nodes = 0;
    size_t n_bytes = 0;
    const ggml_turboprefill_slot & slot = *engine.slots[worker.n_issued % engine.params.n_slots];
    for (const auto & split : slot.splits) {
        if (engine.workers[split.backend_id].get() == &worker) {
            n_nodes += split.graph.n_nodes;
            for (const auto & input : split.inputs) {
                n_bytes += ggml_nbytes(input.dst);
            }
        }
    }
    return ggml_turboprefill_format("%s does not answer: ubatch %" PRId64 ", %s (%d nodes, %.1f KiB of inputs)", device, worker.n_issued,
            verbs[doing], n_nodes, n_bytes/1024.0);
}

// one line. the engine's mutex must be held
static std::string ggml_turboprefill_describe(const ggml_turboprefill_engine & engine) {
    std::vector<const ggml_turboprefill_worker *> order;
    for (const auto & worker : engine.workers) {
        if (worker->position >= 0) {
            order.push_back(worker.get());
        }
    }
    std::sort(order.begin(), order.end(), [](const auto * a, const auto * b) { return a->position < b->position; });

    const auto awaited = [&](const ggml_turboprefill_worker * worker) {
        const auto waits = [&](const ggml_turboprefill_waiter & waiter) {
            const int other = waiter.other.load(std::memory_order_relaxed);
            return waiter.doing == GGML_TURBOPREFILL_WAITS_FOR_DEVICE && other >= 0 && engine.workers[other].get() == worker;
        };
        return waits(engine.caller) || std::any_of(order.begin(), order.end(), [&](const auto * s) { return waits(s->activity); });
    };
    // devices that do not answer come first
    std::string first, others;
    for (const auto * worker : order) {
        if (awaited(worker)) {
            first += ggml_turboprefill_format("%s has not finished what it was given, up to ubatch %" PRId64 "; ", worker->device.c_str(), worker->n_issued - 1);
        }
        if (worker->n_issued < engine.n_submitted) {
            const int  doing = worker->activity.doing.load(std::memory_order_relaxed);
            const bool waits = doing == GGML_TURBOPREFILL_WAITS_FOR_WORKER || doing == GGML_TURBOPREFILL_WAITS_FOR_DEVICE;
            (waits ? others : first) += ggml_turboprefill_describe_worker(engine, *worker) + "; ";
        }
    }
    const int cause = engine.caller_cause;
    return first + others + (cause >= 0
        ? ggml_turboprefill_format("the caller waits: %s", ggml_turboprefill_cause_name((ggml_turboprefill_cause) cause))
        : ggml_turboprefill_format("the caller waits for nobody"));
}

//
// when the process is aborted
//

static thread_local std::string ggml_turboprefill_server;

void ggml_turboprefill_serves(const char * endpoint) {
    ggml_turboprefill_server = endpoint;
}

static ggml_abort_callback_t ggml_turboprefill_abort_before = nullptr;

// upstream's own message does not tell which server, worker and ubatch were involved
static void ggml_turboprefill_on_abort(const char * message) {
    if (!ggml_turboprefill_server.empty()) {
        fprintf(stderr, "TurboPrefill: RPC server %s does not answer any more, or with nonsense\n", ggml_turboprefill_server.c_str());
    }
    if (g_mutex.try_lock()) {
        for (auto * engine : g_engines) {
            if (engine->mutex.try_lock()) {
                if (engine->n_done < engine->n_submitted) {
                    fprintf(stderr, "TurboPrefill: the process ends with ubatches %" PRId64 " to %" PRId64 " in flight: %s\n",
                            engine->n_done.load(), engine->n_submitted - 1, ggml_turboprefill_describe(*engine).c_str());
                }
                engine->mutex.unlock();
            }
        }
        g_mutex.unlock();
    }
    if (ggml_turboprefill_abort_before != nullptr) {
        ggml_turboprefill_abort_before(message);
        return;
    }
    fprintf(stderr, "%s\n", message);
    ggml_print_backtrace();
}

//
// watchdog
//

struct ggml_turboprefill_watchdog {
    ggml_turboprefill_watchdog(ggml_turboprefill_engine * engine, int64_t limit_us) : engine(engine), limit_us(limit_us) {
        static const bool installed = [] {
            ggml_turboprefill_abort_before = ggml_set_abort_callback(ggml_turboprefill_on_abort);
            return true;
        }();
        GGML_UNUSED(installed);
        {
            std::lock_guard<std::mutex> lock(g_mutex);
            g_engines.insert(engine);
        }
        if (limit_us > 0) {
            try {
                thread = std::thread([this] { watch(); });
            } catch (const std::exception & err) {
                GGML_LOG_WARN("%s: no watchdog: %s\n", __func__, err.what());
            }
        }
    }

    ~ggml_turboprefill_watchdog() {
        {
            std::lock_guard<std::mutex> lock(mutex);
            stop = true;
        }
        wake.notify_all();
        if (thread.joinable()) {
            thread.join();
        }
        std::lock_guard<std::mutex> lock(g_mutex);
        g_engines.erase(engine);
    }

private:
    ggml_turboprefill_engine * engine;
    const int64_t         limit_us;

    std::mutex              mutex;
    std::condition_variable wake;
    bool                    stop = false;
    std::thread             thread;

    // changes with any progress
    int64_t n_steps() const {
        int64_t n = engine->n_submitted + engine->n_done;
        for (const auto & worker : engine->workers) {
            n += worker->n_issued;
        }
        return n;
    }

    bool somebody_waits() const {
        return engine->caller_cause >= 0 || std::any_of(engine->workers.begin(), engine->workers.end(), [&](const auto & worker) {
            return worker->n_issued < engine->n_submitted;
        });
    }

    void watch() {
        const auto period = std::chrono::microseconds(std::clamp<int64_t>(limit_us/8, 1000, 1000*1000));
        int64_t n_seen  = -1;
        int64_t t_moved = 0;
        int64_t t_seen  = ggml_time_us();
        bool    told    = false;

        std::unique_lock<std::mutex> lock(mutex);
        while (!wake.wait_for(lock, period, [this] { return stop; })) {
            const int64_t now = ggml_time_us();
            const int64_t gap = now - std::exchange(t_seen, now);
            if (gap > limit_us/2 + period.count()) {
                t_moved += gap; // the process was stopped, or the machine asleep: no progress was possible
            }
            std::string text;
            bool        goes_on = false;
            bool        moved   = false;
            {
                std::lock_guard<std::mutex> engine_lock(engine->mutex);
                const int64_t n = n_steps();
                if (n != n_seen || !somebody_waits()) {
                    goes_on = std::exchange(told, false);
                    n_seen  = n;
                    moved   = true;
                } else if (!told && now - t_moved >= limit_us) {
                    text = ggml_turboprefill_describe(*engine);
                }
            }
            // without the lock: a log callback may be slow, or ask for statistics
            if (goes_on) {
                GGML_LOG_WARN("TurboPrefill: progress again after %.1f s\n", (now - t_moved)/1e6);
                engine->params.health->set(0, "");
            }
            if (moved) {
                t_moved = now;
            }
            if (!text.empty()) {
                GGML_LOG_ERROR("TurboPrefill: no progress for %.1f s: %s\n", (now - t_moved)/1e6, text.c_str());
                engine->params.health->set(t_moved, text);
                told = true;
            }
        }
        if (told) {
            engine->params.health->set(0, "");
        }
    }
};

void ggml_turboprefill_watchdog_deleter::operator()(ggml_turboprefill_watchdog * watchdog) const {
    delete watchdog;
}

void ggml_turboprefill_watch(ggml_turboprefill_engine * engine) {
    engine->watchdog.reset(new ggml_turboprefill_watchdog(engine, (int64_t) (1e6*engine->params.watchdog_s)));
}
