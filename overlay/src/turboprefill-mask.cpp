// TurboPrefill: attention masks of captured ubatches
//
// llama.cpp writes the first row of a sequence cell by cell, and in every further row checks each cell whose position is
// near those of the ubatch. With a sliding window of 1024 and 512 tokens, that is a million branches, and takes longer than
// the rest of capture. But from one token to the next only a few cells change: those with positions between the two become
// visible, and those that leave the window become invisible. The bytes are the same.

#include "turboprefill-mask.h"

#include "llama-batch.h"
#include "llama-kv-cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <unordered_map>
#include <utility>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

static thread_local bool llama_turboprefill_masks_on = false;

llama_turboprefill_masks::llama_turboprefill_masks()  { llama_turboprefill_masks_on = true; }
llama_turboprefill_masks::~llama_turboprefill_masks() { llama_turboprefill_masks_on = false; }

namespace {

// what a token sees: positions up to its own, from begin() on
struct mask_window {
    llama_swa_type type;
    llama_pos      n;

    llama_pos begin(llama_pos p1) const {
        switch (type) {
            case LLAMA_SWA_TYPE_STANDARD: return p1 - n + 1;
            case LLAMA_SWA_TYPE_CHUNKED:  return (p1/n)*n;
            default:                      return 0;
        }
    }
};

using mask_cells = std::vector<std::pair<llama_pos, uint32_t>>; // by position

// rows of one sequence
template <typename T>
struct mask_rows {
    llama_pos last; // position of its last token

    std::vector<T> row;   // of the previous token
    mask_cells     enter; // cells that become visible after the first row
    mask_cells     leave; // cells that stop being visible after the first row
    size_t n_entered = 0;
    size_t n_left    = 0;
};

template <typename T> struct mask_value;
template <> struct mask_value<float> {
    static float keep() { return 0.0f; }
    static float drop() { return -INFINITY; }
};
template <> struct mask_value<ggml_fp16_t> {
    static ggml_fp16_t keep() { return ggml_fp32_to_fp16(0.0f); }
    static ggml_fp16_t drop() { return ggml_fp32_to_fp16(-INFINITY); }
};

} // namespace

static void llama_turboprefill_sort(mask_cells & cells) {
    // in order already, unless the cache was full or shared
    if (!std::is_sorted(cells.begin(), cells.end())) {
        std::sort(cells.begin(), cells.end());
    }
}

template <typename T>
static void llama_turboprefill_first_row(mask_rows<T> & rows, const llama_kv_cells & cells, llama_seq_id seq_id, llama_pos p1, const mask_window & window, int64_t n_kv) {
    const llama_pos begin      = window.begin(p1);
    const llama_pos begin_last = window.begin(rows.last);
    const T         keep       = mask_value<T>::keep();

    rows.row.assign(n_kv, mask_value<T>::drop());

    for (uint32_t j = 0; j < n_kv; j++) {
        if (cells.is_empty(j) || !cells.seq_has(j, seq_id)) {
            continue;
        }
        const llama_pos p0 = cells.pos_get(j);
        if (p0 < begin || p0 > rows.last) {
            continue;
        }
        if (p0 <= p1) {
            rows.row[j] = keep;
        } else {
            rows.enter.emplace_back(p0, j);
        }
        if (p0 < begin_last) {
            rows.leave.emplace_back(p0, j);
        }
    }
    llama_turboprefill_sort(rows.enter);
    llama_turboprefill_sort(rows.leave);
}

template <typename T>
static void llama_turboprefill_next_row(mask_rows<T> & rows, llama_pos p1, const mask_window & window) {
    const llama_pos begin = window.begin(p1);
    const T         keep  = mask_value<T>::keep();
    const T         drop  = mask_value<T>::drop();

    // in this order: a cell may enter and leave between two tokens
    for (; rows.n_entered < rows.enter.size() && rows.enter[rows.n_entered].first <= p1; rows.n_entered++) {
        rows.row[rows.enter[rows.n_entered].second] = keep;
    }
    for (; rows.n_left < rows.leave.size() && rows.leave[rows.n_left].first < begin; rows.n_left++) {
        rows.row[rows.leave[rows.n_left].second] = drop;
    }
}

// bypasses the caches: this thread does not read it again, and overwritten lines need not be fetched first
static void llama_turboprefill_write(void * dst, const void * src, size_t size) {
#ifdef __SSE2__
    if (size % sizeof(__m128i) == 0 && (uintptr_t) dst % sizeof(__m128i) == 0) {
        for (size_t i = 0; i < size/sizeof(__m128i); i++) {
            _mm_stream_si128((__m128i *) dst + i, _mm_loadu_si128((const __m128i *) src + i));
        }
        return;
    }
#endif
    memcpy(dst, src, size);
}

// false: nothing was written, because the tokens of a sequence are not in order of position, or because upstream's sums of
// positions would overflow, which is not worth reproducing
template <typename T>
static bool llama_turboprefill_fill(T * data, int64_t n_kv, const llama_ubatch & ubatch, const mask_window & window,
        const std::vector<llama_kv_cells> & v_cells, const std::vector<uint32_t> & seq_to_stream) {
    std::unordered_map<llama_seq_id, mask_rows<T>> seqs;
    for (uint32_t i = 0; i < ubatch.n_tokens; i++) {
        const auto [it, first] = seqs.try_emplace(ubatch.seq_id[i][0]);
        const llama_pos pos_max = std::numeric_limits<llama_pos>::max() - window.n - 32;
        if ((!first && it->second.last > ubatch.pos[i]) || ubatch.pos[i] > pos_max) {
            return false;
        }
        it->second.last = ubatch.pos[i];
    }

    for (uint32_t i = 0; i < ubatch.n_tokens; i++) {
        const llama_seq_id seq_id = ubatch.seq_id[i][0];
        mask_rows<T> & rows = seqs.at(seq_id);
        if (rows.row.empty()) {
            llama_turboprefill_first_row(rows, v_cells.at(seq_to_stream[seq_id]), seq_id, ubatch.pos[i], window, n_kv);
        } else {
            llama_turboprefill_next_row(rows, ubatch.pos[i], window);
        }
        llama_turboprefill_write(data + n_kv*i, rows.row.data(), n_kv*sizeof(T));
    }
#ifdef __SSE2__
    _mm_sfence(); // before another thread, a worker, uploads it
#endif
    return true;
}

bool llama_kv_cache::llama_turboprefill_set_mask(ggml_tensor * dst, const llama_ubatch & ubatch, bool causal) const {
    if (!llama_turboprefill_masks_on || !causal || hparams.use_alibi || ubatch.is_pos_2d()) {
        return false;
    }
    if (swa_type != LLAMA_SWA_TYPE_NONE && ((swa_type != LLAMA_SWA_TYPE_STANDARD && swa_type != LLAMA_SWA_TYPE_CHUNKED) || n_swa == 0)) {
        return false;
    }
    const mask_window window = { swa_type, (llama_pos) n_swa };
    if (dst->type == GGML_TYPE_F16) {
        return llama_turboprefill_fill((ggml_fp16_t *) dst->data, dst->ne[0], ubatch, window, v_cells, seq_to_stream);
    }
    return llama_turboprefill_fill((float *) dst->data, dst->ne[0], ubatch, window, v_cells, seq_to_stream);
}
