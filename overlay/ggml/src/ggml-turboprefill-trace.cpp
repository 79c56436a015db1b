// turboprefill: timeline of the devices, from events around each split
//
// Each backend has a lane, a thread that waits for the events in order. A split costs two events while a trace is taken, and
// the test of a pointer otherwise.
//
// An RPC event means that a command was sent, not that the server has executed it; the reply to a read means that. The lane
// requests the read a moment after the split was sent. If it were queued at once, the next synchronization would wait for
// it, and the timeline would show waits that the standard path does not have.

#include "ggml-turboprefill-impl.h"
#include "ggml-alloc.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <utility>

#define GGML_TURBOPREFILL_TRACE_DELAY_US 1000

struct ggml_turboprefill_trace_mark {
    int64_t t_begin;
    int64_t t_end = 0; // set if there are no events
    ggml_backend_event_ptr begin;
    ggml_backend_event_ptr end;
    ggml_turboprefill_span span;
    bool ended     = false; // guarded by the trace's mutex, like abandoned
    bool abandoned = false; // it will never end: the split failed
};

using ggml_turboprefill_trace_mark_ptr = std::shared_ptr<ggml_turboprefill_trace_mark>;

struct ggml_turboprefill_trace_lane {
    std::thread thread;
    std::deque<ggml_turboprefill_trace_mark_ptr> queue; // guarded by the trace's mutex
    // something to read where events come too early. the graph's own tensors may be gone by then
    ggml_context_ptr        ctx;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor           * probe = nullptr;
    float                   answer;
    ggml_turboprefill_trace_mark_ptr open; // begun, not yet ended; guarded by the trace's mutex
    int64_t t_last = 0;
    bool    busy   = false;
};

struct ggml_turboprefill_trace {
    std::mutex              mutex;
    std::condition_variable changed;
    std::map<ggml_backend_t, std::unique_ptr<ggml_turboprefill_trace_lane>> lanes;
    std::vector<ggml_turboprefill_span> spans;
    std::atomic<int> n_ubatches { 0 };
    bool stop = false;
};

static bool ggml_turboprefill_events_are_early(ggml_backend_t backend) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(backend->device);
    return reg != nullptr && strcmp(ggml_backend_reg_name(reg), "RPC") == 0;
}

static ggml_backend_event_ptr ggml_turboprefill_trace_record(ggml_backend_t backend) {
    ggml_backend_event_ptr event;
    if (backend->iface.event_record != nullptr) {
        event.reset(ggml_backend_event_new(backend->device));
    }
    if (event) {
        ggml_backend_event_record(event.get(), backend);
    }
    return event;
}

static void ggml_turboprefill_trace_watch(ggml_turboprefill_trace * trace, ggml_turboprefill_trace_lane * lane) {
    std::unique_lock<std::mutex> lock(trace->mutex);
    while (true) {
        trace->changed.wait(lock, [&] { return trace->stop || !lane->queue.empty(); });
        if (lane->queue.empty()) {
            return;
        }
        ggml_turboprefill_trace_mark_ptr mark = std::move(lane->queue.front());
        lane->queue.pop_front();
        lane->busy = true;
        lock.unlock();

        // now, while the split is being launched: waiting for the launch first would show in the timeline
        int64_t t_begin = mark->t_begin;
        if (mark->begin) {
            ggml_backend_event_synchronize(mark->begin.get());
            t_begin = ggml_time_us();
        }

        lock.lock();
        trace->changed.wait(lock, [&] { return trace->stop || mark->ended || mark->abandoned; });
        if (!mark->ended) {
            lane->busy = false;
            trace->changed.notify_all();
            continue;
        }
        lock.unlock();

        int64_t t_end = mark->t_end;
        if (t_end == 0) {
            if (lane->probe != nullptr) {
                // requests on one connection are executed in order, so any reply will do
                std::this_thread::sleep_for(std::chrono::microseconds(GGML_TURBOPREFILL_TRACE_DELAY_US));
                ggml_backend_tensor_get_async(mark->span.backend, lane->probe, &lane->answer, 0, sizeof(lane->answer));
                mark->end = ggml_turboprefill_trace_record(mark->span.backend);
            }
            if (mark->end) {
                ggml_backend_event_synchronize(mark->end.get());
            }
            t_end = ggml_time_us();
        }
        // before t_last, the device was still computing the previous split
        mark->span.t_start_us = std::min(std::max(t_begin, lane->t_last), t_end);
        mark->span.t_end_us   = t_end;
        lane->t_last = t_end;

        lock.lock();
        trace->spans.push_back(mark->span);
        lane->busy = false;
        trace->changed.notify_all();
    }
}

