// turboprefill: places the tensors of a captured ubatch that the plan must not place: user inputs, boundaries that leave a
// device, and inputs that arrive at one

#include "ggml-turboprefill-impl.h"

bool ggml_turboprefill_is_user_input(const ggml_tensor * tensor) {
    const ggml_tensor * root = tensor->view_src ? tensor->view_src : tensor;
    return root->op == GGML_OP_NONE && (root->flags & GGML_TENSOR_FLAG_INPUT) != 0;
}

size_t ggml_turboprefill_padded_size(ggml_backend_buffer_type_t buft, const ggml_tensor * tensor) {
    return GGML_PAD(ggml_backend_buft_get_alloc_size(buft, tensor), ggml_backend_buft_get_alignment(buft));
}

void ggml_turboprefill_place(ggml_tensor * tensor, ggml_backend_buffer_t buffer, size_t offset) {
    tensor->buffer = buffer;
    tensor->data   = (char *) ggml_backend_buffer_get_base(buffer) + offset;
}

// bytes that user inputs take in the slot's host memory
static size_t ggml_turboprefill_user_bytes(const ggml_turboprefill_engine * engine, const std::vector<ggml_tensor *> & leafs) {
    size_t size = 0;
    for (const ggml_tensor * leaf : leafs) {
        size += ggml_turboprefill_padded_size(engine->host_buft, leaf);
    }
    return size;
}

std::vector<ggml_tensor *> ggml_turboprefill_user_inputs(const ggml_cgraph * graph) {
    std::vector<ggml_tensor *> leafs;
    for (int i = 0; i < graph->n_leafs; i++) {
        ggml_tensor * leaf = graph->leafs[i];
        if (leaf->view_src == nullptr && ggml_turboprefill_is_user_input(leaf)) {
            leafs.push_back(leaf);
        }
    }
    return leafs;
}

size_t ggml_turboprefill_graph_user_bytes(const ggml_turboprefill_engine * engine, const ggml_cgraph * graph) {
    return ggml_turboprefill_user_bytes(engine, ggml_turboprefill_user_inputs(graph));
}

// moves user inputs from the scheduler's host buffer, which all graphs share, to the slot's own host memory
bool ggml_turboprefill_place_user_inputs(ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot, ggml_cgraph * graph, const std::vector<ggml_tensor *> & leafs) {
    if (!ggml_turboprefill_reserve_host(engine, slot->host, ggml_turboprefill_user_bytes(engine, leafs))) {
        return false;
    }

    size_t offset = 0;
    for (ggml_tensor * leaf : leafs) {
        ggml_turboprefill_place(leaf, slot->host.get(), offset);
        offset += ggml_turboprefill_padded_size(engine->host_buft, leaf);
    }

    const auto follow = [&](ggml_tensor * tensor) {
        if (tensor->view_src != nullptr && tensor->view_src->buffer == slot->host.get()) {
            tensor->buffer = tensor->view_src->buffer;
            tensor->data   = (char *) tensor->view_src->data + tensor->view_offs;
        }
    };
    for (int i = 0; i < graph->n_leafs; i++) {
        follow(graph->leafs[i]);
    }
    for (int i = 0; i < graph->n_nodes; i++) {
        follow(graph->nodes[i]);
    }
    return true;
}

// places the boundaries that each worker hands over: in its outbox
bool ggml_turboprefill_place_outboxes(ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot) {
    for (size_t s = 0; s < engine->workers.size(); s++) {
        ggml_turboprefill_worker & worker = *engine->workers[s];
        if (!worker.has_outbox()) {
            continue;
        }
        std::vector<ggml_turboprefill_input *> leaving;
        size_t size = 0;
        for (auto & split : slot->splits) {
            for (auto & input : split.inputs) {
                if (input.source == (int) s) {
                    leaving.push_back(&input);
                    size += ggml_turboprefill_padded_size(worker.buft, input.src);
                }
            }
        }
        if (!ggml_turboprefill_reserve_outbox(engine, worker, size)) {
            return false;
        }
        size_t offset = 0;
        for (auto * input : leaving) {
            input->outbox = *input->src;
            input->outbox.view_src  = nullptr;
            input->outbox.view_offs = 0;
            ggml_turboprefill_place(&input->outbox, worker.outbox[slot->ubatch % GGML_TURBOPREFILL_N_OUTBOXES].get(), offset);
            offset += ggml_turboprefill_padded_size(worker.buft, input->src);
            if (ggml_backend_buffer_init_tensor(input->outbox.buffer, &input->outbox) != GGML_STATUS_SUCCESS) {
                return false;
            }
        }
    }
    return true;
}

// places the inputs of each split where they arrive: in a landing region, and before that in a staging region
bool ggml_turboprefill_place_inputs(ggml_turboprefill_engine * engine, ggml_turboprefill_slot * slot) {
    for (auto & split : slot->splits) {
        ggml_turboprefill_worker & worker = *engine->workers[split.backend_id];

        size_t n_staged = 0;
        for (auto & input : split.inputs) {
            if (input.source >= 0 && !ggml_turboprefill_make_link(engine, input.source, split.backend_id)) {
                input.offset = n_staged;
                n_staged += GGML_PAD(ggml_nbytes(input.src), GGML_TURBOPREFILL_STAGING_ALIGNMENT);
            }
        }
        if (n_staged > 0 && !ggml_turboprefill_reserve_staging(engine, worker, n_staged)) {
            return false;
        }

        if (ggml_backend_sched_get_n_copies(engine->sched) > 1) {
            continue; // already placed in front of the compute buffer, one region per copy
        }

        if (!split.inputs.empty() && !ggml_turboprefill_reserve_landing(engine, worker, ggml_turboprefill_sched_input_bytes(engine->sched, split.backend_id))) {
            return false;
        }
        size_t offset = 0;
        for (auto & input : split.inputs) {
            ggml_turboprefill_place(input.dst, worker.landing[slot->ubatch % GGML_TURBOPREFILL_N_LANDINGS].get(), offset);
            offset += ggml_turboprefill_padded_size(worker.buft, input.dst);
            if (ggml_backend_buffer_init_tensor(input.dst->buffer, input.dst) != GGML_STATUS_SUCCESS) {
                return false;
            }
        }
    }
    return true;
}
