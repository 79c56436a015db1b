// TurboPrefill: attention masks of captured ubatches

#pragma once

// while one exists, masks that are set on its thread are those of a captured ubatch
struct llama_turboprefill_masks {
    llama_turboprefill_masks();
    ~llama_turboprefill_masks();

    llama_turboprefill_masks(const llama_turboprefill_masks &) = delete;
    llama_turboprefill_masks & operator=(const llama_turboprefill_masks &) = delete;
};
