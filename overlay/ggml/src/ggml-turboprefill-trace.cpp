// turboprefill: timeline of the devices, from events around each split
//
// A lane per backend waits for the events in order. While a trace is taken, every split costs two events; without one it
// costs the test of a pointer.
//
// RPC events say that a command was sent, not that the server has executed it: an answer to a read does. The lane asks
// for it a moment later than the split was sent. If the read were queued at once, the next synchronization would wait for
// it, and the picture would show waits of the standard path that it does not have.

#include "ggml-turboprefill-impl.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>

#define TURBOPREFILL_TRACE_DELAY_US 1000

struct turboprefill_trace_mark {
    int64_t t_begin;
    int64_t t_end = 0; // if there are no events
    ggml_backend_event_ptr begin;
    ggml_backend_event_ptr end;
    turboprefill_span span;
    ggml_tensor result = {}; // to read from, if events are early; a copy, the graph may be gone by then
    char probe[16];
};

using turboprefill_trace_mark_ptr = std::unique_ptr<turboprefill_trace_mark>;

struct turboprefill_trace_lane {
    std::thread thread;
    std::deque<turboprefill_trace_mark_ptr> queue; // guarded by the trace's mutex
    turboprefill_trace_mark_ptr open; // begun, not yet ended; guarded by the trace's mutex
    int64_t t_last = 0;
    bool    busy   = false;
};

struct turboprefill_trace {
    std::mutex              mutex;
    std::condition_variable changed;
    std::map<ggml_backend_t, std::unique_ptr<turboprefill_trace_lane>> lanes;
    std::vector<turboprefill_span> spans;
    std::atomic<int> n_ubatches { 0 };
    bool stop = false;
};

static bool turboprefill_events_are_early(ggml_backend_t backend) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(backend->device);
    return reg != nullptr && strcmp(ggml_backend_reg_name(reg), "RPC") == 0;
}

static const ggml_tensor * turboprefill_last_result(const ggml_cgraph * graph) {
    for (int i = graph->n_nodes - 1; i >= 0; i--) {
        const ggml_tensor * node = graph->nodes[i];
        if (node->op != GGML_OP_NONE && node->view_src == nullptr && node->buffer != nullptr && ggml_nbytes(node) > 0) {
            return node;
        }
    }
    return nullptr;
}

static ggml_backend_event_ptr turboprefill_trace_record(ggml_backend_t backend) {
    ggml_backend_event_ptr event;
    if (backend->iface.event_record != nullptr) {
        event.reset(ggml_backend_event_new(backend->device));
    }
    if (event) {
        ggml_backend_event_record(event.get(), backend);
    }
    return event;
}

static void turboprefill_trace_watch(turboprefill_trace * trace, turboprefill_trace_lane * lane) {
    std::unique_lock<std::mutex> lock(trace->mutex);
    while (true) {
        trace->changed.wait(lock, [&] { return trace->stop || !lane->queue.empty(); });
        if (lane->queue.empty()) {
            return;
        }
        turboprefill_trace_mark_ptr mark = std::move(lane->queue.front());
        lane->queue.pop_front();
        lane->busy = true;
        lock.unlock();

        int64_t t_begin = mark->t_begin;
        int64_t t_end   = mark->t_end;
        if (mark->begin) {
            ggml_backend_event_synchronize(mark->begin.get());
            t_begin = ggml_time_us();
            if (mark->result.buffer != nullptr) {
                std::this_thread::sleep_for(std::chrono::microseconds(TURBOPREFILL_TRACE_DELAY_US));
                ggml_backend_tensor_get_async(mark->span.backend, &mark->result, mark->probe, 0, std::min(sizeof(mark->probe), ggml_nbytes(&mark->result)));
                mark->end = turboprefill_trace_record(mark->span.backend);
            }
            ggml_backend_event_synchronize(mark->end.get());
            t_end = ggml_time_us();
        }
        // the device was still at the split before
        mark->span.t_start_us = std::min(std::max(t_begin, lane->t_last), t_end);
        mark->span.t_end_us   = t_end;
        lane->t_last = t_end;

        lock.lock();
        trace->spans.push_back(mark->span);
        lane->busy = false;
        trace->changed.notify_all();
    }
}

static turboprefill_trace_lane & turboprefill_trace_get_lane(turboprefill_trace * trace, ggml_backend_t backend) {
    auto & lane = trace->lanes[backend];
    if (!lane) {
        lane = std::make_unique<turboprefill_trace_lane>();
        lane->thread = std::thread(turboprefill_trace_watch, trace, lane.get());
    }
    return *lane;
}

void turboprefill_trace_begin(turboprefill_trace * trace, ggml_backend_t backend) {
    if (trace == nullptr) {
        return;
    }
    auto mark = std::make_unique<turboprefill_trace_mark>();
    mark->t_begin = ggml_time_us();
    mark->begin   = turboprefill_trace_record(backend);

    std::lock_guard<std::mutex> lock(trace->mutex);
    turboprefill_trace_get_lane(trace, backend).open = std::move(mark);
}

void turboprefill_trace_end(turboprefill_trace * trace, ggml_backend_t backend, const ggml_cgraph * graph, int stage, int ubatch, bool pipelined) {
    if (trace == nullptr) {
        return;
    }
    turboprefill_trace_mark_ptr mark;
    {
        std::lock_guard<std::mutex> lock(trace->mutex);
        mark = std::move(turboprefill_trace_get_lane(trace, backend).open);
    }
    if (!mark) {
        return;
    }
    mark->span = { backend, stage, ubatch, pipelined, 0, 0 };

    if (mark->begin) {
        const ggml_tensor * last = turboprefill_events_are_early(backend) ? turboprefill_last_result(graph) : nullptr;
        if (last != nullptr) {
            mark->result = *last;
        } else {
            mark->end = turboprefill_trace_record(backend);
        }
    } else {
        ggml_backend_synchronize(backend);
        mark->t_end = ggml_time_us();
    }

    std::lock_guard<std::mutex> lock(trace->mutex);
    turboprefill_trace_get_lane(trace, backend).queue.push_back(std::move(mark));
    trace->changed.notify_all();
}

int turboprefill_trace_next_ubatch(turboprefill_trace * trace) {
    return trace ? trace->n_ubatches++ : 0;
}

int turboprefill_trace_cur_ubatch(turboprefill_trace * trace) {
    return trace ? trace->n_ubatches - 1 : 0;
}

turboprefill_trace * turboprefill_trace_new() {
    return new turboprefill_trace;
}

void turboprefill_trace_free(turboprefill_trace * trace) {
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

std::vector<turboprefill_span> turboprefill_trace_spans(turboprefill_trace * trace) {
    std::unique_lock<std::mutex> lock(trace->mutex);
    trace->changed.wait(lock, [&] {
        return std::all_of(trace->lanes.begin(), trace->lanes.end(), [](const auto & it) {
            return it.second->queue.empty() && !it.second->busy;
        });
    });
    std::vector<turboprefill_span> spans = trace->spans;
    std::stable_sort(spans.begin(), spans.end(), [](const auto & a, const auto & b) { return a.t_end_us < b.t_end_us; });
    return spans;
}
