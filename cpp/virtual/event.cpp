// events of virtual devices: an event is the last moment that was recorded in it. a wait keeps the moment that it found, so
// the event may be recorded again, on any stream, or freed meanwhile
//
// A lost event, as configured, is not reached until its stream has come to it and it was released.

#include "event.h"

#include "device.h"

#include <utility>
#include <vector>

struct virt_event {
    std::mutex      mutex;
    virt_moment_ptr moment; // nullptr: never recorded, does not block
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
    if (!virt_device_of(dev)->next_new_event()) {
        return nullptr;
    }
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

//
// lost events
//

struct virt_lost {
    virt_moment_ptr moment   = std::make_shared<virt_moment>();
    bool            passed   = false; // by its stream
    bool            released = false;
};

// never destroyed, like the devices
static std::mutex                              & virt_lost_mutex = *new std::mutex;
static std::vector<std::shared_ptr<virt_lost>> & virt_lost_all   = *new std::vector<std::shared_ptr<virt_lost>>;

static virt_moment_ptr virt_mark_lost(virt_stream & stream) {
    auto lost = std::make_shared<virt_lost>();
    {
        std::lock_guard<std::mutex> lock(virt_lost_mutex);
        virt_lost_all.push_back(lost);
    }
    stream.push([lost] {
        std::lock_guard<std::mutex> lock(virt_lost_mutex);
        lost->passed = true;
        if (lost->released) {
            lost->moment->reach();
        }
    });
    return lost->moment;
}

int64_t virt_event_release() {
    std::lock_guard<std::mutex> lock(virt_lost_mutex);
    const auto n = (int64_t) virt_lost_all.size();
    for (auto & lost : virt_lost_all) {
        lost->released = true;
        if (lost->passed) {
            lost->moment->reach();
        }
    }
    virt_lost_all.clear();
    return n;
}

//
// record and wait
//

void virt_event_record(ggml_backend_event_t event, virt_stream & stream) {
    auto moment = virt_device_of(event->device)->next_event() ? stream.mark() : virt_mark_lost(stream);
    std::lock_guard<std::mutex> lock(virt_event_of(event)->mutex);
    virt_event_of(event)->moment = std::move(moment);
}

void virt_event_wait(ggml_backend_event_t event, virt_stream & stream) {
    if (auto moment = virt_event_moment(event)) {
        stream.wait(std::move(moment));
    }
}
