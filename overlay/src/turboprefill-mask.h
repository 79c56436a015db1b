// TurboPrefill: attention masks of captured ubatches

#pragma once

// while one exists, masks that its thread is asked for are those of a captured ubatch
struct llama_turboprefill_masks {
    llama_turboprefill_masks();
    ~llama_turboprefill_masks();

    llama_turboprefill_masks(const llama_turboprefill_masks &) = delete;
    llama_turboprefill_masks & operator=(const llama_turboprefill_masks &) = delete;
};
