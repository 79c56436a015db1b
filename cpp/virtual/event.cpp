// an event is the last moment that was recorded in it. who waits keeps the moment of that time: recording it again, on
// this stream or another, does not change what they wait for, and the event itself may be freed

#include "event.h"

#include "device.h"

struct virt_event {
    std::mutex      mutex;
    virt_moment_ptr moment; // nullptr: never recorded, nobody waits
    virt_alive      alive { virt_get_counters().events };
};

static virt_event * virt_event_of(ggml_backend_event_t event) {
    return (virt_event *) event->context;
}

static virt_moment_ptr virt_event_moment(ggml_backend_event_t event) {
    std::lock_guard<std::mutex> lock(virt_event_of(event)->mutex);
    return virt_event_of(event)->moment;
}

ggml_backend_event_t virt_event_new(ggml_backend_dev_t dev) {
    return new ggml_backend_event { dev, new virt_event };
}

void virt_event_free(ggml_backend_dev_t /*dev*/, ggml_backend_event_t event) {
    delete virt_event_of(event);
    delete event;
}

void virt_event_synchronize(ggml_backend_dev_t /*dev*/, ggml_backend_event_t event) {
    if (auto moment = virt_event_moment(event)) {
        moment->wait();
    }
}

void virt_event_record(ggml_backend_event_t event, virt_stream & stream) {
    auto moment = stream.mark();
    std::lock_guard<std::mutex> lock(virt_event_of(event)->mutex);
    virt_event_of(event)->moment = std::move(moment);
}

void virt_event_wait(ggml_backend_event_t event, virt_stream & stream) {
    if (auto moment = virt_event_moment(event)) {
        stream.wait(std::move(moment));
    }
}
