#include "snapshot.h"

#include <algorithm>

// rows that a node multiplies with weights. the output layer may have fewer than tokens, normalizations per head have more
static int64_t virt_node_tokens(const ggml_tensor * node) {
    const ggml_tensor * weights = node->src[0];
    if (!weights || !weights->buffer || ggml_backend_buffer_get_usage(weights->buffer) != GGML_BACKEND_BUFFER_USAGE_WEIGHTS) {
        return 0;
    }
    switch (node->op) {
        case GGML_OP_MUL_MAT:    return node->ne[1]*node->ne[2]*node->ne[3];
        case GGML_OP_MUL_MAT_ID: return node->ne[2];
        default:                 return 0;
    }
}

// a tensor that is not a node is computed elsewhere: only the address of its data is needed, not its sources
ggml_tensor * virt_snapshot::copy_of(const ggml_tensor * tensor) {
    if (!tensor) {
        return nullptr;
    }
    const auto known = copies.find(tensor);
    if (known != copies.end()) {
        return known->second;
    }
    tensors.push_back(*tensor);
    ggml_tensor * res = &tensors.back();
    copies[tensor] = res;

    std::fill(std::begin(res->src), std::end(res->src), nullptr);
    res->view_src = copy_of(tensor->view_src);
    return res;
}

virt_snapshot::virt_snapshot(const ggml_cgraph * graph) {
    ggml_init_params params = { ggml_graph_overhead_custom(std::max(graph->n_nodes, 1), false), nullptr, /*.no_alloc =*/ true };
    ctx.reset(ggml_init(params));
    copy = ggml_new_graph_custom(ctx.get(), std::max(graph->n_nodes, 1), false);
    copies.reserve(2*graph->n_nodes);

    for (int i = 0; i < graph->n_nodes; i++) {
        const ggml_tensor * node = graph->nodes[i];
        ggml_tensor * res = copy_of(node);
        for (int j = 0; j < GGML_MAX_SRC; j++) {
            res->src[j] = copy_of(node->src[j]);
        }
        copy->nodes[i] = res;
        tokens = std::max(tokens, virt_node_tokens(node));

        // the CPU backend fuses nodes that are used once
        if (graph->visited_hash_set.size > 0) {
            const size_t pos = ggml_hash_find(&graph->visited_hash_set, node);
            if (pos != GGML_HASHSET_FULL && ggml_bitset_get(graph->visited_hash_set.used, pos)) {
                copy->use_counts[ggml_hash_insert(&copy->visited_hash_set, res)] = graph->use_counts[pos];
            }
        }
    }
    copy->n_nodes = graph->n_nodes;
}
