// turboprefill: plans of the graph allocator beside its own (private to ggml-base, C)
//
// The allocator keeps one plan: the addresses of all tensors of the graph that was reserved last. Graphs of a prompt come
// in a few kinds, with and without rows for results, with tokens and with embeddings, and with one plan the change from
// one kind to another is a new plan, which waits for everything in flight. Here each kind keeps its own. All of them
// share the allocator's buffers, as one graph after the other does.

#pragma once

#include "ggml-alloc.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_turboprefill_plan;

struct ggml_turboprefill_plan * ggml_turboprefill_plan_new (void);
void                       ggml_turboprefill_plan_free(struct ggml_turboprefill_plan * plan);

// Plans the graph. false: the allocator's buffers are too small for it
bool ggml_turboprefill_plan_make(struct ggml_turboprefill_plan * plan, ggml_gallocr_t galloc, struct ggml_cgraph * graph, const int * node_ids, const int * leaf_ids);

// The same, with buffers as large as needed: nothing may be in flight. false: no memory
bool ggml_turboprefill_plan_grow(struct ggml_turboprefill_plan * plan, ggml_gallocr_t galloc, struct ggml_cgraph * graph, const int * node_ids, const int * leaf_ids);

bool ggml_turboprefill_plan_fits(const struct ggml_turboprefill_plan * plan, ggml_gallocr_t galloc, struct ggml_cgraph * graph);

// Where the plan has a leaf: in which buffer, and how far in. false: nowhere
bool ggml_turboprefill_plan_find(const struct ggml_turboprefill_plan * plan, ggml_gallocr_t galloc, int i_leaf, ggml_backend_buffer_t * buffer, size_t * offset);

// Gives the tensors of a graph that fits their addresses. The allocator's own plan stays.
void ggml_turboprefill_plan_alloc(struct ggml_turboprefill_plan * plan, ggml_gallocr_t galloc, struct ggml_cgraph * graph);

#ifdef __cplusplus
}
#endif
