// virtual time: work takes at least this long, including the time that it really takes

#pragma once

#include <chrono>
#include <thread>

struct virt_pace {
    explicit virt_pace(double us) : end(std::chrono::steady_clock::now() + std::chrono::nanoseconds((int64_t) (1e3*us))) {}
    ~virt_pace() { std::this_thread::sleep_until(end); }

    virt_pace(const virt_pace &) = delete;
    virt_pace & operator=(const virt_pace &) = delete;

private:
    const std::chrono::steady_clock::time_point end;
};