static ggml_turboprefill_trace_lane & ggml_turboprefill_trace_get_lane(ggml_turboprefill_trace * trace, ggml_backend_t backend) {
    auto & lane = trace->lanes[backend];
    if (!lane) {
        lane = std::make_unique<ggml_turboprefill_trace_lane>();
        if (ggml_turboprefill_events_are_early(backend)) {
            ggml_init_params params = { ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true };
            lane->ctx.reset(ggml_init(params));
            lane->probe = ggml_new_tensor_1d(lane->ctx.get(), GGML_TYPE_F32, 1);
            lane->buffer.reset(ggml_backend_alloc_ctx_tensors(lane->ctx.get(), backend));
            if (!lane->buffer) {
                lane->probe = nullptr;
            }
        }
        lane->thread = std::thread(ggml_turboprefill_trace_watch, trace, lane.get());
    }
    return *lane;
}

// a split that was begun will never end
static void ggml_turboprefill_trace_abandon(ggml_turboprefill_trace_lane & lane) {
    if (lane.open) {
        lane.open->abandoned = true;
        lane.open.reset();
    }
}

void ggml_turboprefill_trace_begin(ggml_turboprefill_trace * trace, ggml_backend_t backend) {
    if (trace == nullptr) {
        return;
    }
    auto mark = std::make_shared<ggml_turboprefill_trace_mark>();
    mark->t_begin = ggml_time_us();
    mark->begin   = ggml_turboprefill_trace_record(backend);

    std::lock_guard<std::mutex> lock(trace->mutex);
    auto & lane = ggml_turboprefill_trace_get_lane(trace, backend);
    ggml_turboprefill_trace_abandon(lane);
    lane.open = mark;
    lane.queue.push_back(std::move(mark));
    trace->changed.notify_all();
}

void ggml_turboprefill_trace_end(ggml_turboprefill_trace * trace, ggml_backend_t backend, int stage, int ubatch, bool pipelined) {
    if (trace == nullptr) {
        return;
    }
    ggml_turboprefill_trace_mark_ptr mark;
    bool probed;
    {
        std::lock_guard<std::mutex> lock(trace->mutex);
        auto & lane = ggml_turboprefill_trace_get_lane(trace, backend);
        mark   = std::move(lane.open);
        probed = lane.probe != nullptr;
    }
    if (!mark) {
        return;
    }
    mark->span = { backend, stage, ubatch, pipelined, 0, 0 };

    if (mark->begin) {
        if (!probed) {
            mark->end = ggml_turboprefill_trace_record(backend);
        }
    }
    if (!mark->end && !(mark->begin && probed)) {
        ggml_backend_synchronize(backend);
        mark->t_end = ggml_time_us();
    }

    std::lock_guard<std::mutex> lock(trace->mutex);
    mark->ended = true;
    trace->changed.notify_all();
}

int ggml_turboprefill_trace_next_ubatch(ggml_turboprefill_trace * trace) {
    return trace ? trace->n_ubatches++ : 0;
}

int ggml_turboprefill_trace_cur_ubatch(ggml_turboprefill_trace * trace) {
    return trace ? trace->n_ubatches - 1 : 0;
}

ggml_turboprefill_trace * ggml_turboprefill_trace_new() {
    return new ggml_turboprefill_trace;
}

void ggml_turboprefill_trace_free(ggml_turboprefill_trace * trace) {
    if (trace == nullptr) {
        return;
    }
    {
        std::lock_guard<std::mutex> lock(trace->mutex);
        trace->stop = true;
    }
    trace->changed.notify_all();
    for (auto & [backend, lane] : trace->lanes) {
        GGML_UNUSED(backend);
        lane->thread.join();
    }
    delete trace;
}

std::vector<ggml_turboprefill_span> ggml_turboprefill_trace_spans(ggml_turboprefill_trace * trace) {
    std::unique_lock<std::mutex> lock(trace->mutex);
    for (auto & [backend, lane] : trace->lanes) {
        GGML_UNUSED(backend);
        ggml_turboprefill_trace_abandon(*lane);
    }
    trace->changed.notify_all();
    trace->changed.wait(lock, [&] {
        return std::all_of(trace->lanes.begin(), trace->lanes.end(), [](const auto & it) {
            return it.second->queue.empty() && !it.second->busy;
        });
    });
    std::vector<ggml_turboprefill_span> spans = trace->spans;
    std::stable_sort(spans.begin(), spans.end(), [](const auto & a, const auto & b) { return a.t_end_us < b.t_end_us; });
    return spans;
}
