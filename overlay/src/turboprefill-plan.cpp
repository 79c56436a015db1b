// TurboPrefill: the kinds of graphs that prompts consist of, and a plan for the largest of each
//
// A plan has the address of each tensor of a graph in the compute buffers. It suits every smaller graph of its kind, so it
// is made for as many tokens as a ubatch can have, and for all cells of the memory. A graph is of another kind without
// results (backends fuse differently around empty tensors), with embeddings instead of tokens, and in some models with so
// few tokens that it is built differently.

#include "turboprefill-compat.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <exception>

// up to this many tokens, graphs of models that are partly on the CPU are built differently
static const uint32_t LLAMA_TURBOPREFILL_N_TOKENS_FEW = 31;

// Marks up to n_outputs tokens as outputs; of a sequence with a sampler at most n_max_per_seq, because each adds nodes to
// the graph. Returns how many were marked.
template <typename Samplers>
static uint32_t llama_turboprefill_set_outputs(llama_ubatch & ubatch, uint32_t n_outputs, uint32_t n_max_per_seq, const Samplers & samplers) {
    uint32_t n = 0;
    for (uint32_t t = 0; t < ubatch.n_seq_tokens; ++t) {
        for (uint32_t s = 0; s < ubatch.n_seqs; ++s) {
            const bool may = samplers.count(s) == 0 || t < n_max_per_seq;
            ubatch.output[s*ubatch.n_seq_tokens + t] = may && n < n_outputs;
            n += may && n < n_outputs;
        }
    }
    return n;
}

// plans the largest graph with n_tokens, or a few more so that all sequences have the same number. the scheduler is empty
// before and after
bool llama_turboprefill::plan_worst_case(uint32_t n_tokens, bool has_outputs, const llama_ubatch * like, llm_graph_type gtype) {
    const uint32_t n_seqs = ctx.cparams.n_seq_max;
    n_tokens = (n_tokens + n_seqs - 1)/n_seqs*n_seqs;

    uint32_t n_outputs = 0;
    if (has_outputs) {
        n_outputs = ctx.cparams.embeddings ? n_tokens : std::min(n_tokens, compat::n_outputs_max(ctx.cparams));
    }

    llama_memory_context_ptr mctx = ctx.memory->init_full();
    if (!mctx) {
        return false;
    }

    llama_batch_allocr balloc(ctx.model.hparams.n_pos_per_embd());
    llama_ubatch ubatch = balloc.ubatch_reserve(n_tokens/n_seqs, n_seqs);
    for (uint32_t i = 0; i < n_tokens; ++i) {
        ubatch.n_seq_id[i] = 1;
        ubatch.seq_id  [i] = &ubatch.seq_id_unq[i/ubatch.n_seq_tokens];
    }
    n_outputs = llama_turboprefill_set_outputs(ubatch, n_outputs, compat::n_outputs_max_per_seq(ctx.cparams), ctx.sampling.samplers);
    if (like && like->embd) {
        ubatch.data->embd.resize(1); // only its shape matters, which is the model's
        ubatch.embd  = ubatch.data->embd.data();
        ubatch.token = like->token ? ubatch.token : nullptr;
    }

    llm_graph_result res(ctx.get_gf_res_reserve()->get_max_nodes());
    res.reset();

    const struct restore {
        llama_context & ctx;
        const decltype(ctx.n_outputs) n_outputs;
        ~restore() { ctx.n_outputs = n_outputs; }
    } restore_outputs = { ctx, ctx.n_outputs };

    ctx.n_outputs = n_outputs;
    ggml_cgraph * gf = ctx.model.build_graph(ctx.graph_params(&res, ubatch, mctx.get(), gtype));

    return gf && ggml_turboprefill_plan_graph(engine, gf);
}

uint32_t llama_turboprefill::n_tokens_max() const {
    return std::min(ctx.cparams.n_ctx, n_ubatch != 0 ? n_ubatch : ctx.cparams.n_ubatch);
}

uint32_t llama_turboprefill::n_tokens_few() const {
    const uint32_t n_seqs = ctx.cparams.n_seq_max;
    return std::min(n_tokens_max(), std::max(LLAMA_TURBOPREFILL_N_TOKENS_FEW/n_seqs, 1u)*n_seqs);
}

// called when the context is created, so that prompts don't stop for these. false: out of memory
bool llama_turboprefill::plan_known_kinds() {
    if (!ctx.memory || !compat::is_default_type(ctx.cparams)) {
        return true;
    }
    bool ok = true;
    for (const uint32_t n_tokens : { 1u, n_tokens_few(), n_tokens_max() }) {
        for (const bool has_outputs : { false, true }) {
            // in a context for embeddings, all tokens are outputs
            if (has_outputs || !ctx.cparams.embeddings) {
                ok = ok && plan_worst_case(n_tokens, has_outputs, nullptr, LLM_GRAPH_TYPE_DEFAULT);
            }
        }
    }
    for (size_t i = 0; i < ctx.backend_ptrs.size(); ++i) {
        ctx.backend_buf_exp_size[i] = ggml_backend_sched_get_buffer_size(ctx.sched.get(), ctx.backend_ptrs[i]);
    }
    return ok;
}

// plans the i-th guess at the largest graph of this ubatch's kind. false: no more guesses
bool llama_turboprefill::plan_kind_of(const llama_ubatch & ubatch, llm_graph_type gtype, int i) {
    const uint32_t guesses[] = { n_tokens_max(), std::max(n_tokens_few(), ubatch.n_tokens), ubatch.n_tokens };
    if (i >= (int) (sizeof(guesses)/sizeof(guesses[0]))) {
        return false;
    }
    plan_worst_case(guesses[i], ctx.n_outputs > 0, &ubatch, gtype);
    return true;
}
