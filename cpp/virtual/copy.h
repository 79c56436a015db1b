// copies bytes. a failed copy leaves bytes that are NaN as floats and invalid as indices

#pragma once

#include <cstring>

inline void virt_move(void * to, const void * from, size_t size, bool good) {
    if (good) {
        memcpy(to, from, size);
    } else {
        memset(to, 0xff, size);
    }
}
