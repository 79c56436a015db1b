// an in-order queue of work with its own thread, and moments in it that other queues and the host can wait for

#pragma once

#include "counters.h"

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

// a point in a stream. it does not refer to the stream, so a wait may outlive it
struct virt_moment {
    void reach();
    void wait();

private:
    std::mutex              mutex;
    std::condition_variable changed;
    bool                    reached = false;
};

using virt_moment_ptr = std::shared_ptr<virt_moment>;

struct virt_stream {
    virt_stream();
    ~virt_stream(); // finishes what was queued

    void            push(std::function<void()> work);
    virt_moment_ptr mark();                          // reached when everything queued before is done
    void            wait(virt_moment_ptr moment);    // what is queued after this waits for the moment
    void            synchronize() { mark()->wait(); }

private:
    std::mutex                        mutex;
    std::condition_variable           changed;
    std::deque<std::function<void()>> queue;
    bool                              stop = false;

    virt_alive  alive { virt_get_counters().streams };
    std::thread thread; // declared last: it uses the others

    void run();
};
