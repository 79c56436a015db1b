// turboprefill: plans for the graph allocator, beside its own (private to ggml-base, C)
//
// The allocator keeps one plan: the address of each tensor of the graph that was reserved last. A prompt has a few kinds of
// graphs, with and without results, with tokens or embeddings. With a single plan, each change of kind would plan again, and
// wait for everything in flight. So each kind keeps a plan of its own. All plans share the allocator's buffers, like graphs
// that are computed one after the other.

#pragma once

#include "ggml-alloc.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_turboprefill_plan;

struct ggml_turboprefill_plan * ggml_turboprefill_plan_new (void);
void                       ggml_turboprefill_plan_free(struct ggml_turboprefill_plan * plan);

// Plans the graph. false: the allocator's buffers are too small
bool ggml_turboprefill_plan_make(struct ggml_turboprefill_plan * plan, ggml_gallocr_t galloc, struct ggml_cgraph * graph, const int * node_ids, const int * leaf_ids);

// The same, and lets the buffers grow as needed: nothing may be in flight. false: out of memory
bool ggml_turboprefill_plan_grow(struct ggml_turboprefill_plan * plan, ggml_gallocr_t galloc, struct ggml_cgraph * graph, const int * node_ids, const int * leaf_ids);

bool ggml_turboprefill_plan_fits(const struct ggml_turboprefill_plan * plan, ggml_gallocr_t galloc, struct ggml_cgraph * graph);

// The buffer and offset that the plan has for a leaf. false: it has none
bool ggml_turboprefill_plan_find(const struct ggml_turboprefill_plan * plan, ggml_gallocr_t galloc, int i_leaf, ggml_backend_buffer_t * buffer, size_t * offset);

// Gives the tensors of a graph their addresses; the plan must fit. The allocator's own plan is left alone.
void ggml_turboprefill_plan_alloc(struct ggml_turboprefill_plan * plan, ggml_gallocr_t galloc, struct ggml_cgraph * graph);

#ifdef __cplusplus
}
#endif
