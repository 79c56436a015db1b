// moves bytes. those of a copy that failed are no good: NaN as numbers, and no valid index

#pragma once

#include <cstring>

inline void virt_move(void * to, const void * from, size_t size, bool good) {
    if (good) {
        memcpy(to, from, size);
    } else {
        memset(to, 0xff, size);
    }
}
