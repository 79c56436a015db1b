#include "stream.h"

#include <utility>

virt_counters & virt_get_counters() {
    static virt_counters * counters = new virt_counters; // never destroyed: streams may end after all statics
    return *counters;
}

void virt_moment::reach() {
    {
        std::lock_guard<std::mutex> lock(mutex);
        reached = true;
    }
    changed.notify_all();
}

void virt_moment::wait() {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return reached; });
}

virt_stream::virt_stream() : thread([this] { run(); }) {}

virt_stream::~virt_stream() {
    {
        std::lock_guard<std::mutex> lock(mutex);
        stop = true;
    }
    changed.notify_one();
    thread.join();
}

void virt_stream::push(std::function<void()> work) {
    {
        std::lock_guard<std::mutex> lock(mutex);
        queue.push_back(std::move(work));
    }
    changed.notify_one();
}

virt_moment_ptr virt_stream::mark() {
    auto moment = std::make_shared<virt_moment>();
    push([moment] { moment->reach(); });
    return moment;
}

void virt_stream::wait(virt_moment_ptr moment) {
    push([moment] { moment->wait(); });
}

void virt_stream::run() {
    virt_alive counted(virt_get_counters().threads);

    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
        changed.wait(lock, [&] { return stop || !queue.empty(); });
        if (queue.empty()) {
            return;
        }
        auto work = std::move(queue.front());
        queue.pop_front();
        lock.unlock();
        work();
        work = nullptr; // frees what it holds now, not after the next wait
        lock.lock();
    }
}
